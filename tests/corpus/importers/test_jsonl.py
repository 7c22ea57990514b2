"""Values as people write them: taken where they can be meant in one way only, refused by name where not."""

import json
import re

import pytest
from helpers.importing import bring, save
from helpers.paths import ROOT

from granvit.corpus.check import Refused
from granvit.corpus.importers import import_corpus
from granvit.corpus.importers.jsonl import LINE_FIELDS, REGION_FIELDS, json_lines
from granvit.errors import GranvitError

BOX = {"bbox": [1, 2, 20, 10], "caption": "a cup"}


def pack(folder, *rows):
    save(folder / "a.jpg")
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    (folder / "annotations.jsonl").write_bytes(b"\n".join(lines))
    return folder


def test_what_is_not_read_is_counted(tmp_path):
    """Fields of a line and of a region, and a caption in whose place a text is taken."""
    both = {**BOX, "text": "EXIT", "label": "sign", "bbox": [1, 2, 21, 10]}
    src = pack(tmp_path / "p", row(regions=[BOX, both], tags=["x"], id="1"))
    summary = import_corpus("jsonl", src, tmp_path / "out")
    expected = {"field 'tags'": 1, "field 'label' of a region": 1, "caption beside the text of a region": 1}
    assert summary.left_out == expected and summary.splits == {"": 1}


def row(**changes):
    return {"image": "a.jpg", "width": 40, "height": 30, "regions": [BOX]} | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": "40", "height": "30"}, ""), ({"width": 40.0}, ""), ({"width": -1, "height": None}, ""),
        ({"width": float("nan")}, ""), ({"width": [40]}, "bad-field"), ({"width": 40.5}, "bad-field"),
        ({"width": True}, "bad-field"), ({"split": ["test"]}, "bad-split"), ({"split": "test"}, ""),
        ({"split": 3}, "bad-split"), ({"source": 3}, "bad-field"), ({"licence": ["x"]}, "bad-field"),
        ({"caption": float("nan")}, ""), ({"caption": ["x"]}, ""), ({"image": ["a.jpg"]}, "bad-field"),
        ({"regions": {"0": BOX}}, "bad-field"), ({"width": 41}, "size-mismatch"),
    ],
)  # fmt: skip
def test_a_value_of_a_picture(tmp_path, changes, reason):
    good = row(image="b.jpg")
    save(tmp_path / "p/b.jpg")
    records, refused = bring("jsonl", pack(tmp_path / "p", good, row(**changes)), tmp_path / "out")
    assert [r.reason for r in refused] == ([reason] if reason else [])
    if not reason:
        assert (records[1].width, records[1].height, records[1].caption) == (40, 30, None)
        assert records[1].split == changes.get("split", "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ignore": "false"}, ""), ({"ignore": "maybe"}, "bad-field"), ({"ignore": [0]}, "bad-field"),
        ({"caption": float("nan")}, "empty-text"), ({"caption": ["a"]}, "empty-text"), ({"captions": "a"}, "bad-field"),
        ({"score": "0.5"}, "bad-score"), ({"score": float("inf")}, "bad-score"), ({"bbox": ["1", 2, 3, 4]}, "bad-box"),
        ({"bbox": [1, 2, float("inf"), 4]}, "bad-box"), ({"bbox": [True, 2, 20, 10]}, "bad-box"),
        ({"bbox": [1, 2, 20, 10**400]}, "bad-box"), ({"kind": ["text"]}, "bad-kind"), ({"box_by": 7}, "bad-field"),
        ({"captions": ["b", float("nan")]}, ""),
    ],
)  # fmt: skip
def test_a_value_of_a_region(tmp_path, changes, reason):
    src = pack(tmp_path / "p", row(regions=[BOX, {**BOX, "bbox": [1, 2, 21, 10], **changes}]))
    [record], refused = bring("jsonl", src, tmp_path / "out")
    assert [(r.reason, r.region) for r in refused] == ([(reason, 1)] if reason else [])
    assert not any(region.ignore for region in record.regions)


def test_a_key_that_is_there_twice(tmp_path):
    twice = b'{"image": "a.jpg", "width": 40, "height": 30, "regions": [{"bbox": [1,2,3,4], "bbox": [5,6,9,9]}]}'
    src = pack(tmp_path / "p", row(), twice)
    _, [refused] = bring("jsonl", src, tmp_path / "out")
    assert (refused.reason, "'bbox' is there twice" in refused.detail, refused.regions) == ("not-json", True, 1)


def test_regions_of_a_picture_that_is_missing_are_counted(tmp_path):
    src = pack(tmp_path / "p", row(), row(image="gone.jpg", regions=[BOX] * 3), row(width="wide", regions=[BOX] * 2))
    summary = import_corpus("jsonl", src, tmp_path / "out")
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (6, 1, 5)
    assert "1 of 6 written (5 went with their quarantined image)" in str(summary)


def test_another_encoding(tmp_path):
    line = json.dumps(row(regions=[{**BOX, "caption": "чашка"}]), ensure_ascii=False).encode("cp1251")
    src = pack(tmp_path / "p", row(image="b.jpg"), line)
    save(src / "b.jpg")
    _, [refused] = bring("jsonl", src, tmp_path / "out")
    assert refused.reason == "not-json"
    records, refused = bring("jsonl", src, tmp_path / "named", encoding="cp1251")
    assert ([r.regions[0].text for r in records], refused) == (["a cup", "чашка"], [])


def test_a_line_without_an_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("granvit.corpus.importers.jsonl.MAX_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + b"[" * 5000 + b'\n{"b": 2}\n')
    found = list(json_lines(tmp_path / "a.jsonl"))
    assert [n for n, _ in found] == [1, 2, 3]
    assert (found[0][1], found[2][1]) == ({"a": 1}, {"b": 2})
    assert isinstance(found[1][1], Refused) and found[1][1].reason == "too-large"


# --- as documented ---------------------------------------------------------------------------------------------------

DOCUMENTED = (ROOT / "docs/corpus.md").read_text()


def documented(of: str) -> dict[str, str]:
    """Field -> whether it is required, of the table whose first column is `of`."""
    table = DOCUMENTED.partition(f"| {of} | | what it is |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()]
    return {name: row[2].strip() for row in rows for name in re.findall(r"`(\w+)`", row[1])}


def test_the_fields_that_are_documented_are_those_that_are_read():
    assert documented("field of a line").keys() == LINE_FIELDS
    assert documented("field of a region").keys() == REGION_FIELDS


def test_what_is_documented_as_required_is_and_the_rest_may_be_left_out_or_null(tmp_path):
    """Of the documented example: a picture's own size counts where none is stated."""
    line = json.loads(re.search(r"A line of `annotations.jsonl`:\n\n```json\n(.*?)```", DOCUMENTED, re.DOTALL)[1])
    save(tmp_path / "p/images/a.jpg", (640, 480))
    for number, (name, needed) in enumerate(documented("field of a line").items()):
        without = [{k: v for k, v in line.items() if k != name}, {**line, name: None}]
        (tmp_path / "p/annotations.jsonl").write_text("\n".join(json.dumps(row) for row in without))
        if needed.startswith("required"):
            summary = refusals(tmp_path, number)
            assert summary == ["missing-field", "bad-field"], name
            continue
        records, refused = bring("jsonl", tmp_path / "p", tmp_path / f"out{number}")
        assert [r.reason for r in refused] == ["duplicate-id"], name
        assert (records[0].width, records[0].height) == (640, 480), name
    regions = line["regions"][:1]
    for number, (name, needed) in enumerate(documented("field of a region").items()):
        one = {k: v for k, v in regions[0].items() if k != name}
        kept = {**line, "regions": [one, *line["regions"][1:]]}
        (tmp_path / "p/annotations.jsonl").write_text(json.dumps(kept))
        [record], refused = bring("jsonl", tmp_path / "p", tmp_path / f"region{number}")
        assert len(refused) == (name in regions[0] and "required" in needed), name


def refusals(tmp_path, number):
    """Why both lines are refused, of which no corpus is made."""
    with pytest.raises(GranvitError):
        import_corpus("jsonl", tmp_path / "p", tmp_path / f"out{number}")
    quarantine = tmp_path / f"out{number}" / "quarantine.jsonl"
    return [json.loads(row)["reason"] for row in quarantine.read_text().splitlines()]
