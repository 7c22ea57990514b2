"""Forms with entries of several lines, in the layout of FUNSD's dataset.zip."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region


def word(box, text):
    return {"box": box, "text": text}


ENTRIES = [
    {
        "box": [2, 2, 38, 18], "text": "TO: Mr. Smith", "label": "question", "linking": [[0, 1]], "id": 0,
        "words": [word([2, 2, 10, 8], "TO:"), word([12, 3, 20, 8], "Mr."), word([2, 12, 20, 18], "Smith")],
    },
    {"box": [2, 20, 20, 28], "text": "", "label": "answer", "linking": [], "id": 1,
     "words": [word([2, 20, 20, 28], "")]},
]  # fmt: skip


def form(folder, entries, name="0000971160", part="training_data"):
    save(folder / part / f"images/{name}.png")
    file = folder / part / f"annotations/{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"form": entries}) if isinstance(entries, list) else entries)
    return folder


@pytest.mark.parametrize(
    ("level", "regions"),
    [
        ("entry", [((2, 2, 38, 18), "TO: Mr. Smith")]),
        ("line", [((2, 2, 20, 8), "TO: Mr."), ((2, 12, 20, 18), "Smith")]),
        ("word", [((2, 2, 10, 8), "TO:"), ((12, 3, 20, 8), "Mr."), ((2, 12, 20, 18), "Smith")]),
    ],
)
def test_levels(tmp_path, level, regions):
    [got], refused = bring("funsd", form(tmp_path / "dataset", ENTRIES), tmp_path / "out", level=level)
    assert got.regions == [Region(box, text, "text") for box, text in regions]
    assert [(r.reason, r.region) for r in refused] == ([("empty-text", 1)] if level == "entry" else [])


def test_parts_are_splits(tmp_path):
    src = form(form(tmp_path / "dataset", ENTRIES), ENTRIES, "82092117", "testing_data")
    records, _ = bring("funsd", src, tmp_path / "out")
    assert [(r.id, r.split) for r in records] == [
        ("funsd/training_data/images/0000971160.png", "train"),
        ("funsd/testing_data/images/82092117.png", "test"),
    ]
    [got], _ = bring("funsd", src / "testing_data", tmp_path / "part")
    assert (got.uri, got.split) == ("images/82092117.png", "test")


def test_damage(tmp_path):
    damaged = [{"box": [1, 2, 3], "text": "x", "words": [word([1, 2], "x")]}, "no entry", ENTRIES[0]]
    src = form(tmp_path / "dataset", damaged, "a")
    form(src, '{"form": [', "b")
    form(src, '{"form": {}}', "c")
    form(src, ENTRIES, "d")
    (src / "training_data/images/d.png").unlink()
    [got], refused = bring("funsd", src, tmp_path / "out")
    assert [r.text for r in got.regions] == ["TO: Mr.", "Smith"]
    assert [(r.reason, r.region) for r in refused] == [
        ("bad-box", 0), ("empty-text", 1), ("not-json", None), ("bad-field", None), ("missing-image", None),
    ]  # fmt: skip


def test_other_folders(tmp_path):
    with pytest.raises(CorpusError, match="training_data/ and testing_data/"):
        bring("funsd", tmp_path, tmp_path / "out")
    with pytest.raises(CorpusError, match="entry, line or word"):
        bring("funsd", form(tmp_path / "dataset", ENTRIES), tmp_path / "out", level="page")


def test_entries_of_one_id_are_ambiguous_and_what_a_record_cannot_hold_is_counted(tmp_path):
    other = {**ENTRIES[0], "id": "0", "text": "x"}
    again = {**ENTRIES[0], "id": 7}
    src = form(tmp_path / "dataset", [ENTRIES[0], other, again, again])
    save(src / "training_data/images/stray.png")
    [record], refused = bring("funsd", src, tmp_path / "out")
    assert [r.text for r in record.regions] == ["TO: Mr.", "Smith"]
    assert [(r.reason, r.region) for r in refused] == [
        ("ambiguous-id", 0), ("ambiguous-id", 1), ("duplicate-id", 4), ("missing-annotation", None),
    ]  # fmt: skip
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {"label of an entry": 4, "link of an entry": 4}


def test_a_form_in_another_encoding_costs_its_picture_or_is_read_in_the_one_that_is_named(tmp_path):
    src = form(tmp_path / "dataset", ENTRIES)
    text = json.dumps({"form": [{**ENTRIES[0], "words": [word([2, 2, 10, 8], "Привет")]}]}, ensure_ascii=False)
    form(src, text, "b")
    (src / "training_data/annotations/b.json").write_bytes(text.encode("cp1251"))
    _, [refusal] = bring("funsd", src, tmp_path / "out")
    assert (refusal.reason, refusal.uri) == ("not-json", "training_data/images/b.png")
    records, _ = bring("funsd", src, tmp_path / "reported", encoding="cp1251")
    assert [r.text for r in records[1].regions] == ["Привет"]


def test_the_regions_of_a_missing_picture_are_counted(tmp_path):
    src = form(form(tmp_path / "dataset", ENTRIES), ENTRIES, "b")
    (src / "training_data/images/b.png").unlink()
    _, [refusal] = bring("funsd", src, tmp_path / "out")
    assert (refusal.reason, refusal.regions) == ("missing-image", 2)
