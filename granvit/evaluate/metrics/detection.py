"""Average precision of scored boxes, by pycocotools (the extra `eval`)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from granvit.geometry import sizes
from granvit.regions import Region

_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def average_precision(
    found: Sequence[Sequence[Region]], true: Sequence[Sequence[Region]], by_text: bool = False
) -> dict[str, float | None]:
    """COCO's AP in [0, 1] of the boxes found in each image, against the true ones.

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
        told: list[dict[str, Any]] = []
        for image, regions in enumerate(images, start=1):
            for region in regions:
                (width, height), corner = sizes(region.box)[0].tolist(), region.box[:2]
                told.append(
                    {
                        "id": len(told) + 1,  # pycocotools takes id 0 for "not matched"
                        "image_id": image,
                        "category_id": classes.setdefault(region.text.casefold() if by_text else "", len(classes) + 1),
                        "bbox": [*corner, width, height],
                        "area": width * height,
                        "iscrowd": int(region.ignore),
                        "score": 1.0 if region.score is None else region.score,
                    }
                )
        return told

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
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools says -1 where there is nothing to average.
    return {name: None if value < 0 else float(value) for name, value in zip(_NAMES, evaluation.stats[:6], strict=True)}
