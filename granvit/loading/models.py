"""Every model, tokenizer, processor and config of an untrusted checkpoint is loaded here, and nowhere else.

No code of a checkpoint runs and nobody is asked whether it may; its files are checked before they are read
(`checkpoint_files.py`); a model has all its weights, and they are finite. Whatever `transformers` stumbles over in
somebody's files is a `LoadError` of one line.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import get_session, validate_repo_id
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, dynamic_module_utils
from transformers.utils import logging

from granvit.loading.checkpoint_files import INDEX, LoadError, check_folder, elements, find_damage, read_json, shards
from granvit.loading.gguf_file import GgufFile, alone, gguf_of, read_gguf, scale_positions

# A loader that drops our `trust_remote_code=False` on its way to a part's loader would have that one ask on standard
# input whether to run the checkpoint's code. With no time to answer there is no question and the answer is no.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

_TEXTS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_HUB_SECONDS = 3.0
# What to look into where a library's error names no file.
_FILE_OF = {
    "AutoConfig": "config.json",
    "AutoTokenizer": "tokenizer_config.json",
    "AutoImageProcessor": "preprocessor_config.json",
    "AutoProcessor": "processor_config.json",
}


def load(cls: Any, name: str | Path, **options: Any) -> Any:
    """A config, tokenizer, processor or image processor; `cls` is one of transformers' classes.

    Args:
        name: a folder, or a name on the hub; without a network what the hub's cache has of it. A config may also be a
            GGUF file's.

    Raises:
        LoadError: there is no such checkpoint, its code would be needed, or a file of it is damaged.
    """
    if cls is AutoConfig and (file := gguf_of(name)) is not None:
        return _gguf_config(read_gguf(file))
    folder = find(name)
    with _as_load_error(name, cls, folder):
        return _named(cls.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options), name)


def load_model(
    cls: Any, name: str | Path, *, dtype: torch.dtype | str, may_lack: tuple[str, ...] = (), **options: Any
) -> Any:
    """A model with the weights of a checkpoint, in evaluation mode; of safetensors alone, never of a pickle.

    Args:
        dtype: of the weights; "auto" as they are stored.
        may_lack: beginnings of the names of weights that need not be there, and are random then.

    Raises:
        LoadError: as `load`, or weights are missing, of the wrong shape or not finite.
    """
    folder = find(name, weights=True)
    config = load(AutoConfig, name)
    with _as_load_error(name, cls, folder):
        _check_size(cls, config, folder)
        model, info = _with_weights(cls, folder, config, dtype, use_safetensors=True, **options)
    _named(model, name)
    _check_loaded(model, info, name, may_lack)
    return model.eval()


def _named(loaded: Any, name: str | Path) -> Any:
    """Calls it by the name that was given, not by its folder in the hub's cache.

    It is loaded from the folder: by name, transformers asks the hub for an adapter, of local files alone or not, and
    without a network gives up after some twenty seconds.
    """
    called: Any
    for called in (loaded, getattr(loaded, "config", None)):
        if hasattr(called, "name_or_path"):
            called.name_or_path = str(name)
    return loaded


def _with_weights(cls: Any, source: Any, config: Any, dtype: torch.dtype | str, **options: Any) -> tuple[Any, Any]:
    """The model, and which weights it lacked or did not want; none of the checkpoint's code is run."""
    model, info = cls.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # named by `_check_loaded`
        **options,
    )
    return model, info


def _check_loaded(model: Any, info: Any, where: str | Path, may_lack: tuple[str, ...] = ()) -> None:
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith(may_lack))
    lacking += sorted(key for key, *_ in info["mismatched_keys"])
    if lacking:
        raise LoadError(where, f"weights missing or of the wrong shape: {lacking[:5]}")
    check_finite(model, where)


def _gguf_config(file: GgufFile) -> Any:
    with _as_load_error(file.path, None, file.path.parent), alone(file.path) as (folder, name):
        config = AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False, local_files_only=True)
    # What the file calls itself goes by no name that a config has.
    vars(config).pop("_model_name_or_path", None)
    scale_positions(config, file)
    config._name_or_path = file.path.name
    return config


def load_gguf(cls: Any, file: GgufFile, dtype: torch.dtype) -> Any:
    """A model with the weights of a GGUF file, dequantised, in evaluation mode; a stock one from here on.

    Raises:
        LoadError: weights are missing, of the wrong shape or not finite.
    """
    config = _gguf_config(file)
    _check_weights(cls, config, sum(file.elements.values()), file.path)
    with _as_load_error(file.path, None, file.path.parent), alone(file.path) as (folder, name):
        model, info = _with_weights(cls, folder, config, dtype, gguf_file=name)
    # It is quantised no more; left there they keep it from being saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = file.path.name
    _check_loaded(model, info, file.path)
    return model.eval()


def build(cls: Any, config: Any, **options: Any) -> Any:
    """A model of a config, with random weights; `cls` is a model's class or one of the Auto classes."""
    if hasattr(cls, "_from_config"):
        return cls._from_config(config, **options)
    return cls.from_config(config, trust_remote_code=False, **options)


def image_settings(name: str | Path) -> dict[str, Any]:
    """What a checkpoint's own image processor states, as an object; an empty one where it states nothing.

    Raises:
        LoadError: as `load`, or `image_mean` or `image_std` is not three numbers, a deviation not above 0.
    """
    whole = read_settings_of(name, "processor_config.json") or {}
    for file, stated in (
        ("processor_config.json", whole.get("image_processor")),
        ("preprocessor_config.json", read_settings_of(name, "preprocessor_config.json")),
    ):
        if isinstance(stated, dict):
            _check_colors(f"{name}/{file}", stated)
            return stated
    return {}


def _check_colors(where: str, stated: dict[str, Any]) -> None:
    for field, least in (("image_mean", -1e3), ("image_std", 1e-6)):
        values = stated.get(field, [1.0] * 3)
        if not isinstance(values, list) or len(values) != 3 or not all(_is_number(v, least) for v in values):
            raise LoadError(where, f"{field} is {json.dumps(values)[:60]}, not three numbers, one for each colour")


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= 1e3


def read_settings_of(name: str | Path, file: str) -> dict[str, Any] | None:
    """The content of one of a checkpoint's JSON files, such as "config.json"; None where it has no such file.

    Raises:
        LoadError: there is no such checkpoint, or the file cannot be read.
    """
    path = find(name) / file
    return read_json(path) if path.exists() else None


def check_finite(model: nn.Module, where: str | Path) -> None:
    """Raises `LoadError` where a weight, or a buffer, is NaN or a weight infinite; 50 million floats take 45 ms."""
    for name, tensor in model.named_parameters():
        if not all(bound.isfinite() for bound in _bounds(tensor)):
            raise LoadError(where, f"weight {name} is not finite (NaN or infinity)")
    for name, buffer in model.named_buffers():  # masks may be infinite
        if any(bound.isnan() for bound in _bounds(buffer)):
            raise LoadError(where, f"weight {name} is not finite (NaN)")


def _bounds(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.numel() == 0 or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return ()
    return tuple(tensor.detach().aminmax())


def _check_size(cls: Any, config: Any, folder: Path) -> None:
    """Refuses a config of more weights than the files hold: missing ones would be made, whatever their size."""
    if getattr(config, "quantization_config", None) is not None:
        return
    _check_weights(cls, config, sum(elements(path) for path in shards(folder)), f"{folder}/config.json")


def _check_weights(cls: Any, config: Any, stored: int, where: str | Path) -> None:
    with torch.device("meta"):
        wanted = sum(p.numel() for p in build(cls, copy.deepcopy(config)).parameters())
    if wanted > 2 * stored + 50_000_000:
        raise LoadError(where, f"a model of {wanted:,} weights, the files hold {stored:,}")


# --- where it is -----------------------------------------------------------------------------------------------------


def find(name: str | Path, weights: bool = False) -> Path:
    """The checked folder of a checkpoint; fetched where it must be.

    Raises:
        LoadError: there is no such checkpoint here, on the hub or, without a network, in the hub's cache; or a file of
            it leads elsewhere, is none, or says what cannot be.
    """
    if str(name) and Path(name).is_dir():
        check_folder(Path(name), weights)
        return Path(name)
    name = str(name)
    try:
        validate_repo_id(name)
    except ValueError:
        raise LoadError(name, "no such folder, and no name that the hub could have") from None
    if Path(name).exists():
        raise LoadError(name, "not a folder")
    folder = _download(name, weights) if hub_answers() else _cached(name)
    check_folder(folder, weights)
    return folder


def _download(name: str, weights: bool) -> Path:
    try:
        folder = Path(snapshot_download(name, allow_patterns=_TEXTS))
        check_folder(folder)
        if weights:
            snapshot_download(name, allow_patterns=[INDEX, *(path.name for path in shards(folder))])
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(name, f"no folder of that name, and not to be had from the hub: {one_line(error)}") from error
    return folder


def _cached(name: str) -> Path:
    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        raise LoadError(
            name, "no folder of that name, nothing of that name in the hub's cache, and the hub cannot be reached"
        )
    return Path(found).parent


@cache
def hub_answers() -> bool:
    """Whether the hub can be asked; found out once, within three seconds, whatever the network does."""
    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
            answered.set()
        except Exception:
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_SECONDS)
    return answered.is_set()


# --- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Within, the library prints errors alone."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _as_load_error(name: str | Path, cls: Any | None, folder: Path) -> Iterator[None]:
    """Whatever goes wrong inside is an error of the checkpoint: a `LoadError` that names the file where it can.

    The library's own warnings are not printed: what they warn of, a token beyond the vocabulary or a weight that is
    missing, is checked here and reported in one line.
    """
    try:
        with quiet():
            yield
    except LoadError:
        raise
    except BaseException as error:
        # A panic in the tokenizers' Rust is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if cls is None:  # of a single file, which has been looked at
            raise LoadError(name, f"cannot be loaded: {one_line(error)}") from error
        find_damage(folder)
        if "trust_remote_code" in str(error):
            raise LoadError(name, "needs code of its own (auto_map), which is never run") from error
        where = folder / _FILE_OF[cls.__name__] if cls.__name__ in _FILE_OF else name
        if cls is AutoProcessor:  # of several files: its tokenizer's, or its own
            load(AutoTokenizer, name)
        raise LoadError(where, f"cannot be loaded as {cls.__name__}: {one_line(error)}") from error


def one_line(error: BaseException, longest: int = 400) -> str:
    """What an error of a library says, in one line; its type where the words alone tell nothing."""
    words = " ".join(str(error).split())[:longest]
    return words if isinstance(error, OSError | ValueError) and words else f"{type(error).__name__}: {words}"
