"""The settings of a stage: how it is trained, which questions are asked, what of an image is shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from granvit.errors import GranvitError
from granvit.questions import Task
from granvit.regions import Kind
from granvit.train.identity import CUT, FREE, NEWER

# Marks settings that only the whole help shows (`--help-all`).
SELDOM = {"seldom": True}
# Where curves can go -> what pip installs for it.
TRACKERS = {"tensorboard": "tensorboard", "wandb": '"granvit[wandb]"'}


def _factors(words: list[str]) -> dict[str, float]:
    """`PATTERN FACTOR PATTERN FACTOR ...`"""
    if len(words) % 2:
        raise ValueError(f"{words[-1]!r} has no factor: give PATTERN FACTOR in turns")
    return {pattern: float(factor) for pattern, factor in zip(words[::2], words[1::2], strict=True)}


# On the command line pairs of words, which replace those of the recipe.
Factors = Annotated[
    dict[str, float],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[PATTERN FACTOR ...]",
        instance_from_str=_factors,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [word for pair in value.items() for word in map(str, pair)],
    ),
]


def on_cpu(device: str) -> bool:
    """Whether to train on the CPU. Accelerate makes ranks of CPU processes only where it is asked to."""
    import torch  # here, because the program's help needs the settings and not the seconds that torch takes

    return device == "cpu" or not torch.accelerator.is_available()


def feed_workers(wanted: int | None, device: str) -> int:
    """`LoopConfig.workers` as a number. On a CPU the cores are busy training, and threads see to the images."""
    if wanted is not None or on_cpu(device):
        return wanted or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


@dataclass
class LoopConfig:
    """How a stage is trained.

    Attributes:
        steps: optimizer steps; in a recipe 0 is as many as `epochs` need.
        batch_size: images per micro-batch and process.
        accumulate: micro-batches per optimizer step; a recipe's 0 becomes what its stage's `images_per_step` needs.
        optimizer: "adamw" (the paper's); "muon" takes Muon for the matrices of transformer blocks.
        lr: peak learning rate, from which a cosine leads to `min_lr_ratio` of it.
        min_lr_ratio: what is left of the learning rate at the end.
        warmup_steps: steps in which the learning rate rises from 0 to `lr`.
        weight_decay: of matrices; biases, norms and embeddings do not decay.
        betas: how much of the gradients' moments AdamW keeps from step to step.
        clip_norm: largest gradient norm; 0 clips nothing.
        optimizer_groups: regular expressions over parameter names, with factors on the learning rate; the first that is
            found counts.
        seed: of the samples' order and choices, and of everything random in the stage.
        precision: "auto" is bfloat16 autocast where CUDA has it, else float32.
        log_every: steps per line of the history.
        save_every: steps between checkpoints; 0 saves at the end only.
        save_keep: how many checkpoints remain.
        trackers: where the curves go: "tensorboard", "wandb" (the extra wandb), both or none.
        parallel: a process holds a whole model ("ddp"), or its share of weights and optimizer ("fsdp", not with muon).
        gradient_checkpointing: of which parts only the blocks' inputs are kept for the backward pass, "encoder" and
            "language"; less memory for a third more arithmetic there.
        compile: run the blocks of encoder, teacher and language model through `torch.compile`; on a CPU,
            which needs a C++ compiler for it, it pays through a language model of some hundred million parameters.
        workers: processes that prepare images for each that trains; None takes threads on a CPU, and beside a GPU its
            share of the machine's cores, eight at most. The images are the same.
        timing: measure the sections of each step; their shares go to speed.jsonl and the trackers.
        first_batch: draw the run's first batch as first_batch.png.
    """

    steps: int = 1000
    batch_size: int = field(default=8, metadata=CUT)
    accumulate: int = field(default=1, metadata=CUT | SELDOM)
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata=SELDOM)
    lr: float = 1e-5
    min_lr_ratio: float = field(default=0.0, metadata=SELDOM)
    warmup_steps: int = field(default=0, metadata=SELDOM)
    weight_decay: float = field(default=0.0, metadata=SELDOM)
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata=SELDOM)
    clip_norm: float = field(default=1.0, metadata=SELDOM)
    optimizer_groups: Factors = field(default_factory=dict)
    seed: int = field(default=0, metadata=SELDOM)
    precision: Literal["auto", "bf16", "fp32"] = field(default="auto", metadata=SELDOM)
    log_every: int = field(default=10, metadata=FREE | SELDOM)
    save_every: int = field(default=0, metadata=FREE)
    save_keep: int = field(default=2, metadata=FREE | SELDOM)
    trackers: tuple[str, ...] = field(default=("tensorboard",), metadata=FREE | SELDOM)
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=FREE | SELDOM)
    gradient_checkpointing: tuple[Literal["encoder", "language"], ...] = field(default=(), metadata=FREE | SELDOM)
    compile: bool = field(default=False, metadata=FREE | SELDOM)
    workers: int | None = field(default=None, metadata=FREE | SELDOM)
    timing: bool = field(default=True, metadata=FREE | SELDOM)
    first_batch: bool = field(default=True, metadata=FREE | SELDOM)

    def check(self, where: str) -> None:
        """Refuses trackers that would get no curves, before anything is trained; `where` begins the message.

        Raises:
            GranvitError: one is unknown, or its package is missing; the message names it.
        """
        # The list by which Accelerate goes, which leaves out the others without a word.
        from accelerate.tracking import get_available_trackers

        installed = {tracker.value for tracker in get_available_trackers()} if self.trackers else set()
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise GranvitError(f"{where}: loop.trackers {tracker!r}: known are {', '.join(TRACKERS)}")
            if tracker not in installed:
                way = f"pip install {TRACKERS[tracker]}"
                raise GranvitError(f"{where}: loop.trackers {tracker}: the package is not installed: {way}")


@dataclass
class CachingLoop(LoopConfig):
    """The same for a stage whose encoder is frozen.

    Attributes:
        feature_cache: a folder for the encoder's features, which are then computed once per picture.
        feature_cache_dtype: how they are kept; "fp32" changes no loss, "bf16" rounds them and takes half the space.
        feature_cache_gb: the folder's largest size.
    """

    feature_cache: str | None = field(default=None, metadata=FREE | SELDOM)
    feature_cache_dtype: Literal["fp32", "bf16"] = field(default="fp32", metadata=FREE | SELDOM)
    feature_cache_gb: float = field(default=100.0, metadata=FREE | SELDOM)


# The linear layers of a block in all families of language models that are known.
_EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Lora:
    """Low-rank adapters that train in place of the language model, which stays as it is (LoRA).

    Attributes:
        rank: of each adapter; None trains the language model itself. 16 is a good beginning.
        alpha: an adapter counts alpha / rank; twice the rank where None.
        dropout: the share of an adapter's inputs that is left out at random.
        targets: the linear layers of the language model's blocks that get one, by name.
    """

    rank: int | None = field(default=None, metadata={NEWER: True})
    alpha: float | None = field(default=None, metadata={NEWER: True} | SELDOM)
    dropout: float = field(default=0.0, metadata={NEWER: True} | SELDOM)
    targets: tuple[str, ...] = field(default=_EVERY_LAYER, metadata={NEWER: True} | SELDOM)

    @property
    def scaled(self) -> float:
        """`alpha` as a number."""
        assert self.rank is not None
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def check(self, where: str) -> None:
        """Refuses what can't be, before anything is loaded; `where` begins the message.

        Raises:
            GranvitError: the message names the setting, or the package that is missing.
        """
        if self.rank is None:
            if asdict(self) != asdict(Lora()):
                raise GranvitError(f"{where}: lora.alpha, dropout and targets say nothing without lora.rank")
        elif find_spec("peft") is None:
            raise GranvitError(f'{where}: lora.rank needs the extra lora: pip install "granvit[lora]"')


@dataclass
class SampleConfig:
    """Which questions an image is asked, and what of it is shown.

    The paper asks global and bbox2caption in stage 1, global and caption2bbox in stage 2.

    Attributes:
        questions: the chance of each question, per image or per region.
        max_regions: at most so many regions per image, drawn anew each time.
        subphrases: the chance that a region is also asked for by a part of its text, where that part fits no
            other region of the image.
        mirror: the chance that an image is mirrored where it holds no text and nothing said of it is "left" or "right".
        windows: the chance that a part of the image is shown in place of the whole (for small text).
        window_kind: parts are shown only of images with regions of this kind, around one of them; None shows any.
        window_side: the part's side, smallest and largest, in canvas sides.
        max_answer: answers are cut after so many tokens, and counted at the end of the run.
        max_tokens: images share rows of at most so many tokens (best fit); of an image with more some questions are
            drawn anew each time, and the rest are counted as left out. None gives each image a row of its own.
    """

    questions: Mapping[Task, float] = field(default_factory=lambda: {"global": 1.0, "bbox2caption": 1.0})
    max_regions: int = 16
    subphrases: float = field(default=0.0, metadata=SELDOM)
    mirror: float = field(default=0.0, metadata=SELDOM)
    windows: float = field(default=0.0, metadata=SELDOM)
    window_kind: Kind | None = field(default=None, metadata=SELDOM)
    window_side: tuple[float, float] = field(default=(1.0, 2.0), metadata=SELDOM)
    max_answer: int = field(default=96, metadata=SELDOM)
    max_tokens: int | None = field(default=None, metadata=SELDOM)


@dataclass
class ConversationSample(SampleConfig):
    """The same with the record's own conversations, also of records without an image.

    Attributes:
        conversations: the chance of each conversation.
        max_conversations: at most so many of a record, drawn anew each time.
        max_conversation: a conversation is cut after so many tokens, and counted as answers are.
    """

    conversations: float = 1.0
    max_conversations: int = 16
    max_conversation: int = field(default=1024, metadata=SELDOM)


@dataclass
class CroppedSample(SampleConfig):
    """The same with crops of regions for the teacher of the self-distillation.

    Attributes:
        crops: at most so many region crops per image; 0 for none.
        crop_size: side of a crop in pixels; 0 takes the canvas.
        draw_crops: whether those of an image with more regions are drawn anew each time, else they are its first.
    """

    crops: int = 0
    crop_size: int = 0
    draw_crops: bool = field(default=False, metadata={NEWER: True} | SELDOM)
