import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_model import make_model, packed_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from granvit.corpus.synthetic.synthesize import LazySynthetic, make
from granvit.geometry import View
from granvit.model.attention import bucket
from granvit.nano.symbolic import SymbolicPrepare, WordMapPrepare
from granvit.questions import box_exchange, caption_exchange, global_exchange
from granvit.regions import Region, RegionImage, Turn
from granvit.train.config import CroppedSample, SampleConfig
from granvit.train.feed import Reject
from granvit.train.prepare import Prepare, subphrase
from granvit.train.stages.contrast import RegionPrepare

MODEL = make_model()
WIDTH, HEIGHT = 200, 100
EVERYTHING = {"global": 1.0, "bbox2caption": 1.0, "caption2bbox": 1.0}


def photo(width=WIDTH, height=HEIGHT, seed=0):
    """Smooth colours, so that resampling changes little and another place much."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def record(regions, caption="two green rings", width=WIDTH, height=HEIGHT):
    file = io.BytesIO()
    photo(width, height).save(file, "PNG")
    return RegionImage("r", file.getvalue(), width, height, regions, caption=caption)


REGIONS = [
    Region((20, 10, 60, 50), "small red star"),
    Region((100, 20, 200, 100), "large blue plain circle"),
    Region((10, 70, 90, 90), "TOTAL 12.50", "text"),
]


def prepare(config=None, model=MODEL, kind=Prepare, **fields):
    return kind(model, config or CroppedSample(**fields))


def ask(made, rec, seed=0):
    return made(rec, np.random.default_rng(seed))


def relative(box):
    return np.array(box) / [WIDTH, HEIGHT, WIDTH, HEIGHT]


def caption_of(region):
    return MODEL.dialog.branch(caption_exchange(relative(region.box), region.text, MODEL.codec))


def box_of(region, text=None):
    return MODEL.dialog.branch(box_exchange(relative(region.box), text or region.text, MODEL.codec))


GLOBAL = MODEL.dialog.branch(global_exchange("two green rings"))


def at(made, view):
    """The same `Prepare`, always with this view."""
    made._choose_view = lambda record, rng: view
    return made


# --- which questions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ({"global": 1.0, "bbox2caption": 1.0}, [*map(caption_of, REGIONS), GLOBAL]),
        ({"global": 1.0, "caption2bbox": 1.0}, [*map(box_of, REGIONS), GLOBAL]),
        ({"bbox2caption": 1.0, "global": 0.0}, [*map(caption_of, REGIONS)]),
        (EVERYTHING, [b for r in REGIONS for b in (caption_of(r), box_of(r))] + [GLOBAL]),
    ],
)
def test_asked_is_what_the_config_says(questions, expected):
    for seed in range(3):
        assert ask(prepare(questions=questions), record(REGIONS), seed).branches == expected


def test_chances_between():
    made = prepare(questions={"global": 0.3, "bbox2caption": 0.5}, kind=SymbolicPrepare)
    rec, counts = record(REGIONS), {"global": 0, "bbox2caption": 0}
    rng = np.random.default_rng(0)
    for _ in range(300):
        try:
            for branch in made(rec, rng).branches:
                counts[branch.task] += 1
        except Reject:
            pass
    assert 0.2 < counts["global"] / 300 < 0.4 and 0.43 < counts["bbox2caption"] / 900 < 0.57


def test_a_picture_without_caption_is_not_asked_for_one():
    assert ask(prepare(), record(REGIONS, caption=None)).branches == [*map(caption_of, REGIONS)]
    assert ask(prepare(), record([])).branches == [GLOBAL]


def test_a_phrase_that_fits_two_regions_is_not_located():
    twice = [Region((0, 0, 50, 50), "Tea"), Region((60, 0, 99, 50), "tea"), REGIONS[1]]
    assert ask(prepare(questions={"caption2bbox": 1.0}), record(twice)).branches == [box_of(REGIONS[1])]
    hidden = [Region((0, 0, 50, 50), "tea", ignore=True), *twice[1:]]
    assert ask(prepare(questions={"caption2bbox": 1.0}), record(hidden)).branches == [box_of(REGIONS[1])]


def test_ignored_regions_are_never_asked_nor_cropped():
    regions = [Region((5, 5, 90, 90), "a striped heart", ignore=True), REGIONS[0]]
    sample = ask(prepare(questions=EVERYTHING, subphrases=1.0, crops=4), record(regions))
    star = [b for b in sample.branches if b.task == "caption2bbox"]
    assert sample.branches[:2] == [caption_of(REGIONS[0]), box_of(REGIONS[0])]
    assert len(star) == 2 and star[1].ids[star[1].answer_start :] == star[0].ids[star[0].answer_start :]
    assert len(sample.crops) == 1


def test_nothing_to_ask_is_rejected():
    with pytest.raises(Reject, match="nothing to ask"):
        ask(prepare(), record([Region((5, 5, 9, 9), "tea", ignore=True)], caption=None))
    with pytest.raises(Reject, match="nothing to ask"):
        ask(prepare(questions={"caption2bbox": 1.0}), record([]))
    with pytest.raises(Reject, match="no image bytes"):
        ask(prepare(), RegionImage("r", None, WIDTH, HEIGHT, REGIONS))


def test_at_most_so_many_regions_drawn_anew():
    regions = [Region((i, i, i + 20, i + 20), f"tea {i}") for i in range(12)]
    made, rec = prepare(questions={"bbox2caption": 1.0}, max_regions=4, crops=2), record(regions)
    samples = [ask(made, rec, seed) for seed in range(6)]
    assert all(len(s.branches) == 4 for s in samples)
    assert len({str(s.branches) for s in samples}) > 3
    for sample in samples:  # the teacher sees regions that are asked about
        asked = [r for r in regions for b in sample.branches if b == caption_of(r)]
        np.testing.assert_allclose(sample.crop_boxes, MODEL.view((WIDTH, HEIGHT)).to_canvas([r.box for r in asked[:2]]))


def test_the_regions_that_the_teacher_sees_are_drawn_from_all_that_are_asked_about():
    regions = [Region((i, i, i + 20, i + 20), f"tea {i}") for i in range(12)]
    made, view = prepare(questions={"bbox2caption": 1.0}, crops=2, draw_crops=True), MODEL.view((WIDTH, HEIGHT))
    every = view.to_canvas([r.box for r in regions]).astype(np.float32).tolist()
    samples = [ask(made, record(regions), seed) for seed in range(40)]
    assert all(sample.branches == samples[0].branches for sample in samples), "all are asked about"
    drawn = [[every.index(box) for box in sample.crop_boxes.tolist()] for sample in samples]
    assert all(len(set(numbers)) == 2 and numbers == sorted(numbers) for numbers in drawn)
    assert {n for numbers in drawn for n in numbers} == set(range(12))
    assert len(ask(made, record(regions[:1])).crops) == 1
    # The texts of a contrast stay beside their boxes.
    region_samples = [
        ask(prepare(questions={"bbox2caption": 1.0}, kind=RegionPrepare, crops=2, draw_crops=True), record(regions), n)
        for n in (0, 1)
    ]
    for sample in region_samples:
        np.testing.assert_allclose(sample.extra.boxes, every, rtol=1e-6)


def test_long_answers_are_cut():
    sample = ask(prepare(questions={"global": 1.0}, max_answer=3), record([], caption="a star and a ring and a cup"))
    answer = sample.branches[0].ids[sample.branches[0].answer_start :]
    assert len(answer) == 3 and MODEL.dialog.end_token not in answer


@pytest.mark.parametrize("frame", ["image", "canvas"])
def test_coordinates_refer_to_the_frame_of_the_checkpoint(frame):
    model = make_model(frame=frame)
    # The canvas stands for 200 x 200 pixels, with 50 of padding above the picture.
    box = {"image": (0.1, 0.1, 0.3, 0.5), "canvas": (0.1, 0.3, 0.3, 0.5)}[frame]
    sample = ask(prepare(model=model, questions={"caption2bbox": 1.0}), record(REGIONS[:1]))
    assert sample.branches == [model.dialog.branch(box_exchange(box, "small red star", model.codec))]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_keeps_whole_text_and_half_an_object():
    window = (0, 0, 100, 100)
    regions = [
        Region((60, 0, 139, 20), "small red star"),  # just over half is seen
        Region((60, 20, 141, 40), "large blue plain circle"),  # just under
        Region((20, 60, 101, 70), "TOTAL 12.50", "text"),  # all but one column
        Region((20, 80, 110, 90), "tea", "text"),
        Region((150, 0, 190, 40), "a striped heart"),
    ]
    made = at(prepare(questions={"global": 1.0, "bbox2caption": 1.0}), View.window(window, 64))
    seen = [(0.6, 0, 1, 0.2), (0.2, 0.6, 1, 0.7)]
    asked = ask(made, record(regions)).branches
    assert asked == [
        MODEL.dialog.branch(caption_exchange(box, text, MODEL.codec))
        for box, text in zip(seen, ("small red star", "TOTAL 12.50"), strict=True)
    ]  # and no caption of the whole


def test_windows_are_of_the_stated_side_and_show_a_region():
    rec = record([Region((350, 260, 390, 280), "TOTAL 12.50", "text")], width=400, height=300)
    made = prepare(questions={"bbox2caption": 1.0}, windows=1.0, window_side=(1.5, 2.0))
    sides = set()
    for seed in range(20):
        view = made._choose_view(rec, np.random.default_rng(seed))
        x1, y1, x2, y2 = view.source
        assert x2 - x1 == y2 - y1 and 96 <= x2 - x1 <= 128
        assert view.visible(rec.regions[0].box)[0] > 0.5
        sides.add(x2 - x1)
    assert len(sides) > 5
    assert prepare()._choose_view(rec, np.random.default_rng(0)) == View.letterbox((400, 300), 64)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_the_canvas_is_the_view_of_the_picture(fit):
    sample = ask(prepare(model=make_model(fit=fit)), record(REGIONS))
    np.testing.assert_array_equal(sample.pixels, np.asarray(View.fit(fit, (WIDTH, HEIGHT), 64).apply(photo())))


@pytest.mark.parametrize("view", ["letterbox", "squash", "window"])
@pytest.mark.parametrize("size", [0, 32])
def test_crops_show_what_their_boxes_cover(view, size):
    views = {"window": View.window((50, 0, 150, 100), 64)}
    regions = [Region((60.4, 20.2, 119.5, 79.6), "small red star"), Region((80, 10, 140, 90), "tea")]
    made = at(prepare(crops=4, crop_size=size), views.get(view) or View.fit(view, (WIDTH, HEIGHT), 64))
    sample = ask(made, record(regions))
    side = size or 64
    assert sample.crops.shape == (2, side, side, 3) and sample.crops.dtype == np.uint8
    assert sample.crop_boxes.dtype == np.float32
    expected = photo().crop((60, 20, 120, 80)).resize((side, side), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(sample.crops[0], np.asarray(expected))
    canvas = Image.fromarray(sample.pixels)
    for crop, box in zip(sample.crops, sample.crop_boxes, strict=True):
        again = canvas.resize((side, side), Image.Resampling.BICUBIC, box=tuple(map(float, box)))
        moved = canvas.resize((side, side), Image.Resampling.BICUBIC, box=tuple(map(float, box - 6)))
        error, other = (np.abs(np.asarray(c, float) - crop).mean() for c in (again, moved))
        assert error < 5 < 2 * error + 10 < other


def test_crops_of_cut_regions_stay_in_the_picture():
    sample = ask(prepare(crops=1), record([Region((150, 50, 200.0, 100.0), "tea")]))
    np.testing.assert_allclose(sample.crop_boxes, [[48, 32, 64, 48]])
    made = at(prepare(crops=1), View.window((0, 0, 100, 100), 64))
    sample = ask(made, record([Region((60, 20, 130, 90), "tea")]))
    np.testing.assert_allclose(sample.crop_boxes, np.array([[60, 20, 100, 90]]) * 0.64)


@pytest.mark.parametrize("fields", [{}, {"crops": 2, "questions": {"global": 1.0}}])
def test_no_crops(fields):
    sample = ask(prepare(**fields), record(REGIONS if not fields else []))
    assert sample.crops.shape == (0, 64, 64, 3) and sample.crop_boxes.shape == (0, 4)


# --- the same again --------------------------------------------------------------------------------------------------


def test_crops_that_do_not_hold_whole_patches_are_refused():
    with pytest.raises(ValueError, match="crop_size 40 is not a multiple of the patch, 16 px"):
        Prepare(make_model(), CroppedSample(crops=1, crop_size=40))


def test_a_sample_depends_on_record_and_rng_alone():
    config = CroppedSample({"global": 0.5, "bbox2caption": 0.7}, max_regions=2, subphrases=0.5, crops=2, windows=0.5)
    made, rec = prepare(config), record(REGIONS)
    again = pickle.loads(pickle.dumps(prepare(config)))  # as worker processes get it
    different = 0
    for seed in range(8):
        first, second = ask(made, rec, seed), ask(again, rec, seed)
        assert first.branches == second.branches
        for name in ("pixels", "crops", "crop_boxes"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        different += first.branches != ask(made, rec, seed + 100).branches
    assert different > 3


def test_collate_gives_each_image_a_row():
    made = prepare(crops=1)
    batch = made.collate([ask(made, record(REGIONS)), ask(made, record(REGIONS[:1]))])
    assert batch.counts["images"] == 2 and batch.input_ids.shape[0] == 2
    assert batch.pixels.shape == (2, 64, 64, 3) and batch.crop_image.tolist() == [0, 1]
    assert batch.input_ids[1, -1] == MODEL.dialog.pad_token


# --- rows of a fixed budget ------------------------------------------------------------------------------------------


def samples_of_the_embedded_corpus(made, count):
    rng = np.random.default_rng(0)
    return [made(make(i, seed=0, size=160, documents=0.15), rng) for i in range(count)]


@pytest.mark.parametrize("images", [32, 64])
def test_rows_of_a_fixed_budget_hold_little_padding(images):
    corpus, rng = LazySynthetic(images, seed=0, size=160, documents=0.15), np.random.default_rng(0)
    made = prepare(questions=EVERYTHING, max_tokens=4096, kind=SymbolicPrepare)
    samples = [made(corpus[i], rng) for i in range(images)]
    assert len({sum(len(b.ids) for b in s.branches) for s in samples}) > images / 2  # of all lengths
    shared = made.collate(samples)
    alone = prepare(questions=EVERYTHING, kind=SymbolicPrepare).collate(samples)
    assert 1 < len(shared.input_ids) < images / 4 and shared.input_ids.shape[1] <= 4096
    on_a_gpu = shared.lengthened(bucket(shared.input_ids.shape[1]))
    assert shared.padding <= on_a_gpu.padding < 0.05 < 0.3 < alone.padding


def test_rows_of_a_fixed_budget_give_the_loss_of_one_image_per_row():
    made = prepare(questions=EVERYTHING, max_tokens=600)
    samples = samples_of_the_embedded_corpus(prepare(questions=EVERYTHING, max_regions=3), 6)
    shared, alone = made.collate(samples), prepare().collate(samples)
    assert len(shared.input_ids) < 6 == len(alone.input_ids)
    with torch.no_grad():
        assert packed_loss(MODEL, shared).item() == pytest.approx(packed_loss(MODEL, alone).item(), abs=1e-5)


def test_of_an_image_with_more_tokens_than_a_row_a_drawn_part_is_asked_and_the_rest_counted():
    whole = ask(prepare(), record(REGIONS))
    lengths = [len(b.ids) for b in whole.branches]
    prefix = len(MODEL.dialog.prefix_ids)
    fitting = ask(prepare(max_tokens=prefix + sum(lengths)), record(REGIONS))
    assert (fitting.branches, fitting.left_out) == (whole.branches, 0)
    kept = set()
    for seed in range(20):
        room = sum(lengths) - 1
        short = prepare(max_tokens=prefix + room)(record(REGIONS), np.random.default_rng(seed))
        assert short.left_out == len(lengths) - len(short.branches) > 0
        assert sum(len(b.ids) for b in short.branches) <= room
        order = [whole.branches.index(branch) for branch in short.branches]
        assert order == sorted(order)
        kept.add(tuple(order))
    assert len(kept) > 1, "not always the same ones are left out"
    most = prefix + min(lengths) - 1
    with pytest.raises(Reject, match=f"more than {most} tokens .sample.max_tokens"):
        ask(prepare(max_tokens=most), record(REGIONS))


def test_rows_that_hold_no_image_are_refused():
    with pytest.raises(ValueError, match="sample.max_tokens 12: an image alone has"):
        prepare(max_tokens=12)


def test_a_window_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="sample.window_side: the smallest, 2.0, is larger than the largest, 0.5"):
        prepare(windows=1.0, window_side=(2.0, 0.5))


def test_digests_tell_canvases_apart():
    made = Prepare(MODEL, SampleConfig(), digests=True)
    first, again = (ask(made, record(REGIONS), seed).digests for seed in (0, 1))
    other = ask(made, record(REGIONS, width=WIDTH + 20)).digests
    assert first == again != other
    assert ask(prepare(), record(REGIONS)).digests == ()
    batch = made.collate([ask(made, record(REGIONS)), ask(made, record(REGIONS[:1], width=WIDTH + 20))])
    assert batch.digests == [*first, *other] and prepare().collate([ask(prepare(), record(REGIONS))]).digests == []


def test_mirrored_images_have_mirrored_boxes_and_text_stays():
    objects = REGIONS[:2]
    mirrored, plain = prepare(mirror=1.0), prepare()
    flipped = [replace(r, box=(WIDTH - r.box[2], r.box[1], WIDTH - r.box[0], r.box[3])) for r in objects]
    found, expected = ask(mirrored, record(objects)), ask(plain, record(flipped))
    assert found.branches == expected.branches != ask(plain, record(objects)).branches
    letterbox = View.fit(MODEL.settings.fit, (WIDTH, HEIGHT), MODEL.canvas)
    seen = np.asarray(letterbox.apply(ImageOps.mirror(photo()), MODEL.fill))
    assert np.array_equal(found.pixels, seen) and not np.array_equal(found.pixels, expected.pixels)
    assert np.array_equal(ask(mirrored, record(REGIONS)).pixels, ask(plain, record(REGIONS)).pixels)
    sided = [*objects, replace(objects[0], text="the LEFT star")]
    for reported in (record(sided), replace(record(objects), caption="a star, right of a circle")):
        assert np.array_equal(ask(mirrored, reported).pixels, ask(plain, reported).pixels)
    # A box in an answer, or a number on a shirt, would be wrong there.
    for answer, stays in (("[0.000, 0.250, 0.213, 0.500]", True), ("a player", False)):
        talk = replace(record(objects), conversations=[[Turn("user", "Who?"), Turn("assistant", answer)]])
        assert np.array_equal(ask(mirrored, talk).pixels, ask(plain, talk).pixels) == stays
    some = [ask(prepare(mirror=0.5), record(objects), seed).branches == found.branches for seed in range(30)]
    assert 5 < sum(some) < 25


def test_word_maps_paint_over_what_is_ignored():
    hidden = Region((100, 20, 140, 60), "?", "text", ignore=True)
    plain, covered = (ask(prepare(kind=kind), record([REGIONS[0], hidden])) for kind in (Prepare, WordMapPrepare))
    view = View.fit(MODEL.settings.fit, (WIDTH, HEIGHT), MODEL.canvas)
    x1, y1, x2, y2 = view.to_canvas(hidden.box)[0].round().astype(int)
    inside = np.zeros(plain.pixels.shape[:2], bool)
    inside[y1:y2, x1:x2] = True
    # Resampling mixes the edges.
    assert np.abs(covered.pixels[y1 + 3 : y2 - 3, x1 + 3 : x2 - 3].astype(int) - MODEL.fill).max() <= 2
    near = np.zeros_like(inside)
    near[y1 - 3 : y2 + 3, x1 - 3 : x2 + 3] = True
    assert np.array_equal(covered.pixels[~near], plain.pixels[~near])
    assert not np.array_equal(covered.pixels[inside], plain.pixels[inside])


def test_windows_of_one_kind_leave_other_images_whole():
    text = [Region((150, 60, 158, 66), "TOTAL", "text")]
    some = prepare(windows=1.0, window_side=(0.5, 0.5), window_kind="text")
    assert ask(some, record(REGIONS[:2])).view.source == (0, 0, WIDTH, HEIGHT)
    for seed in range(5):
        x1, y1, x2, y2 = ask(some, record([*REGIONS[:2], *text]), seed).view.source
        assert x2 - x1 == y2 - y1 == MODEL.canvas // 2 and x1 < 154 < x2 and y1 < 63 < y2


def test_word_maps_show_the_letters_of_a_line_that_a_window_cuts():
    """Thirty letters of six pixels each: a window shows some of them, at the places where they are."""
    line = Region((10, 40, 190, 52), "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123", "text")
    around = Region((95, 56, 99, 60), "7", "text")
    sample = ask(prepare(windows=1.0, window_side=(0.75, 0.75), kind=WordMapPrepare), record([line, around]), 4)
    x1, y1, x2, y2 = sample.view.source
    assert x2 - x1 == 48 and y1 < 40 and y2 > 60 and len(sample.branches) == 1
    vocabulary = MODEL.dialog.tokenizer.get_vocab()
    for place, letter in enumerate(line.text):
        left, right = 10 + 6 * place, 16 + 6 * place
        patches = sample.extra.patches[sample.extra.words == vocabulary[letter]]
        if left < x2 - 1 and right > x1 + 1:
            centre = (np.clip((left + right) / 2, x1, x2 - 1) - x1) / 48 * sample.pixels.shape[1] // MODEL.patch
            assert int(centre) in (patches % MODEL.grid).tolist(), letter
        elif left >= x2 or right <= x1:
            assert not len(patches), letter


@pytest.mark.parametrize("mark", ["<image>", "<|end|>", "<loc0003>"])
def test_control_tokens_in_an_annotation_are_text(mark):
    """In the caption, in a region's text, and in the words that the symbolic image shows."""
    control = {MODEL.dialog.tokenizer.convert_tokens_to_ids(mark)}
    regions = [Region((20, 10, 60, 50), f"a {mark} mug"), Region((100, 20, 200, 100), mark)]
    sample = ask(
        prepare(kind=SymbolicPrepare, questions={**EVERYTHING, "caption2bbox": 0.0}), record(regions, f"a{mark}b")
    )
    assert len(sample.branches) == 3 and not control & set(sample.extra.words.tolist())
    for branch in sample.branches:
        said = branch.ids[branch.answer_start : -1]
        assert not control & set(said) and mark in MODEL.dialog.tokenizer.decode(said)
    batch = prepare(questions=EVERYTHING).collate([ask(prepare(questions=EVERYTHING), record(regions, f"a{mark}b"))])
    assert int((batch.input_ids == MODEL.dialog.image_token).sum()) == MODEL.image_tokens


# --- parts of phrases ------------------------------------------------------------------------------------------------

phrases = st.lists(st.sampled_from(["red", "Red", "blue", "star", "ring", "small"]), min_size=1, max_size=5).map(
    " ".join
)


@settings(deadline=None)
@given(st.lists(phrases, min_size=1, max_size=5), st.integers(0, 1000))
def test_a_subphrase_fits_its_region_alone(texts, seed):
    regions = [Region((0, 0, 9, 9), text) for text in texts]
    part = subphrase(regions[0], regions, np.random.default_rng(seed))
    if part is not None:
        words, own = part.split(), iter(texts[0].split())
        assert 0 < len(words) < len(texts[0].split())
        assert all(word in own for word in words)  # in order
        for other in texts[1:]:
            assert not set(part.casefold().split()) <= set(other.casefold().split())


def test_subphrases_are_found_where_there_are_any():
    regions = [Region((0, 0, 9, 9), t) for t in ("small red star", "small blue star", "tea")]
    parts = {subphrase(regions[0], regions, np.random.default_rng(seed)) for seed in range(40)}
    assert {"red", "small red", "red star"} <= parts <= {"red", "small red", "red star", None}
    assert subphrase(regions[2], regions, np.random.default_rng(0)) is None
    asked = ask(prepare(questions={}, subphrases=1.0), record([REGIONS[0], REGIONS[1]])).branches
    assert len(asked) == 2 and {b.task for b in asked} == {"caption2bbox"}
    assert asked[0].ids[-5:] == box_of(REGIONS[0]).ids[-5:]


def test_a_word_map_lies_beside_the_pixels():
    regions = [Region((5, 5, 30, 30), "a red star"), Region((30, 40, 60, 50), "TOTAL", "text")]
    both, symbolic = (ask(prepare(kind=kind), record(regions)) for kind in (WordMapPrepare, SymbolicPrepare))
    assert both.pixels is not None and ask(prepare(), record(regions)).extra is None
    assert both.branches == ask(prepare(), record(regions)).branches
    for field in ("patches", "words", "weights"):
        assert np.array_equal(getattr(both.extra, field), getattr(symbolic.extra, field))


def words_of(region: Region) -> list[int]:
    """The tokens of an object's words; of print those of its letters, without the space that encoding puts before."""
    tokenizer = MODEL.dialog.tokenizer
    if region.kind == "object":
        return tokenizer.encode(region.text, add_special_tokens=False)
    return [tokenizer.convert_tokens_to_ids(letter.replace(" ", "Ġ")) for letter in region.text]


def test_the_symbolic_image_shows_usable_regions_and_describes_the_same():
    regions = [*REGIONS, Region((0, 0, 200, 100), "a striped heart", ignore=True)]
    symbolic = ask(prepare(kind=SymbolicPrepare, crops=2), record(regions))
    assert symbolic.pixels is None and symbolic.crops is None
    assert symbolic.branches == ask(prepare(), record(regions)).branches
    shown = {t for r in REGIONS for t in words_of(r)}
    assert set(symbolic.extra.words.tolist()) == shown
    assert 0 <= symbolic.extra.patches.min() and symbolic.extra.patches.max() < 16
