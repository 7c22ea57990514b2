import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from granvit.corpus.synthetic import scenes
from granvit.corpus.synthetic.scenes import COLORS, PATTERNS, SHAPES, Layout, Thing, draw, layout, sample_texts
from granvit.corpus.synthetic.synthesize import LazySynthetic, make
from granvit.geometry import area, intersection

SIZE = 160
SCENES = [layout(3, i, SIZE, documents=0.0) for i in range(60)]
DOCUMENTS = [layout(3, i, SIZE, documents=1.0) for i in range(60)]


def pixels(things: list[Thing], seed: int = 0, index: int = 0) -> np.ndarray:
    """A scene with just these things, int (H, W, 3); the background depends on seed and index alone."""
    record = replace(SCENES[0].record, regions=[], width=64, height=64)
    return np.asarray(draw(Layout(record, things=things), seed, index)).astype(int)


def drawn_mask(shape: str, box: tuple[float, float, float, float], pattern: str = "plain") -> np.ndarray:
    """Where a thing changes its background, in any of two colours; bool (H, W)."""
    changed = np.zeros((64, 64), bool)
    for color in ("black", "white"):
        changed |= (pixels([Thing(box, "large", color, pattern, shape)]) != pixels([])).any(-1)
    return changed


# --- the same pictures everywhere ------------------------------------------------------------------------------------


def test_the_same_seed_and_index_give_the_same_bytes_in_another_process_too():
    code = (
        "import hashlib; from granvit.corpus.synthetic.synthesize import make;"
        "print([hashlib.sha256(make(i, 5, 64, 0.5).image).hexdigest() for i in range(4)])"
    )
    here = [hashlib.sha256(make(i, 5, 64, 0.5).image).hexdigest() for i in range(4)]
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout
    assert there.strip() == str(here)
    assert make(3, 5, 64, 0.5) == make(3, 5, 64, 0.5)


def test_seeds_and_indices_differ():
    made = [make(index, seed, 64, 0.5) for seed in (0, 1) for index in range(4)]
    assert len({record.image for record in made}) == 8
    assert len({str(record.regions) for record in made}) == 8
    backgrounds = [pixels([], seed, index) for seed in (0, 1) for index in (0, 1)]
    assert all((one != other).any() for one, other in itertools.combinations(backgrounds, 2))


def test_a_picture_does_not_depend_on_those_before_it():
    alone = make(7, 0, 64, 0.5)
    assert [make(i, 0, 64, 0.5) for i in range(8)][7] == alone


def test_lazy_records_are_those_of_the_drawn_corpus():
    lazy = LazySynthetic(3, seed=4, size=64, documents=0.5)
    assert len(lazy) == 3
    for index in range(3):
        assert lazy[index] == replace(make(index, 4, 64, 0.5), image=None)


# --- scenes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [(10, 20, 41, 45), (0, 0, 12, 15), (35, 44, 64, 64)])
def test_boxes_are_tight_around_what_is_drawn(shape, box):
    y, x = np.nonzero(drawn_mask(shape, box))
    assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == box


def test_shapes_are_what_they_are_called():
    masks = {shape: drawn_mask(shape, (4, 4, 60, 60))[4:60, 4:60] for shape in SHAPES}
    share = {
        "circle": np.pi / 4,
        "square": 1,
        "triangle": 1 / 2,
        "diamond": 1 / 2,
        "cross": 1 - 4 * 0.33**2,
        "ring": np.pi / 4 * (1 - 0.46**2),
        "hexagon": 3 / 4,
        "arrow": 0.55 * 0.4 + 0.45 / 2,
    }
    for shape, expected in share.items():
        assert masks[shape].mean() == pytest.approx(expected, abs=0.05), shape
    for one, other in itertools.combinations(SHAPES, 2):
        assert (masks[one] != masks[other]).mean() > 0.08, (one, other)
    assert not masks["ring"][28, 28] and masks["star"][2, 28] and not masks["heart"][1, 28]


@pytest.mark.parametrize("color", COLORS)
def test_colours_are_what_they_are_called(color):
    for seed in range(3):
        inner = pixels([Thing((8, 8, 56, 56), "large", color, "plain", "square")], seed)[12:52, 12:52]
        assert (inner == inner[0, 0]).all()
        distances = {name: np.abs(inner[0, 0] - rgb).max() for name, rgb in COLORS.items()}
        assert distances[color] <= 12 and min(distances, key=distances.__getitem__) == color


def test_patterns_are_what_they_are_called():
    """Two tones, far apart in lightness, in arrangements that differ."""
    for color in COLORS:
        for pattern in PATTERNS:
            inner = pixels([Thing((8, 8, 56, 56), "large", color, pattern, "square")])[8:56, 8:56]
            tones, counts = np.unique(inner.reshape(-1, 3), axis=0, return_counts=True)
            if pattern == "plain":
                assert len(tones) == 1
                continue
            assert len(tones) == 2 and abs(tones[0].mean() - tones[1].mean()) > 40, (color, pattern)
            # Dots are scarce, stripes and checks even.
            low, high = (0.15, 0.35) if pattern == "dotted" else (0.35, 0.5)
            assert low < counts.min() / counts.sum() <= high + 0.05, (color, pattern)


def test_captions_say_what_is_drawn_where():
    for scene in SCENES:
        assert 1 <= len(scene.things) <= 6
        assert [(r.text, r.box, r.kind) for r in scene.record.regions] == [
            (t.caption, t.box, "object") for t in scene.things
        ]
        for thing in scene.things:
            assert thing.caption.split() == [thing.size, thing.color, thing.pattern, thing.shape]
            longer = max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) / SIZE
            assert thing.size == ("small" if longer < 0.27 else "medium" if longer < 0.36 else "large")
        assert scene.record.caption.startswith(f"{len(scene.things)} objects: ")
        for thing in scene.things:
            x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
            row, column = ("top", "middle", "bottom")[int(3 * y / SIZE)], ("left", "center", "right")[int(3 * x / SIZE)]
            place = "center" if (row, column) == ("middle", "center") else f"{row} {column}"
            assert f"{thing.color} {thing.shape} {place}" in scene.record.caption.split(": ")[1].split(", ")
    said = [t for scene in SCENES for t in scene.things]
    assert {t.size for t in said} == {"small", "medium", "large"}
    assert {t.color for t in said} == set(COLORS) and {t.shape for t in said} == set(SHAPES)


def test_every_thing_is_seen_in_its_picture():
    """In the middle of a plain thing that nothing covers, the picture has the colour of its caption."""
    checked = 0
    for index, scene in enumerate(SCENES):
        picture = np.asarray(draw(scene, 3, index)).astype(int)
        for i, thing in enumerate(scene.things):
            later = [t.box for t in scene.things[i + 1 :]]
            covered = later and intersection(thing.box, later).any()
            if thing.pattern == "plain" and thing.shape != "ring" and not covered:
                x, y = int(thing.box[0] + thing.box[2]) // 2, int(thing.box[1] + thing.box[3]) // 2
                assert np.abs(picture[y, x] - COLORS[thing.color]).max() <= 12, thing
                checked += 1
    assert checked > 20


def test_no_scene_holds_two_of_a_caption(monkeypatch):
    for name in ("SHAPES", "PATTERNS"):
        monkeypatch.setattr(scenes, name, getattr(scenes, name)[:1])
    monkeypatch.setattr(scenes, "COLORS", {"red": (214, 39, 40)})
    for index in range(20):  # there are but three captions: one a size
        things = layout(0, index, SIZE, documents=0.0).things
        assert 1 <= len({t.caption for t in things}) == len(things) <= 3


def test_nothing_hides_more_than_a_fifth_of_another():
    for scene in SCENES:
        boxes = np.array([t.box for t in scene.things])
        shared = intersection(boxes, boxes)
        smaller = np.minimum.outer(area(boxes), area(boxes))
        np.fill_diagonal(shared, 0)
        assert (shared <= 0.2 * smaller).all()


# --- documents -------------------------------------------------------------------------------------------------------


def test_the_ink_of_a_line_lies_in_its_box_and_reaches_its_edges():
    for index, document in enumerate(DOCUMENTS[:30]):
        assert document.lines, document.record.id
        gray = np.asarray(draw(document, 3, index).convert("L")).astype(float)
        ink = gray < np.median(gray) * 0.75
        if document.record.source == "synthetic-table":  # rules are drawn right below the boxes
            ink = gray < np.median(gray) * 0.55
        inside = np.zeros_like(ink)
        for region in document.record.regions:
            x1, y1, x2, y2 = (int(v) for v in region.box)
            inside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = True  # a pixel for blur
            y, x = np.nonzero(ink[y1:y2, x1:x2])
            assert len(x), region.text
            # Thin strokes are grey, so that the outermost pixels may be lighter than the threshold.
            gaps = np.array([x.min(), y.min(), x2 - x1 - 1 - x.max(), y2 - y1 - 1 - y.max()])
            assert (gaps <= 3).all(), (document.record.id, region.text, gaps)
        assert (ink & ~inside).sum() <= 0.002 * ink.sum(), document.record.id


def test_documents_are_lines_of_text_without_a_caption():
    for document in DOCUMENTS:
        assert document.record.caption is None
        assert [(r.kind, r.text) for r in document.record.regions] == [("text", line.text) for line in document.lines]
    assert {d.record.source for d in DOCUMENTS} == {"synthetic-receipt", "synthetic-table", "synthetic-page"}


@pytest.mark.parametrize("size", [64, 160, 224])
def test_all_boxes_lie_in_the_picture(size):
    for index in range(100):
        record = layout(1, index, size, documents=0.5).record
        boxes = np.array([r.box for r in record.regions])
        assert len(boxes), record.id
        assert (boxes >= 0).all() and (boxes <= size).all() and (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
def test_the_share_of_documents_is_as_asked(share):
    kinds = [bool(layout(2, i, 64, share).lines) for i in range(300)]
    assert np.mean(kinds) == pytest.approx(share, abs=0.05 if 0 < share < 1 else 0)


def test_sample_texts_are_what_the_corpus_writes():
    texts = sample_texts(20)
    for index in range(20):
        record = layout(0, index, 256).record
        assert {r.text for r in record.regions} <= set(texts) and (record.caption or texts[0]) in texts
