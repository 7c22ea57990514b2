"""Commands that make models: `demo`, `train`, `transfer`, `assemble`, and `debug replay` for a run that failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional

from granvit.errors import CheckpointError, GranvitError
from granvit.files import locked, read_json, refuse_non_empty, staged_folder
from granvit.geometry import Fit, Frame
from granvit.loading.run_folder import DATA, checkpoint_of
from granvit.ranges import OF_RECIPES, check_ranges
from granvit.train.config import SELDOM, CachingLoop, Lora, SampleConfig
from granvit.train.recipes.base import Recipe
from granvit.train.recipes.paper import transfer
from granvit.train.stages.config import AdaptConfig

if TYPE_CHECKING:
    from granvit.evaluate.held_out import HeldOutScores
    from granvit.train.debug.replay import Replay as Result


@dataclass
class Demo:
    """Run the whole recipe at nano size and write an HTML report: a few minutes on two CPU cores."""

    out: Path = Path("runs/demo")
    """Where report.html, metrics.json and checkpoint/ go."""
    corpus: Path | None = None
    """A corpus of your own (see `granvit corpus import`); the embedded one by default."""
    processes: int | None = None
    """Processes that share each batch; by default two where there are two cores and no GPU."""
    resumes: ClassVar[bool] = True

    def run(self) -> int:
        from granvit.nano.demo import run_demo

        report = run_demo(self.out, self.corpus, processes=self.processes)
        print(f"\nreport: {report}\nmetrics: {self.out / 'metrics.json'}\ncheckpoint: {self.out / 'checkpoint'}")
        print(f"page: granvit app {self.out}    (needs the extra app; in a checkout: make app RUN={self.out})")
        print("your own images: granvit corpus import --help, then granvit demo --corpus DIR --out runs/own")
        return 0


@dataclass
class HeldOut:
    """Scores on held-out pictures, in RUN/scores.jsonl, RUN/report.html and the trackers; training stays as it is.

    They are asked before the run and after each stage.
    """

    eval_every: int = 0
    """Steps between further validations while a stage trains; 0 for none."""
    eval_images: int = field(default=50, metadata=SELDOM)
    """At most so many held-out pictures are asked about, the same each time; 0 for none at all."""
    eval_regions: int = field(default=8, metadata=SELDOM)
    """At most so many regions of each."""
    keep_best: str | None = None
    """TASK.METRIC, such as locate.acc50: the model that is best by it is kept in RUN/STAGE/best, beside the last."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.keep_best is not None and not (self.eval_every and self.eval_images):
            raise GranvitError(f"--keep-best {self.keep_best} needs --eval-every, and pictures to ask about")


# Their names alone, without that of the group.
EvalFlags = Annotated[HeldOut, tyro.conf.arg(name="")]


@dataclass
class Train:
    """Train a recipe. Every setting of it can be overridden; the resolved recipe is saved with the run."""

    # The recipe.json of a run, where its recipe is given back.
    config: ClassVar[Path | None] = None

    recipe: Recipe
    corpus: tuple[str, ...] = ()
    """Corpus folders, each DIR or DIR=WEIGHT, mixed; if none the embedded corpus, where no part is pretrained."""
    embedded_corpus: bool = False
    """Train on the embedded corpus, drawn shapes, also where the model comes pretrained."""
    out: Path | None = None
    """The run folder; runs/RECIPE by default."""
    init: Path | None = None
    """Start from this run or checkpoint, not from parts."""
    held_out: EvalFlags = field(default_factory=HeldOut)
    """What is asked while it trains."""
    resume: bool = True
    """Go on where an interrupted run in `out` stopped."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; "auto" takes a GPU where there is one."""

    def run(self) -> int:
        self._check_corpus()
        recipe = self.recipe
        if self.init is not None:
            recipe = of_init(recipe, usual_recipe(self), self.init)
        out = self.out or Path("runs") / self.recipe.name
        return train_into(
            out, recipe, self.corpus, self.held_out, init=self.init, resume=self.resume, device=self.device
        )

    @property
    def resumes(self) -> bool:
        return self.resume

    def _check_corpus(self) -> None:
        if self.corpus and self.embedded_corpus:
            raise GranvitError("--corpus and --embedded-corpus exclude each other")
        if self.corpus or self.embedded_corpus:
            return
        if self.config is not None and (images := _images_of_its_own(self.config, usual_recipe(self))):
            raise GranvitError(
                f"the run of {self.config} learned from {images:,} images of corpora that a recipe does not name: name "
                "them with --corpus DIR, or say --embedded-corpus if drawn shapes are what you want"
            )
        foreign = [str(self.init)] if self.init is not None else self.recipe.pretrained_parts()
        if foreign:
            raise GranvitError(
                f"{' and '.join(foreign)} would be trained on the drawn shapes of the embedded corpus: name pictures "
                "with --corpus DIR, or say --embedded-corpus if that is what you want"
            )


def usual_recipe(command: Any) -> Recipe:
    """The recipe of a command before anything was changed on the command line."""
    recipe: Recipe = command.recipe
    make = next(each.default_factory for each in fields(command) if each.name == "recipe")
    return recipe if make is MISSING else make()


def of_init(recipe: Recipe, usual: Recipe, init: Path) -> Recipe:
    """The recipe with the settings of the model that it goes on from.

    Raises:
        GranvitError: others were asked for, that is, others than the model's and the usual recipe's.
    """
    from granvit.model.settings import read_settings

    settings = read_settings(checkpoint_of(init))
    for name, value in vars(recipe.settings).items():
        if value not in (getattr(settings, name), getattr(usual.settings, name)):
            kept = getattr(settings, name)
            raise GranvitError(f"--settings.{name} {value}: a model that --init names keeps its own, {kept!r}")
    for name in ("canvas", "encoder", "language"):
        if (value := getattr(recipe, name)) != getattr(usual, name):
            raise GranvitError(f"--{name} {value}: a model that --init names keeps its own")
    return replace(recipe, settings=settings)


def _images_of_its_own(config: Path, recipe: Recipe) -> int:
    """How many images the run of a recipe.json learned from that were not the recipe's drawn ones; 0 if not known."""
    data = config.parent / DATA
    if not data.exists():
        return 0
    sources = read_json(data)
    if not isinstance(sources, list) or not all(isinstance(each, dict) for each in sources):
        raise GranvitError(f"{data}: damaged: a list of objects is expected")
    images = [each.get("images") for each in sources]
    if not all(type(number) is int for number in images):
        raise GranvitError(f"{data}: damaged: images is not a whole number")
    return 0 if images == [recipe.corpus.train] else sum(images)


def train_into(
    out: Path,
    recipe: Recipe,
    corpora: Sequence[str],
    held_out: HeldOut,
    *,
    init: Path | None = None,
    resume: bool,
    device: Literal["auto", "cpu"],
) -> int:
    """Train a recipe into a run folder, report, and tell where all is; of several processes the first one does."""
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from granvit.evaluate.run_report import ask_commands, write_run_report
    from granvit.train.build import check_parts, counted_words, sources_of
    from granvit.train.config import on_cpu
    from granvit.train.run import run_recipe

    disable_progress_bar()
    if init is not None:
        init = checkpoint_of(init)
    else:
        check_parts(recipe)  # before a corpus is drawn or read for nothing
    sources = sources_of(recipe, corpora)
    first = PartialState(cpu=on_cpu(device)).is_main_process
    # The report belongs to the run: nobody else writes there in between.
    with locked(out) if first else nullcontext():
        scores, without = _scores(out, recipe, corpora, held_out) if first else (None, "")
        on_stage = None if scores is None else scores.on_stage
        model = run_recipe(
            recipe, out, sources, init=init, resume=resume, device=device, on_stage=on_stage, validation=scores
        )
        if not first:
            return 0
        report = write_run_report(
            out,
            recipe,
            model,
            scores,
            title=f"{recipe.name}: {out.name}",
            summary=_summary(asked=scores is not None),
            facts={
                "Corpus": ", ".join(corpora) or "the embedded one (drawn by granvit)",
                "Started from": str(init or f"{recipe.encoder} and {recipe.language}"),
                "Pictures": f"{counted_words(sources)}, "
                + (without or f"{len(scores.held_out if scores else []):,} held-out ones asked about"),
                "Processes": str(PartialState().num_processes),
            },
            commands=ask_commands(out),
        )
    print(f"checkpoint: {out / 'checkpoint'}\nreport: {report}")
    for best in scores.best() if scores is not None else []:
        print(f"best: {best}")
    return 0


def _summary(asked: bool) -> str:
    """What the report holds, in a sentence."""
    if not asked:
        return "What the run learned from and how it went. What it answers was not asked: see Pictures below."
    return "What the run learned from, how it went, and what it answers about pictures it never trained on."


def _scores(out: Path, recipe: Recipe, corpora: Sequence[str], wanted: HeldOut) -> tuple[HeldOutScores | None, str]:
    """What scores held-out pictures of the run's corpora, or why nothing does."""
    from granvit.evaluate.held_out import HeldOutScores, held_out_share
    from granvit.evaluate.region_tasks import TASKS
    from granvit.train.build import embedded_corpora, folder_of

    if not wanted.eval_images or not any(stage.answers for stage in recipe.stages):
        return None, "no held-out ones asked about" + ("" if wanted.eval_images else " (--eval-images 0)")
    folders = [folder_of(given) for given in corpora] or [embedded_corpora(recipe.corpus)[1].path]
    try:
        share = held_out_share(folders, recipe.text_tile, wanted.eval_images)
        return HeldOutScores(
            *(out, recipe.stages, share),
            tasks=(*TASKS, "answer"),
            max_regions=wanted.eval_regions,
            every=wanted.eval_every,
            keep_best=wanted.keep_best,
            rows=64,
        ), ""
    except GranvitError as error:
        if wanted.eval_every or isinstance(error, CheckpointError):
            raise
        print(f"no held-out pictures are asked about: {error}", file=sys.stderr)
        return None, f"no held-out ones asked about: {error}"


def _questions() -> SampleConfig:
    return transfer().sample


def _loop() -> CachingLoop:
    return transfer().loop


@dataclass
class Transfer:
    """Give a trained encoder another, larger language model: stage 2 with a fresh projector, the encoder frozen.

    The defaults are those of the recipe `paper-transfer`: Global and Caption2Bbox questions, AdamW with 1e-5, 256
    images a step on any number of GPUs, one epoch.
    """

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder, or a checkpoint: where the encoder comes from."""
    llm: str
    """The language model, a directory or a hub name: Qwen2, Qwen2.5, Qwen3, Llama 3, SmolLM to SmolLM3."""
    corpus: tuple[str, ...]
    """Corpus folders, each DIR or DIR=WEIGHT; their training images are mixed."""
    out: Path | None = None
    """The run folder; runs/transfer-LLM by default."""
    codec: str | None = None
    """How boxes are written ("decimal", "int1000", "loc", "loc:BINS", "cell:BINS"); as RUN writes them by default."""
    frame: Frame | None = None
    """What relative coordinates refer to; as in RUN by default."""
    fit: Fit | None = None
    """How the whole image becomes the canvas; as in RUN by default, which is how the encoder learned to see."""
    tiles: str | None = None
    """Grids of tiles that show the picture larger, such as 2x1,1x2,2x2; as in RUN by default, "" for none."""
    sample: SampleConfig = field(default_factory=_questions)
    """What is asked."""
    loop: CachingLoop = field(default_factory=_loop)
    """How it is trained."""
    lora: Lora = field(default_factory=Lora)
    """Adapters in place of the language model's own weights."""
    epochs: float = 1.0
    """How often each image is seen, where --loop.steps names no number of steps."""
    images_per_step: int = 256
    """The global batch, where --loop.accumulate names no number of micro-batches."""
    smoothing: float = 0.0
    """Label smoothing of location tokens: the width of the target over neighbouring bins."""
    seed: int = 0
    held_out: EvalFlags = field(default_factory=HeldOut)
    """What is asked while it trains."""
    resume: bool = True
    """Go on where an interrupted run in `out` stopped."""
    device: Literal["auto", "cpu"] = "auto"

    def run(self) -> int:
        if not self.corpus:
            raise GranvitError("--corpus names no corpus; stage 2 needs at least one")
        out = self.out or Path("runs") / f"transfer-{Path(self.llm).name}"
        return train_into(out, self.recipe(), self.corpus, self.held_out, resume=self.resume, device=self.device)

    @property
    def resumes(self) -> bool:
        return self.resume

    def recipe(self) -> Recipe:
        """Stage 2 alone, from the source's encoder and the new language model.

        Raises:
            CheckpointError: the source is no granvit checkpoint. GranvitError: a number is out of its range.
        """
        check_ranges(self, OF_RECIPES)  # by the flags of this command; a recipe's have other names
        from granvit.model.settings import read_settings

        checkpoint = checkpoint_of(self.source)
        given = {
            name: value for name in ("codec", "frame", "fit", "tiles") if (value := getattr(self, name)) is not None
        }
        return Recipe(
            name="transfer",
            encoder=str(checkpoint),
            language=self.llm,
            settings=replace(read_settings(checkpoint), **given),
            stages=[
                AdaptConfig(
                    self.sample,
                    self.loop,
                    smoothing=self.smoothing,
                    lora=self.lora,
                    epochs=self.epochs,
                    images_per_step=self.images_per_step,
                )
            ],
            seed=self.seed,
        )


@dataclass
class Assemble:
    """Write the model that a recipe starts from: what its run is to be compared with."""

    recipe: Recipe
    out: Path | None = None
    """The checkpoint's folder, which must not be there yet; runs/RECIPE-before by default."""

    def run(self) -> int:
        from transformers.utils.logging import disable_progress_bar

        from granvit.train.build import build_model

        out = self.out or Path("runs") / f"{self.recipe.name}-before"
        disable_progress_bar()
        with staged_folder(out, refuse_non_empty) as folder:
            build_model(self.recipe).save(folder)
        print(f"checkpoint: {out}")
        return 0


@dataclass
class Replay:
    """Take a step again that ended in a loss or gradient that is not finite, and find where.

    Exits with 0 where it happened again, with 1 where it did not.
    """

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The `nonfinite` folder that the run left."""
    corpus: tuple[str, ...] = ()
    """Where the run's corpora are now, in the run's order; where they were by default."""
    device: Literal["auto", "cpu"] = "auto"

    def run(self) -> int:
        from transformers.utils.logging import disable_progress_bar

        from granvit.cli import recipes  # noqa: F401  (with it come the stages that a recipe may name)
        from granvit.train.debug.replay import replay

        disable_progress_bar()
        result = replay(self.folder, self.corpus, self.device)
        print("\n".join(report(result)))
        return 0 if result.reproduced else 1


def report(result: Result) -> list[str]:
    """A replay as lines of text; the last one is the verdict."""
    lines = [f"step {result.step}{'in the run':>22}{'now':>14}"]
    lines += [f"  {name:12}{before:>18}{result.now[name]:>14.6g}" for name, before in result.before.items()]
    found = [
        *[("weight not finite before the step", weight) for weight in result.weights],
        ("first output not finite", result.watch.output),
        ("first gradient not finite, counted from the loss", result.watch.gradient),
        ("first parameter with such a gradient", result.watch.parameter),
    ]
    lines += [f"{what}: {where}" for what, where in found if where is not None]
    lines += [
        f"sample {id!r} alone: loss {loss:.6g}, gradient norm {norm:.6g}"
        for id, loss, norm in result.samples
        if id in result.offending
    ]
    alone = f"{len(result.offending)} of {len({id for id, *_ in result.samples})} samples do it alone"
    if result.reproduced:
        return [*lines, f"reproduced: step {result.step} is not finite again; {alone}"]
    return [*lines, f"not reproduced: step {result.step} is finite here; {alone}"]
