import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_model import CANVAS, PATCH, make_tower

from granvit.model.distill import Teacher, distillation_loss, roi_align
from granvit.model.forward import encode

WHOLE = torch.tensor([[0.0, 0, CANVAS, CANVAS]])
FIRST = torch.tensor([0])


def pictures(count=1, side=CANVAS, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def moved(tower, by):
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(by)


@pytest.mark.parametrize("alpha", [0.9, 0.1])
def test_teacher_is_the_moving_average(alpha):
    student = make_tower()
    teacher = Teacher(student, alpha)
    start = [p.detach().clone() for p in student.parameters()]
    # The student moves by 1 before each update; after k of them the teacher's distance from the start is this.
    expected = 0.0
    for k in range(1, 6):
        moved(student, 1.0)
        teacher.update(student)
        expected = alpha * expected + (1 - alpha) * k
    for mine, first in zip(teacher.tower.parameters(), start, strict=True):
        torch.testing.assert_close(mine, first + expected, rtol=0, atol=1e-5)


def test_all_weights_move_at_once_as_they_would_one_by_one():
    student = make_tower()
    teacher = Teacher(student, 0.9)
    expected = {n: p.detach().clone() for n, p in teacher.tower.named_parameters()}
    for seed in (5, 6):
        student.load_state_dict(make_tower(seed=seed).state_dict())
        teacher.update(student)
        for name, parameter in student.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    for name, parameter in teacher.tower.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-6)


def test_teacher_is_a_copy_without_gradient():
    student = make_tower()
    teacher = Teacher(student)
    before = teacher(pictures(), CANVAS)
    moved(student, 1.0)
    assert torch.equal(teacher(pictures(), CANVAS), before)
    teacher.update(student)
    assert not torch.equal(teacher(pictures(), CANVAS), before)
    assert not before.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_teacher_features_are_a_grid_in_reading_order():
    tower = make_tower()
    flat = encode(tower, pictures(2))
    grid = Teacher(tower)(pictures(2), CANVAS)
    assert grid.shape == (2, 4, 4, 32)
    torch.testing.assert_close(grid[:, 1, 2], flat[:, 1 * 4 + 2])


def test_teacher_takes_crops_of_another_size():
    teacher = Teacher(make_tower())
    assert teacher(pictures(side=32), CANVAS).shape == (1, 2, 2, 32)
    assert teacher(pictures(side=96), CANVAS).shape == (1, 6, 6, 32)


def test_a_crop_of_the_whole_image_costs_nothing_for_an_identical_teacher():
    # Of one colour and without position embeddings all patches are alike: ROIAlign of the whole is the identity.
    tower = make_tower()
    torch.nn.init.zeros_(tower.get_submodule("embeddings.position_embedding").weight)
    teacher = Teacher(tower)
    plain, other = torch.full((2, 1, 3, CANVAS, CANVAS), 0.5).mul(torch.tensor([1.0, -1]).view(2, 1, 1, 1, 1))
    student = encode(tower, plain)
    assert distillation_loss(teacher(plain, CANVAS), student, WHOLE, FIRST, PATCH) < 1e-8
    assert distillation_loss(teacher(other, CANVAS), student, WHOLE, FIRST, PATCH) > 0.1


def test_loss_is_the_sum_over_crops_of_mean_squared_errors():
    rng = np.random.default_rng(0)
    student = torch.tensor(rng.standard_normal((2, 16, 8)), dtype=torch.float32)
    teacher = torch.tensor(rng.standard_normal((3, 2, 2, 8)), dtype=torch.float32)
    boxes = torch.tensor([[0.0, 0, 32, 32], [16, 16, 64, 48], [5, 5, 20, 60]])
    image = torch.tensor([1, 0, 1])
    aligned = roi_align(student.reshape(2, 4, 4, 8), boxes, image, (2, 2), 1 / 16, sampling_ratio=0)
    aligned, normed = F.layer_norm(aligned, (8,)), F.layer_norm(teacher, (8,))
    expected = sum(((a - t) ** 2).mean() for a, t in zip(aligned, normed, strict=True))
    torch.testing.assert_close(distillation_loss(teacher, student, boxes, image, 16), expected)


def test_the_loss_looks_where_the_box_is():
    # The student knows the column it is in; a teacher that saw columns 2 and 3 agrees with the box over them alone.
    columns = torch.eye(4)
    student = columns.repeat(4, 1).reshape(1, 16, 4)
    teacher = columns[2:].repeat(2, 1).reshape(1, 2, 2, 4)
    right = torch.tensor([[32.0, 16, 64, 48]])
    down = torch.tensor([[16.0, 32, 48, 64]])
    assert distillation_loss(teacher, student, right, FIRST, PATCH) < 0.02  # the right border blurs a little
    assert distillation_loss(teacher, student, down, FIRST, PATCH) > 0.9


def test_gradient_reaches_the_student_only():
    student, teacher = make_tower(), Teacher(make_tower(seed=3))
    features = encode(student, pictures())
    box = torch.tensor([[8.0, 0, 40, 64]])
    distillation_loss(teacher(pictures(side=32), CANVAS), features, box, FIRST, PATCH).backward()
    used = {n: p.grad for n, p in student.named_parameters() if "post_layernorm" not in n}
    assert all(g is not None and g.abs().max() > 0 for n, g in used.items() if n.endswith("weight"))
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_draws_no_dropout_in_training():
    teacher = Teacher(make_tower())
    teacher.train()
    assert not any(module.training for module in teacher.modules())
