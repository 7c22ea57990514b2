"""GRIT as img2dataset leaves it: tar shards, or tables beside folders of pictures."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.importing import bring, picture, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import CorpusError
from granvit.regions import Region

CAPTION = "a wire hanger with a paper cover that reads we heart our customers"
HANGER, COVER = [0.25, 0.2, 0.75, 0.9], [0.5, 0.5, 1.0, 0.6]


def row(key="000000000", **changes):
    """The published example, its numbers made round; sizes as img2dataset adds them."""
    return {
        "key": key,
        "clip_similarity_vitb32": 0.353271484375,
        "id": 1795296605919,
        "url": f"https://example.org/{key}.jpg",
        "caption": CAPTION,
        "width": 40,
        "height": 30,
        "original_width": 1024,
        "original_height": 768,
        "status": "success",
        "error_message": None,
        "noun_chunks": [[19, 32, *COVER, 0.75], [0, 13, *HANGER, 0.5], [40, 66, 0, 0, 0.2, 0.2, 0.5]],
        "ref_exps": [[19, 66, *COVER, 0.75], [0, 66, *HANGER, 0.5]],
        **changes,
    }


def shard(file, *samples):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def sample(entry, size=(40, 30)):
    key = entry["key"]
    return [
        (f"{key}.jpg", picture(size)),
        (f"{key}.json", json.dumps(entry).encode()),
        (f"{key}.txt", entry["caption"].encode()),
    ]


REGIONS = [
    Region(
        (20, 15, 40, 18), CAPTION[19:], score=0.75, box_by="detector:GLIP", text_by="caption:GRIT",
        alternatives=["a paper cover"],
    ),
    Region(
        (10, 6, 30, 27), CAPTION, score=0.5, box_by="detector:GLIP", text_by="caption:GRIT",
        alternatives=["a wire hanger"],
    ),
]  # fmt: skip


def assert_the_regions(record):
    assert [r.text for r in record.regions] == [r.text for r in REGIONS]
    for region, expected in zip(record.regions, REGIONS, strict=True):
        assert region.box == pytest.approx(expected.box)
        region.box = expected.box
    assert record.regions == REGIONS
    assert (record.caption, record.split) == (CAPTION, "train")


def test_shards(tmp_path):
    shard(tmp_path / "grit/00000.tar", *sample(row()), *sample(row("000000001")))
    # img2dataset's account of the shard, which says the same once more.
    pq.write_table(pa.Table.from_pylist([row(), row("000000001")]), tmp_path / "grit/00000.parquet")
    (tmp_path / "grit/00000_stats.json").write_text("{}")
    records, refused = bring("grit", tmp_path / "grit", tmp_path / "out")
    assert refused == []
    assert [(r.id, r.uri) for r in records] == [
        ("grit/00000.tar:000000000", "https://example.org/000000000.jpg"),
        ("grit/00000.tar:000000001", "https://example.org/000000001.jpg"),
    ]
    for record in records:
        assert_the_regions(record)


@pytest.mark.parametrize("place", ["00000/000000000.jpg", "000000000.jpg"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_tables_beside_their_pictures(tmp_path, place, suffix):
    save(tmp_path / "grit" / place)
    rows = [row(), row("000000001", status="failed_to_download", error_message="HTTP Error 404: Not Found")]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "grit/00000.parquet")
    else:
        (tmp_path / "grit/00000.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [record], [refusal] = bring("grit", tmp_path / "grit", tmp_path / "out")
    assert_the_regions(record)
    assert (refusal.reason, refusal.uri, refusal.region) == ("missing-image", f"00000{suffix}:1", None)
    assert "404" in refusal.detail


@pytest.mark.parametrize("column", [{"jpg": picture()}, {"image": {"bytes": picture(), "path": None}}])
def test_tables_that_hold_their_pictures(tmp_path, column):
    (tmp_path / "grit").mkdir()
    pq.write_table(pa.Table.from_pylist([{**row(), **column}]), tmp_path / "grit/train.parquet")
    [record], _ = bring("grit", tmp_path / "grit/train.parquet", tmp_path / "out")
    assert_the_regions(record)


@pytest.mark.parametrize(
    ("size", "fits"),
    [((40, 30), True), ((256, 192), True), ((33, 25), True), ((30, 40), False), ((40, 40), False), ((40, 22), False)],
)
def test_a_picture_resized_in_proportion_is_good_and_a_padded_cut_or_turned_one_is_not(tmp_path, size, fits):
    entry = row("000000001", width=size[0], height=size[1])
    shard(tmp_path / "00000.tar", *sample(row()), *sample(entry, size))
    records, refused = bring("grit", tmp_path / "00000.tar", tmp_path / "out")
    assert len(records) == 1 + fits
    assert [r.reason for r in refused] == [] if fits else ["size-mismatch"]


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ([0, 13, 0.1, 0.1, 0.5, 0.5], "empty-text"),
        ("0, 13", "empty-text"),
        ([0, 99, 0.1, 0.1, 0.5, 0.5, 0.9], "empty-text"),
        ([-5, 13, 0.1, 0.1, 0.5, 0.5, 0.9], "empty-text"),
        ([0, 13, "0.1", 0.1, 0.5, 0.5, 0.9], "bad-box"),
        ([0, 13, 0.5, 0.1, 0.1, 0.5, 0.9], "inverted"),
        ([0, 13, 1.1, 0.1, 1.5, 0.5, 0.9], "outside"),
        ([0, 13, 0.1, 0.1, 0.5, 0.5, 1.9], "bad-score"),
    ],
)
def test_a_damaged_span_leaves_the_others(tmp_path, span, reason):
    shard(tmp_path / "00000.tar", *sample(row(ref_exps=[span, *row()["ref_exps"]])))
    [record], [refusal] = bring("grit", tmp_path / "00000.tar", tmp_path / "out")
    assert (refusal.reason, refusal.region) == (reason, 0)
    assert_the_regions(record)


def test_damaged_samples_are_reported(tmp_path):
    entry = row("000000001")
    del entry["ref_exps"]
    data = shard(
        tmp_path / "00000.tar",
        *sample(row()),
        *sample(entry),
        ("000000002.jpg", picture()),
        ("000000003.json", json.dumps(row()).encode()),
        ("000000004.jpg", picture()),
        ("000000004.json", b'{"caption": '),
        ("000000005.jpg", b"<html>404</html>"),
        ("000000005.json", json.dumps(row()).encode()),
        ("../000000006.jpg", picture()),
        *sample(row("000000007")),
    ).read_bytes()
    (tmp_path / "00000.tar").write_bytes(data[: data.rindex(b"000000007.txt") + 100])
    records, refused = bring("grit", tmp_path / "00000.tar", tmp_path / "out")
    assert len(records) == 1
    assert [(r.reason, r.uri) for r in refused] == [
        ("missing-field", "00000.tar:000000001"),
        ("missing-annotation", "00000.tar:000000002"),
        ("missing-image", "00000.tar:000000003"),
        ("not-json", "00000.tar:000000004"),
        ("not-an-image", "00000.tar:000000005"),
        ("unsafe-member", "00000.tar:../000000006"),
        ("damaged-tar", "00000.tar:000000007"),
    ]


def test_neither_shards_nor_tables_is_a_clear_error(tmp_path):
    (tmp_path / "grit").mkdir()
    with pytest.raises(CorpusError, match=r"holds neither \*.tar nor"):
        bring("grit", tmp_path / "grit", tmp_path / "out")


def test_what_is_not_used_is_counted(tmp_path):
    gone = {name: value for name, value in row("2").items() if name != "width"}
    shard(tmp_path / "00000.tar", *sample(row()), ("2.json", json.dumps(gone).encode()))
    summary = import_corpus("grit", tmp_path / "00000.tar", tmp_path / "out")
    assert summary.left_out["noun chunks without a referring expression"] == 1
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (4, 2, 2)


def test_files_that_are_not_together_are_no_sample(tmp_path):
    (first, second), more = sample(row())[:2], sample(row("000000001"))
    shard(tmp_path / "00000.tar", first, *more, second)
    [record], refused = bring("grit", tmp_path / "00000.tar", tmp_path / "out")
    assert record.uri.endswith("000000001.jpg")
    assert [r.reason for r in refused] == ["not-grouped", "not-grouped"]
