"""Pictures in tiles: what LLaVA-NeXT's stock classes make of them, packed and asked as pictures of one canvas are."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import WITHOUT_GRANVIT
from helpers.tiny_encoders import make_encoder
from helpers.tiny_model import collate, make_language, make_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from granvit.errors import CheckpointError, ExportError, GranvitError
from granvit.export.llava import check_stock, export
from granvit.model.assemble import assemble, save_encoder
from granvit.model.attention import PACKED, use_packed_attention
from granvit.model.encoders import load_encoder
from granvit.model.families import body_of
from granvit.model.forward import answer_logits
from granvit.model.packing import IGNORE, Sample, unpack
from granvit.model.region_model import RegionModel, Settings
from granvit.predict import GranViT, ImageQuestions
from granvit.questions import box_exchange, caption_exchange, global_exchange
from granvit.train.identity import decisive
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.pretrain import Pretrain

CHILD = Path(__file__).parent / "next_child.py"
TILES = "2x1,1x2,2x2,3x1,1x3"
# Width and height: receipts, banners, tiny ones, squares, of odd sides, and as long as one row of the mosaic is high.
SHAPES = [
    *((60, 400), (97, 311), (41, 777), (64, 126), (9, 200)),
    *((400, 60), (311, 97), (777, 41), (180, 120), (200, 9)),
    *((8, 8), (13, 10), (10, 13), (64, 64), (65, 63)),
    *((128, 128), (129, 127), (500, 480), (64, 192), (1, 300)),
]


def tiled(kind="qwen2", tiles=TILES, **settings):
    return make_model(kind, fit="squash", tiles=tiles, **settings)


@pytest.fixture(scope="module")
def model():
    return tiled()


def picture(size, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def exchanges(model):
    box = (0.1, 0.2, 0.5, 0.9)
    return [
        caption_exchange(box, "small red star", model.codec),
        box_exchange(box, "TOTAL 12.50", model.codec),
        global_exchange("two green rings"),
    ]


def sample_of(model, size, branches, seed=0, crops=None):
    view = model.view(size)
    pixels = view.canvases(picture(size, seed), model.fill)
    sample = Sample(f"{size}", branches, pixels, view=view, image_tokens=model.tokens_of(view))
    if crops is not None:
        rng = np.random.default_rng(1)
        sample.crops = rng.integers(0, 256, (len(crops), model.canvas, model.canvas, 3), dtype=np.uint8)
        sample.crop_boxes = view.to_features(crops).astype(np.float32)
    return sample


def assert_equal(ours, stock):
    """To 1e-5 of the largest value."""
    assert ours.shape == stock.shape
    assert (ours - stock).abs().max() <= 1e-5 * stock.abs().max()


# --- plain transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_plain_transformers_gives_the_same_of_pictures_of_twenty_shapes(kind, tmp_path):
    model = tiled(kind)
    model.save(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "llava")
    exchange = exchanges(model)[0]
    (tmp_path / "text.txt").write_text(f"{exchange.question}\n{exchange.answer}<|end|>\n")
    (tmp_path / "pictures").mkdir()
    for n, size in enumerate(SHAPES):
        picture(size, n).save(tmp_path / "pictures" / f"{n:02}.png")

    subprocess.run([sys.executable, *WITHOUT_GRANVIT, CHILD, tmp_path], cwd=tmp_path, check=True)

    stock = load_file(tmp_path / "answers.safetensors")
    branch = model.dialog.branch(exchange)
    grids = set()
    for n, size in enumerate(SHAPES):
        view = model.view(size)
        grids.add(view.grid)
        canvases = model.show(picture(size, n))
        assert_equal(model.normalise(canvases), stock[f"{n:02} pixels"])
        batch = collate(model, [sample_of(model, size, [branch], n)])
        assert batch.input_ids[0].tolist() == stock[f"{n:02} ids"].tolist()
        with torch.no_grad():
            embeds = model.arranged(model.embed(canvases), [view])
            assert_equal(embeds, stock[f"{n:02} features"])
            logits, labels = answer_logits(model.llava, batch, embeds)
        assert_equal(logits, stock[f"{n:02} logits"][-len(labels) - 1 : -1])
    assert grids == {(2, 1), (1, 2), (2, 2), (3, 1), (1, 3)}


def test_a_tower_with_a_class_token_is_shown_as_the_stock_processor_counts():
    check_stock(joined(make_encoder("clip"), Settings("loc:16", "image", "squash", TILES)), "here")


def joined(encoder, settings):
    tokenizer = make_model().processor.tokenizer
    return assemble(encoder, (make_language("qwen2", tokenizer), tokenizer), settings)


def test_what_is_saved_is_read_again_and_is_an_encoder_too(model, tmp_path):
    model.save(tmp_path)
    again = RegionModel.load(tmp_path)
    assert again.settings == model.settings
    assert torch.equal(again.llava.model.image_newline, model.llava.model.image_newline)
    tower = load_encoder(tmp_path).tower
    weights, theirs = body_of(tower).state_dict(), body_of(model.llava.model.vision_tower).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items())
    save_encoder(model, tmp_path / "encoder")
    alone = AutoImageProcessor.from_pretrained(tmp_path / "encoder")(picture((90, 50)), return_tensors="pt")
    assert_equal(model.normalise(model.show(picture((90, 50))))[:1], alone["pixel_values"])


# --- packed ----------------------------------------------------------------------------------------------------------

MIXED = [(60, 400), (200, 90), (64, 64), (30, 31)]


def packed(model, sizes, max_tokens=None):
    samples = [
        sample_of(model, size, [model.dialog.branch(e) for e in exchanges(model)[: 1 + n % 3]], seed=n)
        for n, size in enumerate(sizes)
    ]
    return collate(model, samples, max_tokens)


def logits_of(model, batch):
    return answer_logits(model.llava, batch, model.arranged(model.embed(batch.pixels), batch.views))


@pytest.mark.parametrize("max_tokens", [None, 260])
@pytest.mark.parametrize("attention", ["sdpa", PACKED])
@torch.no_grad()
def test_packed_is_what_one_question_after_the_other_is(max_tokens, attention):
    model = tiled()
    if attention == PACKED:
        use_packed_attention(model.llava)
    batch = packed(model, MIXED, max_tokens)
    logits, labels = logits_of(model, batch)
    expected = []
    for size in [name.strip("()").split(", ") for name in batch.ids]:
        n = MIXED.index(tuple(map(int, size)))
        for exchange in exchanges(model)[: 1 + n % 3]:
            alone = sample_of(model, MIXED[n], [model.dialog.branch(exchange)], seed=n)
            expected.append(logits_of(model, collate(model, [alone])))
    assert labels.tolist() == [token for _, tokens in expected for token in tokens.tolist()]
    assert_equal(logits, torch.cat([each for each, _ in expected]))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    apart = [torch.nn.functional.cross_entropy(*each, reduction="sum") for each in expected]
    assert abs(loss - torch.stack(apart).sum() / len(labels)) < 1e-5 * loss


@torch.no_grad()
def test_changing_one_branch_leaves_its_siblings_bit_for_bit(model):
    batch = packed(model, [(60, 400), (400, 60), (64, 64)])
    before, labels = logits_of(model, batch)
    mine = (batch.block_ids == 0) & (batch.branch_ids == 2)
    changed = replace(batch, input_ids=torch.where(mine, (batch.input_ids + 1) % 250, batch.input_ids))
    after, _ = logits_of(model, changed)
    answers = batch.labels != IGNORE
    others = ~mine[answers]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_an_image_taken_out_of_a_batch_keeps_its_canvases(model):
    batch = packed(model, MIXED)
    batch.digests = [str(n) for n in range(len(batch.pixels))]
    singles = unpack(batch)
    assert [len(single.pixels) for single in singles] == [view.count for view in batch.views]
    assert torch.equal(torch.cat([single.pixels for single in singles]), batch.pixels)
    assert [digest for single in singles for digest in single.digests] == batch.digests
    with torch.no_grad():
        together = logits_of(model, batch)[0]
        assert_equal(torch.cat([logits_of(model, single)[0] for single in singles]), together)


# --- asked -----------------------------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_what_else_is_asked_beside(model):
    granvit = GranViT(model)
    pictures = [picture(size, n) for n, size in enumerate(MIXED)]
    questions = ["what?", "Describe in detail what is shown in the image in one paragraph"]
    asks = [ImageQuestions(p, model.view(p.size), questions) for p in pictures]
    alone = [granvit.answer([ask], 8)[0] for ask in asks]
    assert granvit.answer(asks, 8) == alone
    stock = []
    for p in pictures:
        content = [{"type": "image"}, {"type": "text", "text": questions[0]}]
        text = model.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = model.processor(images=p, text=text, return_tensors="pt")
        out = model.llava.generate(**inputs, do_sample=False, max_new_tokens=8)
        stock.append(model.dialog.decode(out[0, inputs["input_ids"].shape[1] :].tolist()))
    assert [answers[0] for answers in alone] == stock


def test_a_window_is_shown_as_the_picture_cut_out(model):
    view = model.window((100, 100, 120, 110), (300, 200), 90)
    whole = picture((300, 200))
    assert view.source == (65, 60, 155, 150)
    cut = whole.crop(view.source)
    assert torch.equal(model.show(whole, view), model.show(cut))


def test_a_box_is_of_the_whole_picture(model):
    answer = model.codec.encode((0.25, 0.5, 0.75, 1.0))
    assert GranViT(model).to_pixels(answer, model.view((60, 400))) == pytest.approx(
        (15, 200, 45, 400), abs=13
    )  # a cell of loc:16


# --- what is learned -------------------------------------------------------------------------------------------------


def test_the_row_end_learns_with_the_projector(model):
    for stage in (Adapt(tiled()), Pretrain(tiled(), distill_weight=0.0)):
        batch = packed(stage.region_model, MIXED)
        sum(term.total for term in stage(batch).values()).backward()
        assert stage.model.model.image_newline.grad.abs().sum() > 0
        assert all(p.grad is not None for p in stage.parameters() if p.requires_grad)


def test_a_region_is_pooled_where_it_is_largest(model):
    """A patch of the mosaic, or of the overview, whose features are its own place: ROIAlign finds it there."""
    for size, finer in (((60, 400), True), ((200, 200), True), ((400, 9), False)):
        view = model.view(size)
        assert view.finer == finer
        x, y = size[0] / 2, size[1] / 2
        box = np.array([[x - 0.2 * x, y - 0.2 * y, x + 0.2 * x, y + 0.2 * y]])
        [found] = model.region_maps(torch.zeros(view.count, 16, 3), [view])
        rows, columns = found.shape[1:3]
        assert (columns, rows) == ((4 * view.grid[0], 4 * view.grid[1]) if finer else (4, 4))
        centre = view.to_features(box)[0].reshape(2, 2).mean(0) / 16
        assert centre == pytest.approx((columns / 2, rows / 2), abs=0.05)  # in whole pixels


def test_tiles_side_by_side_are_the_picture(model):
    view = model.view((128, 128))
    whole = picture((128, 128))
    canvases = view.canvases(whole)
    assert view.grid == (2, 2) and torch.equal(torch.from_numpy(np.array(view.drawn(canvases))), as_tensor(whole))
    # The mean colour of each patch as its feature: side by side they are the picture, sixteen times smaller.
    means = torch.from_numpy(canvases).float().unfold(1, 16, 16).unfold(2, 16, 16).mean((-1, -2)).flatten(1, 2)
    [found] = model.region_maps(means, [view])
    expected = as_tensor(whole).float().unfold(0, 16, 16).unfold(1, 16, 16).mean((-1, -2))
    assert torch.allclose(found[0], expected)


def as_tensor(image):
    return torch.from_numpy(np.array(image))


def test_distillation_of_a_batch_is_the_sum_over_its_images():
    stage = Pretrain(tiled())
    model = stage.region_model
    branch = [model.dialog.branch(exchanges(model)[0])]
    sizes = [
        ((60, 400), [[5, 50, 40, 90], [10, 10, 50, 300]]),
        ((400, 9), [[10, 1, 300, 8]]),
        ((130, 70), [[3, 3, 9, 60]]),
    ]
    samples = [sample_of(model, size, branch, n, np.array(boxes, float)) for n, (size, boxes) in enumerate(sizes)]
    with torch.no_grad():
        total = stage(collate(model, samples))["distill"].total
        each = [stage(collate(model, [sample]))["distill"].total for sample in samples]
    assert total == pytest.approx(sum(map(float, each)), rel=1e-5) and all(float(part) > 0 for part in each)


def test_shares_say_what_of_the_overview_a_token_shows(model):
    view = model.view((60, 400))
    shares = view.shares(4)
    assert shares.shape == (view.tokens(4), 16)
    assert np.allclose(shares[:16], np.eye(16))
    left, top, right, bottom = view.unpadded(4)
    rows = shares[16:].reshape(bottom - top, right - left + 1, 16)
    assert np.allclose(rows[:, :-1].sum(-1), 1) and not rows[:, -1].any()
    # The first row of the mosaic lies in the first row of the overview, the last in its last.
    assert np.allclose(rows[0, :-1, :4].sum(-1), 1) and np.allclose(rows[-1, :-1, 12:].sum(-1), 1)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", ["2", "2x2,", "0x1", "2x2,2x2", "17x1", "2x2;1x2"])
def test_grids_that_are_none_are_refused(tiles):
    with pytest.raises(GranvitError, match="tiles"):
        _ = Settings(fit="squash", tiles=tiles).shapes


def test_a_padded_overview_is_refused():
    with pytest.raises(GranvitError, match="fit must be 'squash'"):
        make_model(fit="letterbox", tiles="2x2")


def test_a_tower_with_registers_is_refused():
    with pytest.raises(GranvitError, match="the stock LLaVA-NeXT takes no DINOv2 with registers tower"):
        joined(make_encoder("dinov2-registers"), Settings("loc:16", "image", "squash", TILES))


def test_a_checkpoint_whose_files_name_other_grids_is_refused(model, tmp_path):
    model.save(tmp_path)
    path = tmp_path / "granvit.json"
    path.write_text(path.read_text().replace(TILES, "2x2"))
    with pytest.raises(CheckpointError, match=r"config.json: image_grid_pinpoints .* says tiles 2x2"):
        RegionModel.load(tmp_path)
    path.write_text(path.read_text().replace('"2x2"', '""'))
    with pytest.raises(CheckpointError, match="model_type is 'llava_next', expected 'llava'"):
        RegionModel.load(tmp_path)


def test_llama_cpp_gets_no_tiles(model, tmp_path):
    pytest.importorskip("gguf")
    model.save(tmp_path / "run")
    with pytest.raises(ExportError, match="settings.tiles"):
        export(tmp_path / "run", tmp_path / "out", "gguf")


def test_without_tiles_nothing_is_written_of_them(tmp_path):
    make_model().save(tmp_path)
    assert "tiles" not in (tmp_path / "granvit.json").read_text()
    assert "settings.tiles" not in decisive(Settings(), "settings.")
    assert decisive(Settings(fit="squash", tiles="2x2"), "settings.")["settings.tiles"] == "2x2"
