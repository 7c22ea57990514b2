"""What a study is: arms, seeds, what is measured, and what is compared with what, all said before anything is run.

Without torch, so that a study can be listed in a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from granvit.errors import GranvitError
from granvit.train.recipes.ablations import Change, unchanged
from granvit.train.recipes.base import Recipe

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Arm:
    """One way to train, as a change of the study's recipe.

    Attributes:
        name: short; names folders and files.
        title: how tables and plots call it.
        change: makes its recipe of the study's (`granvit/train/recipes/ablations.py`).
        share: of the training images, in (0, 1], the first ones; steps stay, so each is seen the oftener.
        flops_of: the arm whose arithmetic is matched: the stages in which this one departs from it (all, where it
            departs in none) are made longer or shorter by one factor, till the totals are equal.
    """

    name: str
    title: str
    change: Change = unchanged
    share: float = 1.0
    flops_of: str | None = None


@dataclass(frozen=True)
class Measure:
    """A number that each job gives.

    Attributes:
        title: how tables call it. note: what it is, in a line.
        percent: whether it is a share, shown in percent.
        more_is_better: None where neither is.
    """

    title: str
    note: str
    percent: bool = True
    more_is_better: bool | None = True


Claim = Literal["better", "not worse"]


@dataclass(frozen=True)
class Comparison:
    """A question of the study, which two arms and one measure decide; named before anything is run.

    Attributes:
        question: in a sentence.
        first, second: names of arms; the effect is the second's score less the first's.
        measure: a key of `MEASURES`.
        claim: what is to be shown of the second: "better", or "not worse" than the first by more than `margin`.
        margin: the smallest difference that would matter, in the measure's own unit (0.02 is two points).
        paper: what the paper reports on it.
    """

    question: str
    first: str
    second: str
    measure: str
    claim: Claim
    paper: str
    margin: float = 0.02


@dataclass(frozen=True)
class Series:
    """Arms along one setting, drawn as a curve: (value as text, arm) in order."""

    title: str
    points: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Measuring:
    """On what, and how much, every job is measured.

    Attributes:
        held_out: at most so many held-out images for questions, specificity and probes.
        probe_train: so many training images teach the probes' heads.
        probe_steps: steps of each head, for each of its learning rates.
        probes: tasks of `granvit.evaluate.probe_tasks`.
        attention: so many held-out images for the attention mass.
        tasks: which questions are asked, of `granvit.evaluate.region_tasks`.
    """

    held_out: int = 400
    probe_train: int = 2000
    probe_steps: int = 600
    probes: tuple[Literal["label", "attribute", "is-text", "read"], ...] = ("attribute",)
    attention: int = 200
    tasks: tuple[str, ...] = ("describe", "locate", "caption")


@dataclass(frozen=True)
class Study:
    """The whole: what runs, what is measured, what is asked.

    Attributes:
        name, title: on the command line; on the report.
        base: the recipe that all arms are changes of.
        arms: in the order in which they are run.
        comparisons: the questions, over which p values are corrected together.
        series: curves of the report.
        seconds: roughly what an image of a stage costs, by kind of stage, and by "measure" a job's measures; measured
            on one core, for plans before anything has run. Empty where nobody knows.
        embedded: whether the recipe's embedded corpus is what it is trained on; else corpora must be named.
        note: what a reader of its answers must know.
    """

    name: str
    title: str
    base: Callable[[], Recipe]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    series: tuple[Series, ...] = ()
    measuring: Measuring = field(default_factory=Measuring)
    seconds: Mapping[str, float] = field(default_factory=dict)
    embedded: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        for name in names:
            if not _NAME.fullmatch(name) or names.count(name) > 1:
                raise GranvitError(f"study {self.name}: arm {name!r}: a name of its own, of a-z, 0-9, dots and dashes")
        for where, arms in self._named():
            if unknown := sorted(set(arms) - set(names)):
                raise GranvitError(f"study {self.name}: {where} names no arm: {', '.join(unknown)}")
        if unknown := sorted({c.measure for c in self.comparisons} - set(MEASURES)):
            raise GranvitError(f"study {self.name}: no measure {', '.join(unknown)}; known are {', '.join(MEASURES)}")

    def _named(self) -> list[tuple[str, list[str]]]:
        found = [(f"comparison {c.question!r}", [c.first, c.second]) for c in self.comparisons]
        found += [(f"series {s.title!r}", [name for _, name in s.points]) for s in self.series]
        return found + [(f"arm {a.name!r}", [a.flops_of]) for a in self.arms if a.flops_of is not None]

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            GranvitError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise GranvitError(f"--arms {name}: study {self.name} has no such arm; it has {known}")

    def chosen(self, names: Sequence[str]) -> list[Arm]:
        """The arms of these names, all where there are none, in the order of the study."""
        wanted = {self.arm(name).name for name in names}
        return [arm for arm in self.arms if arm.name in wanted or not names]


MEASURES: dict[str, Measure] = {
    "describe": Measure("Describe, ROUGE-L", "Bbox2Caption: words of the answer shared with the true text"),
    "describe-exact": Measure("Describe, exact", "Bbox2Caption: answers equal to the true text"),
    "locate": Measure("Locate, Acc@0.5", "Caption2Bbox: boxes that overlap the true one by half or more"),
    "locate-iou": Measure("Locate, mean IoU", "Caption2Bbox: overlap with the true box"),
    "caption": Measure("Caption, ROUGE-L", "Global: words of the answer shared with the true caption"),
    "read": Measure("Read, exact", "Bbox2Caption of text: lines without an error"),
    "attribute-linear": Measure(
        "Words, linear probe", "of the words of a region's text those that a linear head ranks first"
    ),
    "attribute-attentive": Measure("Words, attentive probe", "the same by a head that chooses among the patches"),
    "label-linear": Measure("Class, linear probe", "objects whose class a linear head names"),
    "label-attentive": Measure("Class, attentive probe", "the same by a head that chooses among the patches"),
    "is-text-linear": Measure("Text or not, linear probe", "regions told to be text or not"),
    "is-text-attentive": Measure("Text or not, attentive probe", "the same by a head that chooses among the patches"),
    "read-ctc": Measure("Letters, probe", "letters of a line that a small CTC head reads right, 1 less the CER"),
    "distinct": Measure(
        "Box specificity: different answers", "pairs of boxes of one picture, of different texts, answered differently"
    ),
    "swapped": Measure(
        "Box specificity: another region's text",
        "answers that are the text of another region of the picture and not the region's own",
        more_is_better=False,
    ),
    "attention": Measure(
        "Attention in the box", "of what the encoder's last layers attend to from a box, the share within", True, None
    ),
    "attention-words": Measure(
        "Answer words' attention in the box", "the same of the language model's words about the box", True, None
    ),
    "rank": Measure(
        "Effective rank", "of the regions' features: how many directions they spread over (RankMe)", False, None
    ),
    "spread": Measure("Spread", "of the regions' features: the share of their length that differs", True, None),
}
