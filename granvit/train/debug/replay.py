"""Takes a step again that ended in a loss or a gradient that is not finite, and finds where and why.

What is read is what `granvit.train.debug.nonfinite` left and the corpora themselves: the model as it was before the
step, the same samples at the same stream position with the same random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoProcessor

from granvit.errors import CheckpointError, GranvitError
from granvit.files import read_json
from granvit.loading.models import LoadError, build, load
from granvit.model.packing import Batch, unpack
from granvit.model.region_model import RegionModel, check_parts, stock_classes
from granvit.model.settings import read_settings
from granvit.train import rng
from granvit.train.build import reopen, stage_of
from granvit.train.config import on_cpu
from granvit.train.debug import nonfinite
from granvit.train.debug.nonfinite import Watch, nonfinite_weights
from granvit.train.feed import Feed, Records
from granvit.train.loop import Step, counts_of
from granvit.train.parallel import clip_gradients
from granvit.train.stages.base import Stage
from granvit.train.stages.config import StageConfig
from granvit.train.tensorfile import read_expected, read_tensors


@dataclass
class Replay:
    """What taking the step again has shown.

    Attributes:
        step: the number of the step.
        before: the metrics of the run, as text. now: the same of this replay.
        weights: weights that were not finite before the step began.
        watch: where the forward and the backward pass stopped being finite.
        samples: (id, loss, gradient norm) of each sample taken alone, normalised by its own counts.
    """

    step: int
    before: dict[str, str]
    now: dict[str, float]
    weights: list[str]
    watch: Watch
    samples: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        return not all(math.isfinite(value) for value in self.now.values())

    @property
    def offending(self) -> list[str]:
        """The samples that alone are enough, each named once."""
        bad = [id for id, loss, norm in self.samples if not (math.isfinite(loss) and math.isfinite(norm))]
        return list(dict.fromkeys(bad))


def replay(folder: Path, corpora: Sequence[str] = (), device: Literal["auto", "cpu"] = "auto") -> Replay:
    """Takes the step of a `nonfinite` folder again, in one process, whatever number of ranks it was taken by.

    Args:
        corpora: where the run's corpora are now, in the run's order; where they were if none.

    Raises:
        CheckpointError: the folder or a file in it is missing or damaged.
        ValueError: the samples can't be made again, or come out as others; the message says why.
    """
    facts, ranks = _read_facts(folder / nonfinite.BATCH), _read_ranks(folder / nonfinite.RANKS)
    provenance = facts.get("provenance", facts.get("origin", {}))  # its name in earlier versions
    stage_config = stage_of(provenance)
    try:
        sources = reopen(provenance, corpora)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / nonfinite.BATCH}: sources: {type(error).__name__}: {error}") from error
    if len(facts["ids"]) != len(ranks):
        raise CheckpointError(
            f"{folder}: {nonfinite.BATCH} is of {len(facts['ids'])} rank(s), the rest of {len(ranks)}"
        )
    model, before = _load_model(folder)
    batches = _batches(stage_config, model, facts["ids"], ranks, sources)
    stage = stage_config.build(model)
    _take_weights(folder, stage.model, before)
    stage.load_extra_state(read_expected(folder / nonfinite.EXTRA, stage.extra_state()))
    target = torch.device("cpu") if on_cpu(device) else torch.accelerator.current_accelerator()
    assert target is not None
    stage.to(target).train()
    take = partial(_take, stage, target, facts["precision"] == "bf16")
    states = [rank["rng"] for rank in ranks]
    watch = Watch()
    with watch.over(stage):
        now = take(batches, states)
    weights = nonfinite_weights(stage)
    samples = [
        (single.ids[0], taken["loss"], taken["grad_norm"])
        for micros, state in zip(batches, states, strict=True)
        for batch in micros
        for single in unpack(batch)
        for taken in [take([[single]], [state])]
    ]
    return Replay(facts["step"], facts["metrics"], now, weights, watch, samples)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, GranvitError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; is this a run's `nonfinite` folder?") from error


def _read_facts(path: Path) -> dict[str, Any]:
    """What `nonfinite.save` wrote of the step."""
    facts = _read(path)
    for name, kind in (("step", int), ("metrics", dict), ("precision", str), ("ids", list)):
        if not isinstance(facts, dict) or not isinstance(facts.get(name), kind):
            raise CheckpointError(f"{path}: {name} is missing or not what was written")
    return facts


def _read_ranks(path: Path) -> list[dict[str, Any]]:
    """Per rank its stream position and its random generators."""
    ranks = _read(path)
    if not isinstance(ranks, list) or not ranks:
        raise CheckpointError(f"{path}: a list of ranks is expected")
    for rank in ranks:
        if not isinstance(rank, dict) or not all(isinstance(rank.get(name), dict) for name in ("feed", "rng")):
            raise CheckpointError(f"{path}: feed or rng of a rank is missing or not what was written")
    return ranks


def _load_model(folder: Path) -> tuple[RegionModel, dict[str, Tensor]]:
    """The model as it was before the step, and its weights as the stage had them: with adapters, where it had some."""
    parts = folder / nonfinite.MODEL
    settings = read_settings(parts)
    try:
        config_class, model_class, _ = stock_classes(settings)
        config = load(config_class, parts)
        processor = load(AutoProcessor, parts)
    except LoadError as error:
        raise CheckpointError(str(error)) from error
    llava = build(model_class, config, attn_implementation="sdpa", dtype=torch.float32)
    weights = read_tensors(folder / nonfinite.STUDENT)
    plain = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    _take_weights(folder, llava, plain)
    model = RegionModel(llava.eval(), processor, settings)
    check_parts(model, parts)
    return model, weights


def _take_weights(folder: Path, llava: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        llava.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / nonfinite.STUDENT}: {error}") from error


def _batches(
    config: StageConfig,
    model: RegionModel,
    ids_of: list[list[list[str]]],
    ranks: list[dict[str, Any]],
    sources: Sequence[tuple[Records, float]],
) -> list[list[Batch]]:
    """The micro-batches of each rank, made again."""
    prepare = config.prepare(model)
    made = []
    for number, (rank, ids) in enumerate(zip(ranks, ids_of, strict=True)):
        size = config.loop.batch_size
        seed, world = config.loop.seed, len(ranks)
        with Feed(sources, prepare, prepare.collate, size, seed, number, world, prefetch=0) as feed:
            feed.restore(rank["feed"])
            batches = [next(feed) for _ in ids]
        if (found := [batch.ids for batch in batches]) != ids:
            raise GranvitError(f"rank {number}: the corpora give the samples {found}, the run had {ids}")
        made.append(batches)
    return made


def _take(
    stage: Stage, device: torch.device, bf16: bool, batches: list[list[Batch]], states: list[dict[str, Any]]
) -> dict[str, float]:
    """The metrics of the loop's step on the micro-batches of all ranks, each begun with its random state."""
    stage.zero_grad(set_to_none=True)
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    step = Step(stage, device, autocast, counts_of([batch for micros in batches for batch in micros]))
    for micros, state in zip(batches, states, strict=True):
        rng.restore(state)
        for batch in micros:
            step.add(batch, Tensor.backward)
    trained = [p for p in stage.parameters() if p.requires_grad]
    return step.metrics(step.means().tolist(), clip_gradients(trained, math.inf).item())
