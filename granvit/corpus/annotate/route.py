"""Which images are text images: the paper reads documents, charts and receipts, and describes photographs."""

from __future__ import annotations

from granvit import geometry
from granvit.corpus.annotate.base import Item

# In photographs PP-OCR now and then takes a whole dog or car for one or two huge letters.
_FEWEST_LETTERS = 3


def text_coverage(item: Item) -> float:
    """The share of the image that text regions of at least three characters cover, in [0, 1]."""
    texts = [region for region in item.record.regions if region.kind == "text"]
    boxes = [region.box for region in texts if len(region.text) >= _FEWEST_LETTERS]
    return geometry.covered_share(boxes, *item.picture.size)


def is_text_image(item: Item, threshold: float) -> bool:
    """Whether an image that OCR has been over shows enough text; `threshold` is a share of its area."""
    return text_coverage(item) >= threshold
