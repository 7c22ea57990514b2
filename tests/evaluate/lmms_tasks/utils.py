"""The regions of a granvit corpus as tasks of lmms-eval: one question for each object.

How boxes are written in questions and answers ("codec" in the checkpoint's granvit.json) comes in the environment,
since lmms-eval hands a task's own settings to its questions, but not to its scores.
"""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset, Image
from lmms_eval.tasks.refcoco import utils_rec

from granvit.coordinates import get_codec
from granvit.geometry import paired_iou
from granvit.questions import ask_box, ask_caption, parse_box
from granvit.texts import rouge_l

CODEC = get_codec(os.environ["REGIONS_CODEC"])


def explode(corpus: Dataset) -> Dataset:
    """A row for each object whose text stands on it alone; boxes as in RefCOCO's tasks, relative to the image."""

    def rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"image": [], "bbox": [], "answer": [], "question_id": []}
        for image, name, width, height, regions in zip(
            *(batch[k] for k in ("image", "id", "width", "height", "regions")), strict=True
        ):
            texts = [region["text"] for region in regions]
            for n, region in enumerate(regions):
                if region["kind"] == "object" and texts.count(region["text"]) == 1:
                    x1, y1, x2, y2 = region["box"]
                    out["image"].append(image)
                    out["bbox"].append([x1 / width, y1 / height, x2 / width, y2 / height])
                    out["answer"].append(region["text"])
                    out["question_id"].append(f"{name}/{n}")
        return out

    stored = corpus.cast_column("image", Image(decode=False))
    return stored.map(rows, batched=True, remove_columns=corpus.column_names).cast_column("image", Image())


def picture(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"].convert("RGB")]


def describe(doc: dict[str, Any]) -> str:
    return ask_caption(doc["bbox"], CODEC)


def locate(doc: dict[str, Any]) -> str:
    return ask_box(doc["answer"])


def words(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"rouge_l": rouge_l(results[:1], [doc["answer"]])}


def own_reading(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The checkpoint's own way to write boxes, as `granvit eval` reads it."""
    box = parse_box(results[0], CODEC)
    return {"acc50": float(box is not None and paired_iou([box], [doc["bbox"]])[0] >= 0.5)}


refcoco_reading = utils_rec.refcoco_bbox_rec_process_result
iou = utils_rec.refcoco_bbox_rec_iou
acc50 = utils_rec.refcoco_bbox_rec_acc05
