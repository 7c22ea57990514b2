import io
import json
from dataclasses import replace

import datasets
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granvit.regions import (
    ADDED_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    Region,
    RegionImage,
    Turn,
    order_problem,
    schema_with_viewer_features,
)


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
        conversations=[
            [Turn("system", "Be short."), Turn("user", "What is it?"), Turn("assistant", "A field.")],
            [
                Turn("user", "And <image>?"),
                Turn("assistant", "No."),
                Turn("user", "Why?"),
                Turn("assistant", "<|im_end|>"),
            ],
        ],
    )


def bare():
    return RegionImage(id="b", image=None, width=10, height=20, regions=[], uri="https://example.org/b.jpg")


def spoken():
    return RegionImage(
        "c", None, 0, 0, [], source="talk", conversations=[[Turn("user", "Hi"), Turn("assistant", "Ho")]]
    )


@pytest.mark.parametrize("record", [full(), bare(), spoken()], ids=["full", "bare", "spoken"])
def test_row_round_trip(record):
    assert RegionImage.from_row(record.to_row()) == record


@pytest.mark.parametrize("schema", [SCHEMA, schema_with_viewer_features()], ids=["plain", "viewer"])
def test_parquet_round_trip(tmp_path, schema):
    path = tmp_path / "x.parquet"
    records = [full(), bare(), spoken()]
    pq.write_table(pa.Table.from_pylist([r.to_row() for r in records], schema=schema), path)
    table = pq.read_table(path)
    assert [RegionImage.from_row(row) for row in table.to_pylist()] == records
    assert table.schema.metadata[b"granvit_schema"] == str(SCHEMA_VERSION).encode()


@pytest.mark.parametrize("column", sorted(set(SCHEMA.names) - ADDED_COLUMNS))
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
    rows = [full().to_row(), spoken().to_row()]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema_with_viewer_features()), path)
    row, alone = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert row["image"].size == (64, 48) and alone["image"] is None
    assert row["conversations"][1][0] == {"role": "user", "text": "And <image>?"}
    assert [[turn["text"] for turn in said] for said in alone["conversations"]] == [["Hi", "Ho"]]
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
    said = duckdb.sql(f"select unnest(conversations[1]).text as said from '{path}' where id = 'a/1'").fetchall()
    assert [text for (text,) in said] == ["Be short.", "What is it?", "A field."]


def test_rows_of_the_first_version_have_no_conversations():
    row = full().to_row()
    del row["conversations"]
    assert RegionImage.from_row(row) == replace(full(), conversations=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(conversations=[None]), "a conversation or a turn of it is missing"),
        (lambda row: row.update(conversations=[[None]]), "a conversation or a turn of it is missing"),
        (lambda row: row.update(conversations=[[]]), "conversation 0: no turn is the assistant's"),
        (lambda row: row["conversations"][0][0].update(role=None), "a turn's role is None"),
        (lambda row: row["conversations"][0][1].update(text=None), "a turn has no text"),
        (lambda row: row.update(conversations=[]), "conversations and nothing else"),
        (lambda row: row.update(caption="of what?"), "conversations and nothing else"),
        (lambda row: row.update(regions=full().to_row()["regions"]), "conversations and nothing else"),
        (lambda row: row.update(image={"bytes": b"x", "path": ""}), "its size is 0x0"),
    ],
)
def test_a_row_of_conversations_that_nobody_could_use(change, message):
    row = spoken().to_row()
    row["conversations"] = [[dict(turn) for turn in said] for said in row["conversations"]]
    change(row)
    with pytest.raises(ValueError, match=message):
        RegionImage.from_row(row)


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ("user assistant", ""),
        ("system user assistant user assistant", ""),
        ("", "no turn is the assistant's"),
        ("user", "no turn is the assistant's"),
        ("system user", "no turn is the assistant's"),
        ("assistant", "take turns"),
        ("assistant user", "take turns"),
        ("user user assistant", "take turns"),
        ("user assistant assistant", "take turns"),
        ("user system assistant", "take turns"),
        ("system system user assistant", "take turns"),
        ("user assistant user", "the last turn has no answer"),
        ("user tool assistant", "role is 'tool'"),
    ],
)
def test_the_order_of_turns(roles, problem):
    found = order_problem(roles.split())
    assert problem in found if problem else found == ""
