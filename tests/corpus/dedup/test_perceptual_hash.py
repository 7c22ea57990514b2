"""Fingerprints: mirroring flips known bits, windows are what is cut out, every orientation gives one thumbnail."""

import io

import numpy as np
import pytest
from helpers.drawn import cropped, halved, jpeg, mirrored, picture
from PIL import Image

from granvit.corpus.dedup import perceptual_hash as fp
from granvit.corpus.dedup.copy_search import agreement
from granvit.corpus.dedup.hamming_index import distance
from granvit.corpus.dedup.perceptual_hash import CROPS, SIDE, featureless, hashes, thumbnail
from granvit.images import ImageError

WHOLE = np.array([[0, 1]], np.float32)


def thumbs(*images: Image.Image) -> np.ndarray:
    return np.stack([thumbnail(jpeg(image)) for image in images])


def test_the_hash_of_the_mirrored_thumbnail_is_known_without_looking():
    found = thumbs(*map(picture, range(8)))
    flipped = np.ascontiguousarray(found[:, :, ::-1])
    assert (hashes(flipped) == fp.mirrored(hashes(found))).all()
    assert (hashes(flipped) != hashes(found)).all()


def test_the_hash_of_a_window_is_that_of_the_cut():
    image = picture(3, (640, 640))
    spans = ((0.0, 1.0), (0.1, 1.0))
    windows = hashes(thumbs(image), spans)[0]
    # Window 1: all rows, columns from a tenth on; window 2: the other way round.
    cuts = hashes(thumbs(image, image.crop((64, 0, 640, 640)), image.crop((0, 64, 640, 640))))[:, 0]
    apart = distance(windows[[0, 1, 2]], cuts)
    assert (apart <= 5).all(), apart
    assert distance(windows[1:2], cuts[2:3])[0] > 8


def test_copies_hash_alike_and_others_do_not():
    image = picture(1)
    copies = hashes(thumbs(image, halved(image), mirrored(mirrored(image))))[:, 0]
    assert distance(copies[1:], copies[:1]).max() <= 4
    others = hashes(thumbs(*map(picture, range(2, 30))))[:, 0]
    assert distance(others, copies[:1]).min() > 12


@pytest.mark.parametrize("size", [(1024, 768), (517, 389), (100, 900), (40, 50)])
def test_a_jpeg_decoded_small_gives_the_thumbnail_of_the_whole(size):
    image = picture(5, size)
    exact = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert np.abs(thumbnail(jpeg(image, 95)).astype(int) - exact).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_thumbnail_of_the_upright_picture(form, orientation):
    upright = picture(7, (320, 200))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # stored so that the orientation undoes it
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, form, exif=exif)
    assert np.abs(thumbnail(buffer.getvalue()).astype(int) - thumbnail(jpeg(upright, 95))).mean() < 4


def test_what_is_no_picture_names_its_reason():
    whole = jpeg(picture(1))
    for data, reason in ((b"", "not-an-image"), (b"<html>", "not-an-image"), (whole[: len(whole) // 2], "truncated")):
        with pytest.raises(ImageError) as error:
            thumbnail(data)
        assert error.value.reason == reason


def test_transparency_is_white_and_blank_pages_are_featureless():
    buffer = io.BytesIO()
    Image.new("RGBA", (90, 90), (0, 0, 0, 0)).save(buffer, "PNG")
    blank = thumbnail(buffer.getvalue())
    assert blank.min() == 255
    assert featureless(np.stack([blank, thumbnail(jpeg(picture(1)))])).tolist() == [True, False]


def test_agreement_is_of_copies_wherever_they_were_cut():
    image = picture(2)
    copy = cropped(image, 0.9, seed=4)
    original, cut, other = thumbs(image, copy, picture(9))
    near = np.array([CROPS[3]], np.float32)

    def score(a, b, span=WHOLE):
        return float(agreement(a[None], b[None], span, span)[0])

    assert score(original, original) == pytest.approx(1, abs=1e-3)
    assert score(original, cut, near) > 0.6
    assert score(original, other) < 0.2 and score(original, cut[:, ::-1], near) < 0.3


def test_a_picture_changed_in_one_place_is_no_copy():
    """A form filled in differently: the same over all but for a fifth of it."""
    image = picture(2)
    changed = image.copy()
    changed.paste(picture(11).crop((0, 0, 512, 96)), (0, 200))
    a, b = thumbs(image, changed)
    assert agreement(a[None], b[None], WHOLE, WHOLE)[0] < 0.4
