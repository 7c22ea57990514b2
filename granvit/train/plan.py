"""What a recipe takes before anybody books a GPU: arithmetic, memory, time, price, network, disk.

Parameters and arithmetic are counted from the architectures' shapes (no weights are needed or made) by the code that
gives a run its MFU; memory by going through a step on a device that is not there (`granvit.train.fake`). What cannot be
counted, such as the MFU or the length of captions, is assumed, and `Plan.assumed` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from granvit.errors import GranvitError
from granvit.loading.run_folder import checkpoint_of
from granvit.model.forward import recomputed
from granvit.model.packing import Batch, Branch, Sample, pack
from granvit.model.region_model import RegionModel
from granvit.model.settings import read_settings
from granvit.train.config import ConversationSample, CroppedSample
from granvit.train.fake import fake_passes
from granvit.train.recipes.base import Recipe
from granvit.train.shapes import planned_model
from granvit.train.stages.base import AnsweringStage
from granvit.train.stages.config import AdaptConfig, FinetuneConfig, PretrainConfig, StageConfig
from granvit.train.timing import peak_of
from granvit.train.workload import Asked, Workload

# What a chat template puts before the image.
BEFORE = 20
# The share of a GPU's memory that a step may take; the rest is the allocator's and the libraries'.
USABLE = 0.9
# Images at which memory is predicted, growing in proportion beyond: with fewer images the peak may be where only
# gradients are left.
_MICRO_BATCHES = (16, 32)


@dataclass(frozen=True)
class Device:
    """A GPU: dense bfloat16 in FLOP/s and memory in bytes, from its data sheet."""

    name: str
    memory: float

    @property
    def peak(self) -> float:
        peak = peak_of(self.name)
        assert peak is not None, "tested for all of `DEVICES`"
        return peak


DEVICES = {
    "h100": Device("H100 80 GB (SXM)", 80e9),
    "h200": Device("H200 141 GB", 141e9),
    "a100-80": Device("A100 80 GB", 80e9),
    "a100-40": Device("A100 40 GB", 40e9),
    "l40s": Device("L40S 48 GB", 48e9),
    "rtx4090": Device("GeForce RTX 4090 24 GB", 24e9),
}


@dataclass(frozen=True)
class StagePlan:
    """One stage. Bytes and FLOPs; `flops` is of one image, by section of the step.

    Attributes:
        state: weights, gradients and AdamW's moments on a GPU.
        usable: the share of the corpus's records that have what the stage asks for.
        activations: of one image more in a micro-batch, with as many questions as an image can have there.
        largest: images of the largest micro-batch that fits; 0 where not one does.
        sent: what a GPU sends (and receives) for each optimizer step.
        reads: of the corpus, all GPUs together, bytes per second.
    """

    name: str
    parameters: int
    trained: int
    tokens: float
    flops: dict[str, float]
    state: float
    activations: float
    largest: int
    batch_size: int
    accumulate: int
    steps: int
    seconds: float
    sent: float
    checkpoint: float
    reads: float
    usable: float = 1.0
    cheaper: dict[str, float] = field(default_factory=dict)

    @property
    def flops_per_image(self) -> float:
        return math.fsum(self.flops.values())

    @property
    def hours(self) -> float:
        return self.steps * self.seconds / 3600


@dataclass(frozen=True)
class Plan:
    """All stages of a recipe on so many GPUs of one kind."""

    recipe: str
    device: Device
    gpus: int
    mfu: float
    price: float | None
    workload: Workload
    stages: list[StagePlan]
    assumed: list[str]

    @property
    def hours(self) -> float:
        return math.fsum(stage.hours for stage in self.stages)

    @property
    def gpu_days(self) -> float:
        return self.hours * self.gpus / 24

    @property
    def cost(self) -> float | None:
        """In the currency of `price`, which is of one GPU for an hour."""
        return None if self.price is None else self.hours * self.gpus * self.price

    @property
    def corpus_bytes(self) -> float:
        return self.workload.images * self.workload.kilobytes * 1e3

    def facts(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        derived = {"hours": self.hours, "gpu_days": self.gpu_days, "cost": self.cost, "corpus_bytes": self.corpus_bytes}
        stages = [
            {**asdict(stage), "flops_per_image": stage.flops_per_image, "hours": stage.hours} for stage in self.stages
        ]
        workload = asdict(self.workload)
        del workload["records"]
        workload |= {"captioned": self.workload.captioned, "without_picture": self.workload.without_picture}
        return {**asdict(self), "workload": workload, **derived, "stages": stages}


def plan(
    recipe: Recipe,
    workload: Workload,
    device: Device,
    gpus: int,
    mfu: float = 0.4,
    price: float | None = None,
    init: Path | None = None,
) -> Plan:
    """What the stages of `recipe` take on `gpus` of `device`.

    Args:
        mfu: the share of the device's peak that a step reaches.
        price: of one GPU for an hour.
        init: the run or checkpoint that the recipe goes on from, in place of its parts.

    Raises:
        GranvitError: a stage is none of the paper's, or finds nothing to ask; or a part's shapes are not to be had.
    """
    recipe = workload.resolved(recipe, gpus)
    if init is not None:
        recipe = replace(recipe, settings=read_settings(checkpoint_of(init)))
    stages = [_plan_stage(recipe, number, workload, device, gpus, mfu, init) for number in range(len(recipe.stages))]
    return Plan(recipe.name, device, gpus, mfu, price, workload, stages, _assumed(recipe, workload, mfu))


def _assumed(recipe: Recipe, workload: Workload, mfu: float) -> list[str]:
    """What is not counted, as parts of a sentence."""
    found = [
        f"an MFU of {mfu:.0%}",
        f"captions of {workload.caption_tokens} tokens, region texts of {workload.region_tokens}",
    ]
    if not workload.records:
        found.append(f"each image has {workload.regions:g} regions and a caption")
    talks = any(isinstance(stage.sample, ConversationSample) for stage in recipe.stages)
    if talks and workload.conversations:
        found.append(f"conversations of {workload.conversation_tokens} tokens, half of them answers")
    elif talks:
        found.append("no conversations (--conversations says how many an image has)")
    for stage in recipe.stages:
        sample, cut = stage.sample, workload.lengths(stage.sample)
        if cut["global"][1] < workload.caption_tokens or cut["bbox2caption"][1] < workload.region_tokens:
            found.append(f"{stage.folder} cuts them at {sample.max_answer} (sample.max_answer)")
        if sample.subphrases:
            found.append(f"{stage.folder}: each text of a region has parts that name it alone (sample.subphrases)")
        if sample.windows:
            found.append(f"{stage.folder}: parts of images show as much as whole ones (sample.windows)")
    return found


def _plan_stage(
    recipe: Recipe, number: int, workload: Workload, device: Device, gpus: int, mfu: float, init: Path | None
) -> StagePlan:
    config = recipe.stages[number]
    if not isinstance(config, PretrainConfig | AdaptConfig | FinetuneConfig):
        raise GranvitError(f"{config.folder}: a plan knows the paper's stages, not {config.kind!r}")
    config = replace(config, smoothing=0.0)  # which changes no shape, and reads values
    model = planned_model(recipe, init)
    stage = config.build(model).train()
    prefix = prefix_of(model)
    asked = workload.mean(config.sample, prefix, config.folder)
    parts = _flops(stage, config, model, workload)
    every = {id(p): p for p in stage.parameters()}.values()
    everything, trained = (sum(p.numel() for p in some) for some in (every, [p for p in every if p.requires_grad]))
    kept = trained if stage.adapters else everything
    loop = config.loop
    tokens = _mean(config, model, workload, asked, lambda batch: {"tokens": float(batch.counts["tokens"])})["tokens"]
    cheaper = _cheaper(stage, config, model, workload, math.fsum(parts.values()))
    most = workload.most(config.sample, prefix)
    batches = [model_batch(config, model, workload, most, images) for images in _MICRO_BATCHES]
    fewer, more = peaks(stage, config, batches, gpus)
    activations = (more - fewer) / (_MICRO_BATCHES[1] - _MICRO_BATCHES[0])
    state = (4.0 * everything + 12.0 * trained) / (gpus if loop.parallel == "fsdp" else 1)
    largest = _MICRO_BATCHES[0] + math.floor((USABLE * device.memory - fewer) / activations)
    together = loop.batch_size * loop.accumulate * gpus
    per_image = math.fsum(parts.values())
    seconds = together / gpus * per_image / (device.peak * mfu)
    gradients = 4.0 * trained
    sent = 2 * gradients if loop.parallel == "ddp" else (2 * 2.0 * everything + gradients) * loop.accumulate
    return StagePlan(
        name=config.folder,
        parameters=everything,
        trained=trained,
        tokens=tokens,
        flops=parts,
        state=state,
        activations=activations,
        largest=max(0, largest),
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        steps=loop.steps,
        seconds=seconds,
        sent=sent * (gpus - 1) / gpus,
        checkpoint=4.0 * kept + 8.0 * trained,
        reads=workload.read(asked, together) / seconds,
        usable=asked.usable,
        cheaper={f"stages.{number}.{setting}": flops for setting, flops in cheaper.items()},
    )


def _cheaper(
    stage: AnsweringStage, config: StageConfig, model: RegionModel, workload: Workload, whole: float
) -> dict[str, float]:
    """Settings that make the stage cheaper -> FLOPs of an image with them."""
    found: dict[str, float] = {}
    if isinstance(config, PretrainConfig) and config.distill_weight > 0 and config.sample.crops:
        for side in (256, 128):
            if side < (config.sample.crop_size or model.canvas) and side % model.patch == 0:
                smaller = replace(config, sample=replace(config.sample, crop_size=side))
                found[f"sample.crop-size {side}"] = math.fsum(_flops(stage, smaller, model, workload).values())
        if config.sample.crops > 2 and workload.regions > 2:
            fewer = replace(config, sample=replace(config.sample, crops=2))
            found["sample.crops 2"] = math.fsum(_flops(stage, fewer, model, workload).values())
    return {setting: flops for setting, flops in found.items() if flops < whole}


def prefix_of(model: RegionModel) -> int:
    """Tokens that stand before an image's questions, its own among them."""
    return BEFORE + model.tokens_of(model.largest_view)


def _flops(stage: AnsweringStage, config: StageConfig, model: RegionModel, workload: Workload) -> dict[str, float]:
    """Of one image in the mean, by section."""
    asked = workload.mean(config.sample, prefix_of(model), config.folder)
    return _mean(config, model, workload, asked, stage.step_flops.parts)


def _mean(
    config: StageConfig,
    model: RegionModel,
    workload: Workload,
    asked: Asked,
    measure: Callable[[Batch], dict[str, float]],
) -> dict[str, float]:
    """What `measure` finds of an image in the mean. Questions do not see each other, so each adds its own."""

    def of(counts: dict[str, float], crops: float = 0, picture: float = 1.0) -> dict[str, float]:
        return measure(model_batch(config, model, workload, Asked(counts, crops, picture)))

    once, twice = of({"global": 1}), of({"global": 2})
    picture = {name: 2 * once[name] - twice[name] for name in once}  # of which nothing is asked
    found = {name: asked.picture * picture[name] for name in picture}
    added = [(count, of({kind: 1}), picture) for kind, count in asked.counts.items() if count]
    added += [(asked.crops, of({"global": 1}, crops=1), once)] if asked.crops else []
    nothing = dict.fromkeys(picture, 0.0)
    added += [(asked.apart, of({"conversation": 1}, picture=0.0), nothing)] if asked.apart else []
    for count, with_it, without in added:
        for name in found:
            found[name] += count * (with_it[name] - without[name])
    return found


def model_batch(config: StageConfig, model: RegionModel, workload: Workload, asked: Asked, images: int = 1) -> Batch:
    """`images` alike, each with these whole numbers of questions; texts are counts, pixels are shapes."""
    lengths = workload.lengths(config.sample)
    branches = []
    for kind, count in asked.counts.items():
        question, answer = lengths[kind]
        branches += [Branch([2] * (question + answer), question, kind) for _ in range(int(count))]
    view, side = model.largest_view, model.canvas  # of tiles: nobody knows the pictures' shapes
    alone = not asked.picture
    samples = [Sample(f"{i}", branches, view=None if alone else view, text_only=alone) for i in range(images)]
    batch = pack(samples, [1] * BEFORE + [0] * model.tokens_of(view), 0, 3)
    if alone:
        return batch
    batch.pixels = torch.empty(images * view.count, side, side, 3, dtype=torch.uint8, device="meta")
    if crops := int(asked.crops):
        crop = config.sample.crop_size or side if isinstance(config.sample, CroppedSample) else side
        batch.crops = torch.empty(images * crops, crop, crop, 3, dtype=torch.uint8, device="meta")
        batch.crop_boxes = torch.tensor([[0.0, 0.0, side / 2, side / 2]]).expand(images * crops, 4).contiguous()
        batch.crop_image = torch.arange(images).repeat_interleave(crops)
    return batch


def peaks(
    stage: AnsweringStage, config: StageConfig, batches: Sequence[Batch], gpus: int, device: str = "gpu"
) -> list[float]:
    """The most bytes that each of `gpus` holds at any moment of a step, for micro-batches like each of these.

    The stage's weights are fakes from then on, and in shards where `config` says fsdp.
    """
    loop = config.loop
    ranks = gpus if loop.parallel == "fsdp" else 1
    # DistributedDataParallel keeps its buckets throughout. Gradients lie in them, but not those that are only summed.
    summed, buckets = loop.accumulate > 1, ranks < gpus
    parts: Mapping[str, nn.Module] = {"encoder": stage.tower, "language": stage.model.model.language_model}
    with recomputed([parts[name] for name in loop.gradient_checkpointing]):
        passes = fake_passes(stage, batches, device, loop.precision != "fp32", ranks, summed or buckets)
    trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    beside = 8.0 * trained / ranks + (4.0 * trained if summed and buckets else 0.0)  # moments; gradients
    return [each + beside for each in passes]


# --- as text ---------------------------------------------------------------------------------------------------------


def table(planned: Plan) -> list[str]:
    """The plan as lines of Markdown."""
    device, work = planned.device, planned.workload
    each = f"{work.images:,} images, {work.regions:g} regions each"
    each += f", {work.captioned:.0%} with a caption" if work.records else ""
    each += f", {work.conversations:g} conversations each" if work.conversations else ""
    each += f", {work.without_picture:.0%} without a picture" if work.without_picture else ""
    lines = [
        f"{planned.recipe}: {each}, on {planned.gpus} x {device.name}",
        "",
        "| stage | parameters | train | tokens/image | TFLOP/image | images/s per GPU | steps | hours | GPU-days |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage in planned.stages:
        speed = stage.batch_size * stage.accumulate / stage.seconds
        lines.append(
            f"| {stage.name} | {_count(stage.parameters)} | {_count(stage.trained)} | {stage.tokens:,.0f} "
            f"| {stage.flops_per_image / 1e12:.3g} | {speed:,.1f} | {stage.steps:,} | {stage.hours:,.1f} "
            f"| {stage.hours * planned.gpus / 24:,.1f} |"
        )
    lines += [
        "",
        "| stage | state per GPU | an image more | largest micro-batch | sent per GPU and step | checkpoint | reads |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in planned.stages:
        lines.append(
            f"| {stage.name} | {stage.state / 1e9:,.1f} GB | {stage.activations / 1e9:,.2f} GB | {stage.largest:,} "
            f"(the recipe takes {stage.batch_size}) | {stage.sent / 1e9:,.1f} GB | {stage.checkpoint / 1e9:,.1f} GB "
            f"| {stage.reads / 1e6:,.0f} MB/s |"
        )
    lines.append("")
    for number, stage in enumerate(planned.stages):
        whole = stage.flops_per_image
        shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in stage.flops.items() if part)
        lines.append(f"{stage.name}: {shares} of the arithmetic.")
        lines += [f"  --{setting} would take {flops / whole:.0%} of it." for setting, flops in stage.cheaper.items()]
        if stage.usable < 0.9995:
            lines.append(f"  It asks {stage.usable:.1%} of the records something, again for those that it passes over.")
        if not stage.largest:
            loop = f"--stages.{number}.loop"
            lines.append(
                f"  No image fits: try {loop}.parallel fsdp or {loop}.gradient-checkpointing encoder language."
            )
    cost = "" if planned.cost is None else f", {planned.cost:,.0f} at {planned.price:g} per GPU and hour"
    lines.append(
        f"In all {planned.hours:,.1f} hours, {planned.gpu_days:,.1f} GPU-days{cost}; the corpus takes "
        f"{planned.corpus_bytes / 1e9:,.1f} GB."
    )
    lines.append(f"Assumed, not measured: {'; '.join(planned.assumed)}.")
    return lines


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
