from dataclasses import fields

import numpy as np
import pytest
import torch
from tiny_model import collate, make_model, make_samples

from granvit.model.packing import Grid, Sample
from granvit.train.split import singles


@pytest.mark.parametrize("max_tokens", [None, 400])
@pytest.mark.parametrize("symbolic", [False, True])
def test_every_image_alone_is_what_packing_it_alone_gives(symbolic, max_tokens):
    model = make_model()
    samples = make_samples(model, (3, 1, 2), crops=2)
    samples[1].crops, samples[1].crop_boxes = samples[1].crops[:0], samples[1].crop_boxes[:0]
    if symbolic:
        rng = np.random.default_rng(0)
        grids = [Grid(rng.integers(0, 16, 9), rng.integers(20, 200, 9), rng.random(9, np.float32)) for _ in samples]
        samples = [Sample(s.id, s.branches, grid=grid) for s, grid in zip(samples, grids, strict=True)]
    batch = collate(model, samples, max_tokens)
    alone = {sample.id: collate(model, [sample]) for sample in samples}
    found = singles(batch)
    assert [single.ids[0] for single in found] == batch.ids
    for single in found:
        for field in fields(single):
            ours, theirs = getattr(single, field.name), getattr(alone[single.ids[0]], field.name)
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name
