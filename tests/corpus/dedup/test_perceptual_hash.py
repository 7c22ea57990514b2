"""Fingerprints: mirroring flips known bits, windows are what is cut out, every orientation gives one thumbnail."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.drawn import corpus, cropped, halved, jpeg, mirrored, picture, record
from PIL import Image

from granvit.corpus.dedup import perceptual_hash as fp
from granvit.corpus.dedup.copy_search import agreement
from granvit.corpus.dedup.hamming_index import distance
from granvit.corpus.dedup.perceptual_hash import CROPS, SIDE, featureless, hashes, thumbnail
from granvit.corpus.layout import CorpusError
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


def test_the_windows_of_crops_by_hand():
    tenths = [(0, 0.9), (0.025, 0.925), (0.05, 0.95), (0.075, 0.975), (0.1, 1.0)]
    fifths = [(0, 0.8), (0.05, 0.85), (0.1, 0.9), (0.15, 0.95), (0.2, 1.0)]
    np.testing.assert_allclose(CROPS, [(0, 1), *tenths, *fifths], atol=1e-12)


def test_faint_noise_is_nothing_to_know_a_picture_by():
    rng = np.random.default_rng(0)
    # Neighbours differ by 1/4 and by 1/2 of a grey level in the mean; the limit is 3/8.
    faint, more = (np.where(rng.random((SIDE, SIDE)) < share, 101, 100).astype(np.uint8) for share in (0.146, 0.5))
    assert featureless(np.stack([faint, more])).tolist() == [True, False]


def test_fingerprints_of_some_images_are_kept_by_their_rows(tmp_path):
    images = [picture(i) for i in range(6)]
    records = [record(f"r{i}", jpeg(image)) for i, image in enumerate(images)]
    records[4] = record("r4", None)
    made = corpus(tmp_path / "corpus", records)
    stored = fp.store_fingerprints(made, tmp_path / "some.parquet", np.array([1, 3, 4]))
    assert stored.rows.tolist() == [1, 3, 4] and list(stored.problems) == [2]
    expected = thumbs(images[1], images[3])
    assert (stored.thumbs(np.array([0, 1])) == expected).all() and (stored.thumbs(np.array([1])) == expected[1:]).all()
    assert (stored.hashes[:2] == hashes(expected)[:, 0]).all()
    assert stored.sha256[1].tobytes() == hashlib.sha256(records[3].image).digest()
    with pytest.raises(CorpusError, match="3 images that are needed are not in it"):
        next(stored.batches(made))
    with pytest.raises(CorpusError, match="1 images that are needed"):
        stored.check_holds(np.array([1, 2, 3]))
    stored.check_holds(np.array([1, 4]))
    with pytest.raises(CorpusError, match="not the fingerprints of"):
        fp.FingerprintFile(tmp_path / "some.parquet", corpus(tmp_path / "less", records[:3]))


def test_a_gap_among_thumbnails_is_refused(tmp_path):
    made = corpus(tmp_path / "corpus", [record(f"r{i}", jpeg(picture(i))) for i in range(3)])
    fp.store_fingerprints(made, tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    place = table.schema.get_field_index("thumb")
    gaps = pa.array([*table["thumb"].to_pylist()[:2], None], table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), gaps), tmp_path / "f.parquet")
    with pytest.raises(CorpusError, match="column 'thumb' has gaps"):
        fp.FingerprintFile(tmp_path / "f.parquet", made)


@pytest.mark.parametrize("rows", [[0, 5], [1, 0], [0, 0], [-1, 0]])
def test_rows_that_are_none_of_the_corpus_are_refused(tmp_path, rows):
    made = corpus(tmp_path / "corpus", [record(f"r{i}", jpeg(picture(i))) for i in range(5)])
    fp.store_fingerprints(made, tmp_path / "f.parquet", np.array([0, 1]))
    table = pq.read_table(tmp_path / "f.parquet")
    changed = table.set_column(0, table.schema.field(0), pa.array(rows, pa.int64()))
    pq.write_table(changed, tmp_path / "f.parquet")
    with pytest.raises(CorpusError, match="column 'row'"):
        fp.FingerprintFile(tmp_path / "f.parquet", made)
