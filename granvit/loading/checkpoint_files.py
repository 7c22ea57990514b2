"""The files of an untrusted checkpoint, checked before a library reads them: each is a file, lies where it says, and
states sizes that a model can have."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from granvit.errors import GranvitError
from granvit.files import check_nesting, is_inside, read_regular

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

# What loaders read as settings; tokenizers, vocabularies and indexes are tables, and larger.
_SETTINGS = re.compile(
    r"(granvit|base|config|(generation|preprocessor|video_preprocessor|processor|tokenizer|audio_tokenizer|adapter)_config|"
    r"special_tokens_map|added_tokens|chat_template)\.json|.*\.index\.json|.*\.jinja"
)
# Bytes.
_LARGEST_SETTINGS = 16_000_000
_LARGEST = 300_000_000
_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_DEEPEST = 64

# Fields by which a file sends its reader to another file, which is then not one that was checked.
_LEADING = ("configuration_files", "fast_tokenizer_files", "transformers_weights", "audio_tokenizer")
# Fields that name the code of attention: with a "/" in it that is code on the hub.
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")

# What config.json may state: name of the field, least, most. Far beyond any model there is; what they keep out is a
# list of a billion layers that is built before a weight is looked for.
_RANGES = (
    (r"(num_)?\w*layers|depths?|num_blocks", 0, 1_000),
    (r"num_labels", 0, 1_000_000),
    (r"(num_|n_)\w*heads|n_head", 1, 4_096),
    (r"num_channels|in_channels", 1, 4_096),
    (r"patch_size|tubelet_size", 1, 4_096),
    (r"image_size", 1, 16_384),
    (r"hidden_size|intermediate_size|embed_dim|head_dim|d_model|\w*ffn_dim", 1, 1 << 20),
    (r"vocab_size", 1, 1 << 24),
    (r"num_\w*experts\w*|num_queries|num_patches|projection_dim|image_seq_length|num_register_tokens", 0, 1 << 20),
    (r"max_position_embeddings", 1, 1 << 31),
)
_POSITIVE = ("rope_theta", "rms_norm_eps", "layer_norm_eps")


class LoadError(GranvitError):
    """A checkpoint that is not there, is damaged, or asks for what is not done: where, and the reason."""

    def __init__(self, where: str | Path, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = str(where), reason

    def within(self, name: str | Path) -> str:
        """The message where `name` stands in front of it already: "config.json: ..."."""
        return str(self).removeprefix(f"{name}: ").removeprefix(f"{name}/")

    def __reduce__(self) -> tuple[type[LoadError], tuple[str, str]]:
        return type(self), (self.where, self.reason)


def check_folder(folder: Path, weights: bool = False) -> None:
    """Look at every file of a folder that a loader could read, and at none of its tensors.

    Args:
        weights: whether its weights are wanted too.

    Raises:
        LoadError: a file is a pipe or a device, a link out of the folder or larger than any such file, is not JSON, or
            states what leads elsewhere or no model can have; the message names file and field.
    """
    check_files(folder)
    if (folder / "adapter_config.json").exists():
        raise LoadError(f"{folder}/adapter_config.json", "an adapter, no whole model; merge it into its base first")
    for path in shards(folder):
        if path.exists():
            _check_place(folder, path)
        elif weights and path.name != WEIGHTS:
            raise LoadError(folder / INDEX, f"weight_map names {path.name!r}, which is not there")


def check_files(folder: Path) -> None:
    """The same of each file alone, whatever the folder holds as a whole.

    Raises:
        LoadError: as `check_folder`.
    """
    for path in _files(folder):
        _check_place(folder, path)
        if path.suffix == ".json" and _SETTINGS.fullmatch(path.name):
            content = read_json(path)
            _check_fields(path, content)
            if path.name == "config.json":
                _check_ranges(path, content, "")


def _files(folder: Path) -> Iterator[Path]:
    """What loaders read: texts and weights, in the folder itself and in those right below it."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (*_TEXTS, ".safetensors"):
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from sorted(inner for inner in path.iterdir() if inner.suffix in _TEXTS)


def _check_place(folder: Path, path: Path) -> None:
    """Raises `LoadError` where a path is no regular file of this folder, or too large for a text."""
    try:
        real = path.resolve(strict=True)
        facts = real.stat()
    except (OSError, RuntimeError) as error:
        raise LoadError(path, f"a link that leads nowhere ({error})") from error
    home = folder.resolve()
    # The hub's cache keeps each file once, in blobs/, and links to it from snapshots/REVISION/.
    homes = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    if not any(real.is_relative_to(place) for place in homes):
        raise LoadError(path, f"a link out of the folder, to {real}; put the file itself there")
    if not stat.S_ISREG(facts.st_mode):
        raise LoadError(path, "not a regular file")
    most = _LARGEST_SETTINGS if _SETTINGS.fullmatch(path.name) else _LARGEST
    if path.suffix in _TEXTS and facts.st_size > most:
        raise LoadError(path, f"{facts.st_size:,} bytes, at most {most:,} are read")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        LoadError: it is not there, cannot be read, is no JSON object, or is nested deeper than any such file.
    """
    try:
        content = json.loads(read_regular(path, _LARGEST).decode("utf-8"))
        check_nesting(content, _DEEPEST)
    except FileNotFoundError:
        raise LoadError(path, "no such file") from None
    except RecursionError:
        raise LoadError(path, "not readable as JSON: nested too deep") from None
    except GranvitError as error:
        raise LoadError(path, str(error).removeprefix(f"{path}: ")) from error
    except (OSError, ValueError) as error:  # ValueError: also bytes that are no UTF-8, and endless numbers
        raise LoadError(path, f"not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise LoadError(path, "expected a JSON object")
    return content


def _check_fields(path: Path, content: dict[str, Any]) -> None:
    for name in _LEADING:
        if content.get(name) is not None:
            raise LoadError(path, f"{name}: a checkpoint is read from its own files by their usual names alone")
    for name, value in _walk(content):
        if name in _ATTENTION and "/" in json.dumps(value):
            raise LoadError(path, f"{name} is {value!r}: code from the hub is never run")
    if path.name == INDEX or path.name.endswith(".index.json"):
        named = content.get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
            raise LoadError(path, "weight_map is no object of file names")
        for file in named.values():
            if not is_inside(file) or not file.endswith(".safetensors"):
                raise LoadError(path, f"weight_map: {file!r} is no safetensors file of this folder")


def _walk(content: Any) -> Iterator[tuple[str, Any]]:
    """All fields, those of objects within objects and lists too."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield name, value
            yield from _walk(value)
    elif isinstance(content, list):
        for value in content:
            yield from _walk(value)


def _check_ranges(path: Path, content: dict[str, Any], prefix: str) -> None:
    """Raises `LoadError` where a size is no whole number that a model can have."""
    for name, value in content.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            _check_ranges(path, value, f"{prefix}{name}.")
        for pattern, least, most in _RANGES:
            if re.fullmatch(pattern, name) and not all(_is_size(v, least, most) for v in _numbers(value)):
                stated = json.dumps(value)[:60]
                raise LoadError(path, f"{prefix}{name} is {stated}, not a whole number from {least} to {most:,}")
        if name in _POSITIVE and not (isinstance(value, int | float) and 0 < value < 1e30):
            raise LoadError(path, f"{prefix}{name} is {json.dumps(value)[:60]}, not a positive number")


def _numbers(value: Any) -> list[Any]:
    """A size may be one number, one for each side or stage, or none."""
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _is_size(value: Any, least: int, most: int) -> bool:
    """A flag is no size, except where none is needed (`no_rope_layers` and its like)."""
    return isinstance(value, int) and not (isinstance(value, bool) and least) and least <= value <= most


# --- weights ---------------------------------------------------------------------------------------------------------


def shards(folder: Path) -> list[Path]:
    """The files of a folder's weights, as a loader takes them; they need not be there."""
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        _check_fields(folder / INDEX, index)
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return [folder / WEIGHTS]


def elements(path: Path) -> int:
    """How many numbers the tensors of a safetensors file have; none of them is read.

    Raises:
        LoadError: it is damaged or not there.
    """
    total = 0
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                count = 1
                for side in file.get_slice(name).get_shape():
                    count *= side
                total += count
    except (OSError, SafetensorError) as error:
        raise LoadError(path, f"{error}") from error
    return total


def find_damage(folder: Path) -> None:
    """Raises the `LoadError` of the first file that cannot be read; the libraries' errors often name none."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    for path in sorted(folder.glob("*.safetensors")):
        elements(path)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        try:
            Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library has no type of its own for it
            raise LoadError(tokenizer, f"no tokenizer: {error}") from error
