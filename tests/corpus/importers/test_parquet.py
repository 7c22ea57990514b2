"""Tables of pictures, written by `datasets` itself and by hand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importing import bring, picture, save

from granvit.corpus.store import CorpusError

PICTURE = picture()


def table(file, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def test_a_table_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": PICTURE, "path": None}] * 2, "text": ["A dog.", None]}
    file = tmp_path / "hub/data/validation-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    [first, second], refused = bring("parquet", tmp_path / "hub", tmp_path / "out")
    assert first.id == "hub/data/validation-00000-of-00001.parquet:0"
    assert (first.image, first.caption, first.split, first.regions) == (PICTURE, "A dog.", "val", [])
    assert (second.caption, refused) == (None, [])


def test_other_columns(tmp_path):
    save(tmp_path / "t/b.jpg")
    pictures = [{"bytes": PICTURE, "path": "x"}, {"bytes": None, "path": "b.jpg"}]
    file = table(tmp_path / "t/a.parquet", jpg=pictures, id=[7, 8], caption=[["short", "the longest"], []])
    [first, second], _ = bring("parquet", file, tmp_path / "out", image_column="jpg", source="mine", split="test")
    assert [(r.id, r.caption, r.split) for r in (first, second)] == [
        ("mine/7", "the longest", "test"),
        ("mine/8", None, "test"),
    ]
    assert second.image == (tmp_path / "t/b.jpg").read_bytes()
    [plain], _ = bring("parquet", table(tmp_path / "plain.parquet", image=[PICTURE]), tmp_path / "plain")
    assert plain.image == PICTURE


def test_damage(tmp_path):
    src = tmp_path / "t"
    good = table(src / "d.parquet", image=[{"bytes": PICTURE, "path": None}])
    (src / "a.parquet").write_bytes(good.read_bytes()[:-20])
    (src / "b.parquet").write_text("no table")
    table(src / "c.parquet", picture=[PICTURE])
    table(
        src / "e.parquet",
        image=[
            {"bytes": b"no picture", "path": None},
            {"bytes": None, "path": None},
            {"bytes": None, "path": "../secret.jpg"},
            None,
        ],
    )
    records, refused = bring("parquet", src, tmp_path / "out")
    assert [r.uri for r in records] == ["d.parquet:0"]
    assert [(r.reason, r.uri) for r in refused] == [
        ("damaged-parquet", "a.parquet:0"), ("damaged-parquet", "b.parquet:0"), ("missing-field", "c.parquet:0"),
        ("not-an-image", "e.parquet:0"), ("missing-image", "e.parquet:1"), ("path-outside", "e.parquet:2"),
        ("missing-image", "e.parquet:3"),
    ]  # fmt: skip


def test_no_tables(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no \*\.parquet"):
        bring("parquet", tmp_path, tmp_path / "out")
