"""Scores of boxes: overlap and parse rate, the best constant box, and average precision as COCO computes it."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granvit import geometry
from granvit.coordinates import Box
from granvit.geometry import as_boxes, iou, sizes
from granvit.regions import Region
from granvit.texts import check_pairs


def paired_iou(predictions: Sequence[Box | None], references: Sequence[Box]) -> NDArray[np.float64]:
    """IoU of each prediction with its own reference, shape (N,); None (an answer that isn't a box) has IoU 0.

    Boxes are (x1, y1, x2, y2), pixels or relative alike: scaling an axis leaves the IoU as it is.
    """
    check_pairs(predictions, references)
    return geometry.paired_iou([(0, 0, 0, 0) if p is None else p for p in predictions], references)


def box_scores(
    predictions: Sequence[Box | None], references: Sequence[Box], thresholds: Sequence[float] = (0.5,)
) -> dict[str, float]:
    """Localisation scores in [0, 1]: "acc50" (and so on for `thresholds`), "miou" and "parse_rate".

    "acc50" is the share of references whose prediction has an IoU of at least 0.5. An answer that isn't a box counts
    as a miss and as IoU 0; "parse_rate", the share of answers that are boxes, tells such misses from wrong places.
    """
    iou_n = paired_iou(predictions, references)
    accuracies = {f"acc{round(100 * t)}": float((iou_n >= t).mean()) for t in thresholds}
    parsed = sum(p is not None for p in predictions) / len(predictions)
    return {**accuracies, "miou": float(iou_n.mean()), "parse_rate": parsed}


# References that all candidates are compared with at once; bounds the memory.
_AT_ONCE = 8_192


def best_constant_box(references: ArrayLike, thresholds: Sequence[float] = (0.5,)) -> dict[str, float]:
    """What the one box that, answered to every question, scores best would reach, score by score.

    Candidates are the median and the mean of the references, their 50 most frequent after rounding to eighths, and all
    boxes on a grid of quarters. They are judged on the references themselves, so the baseline is generous: a model that
    beats it has seen something.

    Args:
        references: (N, 4), relative (x1, y1, x2, y2) in [0, 1] of each picture.

    Returns:
        "acc50" (and so on for `thresholds`) and "miou", in [0, 1]; each is its own best candidate's.

    Raises:
        ValueError: there are no references.
    """
    references_n4 = as_boxes(references)
    if not len(references_n4):
        raise ValueError("nothing to score: no references")
    candidates_c4 = _candidates(references_n4)
    sums: dict[str, NDArray[np.float64]] = {}
    for start in range(0, len(references_n4), _AT_ONCE):
        iou_cn = iou(candidates_c4, references_n4[start : start + _AT_ONCE])
        counts = {f"acc{round(100 * t)}": (iou_cn >= t).sum(1) for t in thresholds} | {"miou": iou_cn.sum(1)}
        sums = {name: sums.get(name, 0) + value for name, value in counts.items()}
    return {name: float(value.max()) / len(references_n4) for name, value in sums.items()}


def _candidates(boxes_n4: NDArray[np.float64]) -> NDArray[np.float64]:
    eighths = Counter(map(tuple, (np.round(boxes_n4 * 8) / 8).tolist()))
    frequent = [box for box, _ in eighths.most_common(50) if box[0] < box[2] and box[1] < box[3]]
    spans = [(low / 4, high / 4) for low in range(4) for high in range(low + 1, 5)]
    grid = [(x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans]
    return np.array([np.median(boxes_n4, axis=0), boxes_n4.mean(axis=0), *frequent, *grid])


_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def average_precision(
    found: Sequence[Sequence[Region]], true: Sequence[Sequence[Region]], by_text: bool = False
) -> dict[str, float | None]:
    """COCO's AP in [0, 1] of the boxes found in each image, against the true ones.

    Areas are the boxes' own, where COCO takes the masks'; and of an image with more than 100 boxes all count.

    Args:
        found: N images' regions; a region without a score counts as certain (1.0).
        true: N images' regions; those to be ignored count neither as found nor as missed, as COCO's crowds.
        by_text: every text is a class of its own; otherwise a box is right wherever any true box is.

    Returns:
        "ap" over IoU 0.5 to 0.95, "ap50", "ap75", and AP of small (below 32x32 px), medium and large (above 96x96 px)
        true boxes; None where there are no such boxes.

    Raises:
        ValueError: not as many images, or no true box. ImportError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("average precision needs pycocotools: pip install 'granvit[eval]'") from error
    if len(found) != len(true):
        raise ValueError(f"{len(found)} predictions for {len(true)} references")
    if not any(not region.ignore for regions in true for region in regions):
        raise ValueError("nothing to score: no true box")
    classes: dict[str, int] = {}

    def rows(images: Sequence[Sequence[Region]]) -> list[dict[str, Any]]:
        annotations: list[dict[str, Any]] = []
        for image, regions in enumerate(images, start=1):
            for region in regions:
                (width, height), corner = sizes(region.box)[0].tolist(), region.box[:2]
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes id 0 for "not matched"
                        "image_id": image,
                        "category_id": classes.setdefault(region.text.casefold() if by_text else "", len(classes) + 1),
                        "bbox": [*corner, width, height],
                        "area": width * height,
                        "iscrowd": int(region.ignore),
                        "score": 1.0 if region.score is None else region.score,
                    }
                )
        return annotations

    truth, predictions = rows(true), rows(found)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i + 1} for i in range(len(true))],
            "categories": [{"id": number, "name": name} for name, number in classes.items()],
            "annotations": truth,
        }
        coco.createIndex()
        answers = COCO()
        answers.dataset = {**coco.dataset, "annotations": predictions}
        answers.createIndex()
        evaluation = COCOeval(coco, answers, "bbox")
        # COCO counts the 100 surest boxes of an image and class. A page has more lines, and all of them count.
        evaluation.params.maxDets = [1, 10, max(100, *map(len, found))]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Its own figure for the whole asks for 100 boxes by number. (IoU, recall, class, area, maxDets); -1 is nothing.
    precision = evaluation.eval["precision"][..., 0, -1]
    whole = precision[precision > -1].mean() if (precision > -1).any() else -1.0
    values = [whole, *evaluation.stats[1:6]]
    return {name: None if value < 0 else float(value) for name, value in zip(_NAMES, values, strict=True)}
