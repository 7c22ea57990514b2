"""A recipe becomes a run: parts are assembled, stages are trained in order, each leaves a checkpoint.

run/
  recipe.json          the resolved recipe
  data.json            which corpora: images, weights, checksums
  stage1/              history.jsonl, tensorboard/, checkpoints/ (for resuming), model/ (when done)
  stage2/              the same
  */alone/             what a stage leaves besides, such as the part that a warm-up made as a checkpoint of its own
  base/                what adapters belong to, where the run began with no model on the disk
  checkpoint/          the last stage's model: a stock LLaVA with granvit.json

Of a stage with LoRA, model/ and checkpoint/ hold the adapter alone and say where its base is: what `init` names, the
model of the stage before, or base/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from granvit.corpus.store import Corpus, ShardCheck, Subset
from granvit.errors import CheckpointError, GranvitError
from granvit.files import locked, read_json, staged_folder, write_text
from granvit.loading.checkpoint_files import LoadError
from granvit.loading.run_folder import BASE, CHECKPOINT, DATA, RECIPE
from granvit.model.adapter import is_adapter
from granvit.model.forward import compiled, recomputed
from granvit.model.provenance import joined
from granvit.model.region_model import RegionModel
from granvit.train import identity
from granvit.train.build import build_model, counted, earlier_folders, learned_from, provenance_of
from granvit.train.checkpoint import latest, of_another_run
from granvit.train.config import CachingLoop, feed_workers, on_cpu
from granvit.train.feature_cache import FeatureCache
from granvit.train.feed import Feed, Records
from granvit.train.loop import TrainResult, train
from granvit.train.lora import Base, copy_adapter, save_adapter, trained_names
from granvit.train.parallel import is_sharded, whole_tensors
from granvit.train.recipes.base import Recipe
from granvit.train.recipes.saved import read_run
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.base import AnsweringStage
from granvit.train.stages.config import LanguageConfig, RunContext, StageConfig
from granvit.train.validation import Validation

# The folder of what a stage leaves besides its model (`Stage.finish`).
ALONE = "alone"

OnStage = Callable[[str, RegionModel, TrainResult | None], None]


def run_recipe(
    recipe: Recipe,
    run_dir: Path | str,
    sources: Sequence[tuple[Records, float]],
    *,
    init: Path | str | None = None,
    resume: bool = True,
    device: Literal["auto", "cpu"] = "auto",
    on_stage: OnStage | None = None,
    validation: Validation | None = None,
) -> RegionModel:
    """Train all stages of a recipe; a run that was interrupted goes on where it stopped.

    Args:
        sources: corpora and their weights in the mixture.
        init: start from this checkpoint in place of the recipe's parts.
        on_stage: called with ("before", model, None) first, and with each stage's name, model and result when it
            is done; also for stages that an earlier call finished (result None).
        validation: scores the model while it trains (`granvit.evaluate.held_out`).

    Raises:
        GranvitError: `resume` is off and `run_dir` holds a run.
        BusyError: another process trains in `run_dir`. CorpusError: a corpus is not what was written.
        CheckpointError: a finished stage was trained by another recipe or on other corpora; also, with FeedError and
            NonFiniteLoss, as `granvit.train.loop.train` says.
    """
    run_dir = Path(run_dir)
    state = PartialState(cpu=on_cpu(device))
    with locked(run_dir) if state.is_main_process else nullcontext():
        return _run_recipe(recipe, run_dir, sources, state, init, resume, device, on_stage, validation)


def _run_recipe(
    recipe: Recipe,
    run_dir: Path,
    sources: Sequence[tuple[Records, float]],
    state: PartialState,
    init: Path | str | None,
    resume: bool,
    device: Literal["auto", "cpu"],
    on_stage: OnStage | None,
    validation: Validation | None,
) -> RegionModel:
    if not resume and (run_dir / RECIPE).exists():
        raise GranvitError(f"{run_dir} holds a run; name another folder, or resume it")
    data = _data_facts(sources)
    images, text_only = counted(sources)
    recipe = recipe.resolved(images, state.num_processes, text_only)
    for stage in recipe.stages:
        stage.check()
        stage.loop.check(stage.folder)
    try:
        weights = None if init is None else Base.of(Path(init)).digest
    except LoadError as error:
        raise CheckpointError(str(error)) from error
    _check_begun(recipe, data, run_dir, state.num_processes, weights)
    model = RegionModel.load(init) if init is not None else build_model(recipe)
    place = None if init is None else Path(init)
    for stage in recipe.stages:
        stage.prepare(model)  # what doesn't fit the model is reported now, not after hours of another stage
    source = getattr(model.llava.config.text_config, "dequantized_from", None)
    if source is not None and state.is_main_process:
        print(f"language model: dequantised from {source}")
    if state.is_main_process:  # only now: what can't begin leaves no folder
        recipe.save(run_dir / RECIPE, state.num_processes, init, weights)
        write_text(run_dir / DATA, json.dumps(data, indent=1) + "\n")
    earlier = [] if init is not None else earlier_folders(recipe)
    if on_stage is not None and state.is_main_process:
        on_stage("before", model, None)
    for stage in recipe.stages:
        done = run_dir / stage.folder / "model"
        result = None
        if done.exists():
            model = _load_finished(run_dir / stage.folder)
        else:
            base = _base_of(stage, model, place, run_dir, state)
            options: Any = {"resume": resume, "device": device, "earlier": earlier, "base": base}
            options["validation"] = validation
            result = run_stage(stage, recipe, model, run_dir / stage.folder, sources, **options)
            model.sources = joined(model.sources, learned_from(sources))
            kept = set(model.llava.state_dict()) if base is None else trained_names(model.llava)
            trained = whole_tensors({k: v for k, v in model.llava.state_dict().items() if k in kept})
            if state.is_main_process and base is not None:
                _publish_adapter(stage, model, done, trained, base)
            elif state.is_main_process:
                _publish(model, done, trained)
        state.wait_for_everyone()
        if result is not None and (is_sharded(model.llava) or is_adapter(done)):
            # Shards stay shards, and adapters beside their base: the next stage begins with a whole model.
            model = _load_finished(run_dir / stage.folder)
        place = done
        earlier.append(run_dir / stage.folder / ALONE)
        if on_stage is not None and state.is_main_process:
            on_stage(stage.folder, model, result)
    if state.is_main_process and place is not None and is_adapter(place):
        with staged_folder(run_dir / CHECKPOINT) as unfinished:
            copy_adapter(place, unfinished, run_dir / CHECKPOINT)
    elif state.is_main_process:
        _publish(model, run_dir / CHECKPOINT)
    return model


def _base_of(
    stage: StageConfig, model: RegionModel, place: Path | None, run_dir: Path, state: PartialState
) -> Base | None:
    """What a stage's adapters will belong to, `model` at its `place`; None of a stage without them."""
    if not isinstance(stage, LanguageConfig) or stage.lora.rank is None:
        return None
    if place is None and state.is_main_process:
        _publish(model, run_dir / BASE)  # the same bytes each time that the run goes on, or it is refused
    state.wait_for_everyone()
    found = [Base.of(place or run_dir / BASE) if state.is_main_process else None]
    base: Base | None = broadcast_object_list(found)[0]
    return base


def _publish_adapter(
    stage: StageConfig, model: RegionModel, folder: Path, weights: Mapping[str, Tensor], base: Base
) -> None:
    assert isinstance(stage, LanguageConfig)
    with staged_folder(folder) as unfinished:
        save_adapter(unfinished, folder, model, weights, stage.lora, base)


def _load_finished(stage_dir: Path) -> RegionModel:
    """The model that an earlier call left."""
    try:
        return RegionModel.load(stage_dir / "model")
    except CheckpointError as error:
        way = f"remove {stage_dir / 'model'} to finish this stage again from its checkpoints"
        raise CheckpointError(f"{error}; {way}") from error


def _data_facts(sources: Sequence[tuple[Records, float]]) -> list[dict[str, Any]]:
    """What tells corpora apart, wherever they lie."""
    facts = []
    for records, weight in sources:
        whole = records.corpus if isinstance(records, Subset) else records
        shards = [shard["sha256"] for shard in whole.manifest["shards"]] if isinstance(whole, Corpus) else []
        facts.append({"images": len(records), "weight": weight, "shards": shards})
    return facts


def _check_begun(
    recipe: Recipe, data: list[dict[str, Any]], run_dir: Path, processes: int, init_weights: str | None
) -> None:
    """Refuses a run folder whose stages, which would be taken as they are or gone on with, are another run's."""
    folders = {stage.folder: run_dir / stage.folder for stage in recipe.stages}
    begun = [name for name, folder in folders.items() if (folder / "model").exists() or latest(folder) is not None]
    if not begun:
        return
    path = run_dir / RECIPE
    try:
        before, its_processes = read_run(path)
        its_data, its_facts = (read_json(run_dir / name, CheckpointError) for name in (DATA, RECIPE))
    except (OSError, GranvitError) as error:
        raise of_another_run(str(error)) from error
    now = identity.of_stages(recipe, begun, processes)
    if difference := identity.difference(identity.of_stages(before, begun, its_processes), now):
        raise of_another_run(f"{path}: {difference}")
    if its_data != data:
        raise of_another_run(f"{run_dir / DATA}: {', '.join(begun)} was trained on other corpora or weights")
    # Runs of before this was written down name a folder alone.
    its_weights = its_facts.get("init_weights", init_weights if its_facts.get("init") else None)
    if its_weights != init_weights:
        raise of_another_run(f"{path}: {', '.join(begun)} went on from another model (init: {its_facts.get('init')})")


def run_stage(
    stage: StageConfig,
    recipe: Recipe,
    model: RegionModel,
    stage_dir: Path,
    sources: Sequence[tuple[Records, float]],
    *,
    resume: bool = True,
    device: Literal["auto", "cpu"] = "auto",
    earlier: Sequence[Path] = (),
    base: Base | None = None,
    validation: Validation | None = None,
) -> TrainResult:
    """Train one stage in place, resuming from the newest checkpoint in `stage_dir`.

    Args:
        earlier: the folders in which earlier stages left what this one may go on from (`RunContext.earlier`).
        base: what the stage's adapters belong to, where it has some: `model` as it is on the disk.
    """
    state = PartialState(cpu=on_cpu(device))
    stage.check()
    prepare = stage.prepare(model)
    check = ShardCheck((records for records, _ in sources), state.process_index, state.num_processes)
    feed = Feed(
        sources,
        prepare,
        check.before(prepare.collate),
        stage.loop.batch_size,
        seed=stage.loop.seed,
        rank=state.process_index,
        world_size=state.num_processes,
        workers=feed_workers(stage.loop.workers, device),
    )
    facts = {**identity.decisive(stage), **identity.decisive(recipe.settings, "settings.")}
    facts = {name: value for name, value in facts.items() if not name.startswith("loop.")}  # which the loop knows
    if base is not None:
        facts["lora.base"] = base.digest
    built = stage.build(model, RunContext(sources, tuple(earlier)))
    with check, memory_options(built, stage, state):
        result = train(
            *(built, feed, stage.loop, stage_dir),
            resume=resume,
            device=device,
            recipe=facts,
            provenance=provenance_of(stage, sources),
            validation=validation,
        )
        check.finish()
    if state.is_main_process:
        for reason, count in sorted(result.left_out.items()):
            print(f"{stage.folder}: left out {count:,} x {reason}")
    model.llava.eval()
    built.finish(stage_dir / ALONE, state.is_main_process)
    return result


def _publish(model: RegionModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """A model folder is whole or absent."""
    with staged_folder(folder) as unfinished:
        model.save(unfinished, weights)


@contextmanager
def memory_options(stage: AnsweringStage, config: StageConfig, state: PartialState) -> Iterator[None]:
    """Within, a stage trains as its config's `loop` says under `gradient_checkpointing`, `compile`, `feature_cache`.

    Raises:
        ValueError: features of this stage can't be kept; the message says why.
    """
    loop = config.loop
    parts = {"encoder": stage.tower, "language": stage.model.model.language_model}
    with ExitStack() as context:
        context.enter_context(recomputed([parts[name] for name in loop.gradient_checkpointing]))
        if loop.compile:  # on a CPU for any lengths at once: compiling costs more than padding would
            context.enter_context(compiled(stage, dynamic=True if state.device.type == "cpu" else None))
        if isinstance(loop, CachingLoop) and loop.feature_cache is not None:
            assert isinstance(stage, Adapt)
            if loop.parallel == "fsdp" and state.num_processes > 1:
                raise GranvitError(f"{config.folder}: loop.feature_cache with fsdp: processes must encode together")
            stage.cache = context.enter_context(
                FeatureCache(
                    loop.feature_cache,
                    stage.region_model,
                    loop.feature_cache_dtype,
                    loop.feature_cache_gb,
                    state.process_index,
                    state.num_processes,
                )
            )
        yield
