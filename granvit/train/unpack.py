"""A packed batch taken apart: one batch for each of its images."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from granvit.model.packing import Batch

_SEQUENCES = ("input_ids", "position_ids", "block_ids", "branch_ids", "labels", "is_image")


def unpack(batch: Batch) -> list[Batch]:
    """Each image with its questions and crops as a batch of its own, in the batch's order."""
    found: list[Batch] = []
    first_task = 0
    for row, blocks in enumerate(batch.block_ids):
        for block in range(int(blocks.max()) + 1):
            where = (blocks == block).nonzero()[:, 0]
            sequences = {name: getattr(batch, name)[row, where][None] for name in _SEQUENCES}
            sequences["block_ids"] = sequences["block_ids"] * 0
            tasks = batch.tasks[first_task : first_task + int(sequences["branch_ids"].max())]
            first_task += len(tasks)
            image = len(found)
            named = {"views": batch.views[image : image + 1], "digests": batch.digests[image : image + 1]}
            extra = None if batch.extra is None else batch.extra.of_image(image)
            rest = {**sequences, **named, **_pictures_of(batch, image), "extra": extra}
            found.append(Batch(ids=[batch.ids[image]], tasks=tasks, **rest))
    return found


def _pictures_of(batch: Batch, image: int) -> dict[str, Tensor]:
    """What belongs to one image besides its tokens."""
    parts: dict[str, Any] = {}
    if batch.pixels is not None:
        parts["pixels"] = batch.pixels[image : image + 1]
    if batch.crops is not None and batch.crop_boxes is not None and batch.crop_image is not None:
        mine = batch.crop_image == image
        if mine.any():
            parts |= {"crops": batch.crops[mine], "crop_boxes": batch.crop_boxes[mine]}
            parts["crop_image"] = batch.crop_image[mine] * 0
    return parts
