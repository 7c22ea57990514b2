"""A trained checkpoint becomes what other programs load: a stock LLaVA, the encoder alone, GGUF files, or an adapter.

What leaves here needs no granvit and no remote code. Before anything is written the stock classes are asked to do what
this package does, on pictures of several shapes: an export that would see another picture, other tokens or other
features than the model was trained on is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from granvit.errors import ExportError
from granvit.export.card import write_card
from granvit.export.facts import ExportSource, read_source
from granvit.export.licences import licence_of
from granvit.export.older_names import for_older, name_rope
from granvit.files import refuse_non_empty, staged_folder
from granvit.loading.models import LoadError, check_finite, hub_answers, load, one_line
from granvit.model.adapter import is_adapter, root_of, write_adapter
from granvit.model.assemble import save_encoder
from granvit.model.region_model import RegionModel, stock_classes
from granvit.model.settings import Precision
from granvit.questions import ask_global

Form = Literal["llava", "encoder", "gguf", "adapter"]

# Wide, tall, square, larger and smaller than any canvas: (width, height) in pixels.
_SHAPES = ((97, 61), (61, 97), (80, 80), (1500, 411), (13, 40))
_FITS = {"letterbox": "pictures padded to a square", "squash": "pictures stretched to a square"}
# A step of one grey level is at least 0.004 after normalisation.
_SAME_PIXELS = 1e-5
# Of the largest value.
_SAME_FEATURES = 1e-4
_QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask_global()}]}]


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        folder: where it lies.
        left_out: what could not be written, and why, for people.
    """

    folder: Path
    left_out: list[str] = field(default_factory=list)


def export(
    source: Path | str,
    out: Path | str,
    form: Form = "llava",
    *,
    precision: Precision = "float32",
    licence: str | None = None,
    licence_name: str | None = None,
    licence_link: str | None = None,
    metrics: Path | None = None,
) -> Exported:
    """Write a run's model for other programs, with a model card; `out` is whole or absent.

    Args:
        source: a run folder, or a checkpoint.
        form: "llava" for transformers and vLLM, "encoder" for any other stack, "gguf" for llama.cpp; in these LoRA is
            merged. "adapter" for peft: what a run with LoRA trained, apart from its base.
        precision: of the weights.
        licence: one that the hub knows, such as "apache-2.0", for the card; the card says that none is stated where it
            is None. "other" is any other, with `licence_name` and the address of its text, `licence_link`.
        metrics: a scores.json that `granvit eval` wrote; where it is None the scores that the run noted of its
            checkpoint (`granvit.export.facts`).

    Raises:
        CheckpointError: the source is damaged or no granvit checkpoint, or `metrics` holds no scores.
        ExportError: the stock classes would not do what the model was trained to do, or the hub knows no such licence.
        GranvitError: `out` holds something. BusyError: another process writes there.
    """
    out, stated = Path(out), licence_of(licence, licence_name, licence_link)
    with staged_folder(out, refuse_non_empty) as folder:
        found = read_source(Path(source), metrics)
        if form == "adapter" and not is_adapter(found.checkpoint):
            raise ExportError(f"{found.checkpoint} is a whole model and no adapter: it was trained without LoRA")
        model = RegionModel.load(found.checkpoint)
        check_stock(model, found.checkpoint)
        _make_public(model, precision)
        left_out = _write(model, found, folder, out.resolve().name, form, precision)
        write_card(folder / "README.md", model, found, form, out.resolve().name, stated, left_out)
    return Exported(out, left_out)


def _write(
    model: RegionModel, found: ExportSource, folder: Path, name: str, form: Form, precision: Precision
) -> list[str]:
    """The files of one form; what had to be left out."""
    if form == "llava":
        model.save(folder)
        for_older(model, folder)
        _check_written(model, folder)
    elif form == "encoder":
        save_encoder(model, folder)
        name_rope(folder)
    elif form == "adapter":
        write_adapter(found.checkpoint, folder, getattr(torch, precision))
    else:
        try:
            from granvit.export.gguf import write_language, write_mmproj
        except ModuleNotFoundError as error:
            raise ExportError(f"GGUF files need the gguf package: pip install gguf ({error})") from error
        write_mmproj(model, folder / f"mmproj-{name}.gguf", name, precision)
        try:
            write_language(
                model, root_of(found.checkpoint) / "tokenizer.json", folder / f"{name}.gguf", name, precision
            )
        except ExportError as error:
            return [f"the language model: {error}"]
    return []


def _check_written(model: RegionModel, folder: Path) -> None:
    """Hold what the files say to what the model was trained with.

    Raises:
        ExportError: they say something else.
    """
    config, processor = load(stock_classes(model.settings)[0], folder), load(AutoProcessor, folder)
    if config.text_config.rope_parameters != model.llava.config.text_config.rope_parameters:
        raise ExportError(f"{folder}/config.json: other rotary positions than the model was trained with")
    text = model.processor.apply_chat_template(_QUESTION, add_generation_prompt=True, tokenize=False)
    if processor.chat_template != model.processor.chat_template or (
        processor.tokenizer(text)["input_ids"] != model.processor.tokenizer(text)["input_ids"]
    ):
        raise ExportError(f"{folder}/tokenizer_config.json: makes other tokens of a question than training did")


def _make_public(model: RegionModel, precision: Precision) -> None:
    """Weights in the precision asked for, and a config that says what servers look for and no path of this machine."""
    llava = model.llava.to(getattr(torch, precision))
    try:
        check_finite(llava, precision)
    except LoadError as error:
        raise ExportError(f"--precision {error}: too large a number for it; bfloat16 has room") from error
    config = llava.config
    config.architectures = [stock_classes(model.settings)[1].__name__]
    # The class with a head, which is what vLLM looks up.
    bare = type(llava.model.language_model).__name__
    config.text_config.architectures = [bare.removesuffix("Model") + "ForCausalLM"]
    for part in (config, config.vision_config, config.text_config):
        part.dtype = llava.dtype
        part._name_or_path = ""


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload an exported folder to the hub under NAMESPACE/NAME; its address. Needs a login (`hf auth login`).

    Raises:
        ExportError: the hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    failed = f"{folder} is written, but not uploaded to {repository}"
    if not hub_answers():
        raise ExportError(f"{failed}: the hub cannot be reached")
    try:
        api = HfApi()
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of the hub's client, its transport or its answer
        raise ExportError(f"{failed}: {one_line(error)}") from error
    return address


@torch.inference_mode()
def check_stock(model: RegionModel, where: Path | str) -> None:
    """Hold the stock processor and the stock model to what this package makes of pictures and a question.

    Raises:
        ExportError: they differ; the message says in what.
    """
    rng = np.random.default_rng(0)
    fit = f"tiles of {model.settings.tiles}" if model.settings.tiles else _FITS[model.settings.fit]
    for size in _SHAPES:
        picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        made = model.processor.image_processor(picture, return_tensors="pt")
        canvases = model.show(picture)
        stock, ours = made["pixel_values"].flatten(0, -4), model.normalise(canvases)
        if stock.shape != ours.shape or (stock - ours).abs().max() > _SAME_PIXELS:
            kind = type(model.processor.image_processor).__name__
            raise ExportError(
                f"{where}: the model was trained on {fit}, which the stock {kind} does not make "
                f"of a picture of {size[0]}x{size[1]} pixels: every box would be shifted"
            )
    _, stock_model, stock_processor = stock_classes(model.settings)
    made["pixel_values"] = made["pixel_values"].to(model.llava.dtype)
    stock = model.llava.model.get_image_features(**made).pooler_output[0]
    view = model.view(picture.size)
    ours = model.arranged(model.embed(canvases), [view]).reshape(-1, stock.shape[-1])
    if stock.shape != ours.shape or (stock - ours).abs().max() > _SAME_FEATURES * stock.abs().max():
        raise ExportError(f"{where}: the stock {stock_model.__name__} computes other image features")
    text = model.processor.apply_chat_template(_QUESTION, add_generation_prompt=True, tokenize=False)
    tokens = list(model.processor(images=picture, text=text)["input_ids"][0])
    if tokens != model.dialog.prefix(model.tokens_of(view)) + model.dialog.ask(ask_global()):
        raise ExportError(
            f"{where}: the stock {stock_processor.__name__} makes other tokens of a question than training did"
        )
