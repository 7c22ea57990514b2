from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples

from granvit.model.packing import Sample, unpack
from granvit.nano.symbolic import Grid


def compare(one, other):
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(ours) and field.name == "extra":
            compare(ours, theirs)
        else:
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name


@pytest.mark.parametrize("max_tokens", [None, 400])
@pytest.mark.parametrize("symbolic", [False, True])
def test_every_image_alone_is_what_packing_it_alone_gives(symbolic, max_tokens):
    model = make_model()
    samples = make_samples(model, (3, 1, 2), crops=2)
    samples[1].crops, samples[1].crop_boxes = samples[1].crops[:0], samples[1].crop_boxes[:0]
    if symbolic:
        rng = np.random.default_rng(0)
        grids = [Grid(rng.integers(0, 16, 9), rng.integers(20, 200, 9), rng.random(9, np.float32)) for _ in samples]
        samples = [Sample(s.id, s.branches, extra=grid) for s, grid in zip(samples, grids, strict=True)]
    batch = collate(model, samples, max_tokens)
    alone = {sample.id: collate(model, [sample]) for sample in samples}
    found = unpack(batch)
    assert [single.ids[0] for single in found] == batch.ids
    for single in found:
        compare(single, alone[single.ids[0]])
        assert (single.extra is not None) == symbolic
