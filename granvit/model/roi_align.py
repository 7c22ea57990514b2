"""ROIAlign in plain PyTorch, equal to torchvision's `roi_align(..., aligned=True)` (He et al. 2017, Mask R-CNN).

The average over a bin's sampling points of bilinear weights factors into rows and columns, so a region is two
small matrices: one pools rows, one pools columns. That is exact, differentiable and needs no custom kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
) -> Tensor:
    """Pool a grid of features from each region.

    Args:
        features: (I, H, W, D).
        boxes: (R, 4) xyxy in input pixels; `spatial_scale` turns them into feature cells (1 / patch size).
        image_index: (R,) which image each box belongs to.
        output_size: (rows, columns) of the pooled grid.
        sampling_ratio: sampling points per bin and axis; 0 takes ceil(box size / bins), as torchvision does.

    Returns:
        (R, rows, columns, D) in the features' dtype.
    """
    corners = boxes.to(torch.float32) * spatial_scale - 0.5
    rows = _pooling_weights(corners[:, 1], corners[:, 3], output_size[0], features.shape[1], sampling_ratio)
    columns = _pooling_weights(corners[:, 0], corners[:, 2], output_size[1], features.shape[2], sampling_ratio)
    picked = features[image_index]
    pooled = torch.einsum("rph,rhwd->rpwd", rows.to(picked.dtype), picked)
    return torch.einsum("rqw,rpwd->rpqd", columns.to(picked.dtype), pooled)


def _pooling_weights(low: Tensor, high: Tensor, bins: int, cells: int, sampling_ratio: int) -> Tensor:
    """How much each of `cells` feature cells adds to each bin along one axis, (R, bins, cells)."""
    extent = high - low
    points = torch.full_like(extent, sampling_ratio) if sampling_ratio > 0 else (extent / bins).ceil().clamp(min=1)
    most = int(points.max()) if len(points) else 1
    step = torch.arange(most, device=low.device)
    inside_bin = (step[None, :] + 0.5) / points[:, None]  # (R, points), in bins
    used = step[None, :] < points[:, None]
    at = torch.arange(bins, device=low.device)[None, :, None] + inside_bin[:, None, :]
    at = low[:, None, None] + at * (extent / bins)[:, None, None]  # (R, bins, points), in cells
    counts = used[:, None, :] & (at >= -1) & (at <= cells)  # a point beyond the border adds nothing
    at = at.clamp(0, cells - 1)
    cell = torch.arange(cells, device=low.device)
    # A tent of width one around each point is the bilinear weight of every cell.
    tent = (1 - (at[..., None] - cell).abs()).clamp(min=0)
    return (tent * counts[..., None]).sum(2) / points[:, None, None]
