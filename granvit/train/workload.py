"""What a recipe is trained on, as a plan needs it: how much a stage asks of an image, in the mean and at most.

Of corpora the records are looked at, without their pictures: which have a caption, regions, conversations. Lengths of
texts are assumed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from granvit.corpus.layout import SHARDS
from granvit.corpus.store import Subset
from granvit.errors import GranvitError
from granvit.regions import RegionImage
from granvit.train.build import counted
from granvit.train.config import ConversationSample, CroppedSample, SampleConfig
from granvit.train.feed import Records
from granvit.train.recipes.base import Recipe

# Tokens of a question, and of an answer that is a box with three decimals. The questions are the paper's.
GLOBAL, BBOX2CAPTION, CAPTION2BBOX = 28, 68, 45
BOX = 30
# Kinds of questions as they are counted.
KINDS = ("global", "bbox2caption", "caption2bbox", "conversation")
# So many records of a corpus are looked at, or a few more: whole row groups that lie evenly in it.
_LOOKED_AT = 20_000


class Looked(NamedTuple):
    """What a record has: of many alike the means.

    Attributes:
        caption: whether there is a global one. picture: whether there is one.
        regions: without those to be ignored. findable: regions whose text fits no other of the image.
    """

    caption: bool
    regions: float
    findable: float
    conversations: float
    picture: bool = True

    @classmethod
    def at(cls, record: RegionImage) -> Looked:
        """What training would see of it."""
        texts = Counter(region.text.casefold() for region in record.regions)
        usable = [region for region in record.regions if not region.ignore]
        findable = sum(texts[region.text.casefold()] == 1 for region in usable)
        return cls(bool(record.caption), len(usable), findable, len(record.conversations), not record.text_only)


@dataclass(frozen=True)
class Workload:
    """What is trained on.

    Attributes:
        images: how many records.
        regions: of a record, in the mean.
        caption_tokens: of a global caption. region_tokens: of a region's text.
        kilobytes: of an image on the disk, its regions included.
        conversations: of a record, in the mean. conversation_tokens: of one, questions and answers.
        records: what records have, and how often such ones are drawn; without them each has the means, and a caption.
        text_only: how many of the records are conversations about no image, which an epoch of most stages leaves out.
    """

    images: int
    regions: float
    caption_tokens: int = 150
    region_tokens: int = 12
    kilobytes: float = 150.0
    conversations: float = 0.0
    conversation_tokens: int = 300
    records: tuple[tuple[Looked, float], ...] = ()
    text_only: int = 0

    @property
    def looked(self) -> Sequence[tuple[Looked, float]]:
        """`records`, or one that has the means."""
        return self.records or [(Looked(True, self.regions, self.regions, self.conversations), 1.0)]

    @property
    def captioned(self) -> float:
        """The share of the records that have a global caption."""
        return math.fsum(often for looked, often in self.looked if looked.caption)

    @property
    def without_picture(self) -> float:
        """The share of the records that are conversations alone."""
        return math.fsum(often for looked, often in self.looked if not looked.picture)

    def resolved(self, recipe: Recipe, gpus: int) -> Recipe:
        """The recipe with its steps as numbers, as training on this counts them (`Recipe.resolved`)."""
        return recipe.resolved(self.images - self.text_only, gpus, self.text_only)

    def read(self, asked: Asked, images: int) -> float:
        """Bytes read from the disk for so many images of a stage, those that it passes over included."""
        return images / asked.usable * self.kilobytes * 1e3

    def lengths(self, sample: SampleConfig) -> dict[str, tuple[int, int]]:
        """By kind of question its tokens and its answer's, cut as training cuts them; each answer ends with one more.

        Of a conversation half is taken to be answers.
        """
        longest = sample.max_answer
        talk = self.conversation_tokens
        if isinstance(sample, ConversationSample):
            talk = min(talk, sample.max_conversation)
        return {
            "global": (GLOBAL, min(self.caption_tokens, longest)),
            "bbox2caption": (BBOX2CAPTION, min(self.region_tokens, longest)),
            "caption2bbox": (CAPTION2BBOX, min(BOX, longest)),
            "conversation": (talk - talk // 2, talk // 2),
        }

    def mean(self, sample: SampleConfig, prefix: int, where: str) -> Asked:
        """What is asked of an image that the stage takes, in the mean; `prefix` is an image's own tokens.

        Raises:
            GranvitError: the stage finds nothing to ask of any record; `where` begins the message.
        """
        lengths = self.lengths(sample)
        each = [(asked_of(looked, sample, lengths, prefix), often) for looked, often in self.looked]
        taken = [(asked, often) for asked, often in each if asked.questions]
        usable = math.fsum(often for _, often in taken)
        if not usable:
            wanted = ", ".join(name for name, chance in sample.questions.items() if chance)
            if sample.max_tokens is not None and sample.max_tokens <= prefix:
                raise GranvitError(
                    f"{where}: sample.max_tokens {sample.max_tokens} leaves no room for a question: an image alone "
                    f"takes {prefix}"
                )
            raise GranvitError(f"{where}: nothing to ask: no record has what it needs for sample.questions ({wanted})")

        def mean(values: Callable[[Asked], float]) -> float:
            return math.fsum(often * values(asked) for asked, often in taken) / usable

        counts = {name: mean(lambda asked, name=name: asked.counts[name]) for name in KINDS}  # type: ignore[misc]
        return Asked(counts, mean(_crops), mean(_picture), mean(_apart), usable)

    def most(self, sample: SampleConfig, prefix: int) -> Asked:
        """The most that is asked of an image: of regions, if there are any, as many as the stage takes."""
        pictures = [looked for looked, _ in self.looked if looked.picture]
        if not pictures and isinstance(sample, ConversationSample):
            return Asked({**dict.fromkeys(KINDS, 0.0), "conversation": sample.max_conversations}, picture=0.0)
        some = any(looked.regions for looked in pictures)
        regions = sample.max_regions if some else 0
        caption = any(looked.caption for looked in pictures)
        talks = max((math.ceil(looked.conversations) for looked in pictures), default=0)
        asked = asked_of(Looked(caption, regions, regions, talks), sample, self.lengths(sample), prefix)
        return Asked({name: math.ceil(count) for name, count in asked.counts.items()}, math.ceil(asked.crops))


@dataclass(frozen=True)
class Asked:
    """Questions of an image, by kind.

    Attributes:
        counts: all of `KINDS`; conversations about no image are `apart`.
        crops: of regions, that the teacher sees.
        picture: the share of the records that have one.
        usable: the share of the corpus's records that the stage takes; the others are passed over.
    """

    counts: dict[str, float]
    crops: float = 0.0
    picture: float = 1.0
    apart: float = 0.0
    usable: float = 1.0

    @property
    def questions(self) -> float:
        """How many there are."""
        return math.fsum(self.counts.values()) + self.apart


_crops, _picture, _apart = (attrgetter(name) for name in ("crops", "picture", "apart"))


def asked_of(looked: Looked, sample: SampleConfig, lengths: dict[str, tuple[int, int]], prefix: int) -> Asked:
    """What a stage asks of a record, in the mean over what it draws; where rows are limited as much as fits in one."""
    talks = 0.0
    if isinstance(sample, ConversationSample):
        talks = min(sample.conversations * looked.conversations, sample.max_conversations)
    if not looked.picture:
        room = 1.0 if sample.max_tokens is None else sample.max_tokens / max(1e-9, talks * sum(lengths["conversation"]))
        return Asked(dict.fromkeys(KINDS, 0.0), picture=0.0, apart=talks * min(1.0, room))
    regions = min(looked.regions, sample.max_regions)
    drawn = regions / looked.regions if looked.regions else 0.0
    wanted = sample.questions
    counts = {
        "global": wanted.get("global", 0.0) * looked.caption,
        "bbox2caption": wanted.get("bbox2caption", 0.0) * regions,
        "caption2bbox": wanted.get("caption2bbox", 0.0) * looked.findable * drawn + sample.subphrases * regions,
        "conversation": talks,
    }
    tokens = math.fsum(count * sum(lengths[name]) for name, count in counts.items())
    if sample.max_tokens is not None and prefix + tokens > sample.max_tokens:
        room = max(0, sample.max_tokens - prefix)
        counts = {name: count * room / tokens for name, count in counts.items()}
    crops = min(sample.crops, regions) if isinstance(sample, CroppedSample) else 0.0
    return Asked(counts, crops)


def workload_of(
    sources: Sequence[tuple[Records, float]], caption_tokens: int, region_tokens: int, conversation_tokens: int
) -> Workload:
    """What training on a mixture of parts of corpora (`granvit.train.build.sources_of`) is to take."""
    parts = [(part, weight) for part, weight in sources if isinstance(part, Subset)]
    assert len(parts) == len(sources)
    looked = _look_at(parts)
    images, size = sum(len(part) for part, _ in parts), 0.0
    for part, _ in parts:
        shards = sum(path.stat().st_size for path in part.corpus.path.glob(SHARDS))
        size += shards * len(part) / len(part.corpus)
    return Workload(
        images,
        math.fsum(often * each.regions for each, often in looked),
        caption_tokens,
        region_tokens,
        kilobytes=size / images / 1e3,
        conversations=math.fsum(often * each.conversations for each, often in looked),
        conversation_tokens=conversation_tokens,
        records=looked,
        text_only=counted(sources)[1],
    )


def _look_at(parts: Sequence[tuple[Subset, float]]) -> tuple[tuple[Looked, float], ...]:
    """What the records of a mixture have, and the share of each such kind in what training draws.

    Of a large corpus some are looked at, in row groups that lie evenly in it.
    """
    found: defaultdict[Looked, float] = defaultdict(float)
    whole = math.fsum(weight for _, weight in parts)
    for part, weight in parts:
        inside = set(part.indices)
        for step in (max(1, len(part.corpus) // _LOOKED_AT), 1):  # all, where only held-out ones were met
            seen = Counter(Looked.at(record) for place, record in part.corpus.sampled(step) if place in inside)
            if seen:
                break
        for looked, count in seen.items():
            found[looked] += weight / whole * count / seen.total()
    return tuple(found.items())
