"""Localized self-distillation (paper, section 3.3): an EMA teacher sees the crop, the student the whole image.

The student's features of the whole image, ROIAligned to a region, must match what the teacher makes of that
region's crop: L_distill = MSE(teacher(crop), ROIAlign(student(image), box)).

ROIAlign is plain PyTorch, equal to torchvision's `roi_align(..., aligned=True)` (He et al. 2017, Mask R-CNN). The
average over a bin's sampling points of bilinear weights factors into rows and columns, so a region is two small
matrices: one pools rows, one pools columns. That is exact, differentiable and needs no custom kernel.
"""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granvit.model.families import body_of, patches_of
from granvit.model.forward import encode, frozen


class Teacher(nn.Module):
    """An exponential moving average of the student's tower; never trained by gradient.

    `alpha` is the share of the old teacher kept per step (paper: 0.9).
    """

    def __init__(self, student: nn.Module, alpha: float = 0.9):
        super().__init__()
        self.alpha = alpha
        self.tower = frozen(copy.deepcopy(student))

    def train(self, mode: bool = True) -> Self:
        """A teacher draws no dropout."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """teacher <- alpha * teacher + (1 - alpha) * student, all parameters in one call."""
        mine: list[Tensor] = list(self.tower.parameters())
        theirs = [p.detach() for p in student.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - self.alpha)

    @torch.no_grad()
    def forward(self, crops: Tensor, canvas: int) -> Tensor:
        """Normalised crops (C, 3, h, h) -> features (C, g, g, D). `canvas` is the tower's own input side."""
        features = encode(self.tower, crops, resized=crops.shape[-1] != canvas)
        features = patches_of(body_of(self.tower).config, features)
        side = math.isqrt(features.shape[1])
        return features.unflatten(1, (side, side))


def distillation_loss(
    teacher_features: Tensor, student_features: Tensor, boxes: Tensor, image: Tensor, patch: int
) -> Tensor:
    """The sum over crops of the mean squared error between layer-normalised features.

    The paper does not say on what scale features are compared. `hidden_states[-1]` has one of its own in every encoder
    (squared errors of 12 at nano size, where the caption loss is 1.5); normalised, lambda means the same in all.

    Args:
        teacher_features: (C, g, g, D) of the crops.
        student_features: (I, P, D) of the whole canvases, P a square number, or (I, rows, columns, D).
        boxes: (C, 4) xyxy canvas pixels. image: (C,) index into the student's images. patch: pixels per patch.
    """
    grid = student_features
    if grid.ndim == 3:
        side = math.isqrt(grid.shape[1])
        grid = grid.unflatten(1, (side, side))
    size = (teacher_features.shape[1], teacher_features.shape[2])
    aligned = roi_align(grid, boxes, image, size, spatial_scale=1 / patch, sampling_ratio=0)
    depth = student_features.shape[-1:]
    errors = F.mse_loss(
        F.layer_norm(aligned.float(), depth), F.layer_norm(teacher_features.float(), depth), reduction="none"
    )
    return errors.mean(dim=(1, 2, 3)).sum()


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
        boxes: (R, 4) xyxy in input pixels; `spatial_scale` turns them into feature cells (1 / patch size). On the CPU
            nothing waits for the features' device.
        image_index: (R,) which image each box belongs to.
        output_size: (rows, columns) of the pooled grid.
        sampling_ratio: sampling points per bin and axis; 0 takes ceil(box size / bins), as torchvision does.

    Returns:
        (R, rows, columns, D) in the features' dtype.
    """
    cells = (features.shape[1], features.shape[2])
    rows, columns = _pooling_weights(boxes, spatial_scale, output_size, cells, sampling_ratio)
    picked = features[image_index]
    pooled = torch.einsum("rph,rhwd->rpwd", rows.to(picked), picked)
    return torch.einsum("rqw,rpwd->rpqd", columns.to(picked), pooled)


def _pooling_weights(
    boxes: Tensor, spatial_scale: float, bins: tuple[int, int], cells: tuple[int, int], sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Those of the rows, (R, bins, cells), and of the columns."""
    corners = boxes.to(torch.float32) * spatial_scale - 0.5
    return (
        _along(corners[:, 1], corners[:, 3], bins[0], cells[0], sampling_ratio),
        _along(corners[:, 0], corners[:, 2], bins[1], cells[1], sampling_ratio),
    )


def _along(low: Tensor, high: Tensor, bins: int, cells: int, sampling_ratio: int) -> Tensor:
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
