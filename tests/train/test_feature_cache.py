import json
from dataclasses import fields, replace
from typing import get_type_hints

import pytest
import torch
from accelerate import PartialState
from helpers.tiny_model import collate, make_model, make_samples
from helpers.tiny_recipe import tiny_recipe

from granvit.errors import CheckpointError, GranvitError
from granvit.train.config import CachingLoop, SampleConfig
from granvit.train.feature_cache import FeatureCache
from granvit.train.run import memory_options, run_stage
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.config import KINDS, AdaptConfig

QUESTIONS = {"global": 1.0, "caption2bbox": 1.0}


@pytest.fixture
def model():
    return make_model()


def batch_of(model, images=4, seed=0):
    samples = make_samples(model, (1,) * images, seed)
    return collate(model, [replace(s, digests=[f"{seed}-{i}"]) for i, s in enumerate(samples)])


def counted(model):
    """The sizes of the batches that reach the encoder, as they come."""
    sizes = []
    model.llava.model.vision_tower.embeddings.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def losses_and_gradients(stage, batch):
    stage.zero_grad()
    loss = stage(batch)["answer"].total
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}


def test_losses_with_the_cache_equal_those_without(model, tmp_path):
    stage = Adapt(model).train()
    batches = [batch_of(model, seed=seed) for seed in (0, 1)]
    expected = [losses_and_gradients(stage, batch) for batch in batches]
    encoded = counted(model)
    for _ in range(2):  # the second time from files
        with FeatureCache(tmp_path, model) as stage.cache:
            for _ in range(2):
                for batch, (loss, gradients) in zip(batches, expected, strict=True):
                    ours, others = losses_and_gradients(stage, batch)
                    assert ours == pytest.approx(loss, rel=1e-6)
                    for name in gradients:
                        torch.testing.assert_close(others[name], gradients[name], rtol=1e-5, atol=1e-6)
    assert encoded == [4, 4]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and not list(tmp_path.glob("*.partial"))


def test_only_new_pictures_are_encoded_and_each_gets_its_own_features(model, tmp_path):
    batch = batch_of(model, 5)
    with torch.no_grad():
        expected = model.features(batch.pixels)
    encoded = counted(model)
    cache = FeatureCache(tmp_path, model)
    for order in ([1, 3], [3, 0, 1], [4, 3, 2, 1, 0], [2, 2]):
        ours = cache.features(batch.pixels[order], [batch.digests[i] for i in order])
        torch.testing.assert_close(ours, expected[order], rtol=0, atol=1e-6)
    assert encoded == [2, 1, 2]


def test_kept_in_bfloat16_features_are_rounded_alike_the_first_time_and_later(model, tmp_path):
    batch = batch_of(model)
    first, again = (FeatureCache(tmp_path, model, "bf16") for _ in range(2))
    with first:
        computed = first.features(batch.pixels, batch.digests)
    assert torch.equal(again.features(batch.pixels, batch.digests), computed)
    with torch.no_grad():
        exact = model.features(batch.pixels)
    assert computed.dtype == torch.float32
    assert 0 < (computed - exact).abs().max() <= exact.abs().max() * 2**-8


def test_a_full_folder_is_only_read_from(model, tmp_path):
    batch, picture = batch_of(model), 16 * 32 * 4
    encoded = counted(model)
    cache = FeatureCache(tmp_path, model, gigabytes=2.5 * picture / 1e9)
    for _ in range(2):
        cache.features(batch.pixels, batch.digests)
    cache.flush()
    assert encoded == [4, 2]
    other = FeatureCache(tmp_path, model, gigabytes=1e-9)
    other.features(batch.pixels, batch.digests)
    other.flush()
    assert encoded == [4, 2, 2] and len(list(tmp_path.glob("*.safetensors"))) == 1


def test_ranks_write_files_of_their_own_and_read_all(model, tmp_path):
    batch = batch_of(model)
    encoded = counted(model)
    for rank in (0, 1):
        with FeatureCache(tmp_path, model, rank=rank, ranks=2) as cache:
            cache.features(batch.pixels[2 * rank : 2 * rank + 2], batch.digests[2 * rank : 2 * rank + 2])
    FeatureCache(tmp_path, model, rank=1, ranks=2).features(batch.pixels, batch.digests)
    assert encoded == [2, 2]
    assert len({path.name for path in tmp_path.glob("*.safetensors")}) == 2


def test_features_of_another_encoder_or_precision_are_refused(model, tmp_path):
    batch = batch_of(model)
    FeatureCache(tmp_path, model).features(batch.pixels, batch.digests)
    with pytest.raises(CheckpointError, match="cache.json: kept in is 'fp32' there and 'bf16'"):
        FeatureCache(tmp_path, model, "bf16").features(batch.pixels, batch.digests)
    with pytest.raises(CheckpointError, match="computed in is 'torch.float32' there and 'torch.bfloat16'"):
        with torch.autocast("cpu", torch.bfloat16):
            FeatureCache(tmp_path, model).features(batch.pixels, batch.digests)
    with torch.no_grad():
        model.llava.model.vision_tower.embeddings.patch_embedding.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="cache.json: encoder is .* name another folder as loop.feature_cache"):
        FeatureCache(tmp_path, model).features(batch.pixels, batch.digests)


def test_a_damaged_file_is_named(model, tmp_path):
    batch = batch_of(model)
    with FeatureCache(tmp_path, model) as cache:
        cache.features(batch.pixels, batch.digests)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="features-0-000000.safetensors: .*delete it"):
        FeatureCache(tmp_path, model).features(batch.pixels, batch.digests)
    file.unlink()
    FeatureCache(tmp_path, model).features(batch.pixels, batch.digests)


# --- by choice of a stage's settings ---------------------------------------------------------------------------------


def recipe(windows=0.0, **loop):
    return AdaptConfig(SampleConfig(QUESTIONS, windows=windows), CachingLoop(**loop))


def test_a_stage_trains_with_what_its_recipe_chooses(model, tmp_path):
    chosen = recipe(gradient_checkpointing=("language",), feature_cache=str(tmp_path / "features"), compile=True)
    stage = chosen.build(model).train()
    with memory_options(stage, chosen, PartialState(cpu=True)):
        assert all(layer.gradient_checkpointing for layer in model.llava.model.language_model.layers)
        assert not any(layer.gradient_checkpointing for layer in model.llava.model.vision_tower.encoder.layers)
        assert model.llava.model.language_model.layers[0]._compiled_call_impl is not None
        with torch.compiler.set_stance("force_eager"):  # compiling takes a C++ compiler, and a minute
            stage(batch_of(model))
    assert model.llava.model.language_model.layers[0]._compiled_call_impl is None
    assert not any(layer.gradient_checkpointing for layer in model.llava.model.language_model.layers)
    facts = json.loads((tmp_path / "features" / "cache.json").read_text())
    assert facts["kept in"] == "fp32" and len(list((tmp_path / "features").glob("*.safetensors"))) == 1


def test_features_of_pictures_that_change_are_not_kept(model, tmp_path):
    chosen = recipe(feature_cache=str(tmp_path / "features"), windows=0.5)
    with pytest.raises(GranvitError, match="stage2: .* with sample.windows: no window comes up twice"):
        run_stage(chosen, tiny_recipe(tmp_path), model, tmp_path / "run", [], device="cpu")
    assert not (tmp_path / "features").exists()


def test_only_the_stage_whose_encoder_is_frozen_has_a_cache():
    loops = {kind: {field.name for field in fields(get_type_hints(config)["loop"])} for kind, config in KINDS.items()}
    assert [kind for kind, names in loops.items() if "feature_cache" in names] == ["stage2"]
