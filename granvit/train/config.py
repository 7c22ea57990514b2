"""How a stage is trained: the settings of the loop."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Settings that may change when a run is resumed, because they change no number of it (`parallel` the order of sums).
_FREE = (
    *("log_every", "save_every", "save_keep", "trackers", "timing", "first_batch", "workers", "parallel"),
    *("gradient_checkpointing", "compile", "feature_cache", "feature_cache_dtype", "feature_cache_gb"),
)


def on_cpu(device: str) -> bool:
    """Whether to train on the CPU. Accelerate makes ranks of CPU processes only where it is told so."""
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
        steps: optimizer steps of the whole run; a recipe's 0 becomes its stage's `epochs`.
        batch_size: images per micro-batch and process.
        accumulate: micro-batches per optimizer step; a recipe's 0 becomes what its stage's `images_per_step` needs.
        optimizer: "adamw" (the paper's), or "muon": Muon for the matrices of transformer blocks, AdamW for the rest.
            Small models from scratch learn more in as many steps (docs/results.md); not with `parallel` "fsdp".
        lr: peak learning rate, reached after `warmup_steps`; a cosine then leads to `min_lr_ratio * lr`.
        weight_decay: of matrices; biases, norms and embeddings do not decay.
        clip_norm: largest gradient norm; 0 clips nothing.
        optimizer_groups: regular expression over parameter names -> factor on their learning rate.
        precision: "auto" is bfloat16 autocast where CUDA has it, else float32.
        log_every: steps per line of the history.
        save_every: steps between checkpoints; 0 saves at the end only.
        save_keep: how many checkpoints remain.
        trackers: "tensorboard", "wandb".
        parallel: how several processes share the work: "ddp" keeps a whole model on each, "fsdp" spreads weights,
            gradients and optimizer state over all of them, and every process writes its part of a checkpoint.
        gradient_checkpointing: of which parts only the blocks' inputs are kept for the backward pass, "encoder" and
            "language"; less memory for a third more arithmetic there.
        compile: run the blocks of encoder, teacher and language model through `torch.compile`; GPUs alone.
        workers: processes that prepare images for each that trains; None takes threads on a CPU, and beside a GPU its
            share of the machine's cores, eight at most. The images are the same.
        timing: measure the sections of each step; their shares go to speed.jsonl and the trackers.
        first_batch: draw the run's first batch as first_batch.png.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-5
    min_lr_ratio: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    optimizer_groups: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    log_every: int = 10
    save_every: int = 0
    save_keep: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    gradient_checkpointing: tuple[Literal["encoder", "language"], ...] = ()
    compile: bool = False
    workers: int | None = None
    timing: bool = True
    first_batch: bool = True

    def fixed(self) -> dict[str, Any]:
        """The settings that must be the same for a run to be resumed exactly."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


@dataclass
class CachingLoop(LoopConfig):
    """The same for a stage whose encoder is frozen.

    Attributes:
        feature_cache: a folder for the encoder's features, which are then computed once per picture.
        feature_cache_dtype: how they are kept; "fp32" changes no loss, "bf16" rounds them and takes half the space.
        feature_cache_gb: the folder's largest size.
    """

    feature_cache: str | None = None
    feature_cache_dtype: Literal["fp32", "bf16"] = "fp32"
    feature_cache_gb: float = 100.0
