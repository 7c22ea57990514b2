import io
import json

import datasets
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granvit.regions import SCHEMA, SCHEMA_VERSION, Region, RegionImage, schema_with_viewer_features


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, "PNG")
    return buffer.getvalue()


def full():
    return RegionImage(
        id="a/1",
        image=png(),
        width=64,
        height=48,
        uri="a/1.png",
        source="made up",
        licence="CC0-1.0",
        caption="A red field.",
        split="val",
        regions=[
            Region((1.5, 2.0, 30.25, 40.0), "a red thing", score=0.5, box_by="detector:x", text_by="model:y"),
            Region(
                (0.0, 0.0, 8.0, 4.0), "EXIT", kind="text", alternatives=["Exit"], polygon=[0.0, 0.0, 8.0, 4.0, 0.0, 4.0]
            ),
            Region((5.0, 5.0, 6.0, 6.0), "", ignore=True),
        ],
    )


def bare():
    return RegionImage(id="b", image=None, width=10, height=20, regions=[], uri="https://example.org/b.jpg")


@pytest.mark.parametrize("record", [full(), bare()], ids=["full", "bare"])
def test_row_round_trip(record):
    assert RegionImage.from_row(record.to_row()) == record


@pytest.mark.parametrize("schema", [SCHEMA, schema_with_viewer_features()], ids=["plain", "viewer"])
def test_parquet_round_trip(tmp_path, schema):
    path = tmp_path / "x.parquet"
    records = [full(), bare()]
    pq.write_table(pa.Table.from_pylist([r.to_row() for r in records], schema=schema), path)
    table = pq.read_table(path)
    assert [RegionImage.from_row(row) for row in table.to_pylist()] == records
    assert table.schema.metadata[b"granvit_schema"] == str(SCHEMA_VERSION).encode()


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_missing_column_is_named(column):
    row = full().to_row()
    del row[column]
    with pytest.raises(ValueError, match=rf"lacks the column\(s\) {column}$"):
        RegionImage.from_row(row)


def test_columns_of_others_are_left_alone():
    assert RegionImage.from_row({**full().to_row(), "note": "mine"}) == full()


def test_a_box_of_whole_numbers_is_stored():
    row = RegionImage("c", None, 10, 10, [Region((1, 2, 3, 4), "x")]).to_row()
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    assert RegionImage.from_row(table.to_pylist()[0]).regions[0].box == (1.0, 2.0, 3.0, 4.0)


def test_the_datasets_library_shows_pictures(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([full().to_row()], schema=schema_with_viewer_features()), path)
    row = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))[0]
    assert row["image"].size == (64, 48)
    assert row["regions"][1]["text"] == "EXIT" and row["regions"][0]["box"] == [1.5, 2.0, 30.25, 40.0]


def test_viewer_features_describe_every_column():
    schema = schema_with_viewer_features()
    described = datasets.Features.from_dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    assert set(described) == set(SCHEMA.names)
    fields = {field.name for field in SCHEMA.field("regions").type.value_type}
    assert set(described["regions"].feature) == fields == set(vars(Region((0, 0, 1, 1), "x")))


def test_sql_reads_it(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([full().to_row(), bare().to_row()], schema=SCHEMA), path)
    counts = duckdb.sql(f"select id, len(regions) from '{path}' order by id").fetchall()
    assert counts == [("a/1", 3), ("b", 0)]
