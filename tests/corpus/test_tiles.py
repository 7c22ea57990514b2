"""Tiles show every region that fits into one, at the pixels it had, and keep an image on one side of the split."""

import io
from dataclasses import replace

import numpy as np
import pytest
from helpers.drawn import corpus, jpeg, picture, record
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from granvit.corpus.check import verify
from granvit.corpus.derive import Tiled, Tiling, merge, split, tile, tiles_of, train_and_held_out
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.regions import Region, RegionImage, Turn, picture_id
from granvit.sampling import unit_hash

SIZE = (300, 200)


def line(*box: float, text: str = "a line", **options) -> Region:
    return Region(box, text, kind="text", **options)


def page(regions: list[Region], **options) -> RegionImage:
    return record("page", jpeg(picture(1, SIZE)), SIZE, regions=regions, **options)


def named_tiles(one: RegionImage, *args, **options) -> tuple[dict[str, RegionImage], Tiled]:
    made = Tiled()
    return {part.id: part for part in tiles_of(one, Tiling(*args, **options), made)}, made


@settings(deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(8, 400), st.floats(0, 0.9), st.data())
def test_tiles_cover_the_image_and_show_whatever_fits_the_overlap(width, height, side, overlap, data):
    windows = Tiling(side, overlap).windows(width, height)
    assert len(set(windows)) == len(windows)
    assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in windows)
    assert all(x2 - x1 == min(side, width) and y2 - y1 == min(side, height) for x1, y1, x2, y2 in windows)
    # Starts are rounded to whole pixels: between two of them may lie one pixel more.
    fits = max(int(side * overlap) - 1, 1)
    x1 = data.draw(st.integers(0, max(width - fits, 0)))
    y1 = data.draw(st.integers(0, max(height - fits, 0)))
    x2, y2 = min(x1 + fits, width), min(y1 + fits, height)
    assert any(a <= x1 and b <= y1 and x2 <= c and y2 <= d for a, b, c, d in windows)


def test_regions_lie_on_the_pixels_they_lay_on():
    one = page([line(150, 110, 250, 130, polygon=[150, 110, 250, 112, 250, 130, 150, 128])])
    found, made = named_tiles(one, 160, 0.5)
    source = np.asarray(Image.open(io.BytesIO(one.image)))
    assert made == Tiled(tiles=2, empty=4) and list(found) == ["page@140,0,160", "page@140,40,160"]
    for part in found.values():
        left, top, _ = map(int, part.id.split("@")[1].split(","))
        shown = np.asarray(Image.open(io.BytesIO(part.image)))
        assert np.array_equal(shown, source[top : top + 160, left : left + 160])
        assert (part.width, part.height) == (160, 160)
        (region,) = part.regions
        assert region.box == (150 - left, 110 - top, 250 - left, 130 - top)
        outline = [150, 110, 250, 112, 250, 130, 150, 128]
        assert region.polygon == (np.reshape(outline, (4, 2)) - [left, top]).ravel().tolist()
        assert not region.ignore


def test_what_a_tile_cuts_is_there_to_be_ignored():
    half, most = line(80, 10, 120, 20), Region((20, 20, 110, 60), "a dog", polygon=[20, 20, 110, 60, 20, 60])
    found, _ = named_tiles(page([half, most, line(10, 70, 60, 80), line(99.5, 5, 140, 9)]), 100, 0.0)
    text, dog, whole = found["page@0,0,100"].regions
    assert text.box == (80, 10, 100, 20) and text.ignore
    assert dog.box == (20, 20, 100, 60) and not dog.ignore and dog.polygon is None  # eight ninths of it
    assert not whole.ignore


def test_regions_larger_than_a_tile_are_counted_and_unreadable_ones_stay_so():
    wide, illegible = line(5, 50, 295, 60), line(10, 10, 40, 20, ignore=True)
    found, made = named_tiles(page([wide, illegible, line(10, 30, 40, 40)]), 100, 0.0)
    assert made.lost == 1 and made.tiles == 1 and made.empty == 5
    assert [region.ignore for region in found["page@0,0,100"].regions] == [True, True, False]


@pytest.mark.parametrize("regions", [[], [line(10, 10, 20, 20, ignore=True)]])
def test_an_image_without_a_usable_region_stays_whole(regions):
    """There is nothing to cut out of it, and its caption may be all that it is there for."""
    told = page(regions, caption="a photo", conversations=[[Turn("user", "What?"), Turn("assistant", "A photo.")]])
    assert named_tiles(told, 160) == ({"page": told}, Tiled(whole=1))


def test_an_image_of_which_no_tile_shows_a_region_is_counted():
    told = page([line(5, 50, 295, 60)], caption="a", conversations=[[Turn("user", "?"), Turn("assistant", "!")]])
    found, made = named_tiles(told, 160)
    assert (found, made) == ({}, Tiled(empty=6, lost=1, captions=1, conversations=1, images=1))
    assert "1 captions and 1 conversations about cut images; 1 images are gone" in made.left_out()


def test_small_images_and_other_kinds_stay_whole():
    small, photo = page([line(1, 1, 20, 9)], caption="a page"), page([Region((1, 1, 20, 20), "a dog")])
    assert named_tiles(small, 300)[0] == {"page": small}
    assert named_tiles(photo, 100, kind="text") == ({"page": photo}, Tiled(whole=1))
    found, _ = named_tiles(small, 100, kind="text")
    assert list(found) == ["page@0,0,100"] and found["page@0,0,100"].caption is None


def test_a_corpus_of_tiles_is_whole_and_keeps_an_image_on_one_side(tmp_path):
    records = [replace(page([line(10, 10, 40, 20), line(200, 150, 250, 160)]), id=f"{i}") for i in range(60)]
    whole = corpus(tmp_path / "in", records)
    made = tile(whole, tmp_path / "out", Tiling(160), progress=False)
    tiles = Corpus(tmp_path / "out")
    assert verify(tiles.path) == [] and made == Tiled(tiles=180, empty=180) and len(tiles) == 180
    assert tiles.manifest["meta"]["tiles"] == {"side": 160, "overlap": 0.25, "kind": None}
    assert tiles.manifest["meta"]["of"] == str(whole.path)
    for ours, theirs in zip(train_and_held_out(tiles), train_and_held_out(whole), strict=True):
        assert {one.id.split("@")[0] for one in ours} == {one.id for one in theirs}


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("s/0.png@0,160,512", "s/0.png"),
        ("s/0.png@0,160", "s/0.png"),  # as earlier versions called them
        ("a@b@0,0,512@140,0,160@7,8", "a@b"),  # tiles of tiles
        ("me@2x", "me@2x"),
        ("0@1,2,3,4", "0@1,2,3,4"),
        ("0@1,2.png", "0@1,2.png"),
        ("@1,2", "@1,2"),  # no id is empty
    ],
)
def test_the_id_of_the_picture_that_a_tile_shows(name, picture):
    assert picture_id(name) == picture


def tiled(tmp_path, numbers, side: int = 160, split: str = "train"):
    """Pages called by these numbers, and a corpus of their tiles."""
    lines = [line(10, 10, 40, 20), line(200, 150, 250, 160)]
    whole = corpus(tmp_path / "whole", [replace(page(lines), id=f"{i}", split=split) for i in numbers])
    tile(whole, tmp_path / f"tiles{side}", Tiling(side), progress=False)
    return whole, Corpus(tmp_path / f"tiles{side}")


def pictures(records) -> set[str]:
    return {picture_id(one.id) for one in records}


# Hashes of these ids hold none out where a tenth is.
TRAINED_ON = [i for i in range(60) if unit_hash(f"{i}") >= 0.1][:30]


def test_tiles_of_one_picture_are_split_to_one_side(tmp_path):
    """The hash of 30 pictures holds none out, so the tiles name nothing to hold out either, and are split later."""
    whole, tiles = tiled(tmp_path, TRAINED_ON)
    assert tiles.manifest["images_by_split"] == {"train": 90}
    split(tiles, tmp_path / "parts", val=0.3, test=0.2)
    split(whole, tmp_path / "pages", val=0.3, test=0.2)
    for name in ("train", "val", "test"):
        theirs = pictures(Corpus(tmp_path / "pages" / name).records())
        assert pictures(Corpus(tmp_path / "parts" / name).records()) == theirs != set()


def test_tiles_are_held_out_by_picture_where_no_split_is_named(tmp_path):
    whole, tiles = tiled(tmp_path, TRAINED_ON)
    with pytest.raises(CorpusError, match="90 images to train on and 0 held out"):
        train_and_held_out(tiles)
    for ours, theirs in zip(train_and_held_out(tiles, 0.3), train_and_held_out(whole, 0.3), strict=True):
        assert pictures(ours) == pictures(theirs) != set()


def test_tiles_of_tiles_stay_on_their_pictures_side(tmp_path):
    whole, tiles = tiled(tmp_path, range(40))
    tile(tiles, tmp_path / "smaller", Tiling(80), progress=False)
    train, held_out = train_and_held_out(Corpus(tmp_path / "smaller"))
    assert any(one.id.count("@") == 2 for one in held_out)
    assert pictures(train).isdisjoint(pictures(held_out)) and pictures(held_out) == pictures(
        train_and_held_out(whole)[1]
    )


def test_tiles_of_two_sizes_are_different_images(tmp_path):
    whole, small = tiled(tmp_path, [1])
    _, large = tiled(tmp_path / "more", [1], side=200)
    assert merge([small, large], tmp_path / "both", skip_known=True) == len(small) + len(large)
    assert merge([small, small], tmp_path / "once", skip_known=True) == len(small)


@pytest.mark.parametrize("order", [1, -1])
def test_pages_of_held_out_tiles_are_not_trained_on(order, tmp_path):
    """The tiles name what is held out and the pages do not: named splits alone would leave all pages to training."""
    whole, tiles = tiled(tmp_path, range(60), split="")
    assert tiles.manifest["images_by_split"]["val"] and not whole.manifest["images_by_split"].get("val")
    merge([whole, tiles][::order], tmp_path / "both")
    train, held_out = train_and_held_out(Corpus(tmp_path / "both"))
    assert pictures(train).isdisjoint(pictures(held_out)) and pictures(held_out) == pictures(
        train_and_held_out(whole)[1]
    )
    merge([whole, whole], tmp_path / "unnamed", skip_known=True)
    assert Corpus(tmp_path / "unnamed").manifest["images_by_split"] == {"": 60}


def test_images_that_are_named_train_stay_so(tmp_path):
    """The usual pair: all of one are for training, all of the other held out."""
    train = corpus(tmp_path / "train", [replace(page([]), id=f"{i}", split="train") for i in range(60)])
    val = corpus(tmp_path / "val", [replace(page([]), id=f"v{i}", split="val") for i in range(5)])
    merge([train, val], tmp_path / "both")
    assert Corpus(tmp_path / "both").manifest["images_by_split"] == {"train": 60, "val": 5}


def test_images_that_happen_to_be_called_like_tiles_are_images_of_their_own(tmp_path):
    """Of a grid of aerial pictures, say. Earlier versions called tiles so, in corpora that say they are of tiles."""
    grid = [replace(page([]), id=f"area@{i},{j}") for i in range(6) for j in range(6)]
    made = corpus(tmp_path / "grid", grid)
    train, held_out = train_and_held_out(made)
    assert len(train) + len(held_out) == 36
    parts = [corpus(tmp_path / name, [replace(grid[n], split=name)]) for n, name in enumerate(("train", "val"))]
    assert merge(parts, tmp_path / "both") == 2
    with CorpusWriter(tmp_path / "tiles", meta={"before": {"tiles": {"side": 64}}}) as writer:
        for record in grid:
            writer.write(record)
    with pytest.raises(CorpusError, match="both are needed"):  # one picture
        train_and_held_out(Corpus(tmp_path / "tiles"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_picture_held_out_whose_tiles_are_trained_on_is_refused(order, tmp_path):
    whole, tiles = tiled(tmp_path, TRAINED_ON)
    for part in (whole, tiles):
        held_out = corpus(tmp_path / f"held{part is tiles}", [replace(part[0], id=f"{part[0].id}@9,9,9", split="test")])
        with pytest.raises(CorpusError, match="its picture, whole or in other tiles,.*: make the tiles from"):
            merge([part, held_out][::order], tmp_path / "out")
        assert not (tmp_path / "out/manifest.json").exists()


def test_named_splits_are_kept(tmp_path):
    records = [replace(page([line(10, 10, 40, 20)]), id=f"{i}", split=("train", "test", "")[i % 3]) for i in range(9)]
    tile(corpus(tmp_path / "in", records), tmp_path / "out", Tiling(160), progress=False)
    assert [one.split for one in Corpus(tmp_path / "out").records()] == [one.split for one in records]


def test_an_image_that_is_missing_or_damaged_is_named(tmp_path):
    for data in (None, b"no picture"):
        bad = corpus(tmp_path / str(bool(data)), [record("a page", data, SIZE)])
        with pytest.raises(CorpusError, match="a page: "):
            tile(bad, tmp_path / "out", Tiling(160), progress=False)
        assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(("side", "overlap"), [(7, 0.2), (100, 1.0), (100, -0.1)])
def test_a_tiling_that_makes_no_sense_is_refused(side, overlap):
    with pytest.raises(ValueError, match="tile"):
        Tiling(side, overlap)
