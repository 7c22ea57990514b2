"""A record -> a sample: the view is taken, the questions are chosen, the teacher's crops are cut."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from granvit.coordinates import get_codec
from granvit.errors import GranvitError
from granvit.geometry import Boxes, TiledView, View
from granvit.images import decode
from granvit.model.dialog import Dialog
from granvit.model.packing import Batch, Branch, Sample, SampleExtra, pack
from granvit.model.region_model import RegionModel
from granvit.questions import box_exchange, caption_exchange, global_exchange
from granvit.regions import LEAST_VISIBLE, Region, RegionImage
from granvit.train.config import ConversationSample, CroppedSample, SampleConfig
from granvit.train.feed import Reject

_TOO_LATE = "a conversation whose first answer begins behind sample.max_conversation tokens"
# Words that are wrong in a mirror.
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class Prepare:
    """Makes samples for one model and one stage; a picklable function object."""

    # How a region is asked for by its text.
    _locate = staticmethod(box_exchange)

    def __init__(self, model: RegionModel, config: SampleConfig, digests: bool = False):
        """Ready to be called for any record; with `digests` samples tell pictures apart (`Sample.digests`).

        Raises:
            ValueError: the teacher's crops do not hold whole patches, or a row can't hold an image.
        """
        self.config, self.digests = config, digests
        self.settings, self.shapes = model.settings, model.settings.shapes
        self.codec = get_codec(model.settings.codec)
        self.dialog: Dialog = model.dialog
        self.canvas, self.grid, self.patch, self.fill = model.canvas, model.grid, model.patch, model.fill
        self.crops, self.crop_size, self.draw_crops = 0, 0, False
        if isinstance(config, CroppedSample):
            self.crops, self.crop_size, self.draw_crops = config.crops, config.crop_size, config.draw_crops
        if self.crop_size % model.patch:
            raise GranvitError(f"sample.crop_size {self.crop_size} is not a multiple of the patch, {model.patch} px")
        smallest, largest = config.window_side
        if smallest > largest:
            raise GranvitError(f"sample.window_side: the smallest, {smallest}, is larger than the largest, {largest}")
        prefix = len(self.dialog.prefix(model.tokens_of(model.largest_view)))
        if config.max_tokens is not None and config.max_tokens <= prefix:
            upto = "up to " if model.settings.tiles else ""
            raise GranvitError(f"sample.max_tokens {config.max_tokens}: an image alone has {upto}{prefix} tokens")

    def __call__(self, record: RegionImage, rng: np.random.Generator) -> Sample:
        """One image with its questions.

        Raises:
            Reject: there is nothing to ask about this record, or a row holds not even one of its questions.
        """
        if record.text_only:
            return self._without_image(record, rng)
        image = self._decode(record)
        if self.config.mirror and rng.random() < self.config.mirror:
            record, image = _mirrored(record, image)
        view = self._choose_view(record, rng)
        shown, boxes = self._shown(record, view)
        chosen = self._choose(len(shown), rng)
        asked = self._ask(record, view, shown, boxes, chosen, rng)
        talk, cut = self._conversations(record, rng) if view.shows_all(record.width, record.height) else ([], 0)
        asked += talk
        if not asked:
            raise Reject(_TOO_LATE if cut else "nothing to ask: no caption and no usable region")
        shown_by = self._image_tokens(view)
        prefix = self.dialog.prefix_ids if shown_by is None else self.dialog.prefix(shown_by)
        branches = self._fitting(asked, len(prefix), rng)
        sample = self._sample(record, image, view, branches, boxes[chosen], self._to_crop(len(chosen), rng))
        return replace(sample, left_out=cut + len(asked) - len(branches))

    def _without_image(self, record: RegionImage, rng: np.random.Generator) -> Sample:
        if not isinstance(self.config, ConversationSample):
            raise Reject("a conversation without an image, and this stage learns from images")
        asked, cut = self._conversations(record, rng)
        if not asked:
            raise Reject(_TOO_LATE if cut else "nothing to ask: no conversation was drawn")
        branches = self._fitting(asked, 0, rng)
        return Sample(record.id, branches, left_out=cut + len(asked) - len(branches), text_only=True)

    def _conversations(self, record: RegionImage, rng: np.random.Generator) -> tuple[list[Branch], int]:
        """Some of the record's conversations, and how many of them are cut before the first answer begins."""
        if not record.conversations or not isinstance(self.config, ConversationSample):
            return [], 0
        drawn = [said for said in record.conversations if rng.random() < self.config.conversations]
        if len(drawn) > self.config.max_conversations:
            chosen = np.sort(rng.choice(len(drawn), self.config.max_conversations, replace=False))
            drawn = [drawn[i] for i in chosen]
        branches = self.dialog.conversations(drawn, not record.text_only, self.config.max_conversation)
        usable = [branch for branch in branches if branch.answers]
        return usable, len(branches) - len(usable)

    def _sample(
        self,
        record: RegionImage,
        image: Image.Image | None,
        view: View,
        branches: list[Branch],
        boxes: Boxes,
        cropped: NDArray[np.int64],
    ) -> Sample:
        """The sample of what was chosen: its questions, the boxes (image pixels) of the regions asked about, and which
        of these the teacher sees."""
        assert image is not None
        crops, crop_boxes = self._crops(image, view, boxes[cropped])
        canvases = view.canvases(image, self.fill)
        hashed = canvases if self.digests else ()
        shown = canvases if isinstance(view, TiledView) else canvases[0]
        return Sample(
            *(record.id, branches, shown, crops, crop_boxes, view),
            image_tokens=self._image_tokens(view),
            extra=self._extra(record, view, branches, boxes),
            digests=tuple(hashlib.blake2b(canvas.tobytes(), digest_size=16).hexdigest() for canvas in hashed),
        )

    def _extra(self, record: RegionImage, view: View, branches: list[Branch], boxes: Boxes) -> SampleExtra | None:
        """What the stage wants of a sample besides, with `boxes` (image pixels) of the regions asked about."""
        return None

    def _image_tokens(self, view: View) -> int | None:
        """Of a tiled view, whose number of tokens is its own."""
        return view.tokens(self.grid) if isinstance(view, TiledView) else None

    def collate(self, samples: list[Sample]) -> Batch:
        """Samples -> one packed batch: rows of `max_tokens` tokens, or a row per image."""
        dialog = self.dialog
        return pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token, self.config.max_tokens)

    def _decode(self, record: RegionImage) -> Image.Image | None:
        """The picture; None where the stage looks at none."""
        if record.image is None:
            raise Reject("the record has no image bytes")
        return decode(record.image)

    def _choose_view(self, record: RegionImage, rng: np.random.Generator) -> View:
        size = (record.width, record.height)
        kind = self.config.window_kind
        around = [region.box for region in record.regions if kind is None or region.kind == kind]
        if around and rng.random() < self.config.windows:
            side = int(self.canvas * rng.uniform(*self.config.window_side))
            box = around[rng.integers(len(around))]
            offset = rng.uniform(-0.3, 0.3, 2)
            return View.window_around(box, size, side, self.canvas, offset, self.shapes)
        return View.fit(self.settings.fit, size, self.canvas, self.shapes)

    def _shown(self, record: RegionImage, view: View) -> tuple[list[Region], Boxes]:
        """The usable regions in view and their boxes (image pixels), cut to what is seen."""
        usable = [r for r in record.regions if not r.ignore]
        if not usable:
            return [], np.zeros((0, 4))
        seen = view.visible([r.box for r in usable])
        regions = [r for r, share in zip(usable, seen, strict=True) if share >= LEAST_VISIBLE[r.kind]]
        return regions, view.clip([r.box for r in regions])

    def _choose(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if count <= self.config.max_regions:
            return np.arange(count)
        return np.sort(rng.choice(count, self.config.max_regions, replace=False))

    def _to_crop(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Which of the regions asked about the teacher sees."""
        if self.draw_crops and count > self.crops:
            return np.sort(rng.choice(count, self.crops, replace=False))
        return np.arange(min(count, self.crops))

    def _ask(
        self,
        record: RegionImage,
        view: View,
        shown: list[Region],
        boxes: Boxes,
        chosen: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> list[Branch]:
        wanted = self.config.questions
        relative = view.to_relative(boxes, self.settings.frame)
        # A phrase that fits two regions has no one right box; ignored regions count too.
        texts = Counter(r.text.casefold() for r in record.regions)
        exchanges = []
        for i in chosen:
            region, box = shown[i], relative[i]
            if rng.random() < wanted.get("bbox2caption", 0):
                exchanges.append(caption_exchange(box, region.text, self.codec))
            if rng.random() < wanted.get("caption2bbox", 0) and texts[region.text.casefold()] == 1:
                exchanges.append(self._locate(box, region.text, self.codec))
            if rng.random() < self.config.subphrases:
                part = subphrase(region, record.regions, rng)
                if part is not None:
                    exchanges.append(self._locate(box, part, self.codec))
        whole = view.shows_all(record.width, record.height)
        if record.caption and whole and rng.random() < wanted.get("global", 0):
            exchanges.append(global_exchange(record.caption))
        return self.dialog.branches(exchanges, self.config.max_answer)

    def _fitting(self, branches: list[Branch], prefix: int, rng: np.random.Generator) -> list[Branch]:
        """The questions that fit into a row: all of them, or as many as fit when they are taken in a drawn order."""
        most = self.config.max_tokens
        if most is None or prefix + sum(len(b.ids) for b in branches) <= most:
            return branches
        room, kept = most - prefix, []
        for index in rng.permutation(len(branches)).tolist():
            if len(branches[index].ids) <= room:
                room -= len(branches[index].ids)
                kept.append(index)
        if not kept:
            raise Reject(f"longer than a row: image and question have more than {most} tokens (sample.max_tokens)")
        return [branches[index] for index in sorted(kept)]

    def _crops(self, image: Image.Image, view: View, boxes: Boxes) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Regions as the teacher sees them, and where they lie (`View.to_features`).

        A crop is stretched to a square, so that the teacher's grid and ROIAlign's bins cover the same ground.
        """
        size = self.crop_size or self.canvas
        rows = np.stack([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1).reshape(-1, 4).astype(int)
        crops = [
            np.asarray(View.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])), size).apply(image))
            for box in rows
        ]
        if not crops:
            return np.zeros((0, size, size, 3), np.uint8), np.zeros((0, 4), np.float32)
        return np.stack(crops), view.to_features(rows).astype(np.float32)


def _mirrored(record: RegionImage, image: Image.Image | None) -> tuple[RegionImage, Image.Image | None]:
    """The record seen in a mirror; as it is where it holds text, or words that would no longer be true.

    Numbers in a conversation may be a box, or what is written in the picture.
    """
    said = " ".join(turn.text for conversation in record.conversations for turn in conversation)
    words = " ".join([record.caption or "", *(region.text for region in record.regions), said])
    if any(region.kind == "text" for region in record.regions) or _SIDES.search(words) or re.search(r"\d", said):
        return record, image
    regions = [
        replace(region, box=(record.width - region.box[2], region.box[1], record.width - region.box[0], region.box[3]))
        for region in record.regions
    ]
    return replace(record, regions=regions), None if image is None else ImageOps.mirror(image)


def subphrase(region: Region, among: list[Region], rng: np.random.Generator) -> str | None:
    """Some words of a region's text, in order, that no other region's text holds all of; None where none is found."""
    words = region.text.split()
    others = [set(r.text.casefold().split()) for r in among if r is not region]
    for _ in range(4 if len(words) > 1 else 0):
        kept = np.sort(rng.choice(len(words), rng.integers(1, len(words)), replace=False))
        part = [words[i] for i in kept]
        if not any({word.casefold() for word in part} <= other for other in others):
            return " ".join(part)
    return None
