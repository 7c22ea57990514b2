"""What is to be done to every image, and doing it: the same for one process and for a cluster.

Text images are read, others described: the paper reads documents, charts and receipts, and describes photographs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from granvit import geometry
from granvit.corpus.annotate.base import AnnotateError, Annotator, AnnotatorConfig, Item
from granvit.loading.run_folder import by_content

HOLDS = "_holds"
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


How = Literal["ocr", "detect", "keep", "auto"]


@dataclass(frozen=True)
class Plan:
    """How images are annotated (paper, section 3.1). Plain data, so that it travels to workers and into the manifest.

    Attributes:
        how: "ocr": every image is a text image; its text is read, and it gets no caption. "detect": every image is
            natural; objects are found, then captioned. "keep": as "detect" with the boxes that the corpus has; where
            all of these hold text, it is a text image, which gets no caption. "auto": text images by `text_coverage`,
            all others as "detect", or as "keep" where `detect` is None.
        ocr, detect, caption: the annotators' settings; None for one that is not wanted. With "keep", `detect` may be
            a `KeepConfig`, which tells of images without boxes. Without `caption` an object keeps the name of its
            class, or what the corpus says of it.
        text_coverage: an image is a text image if its text covers this share of it, in [0, 1].
        batch: images handed to an annotator at once.
        shard_images: images per output file, and what a killed worker loses at most; None chooses by the number of
            images.
        image_seconds: an image that takes longer is given up.
    """

    how: How
    ocr: AnnotatorConfig | None = None
    detect: AnnotatorConfig | None = None
    caption: AnnotatorConfig | None = None
    text_coverage: float = 0.05
    batch: int = 8
    shard_images: int | None = None
    image_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.how in ("ocr", "auto") and self.ocr is None:
            raise AnnotateError(f"{self.how}: the settings of OCR are missing")
        if self.how == "detect" and self.detect is None:
            raise AnnotateError("detect: name a detector (--detect.model)")
        if self.how == "keep" and self.detect is not None and self.detect.name != "keep":
            raise AnnotateError("keep: the boxes stay, so no detector is wanted")
        if self.how == "keep" and self.caption is None:
            raise AnnotateError("keep: the boxes stay, so there is nothing to do without a captioner (--caption.model)")
        if self.batch < 1 or self.image_seconds <= 0 or (self.shard_images is not None and self.shard_images < 1):
            raise AnnotateError("batch and shard_images start at 1, image_seconds above 0")

    @property
    def steps(self) -> list[AnnotatorConfig]:
        """The annotators that are used, in order."""
        natural = [step for step in (self.detect, self.caption) if step is not None]
        text = [self.ocr] if self.ocr is not None else []
        return {"ocr": text, "detect": natural, "keep": natural, "auto": text + natural}[self.how]

    @property
    def uses_gpu(self) -> bool:
        """Whether any of them would compute on a GPU; one that does not say so would."""
        return any(getattr(step, "uses_gpu", True) for step in self.steps)

    def seconds_for(self, images: int) -> float:
        """How long a batch may take. A captioner waits for an endpoint that is down, and then says so itself."""
        return self.image_seconds * images + getattr(self.caption, "waiting_s", 0.0)

    def settings(self) -> dict[str, Any]:
        """Everything that decides what comes out, as JSON: neither the number of workers nor the time limit does."""
        chosen: dict[str, Any] = {"how": self.how, "batch": self.batch}
        if self.how == "auto":
            chosen["text_coverage"] = self.text_coverage
        for role in ("ocr", "detect", "caption"):
            config = getattr(self, role)
            if config is not None and config in self.steps:
                chosen[role] = {"name": config.name, **settings_of(config)}
        return chosen

    def build(self, device: str = "cpu") -> Stages:
        """Load the models.

        Raises:
            AnnotateError: a package, a model or an endpoint is not there.
        """
        return Stages(self, {id(step): step.build(device) for step in self.steps})


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a config as JSON, but for those whose metadata say ``{"runtime": True}``: they change no result.

    A model that lies on this disk has an entry more, what it holds, named as its field with `HOLDS` behind.
    """
    assert is_dataclass(config)
    chosen: dict[str, Any] = {}
    for field in fields(config):
        if field.metadata.get("runtime"):
            continue
        chosen[field.name] = value = _as_json(getattr(config, field.name))
        if field.metadata.get("model") and (held := by_content(value)) != value:
            chosen[field.name + HOLDS] = held
    return chosen


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return settings_of(value)
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class Stages:
    """The loaded annotators of one worker in the order of the plan."""

    def __init__(self, plan: Plan, annotators: dict[int, Annotator]) -> None:
        self._plan = plan
        self._annotators = annotators

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        """Annotate a batch; one item per item, in order."""
        if self._plan.how in ("detect", "keep"):
            return self._describe(items)
        read = self._read(items)
        if self._plan.how == "ocr":
            return read
        is_text = [is_text_image(item, self._plan.text_coverage) for item in read]
        natural = iter(self._describe([item for item, text in zip(items, is_text, strict=True) if not text]))
        return [item if text else next(natural) for item, text in zip(read, is_text, strict=True)]

    def _read(self, items: Sequence[Item]) -> list[Item]:
        """What the images say; those given are not changed, for they may turn out to be no text images."""
        blank = []
        for item in items:
            own = item.record
            replaced = Counter({"region-replaced": len(own.regions), "caption-replaced": int(bool(own.caption))})
            record = replace(own, regions=[], caption=None)
            blank.append(Item(record, item.picture, list(item.rejections), "text", item.changes + replaced))
        return self._apply(self._plan.ocr, blank)

    def _describe(self, items: Sequence[Item]) -> list[Item]:
        # Where boxes are kept, they tell a page from a photograph; `auto` has read how much of it text covers.
        pages = [self._plan.how == "keep" and item.record.text_image for item in items]
        described = [replace(item, kind="text" if page else "natural") for item, page in zip(items, pages, strict=True)]
        return self._apply(self._plan.caption, self._apply(self._plan.detect, described))

    def _apply(self, config: AnnotatorConfig | None, items: list[Item]) -> list[Item]:
        if config is None or not items:
            return items
        annotated = self._annotators[id(config)](items)
        if [item.record.id for item in annotated] != [item.record.id for item in items]:
            raise RuntimeError(f"{config.name} was given {len(items)} images and returned others, or in another order")
        return annotated
