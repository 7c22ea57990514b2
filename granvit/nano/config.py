"""The settings of the two warm-ups of from-scratch parts (without torch, as `granvit.train.stages.config`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from granvit.errors import GranvitError
from granvit.train.config import SampleConfig
from granvit.train.stages.config import NO_RUN, RunContext, StageConfig

if TYPE_CHECKING:
    from granvit.model.region_model import RegionModel
    from granvit.nano.encoder_warmup import EncoderWarmup
    from granvit.nano.language_warmup import LanguageWarmup
    from granvit.train.prepare import Prepare


class _WarmupConfig(StageConfig):
    answers: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        if self.loop.parallel == "fsdp":
            raise GranvitError(
                f"{self.folder}: loop.parallel is ddp for the presets' own parts, which fit on any machine"
            )


@dataclass
class LanguageWarmupConfig(_WarmupConfig):
    """A from-scratch language model learns to look things up in symbolic images; nothing else trains.

    Attributes:
        smoothing: label smoothing over location bins: the spread of a location token's target, in bins (0: plain).
        noise: standard deviation of what is added to the symbolic image, in those of the word embeddings.
        blur: how unclear images are, in [0, 1]: other words are mixed into them, and they are fainter.
        smear: how far words spread over the patches around theirs, in [0, 1], as an encoder's attention spreads them.
    """

    kind: ClassVar[str] = "warmup"
    reads_pictures: ClassVar[bool] = False

    smoothing: float = 0.0
    noise: float = 0.3
    blur: float = 0.0
    smear: float = 0.0

    def prepare(self, model: RegionModel) -> Prepare:
        from granvit.nano.symbolic import SymbolicPrepare

        return SymbolicPrepare(model, self.sample)

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> LanguageWarmup:
        from granvit.nano.language_warmup import LanguageWarmup
        from granvit.nano.projector import corpus_canvases

        canvases = partial(corpus_canvases, model, self.sample, context.sources, self.loop.seed)
        return LanguageWarmup(model, self.smoothing, self.noise, self.blur, self.smear, context, canvases)


@dataclass
class WordMapSample(SampleConfig):
    """The same, with word maps by choice.

    Attributes:
        word_map: beside the pixels, say which words lie in which patch; what is ignored is painted over.
    """

    word_map: bool = False


@dataclass
class EncoderWarmupConfig(_WarmupConfig):
    """A from-scratch encoder learns which words belong to a picture, or lie in a patch; nothing else trains."""

    kind: ClassVar[str] = "encoder"

    sample: WordMapSample

    def prepare(self, model: RegionModel) -> Prepare:
        from granvit.nano.symbolic import WordMapPrepare
        from granvit.train.prepare import Prepare

        return WordMapPrepare(model, self.sample) if self.sample.word_map else Prepare(model, self.sample)

    def build(self, model: RegionModel, context: RunContext = NO_RUN) -> EncoderWarmup:
        from granvit.nano.encoder_warmup import EncoderWarmup

        return EncoderWarmup(model, context)
