"""Receipts whose annotations are hidden: most of the lines that people outlined are found and read."""

import json

import numpy as np
import pytest
from helpers.paths import real_data
from PIL import Image
from rapidfuzz.distance import Levenshtein

from granvit import geometry
from granvit.corpus.annotate.base import Item
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.regions import RegionImage

pytest.importorskip("rapidocr")


@pytest.mark.slow
def test_receipts():
    (receipts,) = real_data("sroie")
    annotator = OcrConfig().build()
    people = found = edits = letters = 0
    with (receipts / "annotations.jsonl").open() as lines:
        for row in [json.loads(next(lines)) for _ in range(4)]:
            picture = Image.open(receipts / row["image"]).convert("RGB")
            record = RegionImage(row["image"], None, *picture.size, [])
            regions = annotator([Item(record, picture)])[0].record.regions
            overlap = geometry.iou([r["bbox"] for r in row["regions"]], [r.box for r in regions])
            people += len(row["regions"])
            for truth, match in zip(row["regions"], np.atleast_2d(overlap), strict=True):
                if match.max() >= 0.5:
                    # The annotators wrote capitals whatever the print, and set blanks as they liked.
                    read, said = (
                        text.upper().replace(" ", "") for text in (regions[match.argmax()].text, truth["text"])
                    )
                    found, letters = found + 1, letters + len(said)
                    edits += Levenshtein.distance(read, said)
    assert found / people > 0.75
    assert edits / letters < 0.1


@pytest.mark.slow
def test_a_receipt_is_read_alike_whichever_way_it_lies():
    (receipts,) = real_data("sroie")
    annotator = OcrConfig().build()
    with (receipts / "annotations.jsonl").open() as lines:
        row = json.loads(next(lines))
    upright = Image.open(receipts / row["image"]).convert("RGB")
    width, height = upright.size
    back = {
        90: lambda x1, y1, x2, y2: (y1, height - x2, y2, height - x1),
        180: lambda x1, y1, x2, y2: (width - x2, height - y2, width - x1, height - y1),
        270: lambda x1, y1, x2, y2: (width - y2, x1, width - y1, x2),
    }

    def read(picture):
        return annotator([Item(RegionImage("r", None, *picture.size, []), picture)])[0].record.regions

    right = read(upright)
    text = "\n".join(region.text for region in right)
    for turned, of_upright in back.items():
        regions = read(upright.rotate(-turned, expand=True))
        edits = Levenshtein.distance("\n".join(region.text for region in regions), text)
        assert edits <= 0.02 * len(text)
        overlap = geometry.iou([of_upright(*region.box) for region in regions], [region.box for region in right])
        assert (overlap.max(axis=1) > 0.7).mean() > 0.95
