"""Readers of values and files that strangers wrote: what each accepts, and that nothing else becomes data."""

import json
import math
import os
import sys
import time

import pytest
from helpers.importing import bring, save
from hypothesis import given
from hypothesis import strategies as st

from granvit.corpus.check import LeftOut, Refused, Rejection, check_record, read_quarantine, shown
from granvit.corpus.importers import IMPORTERS, base, import_corpus
from granvit.corpus.importers.run import ImportSummary
from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region, RegionImage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def test_an_id_is_the_same_however_it_is_written():
    assert {base.as_id(value) for value in (7, 7.0, "7", "7.0", " 7 ")} == {7}
    assert {base.as_id(value) for value in ("007", "a7", 7.5, "7.5", -7, "-7", 0)} == {"007", "a7", "7.5", -7, 0}
    assert base.as_id(10**400) == base.as_id(10**400) != base.as_id(10**400 + 1)
    assert [base.as_id(value) for value in (None, True, [7], {}, math.nan, math.inf)] == [None] * 6


def test_an_id_of_several_entries_is_ambiguous_and_one_repeated_as_it_is_is_not():
    pairs = [(1, {"a": 1}), (2, {"a": 2}), (1, {"a": 1}), (2, {"a": 3}), (None, {}), (None, {"a": 1})]
    assert base.ambiguous_ids(pairs) == {2}


@pytest.mark.parametrize("pair", [(640, 480), ("640", "480"), (640.0, "480.0"), (" 640", 480)])
def test_a_size_is_whole_numbers_also_in_a_string(pair):
    assert base.as_size(*pair) == (640, 480)


@pytest.mark.parametrize("side", [None, 0, -1, "", "-1", math.nan, "0"])
def test_a_size_that_states_nothing_is_unknown(side):
    assert base.as_size(side, 480) == base.as_size(640, side) == base.UNKNOWN_SIZE


@pytest.mark.parametrize("side", [640.5, "wide", [640], {}, True, math.inf, "1e3", "6_40"])
def test_a_size_of_another_type_is_reported_with_its_field(side):
    with pytest.raises(Refused, match="height should be a whole number of pixels, got ") as reported:
        base.as_size(640, side)
    assert reported.value.reason == "bad-field"


def test_a_flag_is_what_is_written_not_whether_something_is():
    no = [base.as_flag("ignore", value) for value in (None, False, 0, 0.0, "", "0", "false", "False", " no ")]
    assert no == [False] * 9
    yes = [base.as_flag("ignore", value) for value in (True, 1, 1.0, "1", "true", "YES")]
    assert yes == [True] * 6
    for value in ("maybe", 2, -1, [0], {}, math.nan):
        with pytest.raises(Refused, match="ignore should be true or false, got "):
            base.as_flag("ignore", value)


def test_a_text_is_a_string_or_a_number_and_not_what_python_calls_a_thing():
    assert [base.as_text(value) for value in ("a", 154, 1.5)] == ["a", "154", "1.5"]
    assert [base.as_text(value) for value in (None, True, math.nan, math.inf, ["a"], {"a": 1})] == [""] * 6
    assert [base.as_caption(value) for value in (None, math.nan, "", "a")] == [None, None, None, "a"]


def test_a_split_of_another_type_is_refused_and_not_trained_on():
    assert [base.as_split(value) for value in (None, "", math.nan)] == [""] * 3
    assert [base.as_split(value) for value in ("Validation", " test ", "dev")] == ["val", "test", "val"]
    picture = RegionImage("a", None, 40, 30, [])
    for value in (["test"], {"name": "test"}, True, 1, "held out"):
        picture.split = base.as_split(value)
        assert [r.reason for r in check_record(picture).rejections] == ["bad-split"]


def test_numbers_are_numbers():
    assert base.as_number(3) == 3.0
    assert all(math.isnan(base.as_number(value)) for value in (True, "3", None, [3], 10**400))
    assert math.isnan(base.as_polygon([[1, 2], [10**400, 3]])[0])


@given(JSON)
def test_no_value_makes_a_reader_fail_otherwise_than_by_refusing_it(value):
    for read in (base.as_id, base.as_number, base.as_box, base.as_sides, base.as_text, base.as_caption, base.as_split,
                 base.as_polygon):  # fmt: skip
        read(value)
    for refusing in (lambda v: base.as_flag("x", v), lambda v: base.as_size(v, 1)):
        try:
            refusing(value)
        except Refused as refused:
            assert refused.reason == "bad-field"


def test_text_files_are_utf_8_or_what_is_named_and_never_guessed(tmp_path):
    file = tmp_path / "café.txt"
    for written, named in (("utf-8", ""), ("utf-8-sig", ""), ("gb18030", "gb18030"), ("utf-8-sig", "gb18030")):
        file.write_bytes("日本".encode(written))
        assert base.read_text(file, named) == "日本"
    file.write_bytes("Привет".encode("cp1251"))
    for encoding, message in (("", "café.txt is not UTF-8: name its encoding"), ("shift_jis", "is not shift_jis")):
        with pytest.raises(Refused, match=message) as reported:
            base.read_text(file, encoding)
        assert reported.value.reason == "bad-encoding"
    with (
        pytest.raises(CorpusError, match=rf"{tmp_path}/café.txt: bad-encoding: ") as fatal,
        base.refusal_is_fatal(file),
    ):
        base.read_text(file)
    assert fatal.value.__cause__ is not None


@pytest.mark.parametrize("name", ["klingon", "hex", "a\0b", "punycode", "undefined"])
def test_an_encoding_that_nobody_knows_is_reported_before_anything_is_read(tmp_path, name):
    with pytest.raises(CorpusError, match="encoding .* is not known"):
        import_corpus("coco", tmp_path, tmp_path / "out", encoding=name)
    assert not (tmp_path / "out").exists()


def test_pipes_and_endless_files_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 101)
    for name in ("pipe", "large", "absent"):
        with pytest.raises(Refused, match=name) as reported:
            base.read_text(tmp_path / name, limit=100)
        assert reported.value.reason == "unreadable-file"
        with pytest.raises(CorpusError, match=rf"^{tmp_path}/{name}: [^/]*$"):
            base.read_json(tmp_path / name, limit=100)


def test_a_number_too_long_for_python_costs_no_table(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"a": ' + "1" * 6000 + ', "b": [1, 2.5], "c": ' + "1" * 401 + "}")
    assert base.read_json(file) == {"a": math.inf, "b": [1, 2.5], "c": int("1" * 401)}
    file.write_bytes('{"a": "日本"}'.encode("gb18030"))
    with pytest.raises(CorpusError, match="x.json"):
        base.read_json(file)
    assert base.read_json(file, "gb18030") == {"a": "日本"}


@pytest.mark.parametrize("text", ['{"a": {"b": 1, "b": 2}', '{"a": 1, "a": 2} x', '{"a": 1, "a": ' + "[" * 100_000])
def test_an_object_that_has_a_key_twice_and_is_damaged_behind_is_refused(text):
    with pytest.raises(Refused) as reported:
        base.parse_object(text.encode())
    assert reported.value.reason == "not-json"


# What an import makes of refused regions, and of what a record has no place for


@pytest.fixture
def layout(monkeypatch):
    """A layout whose importer yields what it is given."""
    found = []

    def reader(src, *, source="", licence=""):
        yield from found

    monkeypatch.setitem(IMPORTERS, "given", reader)
    return found


def test_what_is_refused_or_left_out_is_counted_and_named(layout, tmp_path):
    box = (1, 1, 20, 20)
    data = save(tmp_path / "a.jpg").read_bytes()
    flags = ["no", "perhaps", "no"]

    def read(flag):
        return Region(box, "a dog", ignore=base.as_flag("ignore", flag))

    layout += [
        RegionImage("given/a", data, 40, 30, base.read_regions(flags, read), caption=base.as_caption(["a"])),
        Rejection("missing-image", "given/b", "b.jpg", None, "no file 'b.jpg'", regions=5),
        LeftOut("keypoints", 3, "annotation 1"),
        LeftOut("keypoints", 2, "annotation 9"),
        LeftOut("nothing", 0, "nowhere"),
    ]
    records, refused = bring("given", tmp_path, tmp_path / "out")
    assert records[0].regions == [Region(box, "a dog")] * 2
    assert records[0].caption is None
    assert refused == [
        Rejection("bad-field", "given/a", "", 1, "ignore should be true or false, got 'perhaps'"),
        Rejection("missing-image", "given/b", "b.jpg", None, "no file 'b.jpg'", 5),
    ]
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {"keypoints": 5}
    assert Corpus(tmp_path / "out").manifest["meta"]["changed"] == {"caption-dropped": 1, "cleaned": 1}
    summary = import_corpus("given", tmp_path, tmp_path / "again")
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (8, 2, 5)
    assert "left out           5  keypoints (annotation 1)" in str(summary)


def test_the_regions_of_a_refused_picture_are_in_its_line_of_the_quarantine(layout, tmp_path):
    data = save(tmp_path / "a.jpg").read_bytes()
    regions = [Region((1, 1, 20, 20), "x")] * 3
    layout += [RegionImage("given/a", data, 40, 30, regions), RegionImage("given/b", data, 30, 40, regions)]
    import_corpus("given", tmp_path, tmp_path / "out")
    assert [(r.reason, r.regions) for r in read_quarantine(tmp_path / "out/quarantine.jsonl")] == [("size-mismatch", 3)]


def test_a_summary_of_a_clean_import_has_two_lines():
    assert len(str(ImportSummary(images_seen=1, images_written=1)).splitlines()) == 2


def test_a_value_that_is_long_or_nested_deep_is_shown_in_few_characters():
    for value in (list(range(10**6)), "x" * 10**6, {"a": list(range(10**6))}, int("7" * 900)):
        assert len(shown(value)) <= 110
    depth = sys.getrecursionlimit() - 20
    nested = json.loads("[" * 300 + "]" * 300)
    for _ in range(depth):
        nested = [nested]
    assert shown(nested).startswith("[[")
    assert base.as_split(nested).startswith("[[")
    with pytest.raises(Refused, match="ignore should be true or false"):
        base.as_flag("ignore", nested)
    assert base.ambiguous_ids([(1, {"a": nested}), (1, {"a": [nested]})]) == {1}


def bounded(seconds: float, act):
    started = time.process_time()
    act()
    assert time.process_time() - started < seconds


def test_many_names_of_many_boxes_are_not_multiplied(tmp_path):
    count = 5_000
    boxes = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>" * count
    names = "".join(f"<name>{n}</name>" for n in range(count))
    xml = f"<annotation><object>{names}{boxes}</object></annotation>"
    said = "".join(f"[/EN#{n}/x a] " for n in range(count))
    for folder, picture in (("voc", "JPEGImages/a.jpg"), ("f30k", "images/a.jpg")):
        save(tmp_path / folder / picture)
        (tmp_path / folder / "Annotations").mkdir()
        (tmp_path / folder / "Annotations/a.xml").write_text(xml)
    (tmp_path / "f30k/Sentences").mkdir()
    (tmp_path / "f30k/Sentences/a.txt").write_text(said)
    bounded(8, lambda: import_corpus("voc", tmp_path / "voc", tmp_path / "out-voc"))
    meta = Corpus(tmp_path / "out-voc").manifest["meta"]
    assert meta["left_out"] == {"further name of an object": count - base.MAX_NAMES}
    bounded(8, lambda: import_corpus("flickr30k_entities", tmp_path / "f30k", tmp_path / "out-f30k"))
    assert Corpus(tmp_path / "out-f30k").manifest["regions"] == 1
