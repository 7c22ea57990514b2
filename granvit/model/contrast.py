"""Regions against texts without a language model: the sigmoid contrast of SigLIP over the regions of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from granvit.model.distill import roi_align


def region_means(grid: Tensor, boxes: Tensor, image: Tensor, patch: int) -> Tensor:
    """The mean of what is ROIAligned from each box: features (I, P, D), P a square number -> (R, D).

    Args:
        boxes: (R, 4) xyxy canvas pixels. image: (R,) which of the I canvases. patch: pixels per patch.
    """
    side = round(grid.shape[1] ** 0.5)
    return roi_align(grid.unflatten(1, (side, side)), boxes, image, (1, 1), 1 / patch, sampling_ratio=0)[:, 0, 0]


def text_means(embedded: Tensor, mask: Tensor) -> Tensor:
    """The mean of each text's token embeddings: (R, L, D) and which tokens are real (R, L) -> (R, D)."""
    weights = mask.to(embedded)[..., None]
    return (embedded * weights).sum(1) / weights.sum(1)


def contrast_loss(regions: Tensor, texts: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid loss of all pairs of a region and a text (SigLIP, Zhai et al. 2023, eq. 1), summed over them.

    -log sigmoid(z (scale cos(region, text) + bias)), z = 1 where the text is the region's own and -1 elsewhere.

    Args:
        regions, texts: (R, D), of each region its features and its text's.
        same: (R, R) bool, whether region i has text j: equal texts of two regions belong to both.
        scale, bias: scalars; the inverse temperature itself, not its logarithm.
    """
    cosines = F.normalize(regions.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    signs = torch.where(same, 1.0, -1.0)
    return -F.logsigmoid(signs * (scale * cosines + bias)).sum()
