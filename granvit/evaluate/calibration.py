"""Whether a model is as sure as it is right: for tasks in which an answer is right or wrong, from its confidences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from granvit.evaluate import metrics
from granvit.evaluate.items import Item, Task
from granvit.evaluate.metrics.calibration import (
    ReliabilityBin,
    Threshold,
    auroc,
    expected_calibration_error,
    reliability,
    thresholds,
)
from granvit.evaluate.plots import ACCENT, INK, plot_svg
from granvit.texts import exact_each

# The confidences at which precision and recall are told.
AT = tuple(round(0.1 * step, 1) for step in range(10))


@dataclass(frozen=True)
class Calibration:
    """The confidences of one task's answers, held against which of them are right.

    Attributes:
        right: what makes an answer right, in words.
        count: answers that have a confidence.
        ece: expected calibration error, 0 to 1.
        auroc: the chance that a right answer has a higher confidence than a wrong one; None without one of either.
        bins: the reliability diagram.
        thresholds: precision and recall by the least confidence that is taken.
    """

    right: str
    count: int
    ece: float
    auroc: float | None
    bins: list[ReliabilityBin]
    thresholds: list[Threshold]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def calibration(task: Task, items: Sequence[Item]) -> Calibration | None:
    """How far the confidences of a task's answers can be believed; None where it has none, or its answers are rated.

    A box is right from an IoU of 0.5 with the true one, the text of a box where it equals a true text. Other answers,
    such as captions of images, are better or worse, not right or wrong.
    """
    known = [item for item in items if item.confidence is not None]
    if not known:
        return None
    if task.scorer == "boxes":
        true = [item.box for item in known if item.box is not None]
        right = metrics.paired_iou([item.found for item in known], true) >= 0.5
        given, words = np.array([item.found is not None for item in known]), "IoU of 0.5 or more"
    elif all(item.how == "box" for item in known):
        right = np.array(exact_each([item.said for item in known], [item.truth for item in known])) == 1
        given, words = np.ones(len(known), dtype=bool), "equal to a true text"
    else:
        return None
    confidences = np.array([item.confidence for item in known], dtype=float)
    bins = reliability(confidences, right)
    return Calibration(
        words,
        len(known),
        expected_calibration_error(bins),
        auroc(confidences, right),
        bins,
        thresholds(confidences, right, given, AT),
    )


def reliability_svg(of_task: Calibration) -> Markup:
    """The reliability diagram: how many of the answers of each confidence are right, beside how many should be."""

    def draw(axes: Any) -> None:
        filled = [b for b in of_task.bins if b.count]
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle="--", alpha=0.6)
        axes.bar([b.low for b in filled], [b.right for b in filled], 0.1, align="edge", color=ACCENT, alpha=0.55)
        axes.plot(
            [b.confidence for b in filled], [b.right for b in filled], color=ACCENT, linewidth=1.2, marker="o", ms=3
        )
        for b in filled:
            axes.annotate(f"{b.count:,}", (b.low + 0.05, 0.02), color=INK, fontsize=5.5, ha="center", va="bottom")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence", color=INK)
        axes.set_ylabel("right", color=INK)

    return plot_svg(draw, (3.0, 2.4))
