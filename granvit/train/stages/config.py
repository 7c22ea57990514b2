"""The settings of the stages: the type of a config says which stage it is, so that each shows its own settings alone.

Without torch, because the program's help shows every recipe with all its stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from granvit.errors import GranvitError
from granvit.train.config import (
    SELDOM,
    CachingLoop,
    ConversationSample,
    CroppedSample,
    LoopConfig,
    Lora,
    SampleConfig,
)
from granvit.train.identity import ELSEWHERE, FREE, NEWER

if TYPE_CHECKING:
    from granvit.model.region_model import RegionModel
    from granvit.train.feed import Records
    from granvit.train.prepare import Prepare
    from granvit.train.stages.base import AnsweringStage


@dataclass(frozen=True)
class RunContext:
    """What a stage may ask of the run that it is part of.

    Attributes:
        sources: the corpora and their weights.
        earlier: folders in which the parts that the run began with, and the stages before this one, left what a later
            stage may go on from (`Stage.finish`), oldest first.
    """

    sources: Sequence[tuple[Records, float]] = ()
    earlier: Sequence[Path] = ()

    def newest(self, name: str) -> Path | None:
        """The file of that name which was left last."""
        found = (folder / name for folder in reversed(self.earlier))
        return next((path for path in found if path.exists()), None)


NO_RUN = RunContext()


# The type of each kind of stage. A recipe that was saved names the kind; who reads it has imported the types.
KINDS: dict[str, type[StageConfig]] = {}


@dataclass
class StageConfig:
    """The settings of all stages.

    Attributes:
        kind: how saved recipes name the stage's type.
        reads_pictures: whether the stage looks at pictures; for regions alone the embedded corpus is never drawn.
        answers: whether the model answers questions about pictures after the stage, and can be scored.
        sample: what is asked, and what of an image is shown.
        loop: how the stage is trained.
        epochs: how often each image is seen, and where the stage learns from conversations without an image, each of
            these; counts where `loop.steps` is 0.
        images_per_step: the global batch, over all processes; counts where `loop.accumulate` is 0, so that a recipe
            stays the same on any number of GPUs.
        name: the stage's folder and its name in tables; the kind where empty.
    """

    kind: ClassVar[str] = ""
    reads_pictures: ClassVar[bool] = True
    answers: ClassVar[bool] = True

    sample: SampleConfig
    loop: LoopConfig
    epochs: float = field(default=1.0, metadata=ELSEWHERE | SELDOM)
    images_per_step: int = field(default=256, metadata=ELSEWHERE | SELDOM)
    name: str = field(default="", metadata=FREE | SELDOM)

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @property
    def folder(self) -> str:
        """The stage's folder in a run, unique in its recipe."""
        return self.name or self.kind

    def resolved(self, images: int, processes: int, text_only: int = 0) -> Self:
        """The same stage with its steps and micro-batches as numbers, for a corpus and a number of processes.

        Args:
            images: records with an image.
            text_only: records without one; a stage that leaves them out does not count them.

        Raises:
            GranvitError: so many processes cannot share `images_per_step` evenly.
        """
        loop, together = self.loop, self.loop.batch_size * processes
        accumulate = loop.accumulate or self.images_per_step // together
        if not loop.accumulate and accumulate * together != self.images_per_step:
            raise GranvitError(
                f"{self.folder}: {self.images_per_step} images per step are no whole number of batches of "
                f"{loop.batch_size} on {processes} process(es); choose another loop.batch-size"
            )
        talks = isinstance(self.sample, ConversationSample) and self.sample.conversations > 0
        seen = images + (text_only if talks else 0)
        steps = loop.steps or max(1, math.ceil(self.epochs * seen / (accumulate * together)))
        return replace(self, loop=replace(loop, steps=steps, accumulate=accumulate))

    def facts(self) -> dict[str, Any]:
        """The stage as plain data (`granvit.train.recipes.saved.read_stage` takes it back)."""
        return {"kind": self.kind, **asdict(self)}

    def check(self) -> None:
        """Refuses settings that do not go together.

        Raises:
            GranvitError: the message names them.
        """

    def prepare(self, model: RegionModel) -> Prepare:
        """What makes this stage's samples of records."""
        from granvit.train.prepare import Prepare

        return Prepare(model, self.sample)

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> AnsweringStage:
        """The stage object for a model."""
        raise NotImplementedError


@dataclass
class LanguageConfig(StageConfig):
    """What the stages that train the language model share.

    Attributes:
        smoothing: label smoothing over location bins: the spread of a location token's target, in bins (0: the paper's
            plain loss).
        lora: adapters in place of the language model's own weights.
    """

    smoothing: float = 0.0
    lora: Lora = field(default_factory=Lora)

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        if self.lora.rank is None:  # as before there was any
            del facts["lora"]
        return facts

    def check(self) -> None:
        super().check()
        self.lora.check(self.folder)

    def prepare(self, model: RegionModel) -> Prepare:
        if self.lora.rank is not None:
            from granvit.train.lora import check_targets

            if model.new_tokens:
                raise GranvitError(
                    f"{self.folder}: lora: adapters leave out the embeddings of codec {model.settings.codec!r}, whose "
                    f"{len(model.codec.tokens)} tokens the language model has never seen: train it as a whole, or use "
                    "codec 'decimal' or 'int1000'"
                )
            check_targets(model.llava, self.lora)
        return super().prepare(model)

    def adapted(self, model: RegionModel) -> RegionModel:
        """The model with its adapters, where there are to be any; put there in place."""
        if self.lora.rank is not None:
            from granvit.train.lora import add_adapters

            add_adapters(model.llava, self.lora, self.loop.seed)
        return model


@dataclass
class PretrainConfig(StageConfig):
    """Stage 1: encoder and projector learn to describe regions through the frozen language model.

    Attributes:
        smoothing: label smoothing over location bins: the spread of a location token's target, in bins (0: the paper's
            plain loss).
        distill_weight: lambda, the weight of the localized self-distillation beside the captions' loss (paper: 1); 0
            trains without a teacher.
        alpha: the share of itself that the teacher, a moving average of the encoder, keeps at each step (paper: 0.9).
        train_language: whether the language model learns too, as where both stages are one.
        train_locations: whether the embeddings of the codec's location tokens learn, where the language model is frozen
            that never saw them; it takes the memory of a gradient and two moments for its whole vocabulary.
    """

    kind: ClassVar[str] = "stage1"

    sample: CroppedSample
    smoothing: float = 0.0
    distill_weight: float = 1.0
    alpha: float = 0.9
    train_language: bool = field(default=False, metadata={NEWER: True} | SELDOM)
    train_locations: bool = field(default=False, metadata={NEWER: True} | SELDOM)

    def check(self) -> None:
        super().check()
        if self.train_locations and self.loop.parallel == "fsdp":
            raise GranvitError(f"{self.folder}: train_locations: loop.parallel is ddp where some rows alone train")

    def prepare(self, model: RegionModel) -> Prepare:
        learns = self.train_language or self.train_locations
        if model.new_tokens and not learns:
            raise GranvitError(
                f"{self.folder}: the language model has never seen the {len(model.codec.tokens)} tokens of codec "
                f"{model.settings.codec!r}, such as {model.codec.tokens[0]}, and is frozen: set train_locations, which "
                "trains their embeddings alone, or use codec 'decimal' or 'int1000'"
            )
        if self.train_locations and not model.codec.tokens:
            raise GranvitError(
                f"{self.folder}: train_locations: codec {model.settings.codec!r} writes boxes in digits, so there "
                "are no location tokens to train: switch it off, or use codec 'cell:24'"
            )
        return super().prepare(model)

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> AnsweringStage:
        from granvit.train.stages.pretrain import Pretrain

        learned = (self.train_language, self.train_locations)
        return Pretrain(model, self.smoothing, self.distill_weight, self.alpha, *learned)


@dataclass
class ContrastConfig(StageConfig):
    """In place of stage 1, without a language model: regions are contrasted with the embeddings of their texts.

    Attributes:
        contrast_weight: the weight of the contrast; 0 trains without it, and the projector not at all.
        distill_weight: lambda, the weight of the localized self-distillation; 0 trains without a teacher.
        alpha: the share of itself that the teacher, a moving average of the encoder, keeps at each step.
    """

    kind: ClassVar[str] = "contrast"
    answers: ClassVar[bool] = False

    sample: CroppedSample
    contrast_weight: float = 1.0
    distill_weight: float = 0.0
    alpha: float = 0.9

    def check(self) -> None:
        super().check()
        if self.contrast_weight == self.distill_weight == 0:
            raise GranvitError(f"{self.folder}: contrast_weight and distill_weight are both 0: nothing would train")
        if dict(self.sample.questions) != {"bbox2caption": 1.0}:
            raise GranvitError(f"{self.folder}: sample.questions: a contrast is of regions, so bbox2caption 1 alone")
        if self.sample.max_tokens is not None or self.sample.subphrases:
            raise GranvitError(f"{self.folder}: sample.max_tokens and sample.subphrases have no place in a contrast")
        if self.loop.parallel == "fsdp":
            raise GranvitError(f"{self.folder}: loop.parallel is ddp for a contrast, which knows no sharded tower")

    def prepare(self, model: RegionModel) -> Prepare:
        from granvit.train.stages.contrast import RegionPrepare

        if model.settings.tiles:
            raise GranvitError(f"{self.folder}: a contrast takes each picture as one canvas, and this model has tiles")
        return RegionPrepare(model, self.sample)

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> AnsweringStage:
        from granvit.train.stages.contrast import Contrast

        return Contrast(model, self.contrast_weight, self.distill_weight, self.alpha)


@dataclass
class AdaptConfig(LanguageConfig):
    """Stage 2: the encoder is frozen, projector and language model learn to find regions."""

    kind: ClassVar[str] = "stage2"

    loop: CachingLoop

    def check(self) -> None:
        super().check()
        if self.loop.feature_cache is not None and self.sample.windows:
            raise GranvitError(f"{self.folder}: loop.feature_cache with sample.windows: no window comes up twice")

    def prepare(self, model: RegionModel) -> Prepare:
        prepare = super().prepare(model)
        prepare.digests = self.loop.feature_cache is not None
        return prepare

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> AnsweringStage:
        from granvit.train.stages.adapt import Adapt

        return Adapt(self.adapted(model), self.smoothing)


@dataclass
class FinetuneConfig(LanguageConfig):
    """Supervised fine-tuning: projector and language model learn conversations and all questions in one mixture.

    Attributes:
        train_encoder: whether the encoder trains too.
    """

    kind: ClassVar[str] = "finetune"

    sample: ConversationSample
    train_encoder: bool = False

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> AnsweringStage:
        from granvit.train.stages.finetune import Finetune

        return Finetune(self.adapted(model), self.smoothing, self.train_encoder)
