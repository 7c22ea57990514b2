"""The contrast of regions and texts, against the sum over pairs as it is written in the paper."""

import math

import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples

from granvit.errors import GranvitError
from granvit.model.contrast import contrast_loss, region_means, text_means
from granvit.train.config import CroppedSample, LoopConfig
from granvit.train.stages.config import ContrastConfig
from granvit.train.stages.contrast import Contrast, RegionBatch


def by_hand(regions, texts, same, scale, bias):
    total = 0.0
    for i, region in enumerate(regions.tolist()):
        for j, text in enumerate(texts.tolist()):
            dot = sum(a * b for a, b in zip(region, text, strict=True))
            cosine = dot / math.sqrt(sum(a * a for a in region)) / math.sqrt(sum(b * b for b in text))
            sign = 1 if same[i][j] else -1
            total += math.log1p(math.exp(-sign * (scale * cosine + bias)))
    return total


def test_the_loss_is_the_sum_over_pairs():
    torch.manual_seed(0)
    regions, texts = torch.randn(5, 7), torch.randn(5, 7)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True  # two regions of one text
    loss = contrast_loss(regions, texts, same, torch.tensor(3.0), torch.tensor(-1.5))
    assert loss.item() == pytest.approx(by_hand(regions, texts, same.tolist(), 3.0, -1.5), rel=1e-5)


def test_a_region_over_whole_cells_is_their_mean():
    grid = torch.randn(1, 16, 3)  # 4 x 4 cells of 16 pixels
    seen = region_means(grid, torch.tensor([[16.0, 0, 48, 32]]), torch.tensor([0]), 16)
    assert torch.allclose(seen[0], grid.view(4, 4, 3)[0:2, 1:3].mean((0, 1)), atol=1e-5)


def test_padding_is_no_part_of_a_text():
    embedded = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert text_means(embedded, mask).tolist() == [[2.0], [4.0]]


def batch_of(model):
    """Two images with three and two regions, of which the first two have the same text."""
    samples = make_samples(model, (3, 2), crops=2)
    batch = collate(model, samples)
    boxes = torch.tensor([[0.0, 0, 32, 32], [16, 16, 60, 50], [0, 30, 64, 64], [8, 8, 30, 60], [20, 0, 64, 20]])
    ids = torch.tensor([[20, 21, 0], [20, 21, 0], [30, 0, 0], [20, 21, 22], [40, 41, 42]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()
    batch.extra = RegionBatch(boxes, torch.tensor([0, 0, 0, 1, 1]), ids, mask)
    return batch


def gradients(stage, batch):
    sum(t.weight * t.total / batch.counts[t.count] for t in stage(batch).values()).backward()
    return {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}


def test_gradients_reach_encoder_and_projector_and_nothing_of_the_language_model():
    model = make_model()
    found = gradients(Contrast(model), batch_of(model))
    weights = [n for n, _ in model.llava.named_parameters() if n.endswith("weight")]
    for part, reached in (("vision_tower", True), ("multi_modal_projector", True), ("language_model", False)):
        names = [f"model.{n}" for n in weights if part in n and "post_layernorm" not in n]
        assert names
        assert [n for n in names if (n in found and found[n].abs().max().item() > 0) is not reached] == [], part
    assert found["pair.log_scale"] != 0 and found["pair.bias"] != 0


def test_equal_texts_of_two_regions_are_both_matches():
    model = make_model()
    stage, batch = Contrast(model), batch_of(model)
    with torch.no_grad():
        stage.pair["bias"].fill_(-30.0)  # what is said to be no match costs nothing, a match about 30
        cost = stage(batch)["contrast"].total.item()
    assert cost == pytest.approx(30 * (5 + 2), rel=0.25)  # five of their own, and two of the twins


def test_distillation_alone_leaves_the_projector():
    model = make_model()
    stage = Contrast(model, contrast_weight=0.0, distill_weight=1.0)
    found = gradients(stage, batch_of(model))
    assert found and all("vision_tower" in name for name in found)
    assert set(stage(batch_of(model))) == {"distill"}


def test_what_the_stage_learns_besides_goes_on():
    model = make_model()
    stage = Contrast(model, distill_weight=1.0)
    with torch.no_grad():
        stage.pair["bias"].fill_(1.25)
    state = {name: value.clone() for name, value in stage.extra_state().items()}
    other = Contrast(make_model(), distill_weight=1.0)
    other.load_extra_state(state)
    assert other.pair["bias"].item() == 1.25
    assert set(other.extra_state()) == set(state)


def test_arithmetic_is_that_of_the_pictures_alone():
    model = make_model()
    stage, batch = Contrast(model), batch_of(model)
    parts = stage.step_flops.of_pictures(batch)
    width = model.llava.config.text_config.hidden_size
    assert stage.flops(batch) == pytest.approx(sum(parts.values()) + 6 * 25 * width)
    alone = Contrast(make_model(), contrast_weight=0.0, distill_weight=1.0)
    assert 0 < alone.flops(batch) and alone.step_flops.of_pictures(batch, False)["teacher"] > 0
    # No feature is projected, forward or backward.
    assert alone.step_flops.of_pictures(batch, False)["encode"] < parts["encode"]


@pytest.mark.parametrize(
    ("settings", "sample", "message"),
    [
        ({"contrast_weight": 0.0}, {}, "both 0"),
        ({}, {"questions": {"global": 1.0, "bbox2caption": 1.0}}, "bbox2caption 1 alone"),
        ({}, {"max_tokens": 100}, "no place in a contrast"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, sample, message):
    config = ContrastConfig(CroppedSample(**{"questions": {"bbox2caption": 1.0}, **sample}), LoopConfig(), **settings)
    with pytest.raises(GranvitError, match=message):
        config.check()
