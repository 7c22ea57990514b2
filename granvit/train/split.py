"""A packed batch taken apart: one batch for each of its images."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from granvit.model.packing import Batch

_SEQUENCES = ("input_ids", "position_ids", "block_ids", "branch_ids", "labels", "is_image")


def singles(batch: Batch) -> list[Batch]:
    """Each image with its questions, crops and symbolic entries as a batch of its own, in the batch's order."""
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
            rest = {**sequences, **named, **_pictures_of(batch, image, int(sequences["is_image"].sum()))}
            found.append(Batch(ids=[batch.ids[image]], tasks=tasks, **rest))
    return found


def _pictures_of(batch: Batch, image: int, patches: int) -> dict[str, Tensor]:
    """What belongs to one image besides its tokens; `patches` is how many a symbolic image has."""
    parts: dict[str, Any] = {}
    if batch.pixels is not None:
        parts["pixels"] = batch.pixels[image : image + 1]
    if batch.crops is not None and batch.crop_boxes is not None and batch.crop_image is not None:
        mine = batch.crop_image == image
        if mine.any():
            parts |= {"crops": batch.crops[mine], "crop_boxes": batch.crop_boxes[mine]}
            parts["crop_image"] = batch.crop_image[mine] * 0
    if batch.grid_patches is not None and batch.grid_words is not None and batch.grid_weights is not None:
        mine = batch.grid_patches // patches == image
        parts |= {"grid_words": batch.grid_words[mine], "grid_weights": batch.grid_weights[mine]}
        parts["grid_patches"] = batch.grid_patches[mine] % patches
    return parts
