"""Runs on pictures in tiles: both stages, the feature cache, ranks, resumption, and what shows them to people."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.ranks import CONFIG, Numbers, run_ranks
from helpers.tiny_model import collate, make_model, whole_mask
from helpers.tiny_recipe import save_parts, tiny_recipe
from PIL import Image, ImageColor
from safetensors.torch import load_file
from transformers import LlavaNextForConditionalGeneration

from granvit.draw import PALETTE
from granvit.errors import GranvitError
from granvit.evaluate.attention import attend_box
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.nano.config import LanguageWarmupConfig
from granvit.regions import Region, RegionImage
from granvit.train.config import CroppedSample, SampleConfig
from granvit.train.debug.first_batch import GAP, PICTURE, BatchReader, _panel
from granvit.train.feature_cache import FeatureCache
from granvit.train.prepare import Prepare
from granvit.train.run import run_recipe
from granvit.train.stages.adapt import Adapt

TILES = "2x1,1x2,2x2,3x1,1x3"
SIZES = [(60, 400), (200, 90), (64, 64), (30, 31), (300, 40), (128, 128)]


def record(n, box=None):
    width, height = SIZES[n % len(SIZES)]
    pixels = np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    box = box or (width * 0.1, height * 0.2, width * 0.6, height * 0.9)
    return RegionImage(f"{n}", buffer.getvalue(), width, height, [Region(box, "small red star")], caption="stars")


def tiled(**settings):
    return make_model(fit="squash", tiles=TILES, **settings)


def samples_of(model, count=6, digests=False, **settings):
    prepare = Prepare(model, CroppedSample({"bbox2caption": 1.0, "caption2bbox": 1.0}, **settings), digests)
    return [prepare(record(n), np.random.default_rng(n)) for n in range(count)]


# --- training --------------------------------------------------------------------------------------------------------


def run(parts, folder, steps, **options):
    recipe = tiny_recipe(parts, steps)
    recipe.settings = replace(recipe.settings, fit="squash", tiles=TILES)
    return run_recipe(recipe, folder, [([record(n) for n in range(8)], 1.0)], device="cpu", **options)


def test_both_stages_train_resume_exactly_and_leave_a_stock_checkpoint(tmp_path):
    parts = save_parts(tmp_path)
    run(parts, tmp_path / "run", 3)
    LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "run" / "checkpoint")
    ends = [
        load_file(tmp_path / "run" / s / "model" / "model.safetensors")["image_newline"] for s in ("stage1", "stage2")
    ]
    assert not torch.equal(*ends)  # it learns in both

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("granvit.train.stages.pretrain.Pretrain.after_step", after(2, stop))
        run(parts, tmp_path / "other", 3)
    run(parts, tmp_path / "other", 3)
    for stage in ("stage1", "stage2"):
        ours, theirs = (load_file(tmp_path / r / stage / "model" / "model.safetensors") for r in ("run", "other"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def after(steps, what):
    """An `after_step` that does something in place of the one of that number."""
    from granvit.train.stages.pretrain import Pretrain

    whole, taken = Pretrain.after_step, []

    def step(self):
        taken.append(1)
        whole(self) if len(taken) < steps else what()

    return step


def test_features_of_tiles_are_kept_canvas_by_canvas(tmp_path):
    stage = Adapt(tiled())
    batch = collate(stage.region_model, samples_of(stage.region_model, digests=True))
    assert len(batch.digests) == len(batch.pixels)
    with torch.no_grad():
        expected = stage(batch)["answer"].total
        for _ in range(2):  # encoded, then read back
            with FeatureCache(tmp_path, stage.region_model) as stage.cache:
                assert stage(batch)["answer"].total == expected


def test_a_row_must_hold_the_largest_picture_and_cuts_questions_of_each_as_it_has_room():
    model = tiled()
    most = len(model.dialog.prefix(model.tokens_of(model.largest_view)))
    with pytest.raises(GranvitError, match=f"an image alone has up to {most} tokens"):
        samples_of(model, max_tokens=most)
    samples = samples_of(model, max_tokens=most + 60)
    batch = collate(model, samples, most + 60)
    assert batch.input_ids.shape[1] <= most + 60
    assert [int(n) for n in batch.is_image.sum(1)] and int(batch.is_image.sum()) == sum(s.image_tokens for s in samples)


def test_crops_lie_where_the_region_is_largest():
    model = tiled()
    for n, sample in enumerate(samples_of(model, crops=1, crop_size=32)):
        view = model.view(SIZES[n])
        [whole] = np.atleast_2d(view.to_features(record(n).regions[0].box))
        scale = np.divide(view.resized if view.finer else view.canvas, SIZES[n])
        assert np.abs(sample.crop_boxes[0] - whole).max() <= max(1, scale.max())  # to whole pixels of the picture


def test_warm_ups_refuse_tiles():
    config = LanguageWarmupConfig(SampleConfig(), CONFIG)
    with pytest.raises(GranvitError, match="warm-ups know pictures of one canvas alone"):
        config.prepare(tiled())


@whole_mask()
def train(run_dir, config):
    import os

    from granvit.train.feed import Feed
    from granvit.train.loop import train as train_stage
    from granvit.train.stages.pretrain import Pretrain

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    model = tiled()
    prepare = Prepare(model, CroppedSample({"bbox2caption": 1.0}, crops=1))

    def sample(numbered, rng):
        return replace(prepare(record(int(numbered.id)), rng), id=numbered.id)

    feed = Feed([(Numbers(24), 1.0)], sample, prepare.collate, config.batch_size, 0, rank, world, prefetch=0)
    train_stage(Pretrain(model), feed, config, run_dir, device="cpu")


@pytest.mark.parametrize("parallel", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_ranks_take_the_steps_of_one_process(parallel, tmp_path):
    train(tmp_path / "one", replace(CONFIG, steps=3))
    changed = replace(CONFIG, steps=3, batch_size=2, parallel=parallel)
    assert run_ranks(2, train, tmp_path / "two", changed) == [0, 0]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 3
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


# --- shown to people -------------------------------------------------------------------------------------------------


def test_the_first_batch_draws_boxes_on_the_mosaic():
    model = tiled(codec="decimal")
    prepare = Prepare(model, SampleConfig({"bbox2caption": 1.0}))
    for n in (0, 2, 5):
        width, height = SIZES[n]
        black = io.BytesIO()
        Image.new("RGB", SIZES[n], "black").save(black, "PNG")
        box = (width * 0.25, height * 0.25, width * 0.75, height * 0.75)
        batch = prepare.collate([prepare(replace(record(n, box), image=black.getvalue()), np.random.default_rng(0))])
        panel = np.asarray(_panel(model, BatchReader(), batch, 9))[:PICTURE, GAP : GAP + PICTURE]
        rows, columns = np.nonzero((panel == ImageColor.getrgb(PALETTE[0])).all(-1))
        view = model.view(SIZES[n])
        scale = PICTURE / max(view.mosaic if view.finer else view.canvas)
        shown = view.resized if view.finer else view.canvas
        assert columns.max() + 1 - columns.min() == pytest.approx(shown[0] * scale / 2, abs=4)
        assert rows.max() + 1 == pytest.approx(PICTURE / 2 + shown[1] * scale / 4, abs=4)  # a plate stands on its top
        assert (columns.max() + 1 + columns.min()) / 2 == pytest.approx(PICTURE / 2, abs=3)


def test_attention_pictures_tell_of_the_whole_picture():
    model = tiled()
    picture = Image.open(io.BytesIO(record(0).image))
    seen = attend_box(PatchEncoder.of(model, "tiled"), picture, record(0).regions[0].box)
    assert seen.maps.attention.shape == (1, 16) and 0 < seen.inside["attention"] < 1
    assert seen.word_maps is not None and seen.word_maps.shape == (len(seen.words), 16)
    assert (seen.word_maps.sum(1) <= 1 + 1e-6).all() and (seen.word_maps > 0).all()
