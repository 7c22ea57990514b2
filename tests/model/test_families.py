"""Every family of encoders: loaded, trained for a step, exported, reloaded, against transformers' own features."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_encoders import TOWERS, as_patches, make_encoder, normalised, save_encoder_as_published
from helpers.tiny_model import TEXTS, collate, make_language, make_samples, packed_logits
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, LlavaForConditionalGeneration

from granvit.coordinates import get_codec
from granvit.model.assemble import assemble, save_encoder
from granvit.model.encoders import at_canvas, fix_size, load_encoder
from granvit.model.families import ENCODERS, canvas_of, family_of, patch_of
from granvit.model.forward import encode
from granvit.model.region_model import RegionModel, Settings
from granvit.nano.language_warmup import LanguageWarmup
from granvit.nano.models import train_tokenizer
from granvit.train.config import LoopConfig
from granvit.train.optimizer import make_optimizer
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.pretrain import Pretrain

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
KINDS = [kind for kind in TOWERS if kind != "naflex"]
# What stock LLaVA reads of each: the hidden state, and how many tokens in front of the first one it keeps.
READ = {kind: (-1, 1) for kind in ("internvit", "dinov2", "dinov2-registers", "dinov3")}
READ |= {"siglip": (-1, 0), "clip": (-2, 1), "aimv2": (-1, 0), "aimv2-native": (-1, 0)}
REGISTERS = {"dinov2-registers": 4, "dinov3": 2}
# What features do not depend on.
BEHIND = {
    "siglip": ("post_layernorm", "head"),
    "clip": ("encoder.layers.2", "post_layernorm"),
    "aimv2": ("rms_norm", "head"),
    "aimv2-native": ("rms_norm", "head"),
    "internvit": ("layernorm",),
    "dinov2": ("layernorm", "embeddings.mask_token"),
    "dinov2-registers": ("layernorm", "embeddings.mask_token"),
    "dinov3": ("norm", "embeddings.mask_token"),
}


def pictures(side, count=2, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def join(encoder, canvas=None):
    tokenizer = train_tokenizer(TEXTS, 280, get_codec("loc:16"))
    return assemble(encoder, (make_language("qwen2", tokenizer), tokenizer), Settings("loc:16"), canvas=canvas)


def stock_features(tower, pixels, kind):
    layer, dropped = READ[kind]
    with torch.inference_mode():
        return tower(pixels, output_hidden_states=True).hidden_states[layer][:, dropped:]


def step(stage, small_crops):
    """One step of the loop's own optimizer; the gradients it was taken with, by name."""
    optimizer = make_optimizer(stage, 1e-2, 0.0, LoopConfig().betas, {})
    batch = collate(stage.region_model, make_samples(stage.region_model, (3, 2), crops=2))
    if small_crops:
        side = 2 * stage.region_model.patch
        batch.crops = batch.crops[:, :side, :side]
    terms = stage(batch)
    sum(t.weight * t.total / batch.counts[t.count] for t in terms.values()).backward()
    gradients = {n: p.grad.clone() for n, p in stage.model.named_parameters() if p.grad is not None}
    optimizer.step()
    stage.after_step()
    return gradients


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def published(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp(kind)
    save_encoder_as_published(kind, folder)
    return folder


@pytest.fixture(scope="module")
def trained(kind, published):
    """The model after one step of stage 1, its parameters before, and the gradients."""
    model = join(published)
    before = {n: p.detach().clone() for n, p in model.llava.named_parameters()}
    stage = Pretrain(model)
    stage.train()
    gradients = step(stage, small_crops=kind != "aimv2")  # which has positions for one size only
    model.llava.eval()
    return model, before, gradients


# --- one step of every family ----------------------------------------------------------------------------------------


def test_features_are_those_that_transformers_computes(kind, published):
    model = join(published)
    pixels = pictures(model.canvas)
    expected = stock_features(AutoModel.from_pretrained(published).eval(), normalised(pixels, MEAN, STD), kind)
    features = model.features(pixels)
    torch.testing.assert_close(model.normalise(pixels), normalised(pixels, MEAN, STD), rtol=0, atol=1e-5)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert features.std() > 0.1 and (features[0] - features[1]).abs().max() > 0.01
    assert features.shape[1] == model.image_tokens == model.grid**2 + REGISTERS.get(kind, 0)
    assert model.patches(features).shape[1] == model.grid**2


def test_stage_1_reaches_every_matrix_in_front_of_the_features_and_none_behind(kind, trained):
    model, before, gradients = trained
    tower = {n.removeprefix("model.vision_tower."): n for n in before if n.startswith("model.vision_tower.")}
    matrices = {short for short, n in tower.items() if before[n].ndim > 1 or "weight" in n or "lambda" in n}
    reached = {short for short in matrices if tower[short] in gradients and gradients[tower[short]].abs().max() > 0}
    assert matrices - reached == {short for short in matrices if short.startswith(BEHIND[kind])}
    assert not any(n.startswith(("model.language_model.", "lm_head")) for n in gradients)
    assert {n for n in gradients if "vision_tower" in n} <= {tower[s] for s in tower if not s.startswith(BEHIND[kind])}


def test_a_step_moves_what_trains_and_leaves_the_rest_bit_identical(kind, trained):
    model, before, _ = trained
    moved = {n for n, p in model.llava.named_parameters() if not torch.equal(p, before[n])}
    behind = tuple("model.vision_tower." + name for name in BEHIND[kind])
    assert not any(n.startswith((*behind, "model.language_model.", "lm_head")) for n in moved)
    assert len([n for n in moved if "vision_tower" in n]) > 10


def test_the_exported_llava_is_the_trained_model_to_plain_transformers(kind, trained, tmp_path):
    model = trained[0]
    model.save(tmp_path)
    llava, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(7).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    canvas = torch.from_numpy(np.array(model.view(picture.size).apply(picture, model.fill)))[None]
    sample = make_samples(model, (2,))[0]
    sample.pixels = canvas[0].numpy()
    ours, labels = packed_logits(model, collate(model, [sample]))
    position = 0
    with torch.inference_mode():
        pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        stock = llava.eval().get_image_features(pixels, return_dict=True).pooler_output[0]
        torch.testing.assert_close(stock, model.embed(canvas)[0], rtol=0, atol=1e-5)
        for branch in sample.branches:
            question = model.processor.tokenizer.decode(branch.ids)
            head = model.dialog.prefix_ids[: -model.image_tokens]
            text = model.processor.tokenizer.decode(head) + "<image>" + question
            inputs = processor(images=picture, text=text, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == model.dialog.prefix_ids + branch.ids
            answer = branch.ids[branch.answer_start :]
            logits = llava(**inputs).logits[0, -len(answer) - 1 : -1]
            assert labels[position : position + len(answer)].tolist() == answer
            torch.testing.assert_close(ours[position : position + len(answer)], logits, rtol=0, atol=1e-4)
            position += len(answer)
    assert position == len(ours)


def test_the_exported_encoder_is_the_trained_tower_to_plain_transformers(kind, trained, tmp_path):
    model = trained[0]
    save_encoder(model, tmp_path)
    alone, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(alone) is TOWERS[kind][0]
    pixels = pictures(model.canvas, seed=3)
    expected = stock_features(alone.eval(), normalised(pixels, MEAN, STD), kind)
    torch.testing.assert_close(model.features(pixels), expected, rtol=0, atol=1e-5)


def test_what_was_exported_is_an_encoder_again(kind, trained, tmp_path):
    model = trained[0]
    model.save(tmp_path / "llava")
    save_encoder(model, tmp_path / "encoder")
    weights = model.llava.model.vision_tower.state_dict()
    for name in ("llava", "encoder"):
        again = load_encoder(tmp_path / name)
        assert (again.mean, again.std) == (tuple(MEAN), tuple(STD))
        assert all(torch.equal(weights[n], t) for n, t in again.tower.state_dict().items())
    loaded = RegionModel.load(tmp_path / "llava")
    pixels = pictures(model.canvas, seed=4)
    assert torch.equal(loaded.features(pixels), model.features(pixels))


def test_a_tower_that_trains_sees_the_places_of_prediction(kind):
    """DINOv3, for one, shifts and scales its positions at random while it trains, unless its config says not to."""
    model = join(make_encoder(kind))
    pixels = pictures(model.canvas)
    expected = model.features(pixels)
    model.llava.train()
    assert torch.equal(model.features(pixels), expected)


def test_frozen_features_and_the_teachers_draw_no_dropout():
    model = join(make_encoder("siglip", attention_dropout=0.5))
    pixels = pictures(model.canvas)
    expected = model.features(pixels)
    for make in (Adapt, Pretrain):
        stage = make(model)
        stage.train()
        assert torch.equal(model.features(pixels), expected) == (make is Adapt)
    teacher, crops = stage.teacher, model.normalise(pixels)
    assert torch.equal(teacher(crops, model.canvas), teacher(crops, model.canvas))


# --- canvases of another size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [3, 6])
def test_a_tower_takes_another_canvas_as_its_own_code_would(kind, patches):
    tower = make_encoder(kind)
    canvas = patches * patch_of(tower.config)
    if kind == "aimv2":
        with pytest.raises(ValueError, match="64 px alone, not for"):
            at_canvas(tower, canvas)
        return
    resized = at_canvas(tower, canvas)
    assert canvas_of(resized.config) == canvas
    pixels = torch.randn(2, 3, canvas, canvas)
    expected = encode(tower, pixels, resized=True)
    torch.testing.assert_close(encode(resized, pixels), expected, rtol=0, atol=1e-6)
    assert expected.shape[1] == patches**2 + REGISTERS.get(kind, 0)


def test_positions_are_resized_as_the_table_says(kind):
    """The independent oracle: torch's own interpolation in the mode that the table states."""
    tower = make_encoder(kind)
    family = family_of(tower.config)
    mode = {"bicubic": False, "bicubic, antialiased": True}
    if family.positions not in mode:
        pytest.skip(f"positions are {family.positions}")
    table = tower.get_parameter(family.table).reshape(1, -1, 32)[:, family.class_token :]
    grid = table.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (3, 3), mode="bicubic", antialias=mode[family.positions]).flatten(2).mT
    canvas = 3 * patch_of(tower.config)
    resized = at_canvas(tower, canvas).get_parameter(family.table).reshape(1, -1, 32)[:, family.class_token :]
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)


def test_a_model_is_assembled_at_the_canvas_asked_for(kind, published, tmp_path):
    if kind == "aimv2":
        pytest.skip("its positions are of one size")
    canvas = 6 * patch_of(load_encoder(published).tower.config)
    model = join(published, canvas)
    assert (model.canvas, model.grid) == (canvas, 6)
    model.save(tmp_path)
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    pixels = pictures(canvas)
    with torch.inference_mode():
        stock = llava.get_image_features(normalised(pixels, MEAN, STD), return_dict=True).pooler_output
    torch.testing.assert_close(torch.stack(list(stock)), model.embed(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("canvas", [40, 8])
def test_a_canvas_that_patches_do_not_tile_is_refused(canvas):
    with pytest.raises(ValueError, match="do not tile"):
        at_canvas(make_encoder("siglip"), canvas)


# --- NaFlex ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [None, 96, 48])
def test_naflex_at_one_size_is_a_stock_siglip(canvas, tmp_path):
    naflex = make_encoder("naflex")
    naflex.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, canvas)
    side = canvas or 64
    assert encoder.tower.config.model_type == "siglip_vision_model" and canvas_of(encoder.tower.config) == side
    pixels = torch.randn(2, 3, side, side).double()  # a sum in another order rounds otherwise
    grid = side // 16
    with torch.inference_mode():
        theirs = naflex.double()(
            as_patches(pixels, 16),
            pixel_attention_mask=torch.ones(2, grid * grid, dtype=torch.long),
            spatial_shapes=torch.tensor([[grid, grid]] * 2),
            output_hidden_states=True,
        )
        ours = encoder.tower.double()(pixels, output_hidden_states=True)
    torch.testing.assert_close(ours.hidden_states[-1], theirs.hidden_states[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, rtol=0, atol=1e-5)
    join(load_encoder(tmp_path, canvas)).save(tmp_path / "llava")
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    assert type(llava.model.vision_tower).__name__ == "SiglipVisionModel"


def test_naflex_positions_are_bilinear_and_antialiased():
    naflex = make_encoder("naflex")
    table = naflex.embeddings.position_embedding.weight
    grid = table.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (3, 3), mode="bilinear", antialias=True).flatten(2).mT[0]
    torch.testing.assert_close(fix_size(naflex, 48).embeddings.position_embedding.weight, expected, rtol=0, atol=1e-6)


# --- what is taken for what ------------------------------------------------------------------------------------------


def test_a_pair_of_towers_gives_its_vision_half(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    pair = CLIPModel(CLIPConfig(text_config=text, vision_config=make_encoder("clip").config.to_dict()))
    pair.save_pretrained(tmp_path)
    tower = load_encoder(tmp_path).tower
    assert all(torch.equal(tower.state_dict()[n], t) for n, t in pair.vision_model.state_dict().items())


def test_without_an_image_processor_colours_are_the_familys(tmp_path):
    save_encoder_as_published("clip", tmp_path, colors=False)
    encoder = load_encoder(tmp_path)
    assert encoder.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load_encoder(tmp_path)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    save_encoder_as_published("clip", tmp_path)
    edit(tmp_path / "config.json", model_type="vit")
    with pytest.raises(ValueError, match="type 'vit', supported: siglip_vision_model, clip"):
        load_encoder(tmp_path)
    edit(tmp_path / "config.json", model_type="intern_vit_6b", auto_map={"AutoConfig": "configuration.Evil"})
    with pytest.raises(ValueError, match="code from its own repository, which is never run; .* -hf"):
        load_encoder(tmp_path)
    edit(tmp_path / "config.json", model_type="other", auto_map={"AutoConfig": "configuration.Evil"})
    (tmp_path / "configuration.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ValueError, match="no encoder of that name"):
        load_encoder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    save_encoder_as_published("dinov2", tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=4)
    with pytest.raises(ValueError, match="weights missing or of the wrong shape: .*layer.3"):
        load_encoder(tmp_path)


def test_a_llava_that_reads_its_tower_elsewhere_is_refused(tmp_path):
    model = join(make_encoder("clip"))
    model.save(tmp_path)
    edit(tmp_path / "config.json", vision_feature_layer=-1)
    with pytest.raises(ValueError, match="vision_feature_layer -1 and .*CLIP is read with -2"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="vision_feature_layer is -1, CLIP is read with -2"):
        RegionModel.load(tmp_path)


def test_a_canvas_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"image_size .64, 32. is not square"):
        join(make_encoder("internvit", image_size=[64, 32]))


def test_symbolic_images_have_no_registers():
    with pytest.raises(ValueError, match="register tokens"):
        LanguageWarmup(join(make_encoder("dinov3")))


def test_every_family_of_the_table_is_tested():
    assert {config.model_type for _, config, _ in TOWERS.values()} == {*ENCODERS, "siglip2_vision_model"}
