import shutil

import numpy as np
import pytest
import torch
from helpers.tiny_encoders import TOWERS, normalised, save_encoder_as_published
from helpers.tiny_model import make_model
from PIL import Image
from transformers import SwinConfig, SwinModel, ViTConfig, ViTImageProcessorPil, ViTModel

from granvit.evaluate.patch_encoder import PatchEncoder, load_patch_encoder, load_patch_encoders

SIZES = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Tokens in front of the patches, and which hidden states a stock LLaVA reads.
IN_FRONT = {"clip": 1, "internvit": 1, "dinov2": 1, "dinov2-registers": 5, "dinov3": 3}
COLORS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def pictures(count=2, size=(80, 50)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("kind", sorted(TOWERS))
def test_every_family_gives_its_patches_and_their_attention(kind, tmp_path):
    tower = save_encoder_as_published(kind, tmp_path)
    encoder = load_patch_encoder(tmp_path)
    canvases = encoder.show(pictures())
    output = encoder.encode(canvases)
    patches, layers = encoder.grid**2, 3 - (kind == "clip")
    assert output.features.shape == (2, patches, 32)
    assert [tuple(layer.shape) for layer in output.attentions] == [(2, 4, patches, patches)] * layers
    if kind == "naflex":  # takes other input; the same weights as a square SigLIP
        return
    tower.set_attn_implementation("eager")
    with torch.inference_mode():
        stock = tower(normalised(canvases, *COLORS), output_hidden_states=True, output_attentions=True)
    front = IN_FRONT.get(kind, 0)
    expected = stock.hidden_states[-2 if kind == "clip" else -1][:, front:]
    torch.testing.assert_close(output.features, expected, atol=2e-4, rtol=1e-4)
    for mine, theirs in zip(output.attentions, stock.attentions, strict=False):
        torch.testing.assert_close(mine, theirs[..., front:, front:], atol=1e-5, rtol=1e-4)


def test_an_encoder_of_no_known_family_serves_too(tmp_path):
    torch.manual_seed(0)
    tower = ViTModel(ViTConfig(**SIZES, intermediate_size=48)).eval()
    tower.save_pretrained(tmp_path)
    ViTImageProcessorPil(image_mean=COLORS[0], image_std=COLORS[1]).save_pretrained(tmp_path)
    encoder = load_patch_encoder(tmp_path)
    canvases = encoder.show(pictures())
    with torch.inference_mode():
        stock = tower(normalised(canvases, *COLORS), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(encoder.features(canvases), stock[:, 1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_the_encoder_of_a_checkpoint_sees_what_the_checkpoint_sees(fit, tmp_path):
    model = make_model(fit=fit)
    model.save(tmp_path / "checkpoint")
    encoder = load_patch_encoder(tmp_path)
    [picture] = pictures(1)
    canvas = torch.from_numpy(np.asarray(model.view(picture.size).apply(picture, model.fill)))[None]
    assert torch.equal(encoder.show([picture]), canvas)
    output = encoder.encode(canvas)
    with torch.inference_mode():
        torch.testing.assert_close(output.features, model.features(canvas), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(output.attentions).sum(-1), torch.ones(2, 1, 4, 16))
    # Packing needs it as it was.
    assert encoder.tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("size", [(80, 50), (50, 80), (64, 64), (33, 200)])
def test_coverage_is_the_boxes_own_area(size):
    for fit in ("letterbox", "squash"):
        encoder = PatchEncoder.of(make_model(fit=fit), "m")
        view = encoder.view(size)
        scale = np.prod(np.divide(view.canvas, view.padded))
        boxes = [(0, 0, *size), (10, 5, 30.5, 40), (-20, -20, 10, 10), (200, 300, 400, 500)]
        areas = np.array([size[0] * size[1], 20.5 * 35, 100, 0]) * scale / 16**2
        np.testing.assert_allclose(encoder.coverage(view, boxes).sum(1), areas)


def test_names_tell_encoders_apart(tmp_path):
    for name in ("before/encoder", "after/encoder", "elsewhere/after/encoder"):
        save_encoder_as_published("siglip", tmp_path / name)
    two = load_patch_encoders([tmp_path / "before/encoder", tmp_path / "after/encoder"])
    assert [e.name for e in two] == ["before", "after"]
    alike = load_patch_encoders([tmp_path / "after/encoder", tmp_path / "elsewhere/after/encoder"])
    assert len({e.name for e in alike}) == 2
    with pytest.raises(ValueError, match="twice"):
        load_patch_encoders([tmp_path / "after/encoder", tmp_path / "before/../after/encoder"])


def test_what_cannot_be_used_is_reported(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no encoder"):
        load_patch_encoder(tmp_path / "nowhere")
    ViTModel(ViTConfig(**SIZES, intermediate_size=48)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"vit/preprocessor_config.json: no image_mean"):
        load_patch_encoder(tmp_path / "vit")
    shutil.copytree(tmp_path / "vit", tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut"):
        load_patch_encoder(tmp_path / "cut")
    swin = SwinConfig(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinModel(swin).save_pretrained(tmp_path / "swin")
    ViTImageProcessorPil().save_pretrained(tmp_path / "swin")
    encoder = load_patch_encoder(tmp_path / "swin")
    with pytest.raises(ValueError, match="swin: hidden states of shape"):
        encoder.features(encoder.show(pictures()))
