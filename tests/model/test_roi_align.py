import math

import numpy as np
import pytest
import torch

from granvit.model.distill import roi_align


def bilinear(grid, y, x):
    """torchvision's `bilinear_interpolate` (csrc/ops/cpu/roi_align_kernel.cpp), `grid` (H, W)."""
    height, width = grid.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y_low, x_low = int(y), int(x)
    if y_low >= height - 1:
        y_low = y_high = height - 1
        y = float(y_low)
    else:
        y_high = y_low + 1
    if x_low >= width - 1:
        x_low = x_high = width - 1
        x = float(x_low)
    else:
        x_high = x_low + 1
    ly, lx = y - y_low, x - x_low
    above = (1 - lx) * grid[y_low, x_low] + lx * grid[y_low, x_high]
    below = (1 - lx) * grid[y_high, x_low] + lx * grid[y_high, x_high]
    return (1 - ly) * above + ly * below


def slow_roi_align(grid, box, size, scale, sampling_ratio):
    """One box on one channel (H, W), point by point, aligned=True."""
    x1, y1, x2, y2 = (v * scale - 0.5 for v in box)
    bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
    points_y = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
    points_x = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
    out = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            for i in range(points_y):
                for j in range(points_x):
                    y = y1 + row * bin_h + (i + 0.5) * bin_h / points_y
                    x = x1 + column * bin_w + (j + 0.5) * bin_w / points_x
                    out[row, column] += bilinear(grid, y, x)
    return out / max(points_y * points_x, 1)


def test_the_published_aligned_values():
    # The example in detectron2's tests/layers/test_roi_align.py.
    features = torch.arange(25.0).reshape(1, 5, 5, 1)
    got = roi_align(features, torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([0]), (4, 4), 1.0, sampling_ratio=0)
    expected = [[4.5, 5, 5.5, 6], [7, 7.5, 8, 8.5], [9.5, 10, 10.5, 11], [12, 12.5, 13, 13.5]]
    torch.testing.assert_close(got[0, ..., 0], torch.tensor(expected))


def boxes_of_all_kinds(width, height, rng):
    """Random boxes in pixels, inside and partly or wholly outside, tiny, and the whole picture."""
    corners = rng.uniform(-0.4, 1.4, (12, 2, 2)) * [width, height]
    random = np.sort(corners, axis=1).reshape(-1, 4)
    inside = rng.uniform(0.1, 0.9, (3, 2)) * [width, height]
    tiny = np.concatenate([inside, inside + rng.uniform(0.01, 2, (3, 2))], 1)
    far = [[width + 40.3, 1, width + 90, 9], [-90.0, -80, -50.2, -40]]
    return np.concatenate([random, tiny, far, [[0, 0, width, height]]])


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (7, 1)])
def test_equals_the_point_by_point_algorithm(shape, sampling_ratio):
    rng = np.random.default_rng(sampling_ratio)
    height, width, patch = *shape, 14
    boxes = boxes_of_all_kinds(width * patch, height * patch, rng)
    features = rng.standard_normal((3, height, width, 2))
    image = rng.integers(0, 3, len(boxes))
    size = (3, 4)
    got = roi_align(
        torch.tensor(features), torch.tensor(boxes), torch.tensor(image), size, 1 / patch, sampling_ratio
    ).numpy()
    assert got.shape == (len(boxes), 3, 4, 2)
    for box, i, ours in zip(boxes, image, got, strict=True):
        for channel in range(2):
            expected = slow_roi_align(features[i, ..., channel], box, size, 1 / patch, sampling_ratio)
            np.testing.assert_allclose(ours[..., channel], expected, atol=2e-5, err_msg=str(box))


@pytest.mark.parametrize("sampling_ratio", [0, 1])
def test_one_sample_per_cell_of_the_whole_picture_is_the_identity(sampling_ratio):
    features = torch.randn(2, 6, 4, 3)
    whole = torch.tensor([[0.0, 0, 4 * 16, 6 * 16]] * 2)
    got = roi_align(features, whole, torch.tensor([1, 0]), (6, 4), 1 / 16, sampling_ratio)
    torch.testing.assert_close(got, features.flip(0))


def test_no_boxes_give_no_regions():
    got = roi_align(torch.randn(1, 4, 4, 3), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (2, 2))
    assert got.shape == (0, 2, 2, 3)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_by_finite_differences(sampling_ratio):
    features = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[3.0, 5, 40, 50], [-10, -10, 20, 30], [7, 8, 9, 9]])
    image = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda f: roi_align(f, boxes, image, (2, 3), 1 / 16, sampling_ratio), features)


def test_half_precision_features_stay_half():
    features = torch.randn(1, 5, 5, 8)
    boxes, image = torch.tensor([[3.0, 5, 40, 50]]), torch.tensor([0])
    half = roi_align(features.bfloat16(), boxes, image, (2, 2), 1 / 16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), roi_align(features, boxes, image, (2, 2), 1 / 16), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("box", [[-1, -1, 0, 0], [4, 4, 5, 5], [-1, 4, 0, 5], [-1.01, 1, -0.01, 2], [4.01, 1, 5.01, 2]])
def test_a_point_on_the_very_border_counts_and_one_beyond_does_not(box):
    grid = np.random.default_rng(0).random((4, 4)) + 1
    got = roi_align(torch.tensor(grid)[None, ..., None], torch.tensor([box]), torch.tensor([0]), (1, 1), 1.0, 1)
    expected = slow_roi_align(grid, box, (1, 1), 1.0, 1)
    assert (expected[0, 0] > 0) == (abs(box[0]) in (1, 4))
    np.testing.assert_allclose(got[0, ..., 0].numpy(), expected, rtol=1e-6)
