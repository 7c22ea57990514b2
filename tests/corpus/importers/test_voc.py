"""PASCAL VOC: XML beside pictures, pixels counted from 1."""

import os

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.importers import voc as voc_importer
from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region

# As in VOC2012: difficult objects, parts of people, and since 2011 coordinates that are not whole.
DOG = """<annotation>
	<folder>VOC2012</folder>
	<filename>another_name.jpg</filename>
	<size><width>40</width><height>30</height><depth>3</depth></size>
	<segmented>0</segmented>
	<object>
		<name>dog</name>
		<pose>Left</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>
	</object>
	<object>
		<name>person</name>
		<difficult>1</difficult>
		<bndbox><xmax>20.5</xmax><xmin>10.25</xmin><ymax>30</ymax><ymin>1</ymin></bndbox>
		<part><name>head</name><bndbox><xmin>11</xmin><ymin>1</ymin><xmax>15</xmax><ymax>5</ymax></bndbox></part>
	</object>
</annotation>
"""


def voc(folder, **xml_of):
    for stem, xml in xml_of.items():
        save(folder / f"JPEGImages/{stem}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / f"Annotations/{stem}.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    return folder


def test_the_first_pixel_is_number_one_and_the_last_one_belongs_to_the_box(tmp_path):
    src = voc(tmp_path / "VOC2012", a2007_000027=DOG)
    [record], refused = bring("voc", src, tmp_path / "out")
    assert (record.id, record.source, record.split) == ("voc/JPEGImages/a2007_000027.jpg", "voc", "")
    assert record.regions == [
        Region((0, 2, 40, 20), "dog"),
        Region((9.25, 0, 20.5, 30), "person", ignore=True),
    ]
    assert refused == []


def test_splits_are_those_of_the_lists_and_else_the_one_that_is_named(tmp_path):
    src = voc(tmp_path / "VOC2012", a=DOG, b=DOG, c=DOG)
    (src / "ImageSets/Main").mkdir(parents=True)
    (src / "ImageSets/Main/train.txt").write_text("a\n")
    (src / "ImageSets/Main/val.txt").write_text("b\n")
    (src / "ImageSets/Main/trainval.txt").write_text("a\nb\n")
    (src / "ImageSets/Main/dog_val.txt").write_text("a -1\nb  1\n")
    records, _ = bring("voc", src, tmp_path / "out")
    assert [r.split for r in records] == ["train", "val", ""]
    records, _ = bring("voc", src, tmp_path / "named", split="test")
    assert [r.split for r in records] == ["train", "val", "test"]


LAUGHS = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]><annotation><size/>&y;</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("xml", "word"),
    [
        (LAUGHS, "DTDForbidden"),
        (LAUGHS.encode("utf-16"), "DTDForbidden"),
        (OUTSIDE, "DTDForbidden"),
        ('<!DOCTYPE annotation SYSTEM "http://example.org/voc.dtd"><annotation/>', "DTDForbidden"),
        (DOG[:-20], "unclosed token"),
        ("", "no element found"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
        (b"\xff\xd8\xff\xe0 a picture", "not well-formed"),
    ],
)
def test_xml_that_is_damaged_or_declares_a_document_type_is_refused(tmp_path, xml, word):
    records, [refusal] = bring("voc", voc(tmp_path / "VOC", good=DOG, zbad=xml), tmp_path / "out")
    assert [r.uri for r in records] == ["JPEGImages/good.jpg"]
    assert (refusal.reason, refusal.uri, refusal.region) == ("bad-xml", "JPEGImages/zbad.jpg", None)
    assert "zbad.xml" in refusal.detail
    assert word in refusal.detail


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<xmin>1</xmin>", "<xmin>left</xmin>", "bad-box"),
        ("<xmin>1</xmin>", "", "bad-box"),
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "bad-box"),
        ("<xmax>40</xmax>", "<xmax>0</xmax>", "outside"),
        ("<ymin>3</ymin>", "<ymin>31</ymin>", "inverted"),
        ("<name>dog</name>", "<name></name>", "empty-text"),
        ("<name>dog</name>", "", "empty-text"),
    ],
)
def test_a_damaged_object_leaves_the_others(tmp_path, old, new, reason):
    [record], [refusal] = bring("voc", voc(tmp_path / "VOC", a=DOG.replace(old, new)), tmp_path / "out")
    assert (refusal.reason, refusal.region) == (reason, 0)
    assert [r.text for r in record.regions] == ["person"]


@pytest.mark.parametrize("size", ["<width>0</width><height>0</height>", "<width>?</width><height>30</height>", ""])
def test_a_size_that_is_not_stated_is_that_of_the_picture(tmp_path, size):
    xml = DOG.replace("<width>40</width><height>30</height>", size)
    [record], _ = bring("voc", voc(tmp_path / "VOC", a=xml), tmp_path / "out")
    assert (record.width, record.height) == (40, 30)


def test_pictures_and_annotations_that_do_not_match_are_reported(tmp_path):
    src = voc(tmp_path / "VOC", a=DOG, b=DOG, c=DOG, d=DOG.replace("<width>40", "<width>30"))
    (src / "Annotations/b.xml").unlink()
    (src / "JPEGImages/c.jpg").unlink()
    records, refused = bring("voc", src, tmp_path / "out")
    assert len(records) == 1
    assert [(r.reason, r.uri) for r in refused] == [
        ("missing-annotation", "JPEGImages/b.jpg"),
        ("size-mismatch", "JPEGImages/d.jpg"),
        ("missing-image", "Annotations/c.xml"),
    ]
    with pytest.raises(CorpusError, match="lacks the folder Annotations/"):
        bring("voc", src / "JPEGImages", tmp_path / "other")


CORNERS = "<bndbox><xmin>{0}</xmin><ymin>3</ymin><xmax>{1}</xmax><ymax>20</ymax></bndbox>"


def dogs(*inside: str) -> str:
    objects = "".join(f"<object><name>dog</name>{text}</object>" for text in inside)
    return f"<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"


def test_each_box_of_an_object_is_a_region(tmp_path):
    xml = dogs("".join(CORNERS.format(x, x + 9) for x in (1, 11, 21)), CORNERS.format(5, 9) + CORNERS.format(9, "wide"))
    [record], [refusal] = bring("voc", voc(tmp_path / "VOC", a=xml), tmp_path / "out")
    assert [r.box for r in record.regions] == [(0, 2, 10, 20), (10, 2, 20, 20), (20, 2, 30, 20), (4, 2, 9, 20)]
    assert (refusal.reason, refusal.region) == ("bad-box", 4)
    assert refusal.detail == "xmax should be one number, got wide"


@pytest.mark.parametrize(
    ("inside", "detail"),
    [
        ("", "an object without bndbox"),
        ("<bndbox><xmin>1</xmin><xmin>2</xmin></bndbox>", "xmin should be one number, got 1, 2"),
        (CORNERS.format(1, "1" * 401), "box (0.0, 2.0, inf, 20.0)"),
        (CORNERS.format(1, "1_0"), "xmax should be one number, got 1_0"),
        (CORNERS.format(1, "٣٠"), "xmax should be one number"),
        (CORNERS.format(1, 9) + "<difficult>perhaps</difficult>", "difficult should be true or false, got 'perhaps'"),
    ],
)
def test_a_box_that_cannot_be_read_is_reported(tmp_path, inside, detail):
    src = voc(tmp_path / "VOC", a=dogs(CORNERS.format(1, 9), inside))
    [record], [refusal] = bring("voc", src, tmp_path / "out")
    assert len(record.regions) == 1
    assert detail in refusal.detail


def test_difficult_is_what_it_says(tmp_path):
    values = ("1", "yes", "True", "0", "no", "false", "", "Unspecified")
    xml = dogs(*(CORNERS.format(1, 9) + f"<difficult>{value}</difficult>" for value in values))
    [record], _ = bring("voc", voc(tmp_path / "VOC", a=xml), tmp_path / "out")
    assert [r.ignore for r in record.regions] == [True] * 3 + [False] * 5


def test_a_second_name_is_an_alternative(tmp_path):
    xml = dogs("<name>beagle</name>" + CORNERS.format(1, 9))
    [record], _ = bring("voc", voc(tmp_path / "VOC", a=xml), tmp_path / "out")
    assert record.regions == [Region((0, 2, 9, 20), "dog", alternatives=["beagle"])]


def test_what_a_record_has_no_place_for_is_counted(tmp_path):
    bring("voc", voc(tmp_path / "VOC", a=DOG, b=DOG), tmp_path / "out")
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {"pose of an object": 2, "part of an object": 2}


@pytest.mark.parametrize("size", ["<width>-1</width><height>30</height>", "<width>40.0</width><height> 30 </height>"])
def test_a_size_is_read_leniently(tmp_path, size):
    xml = DOG.replace("<width>40</width><height>30</height>", size)
    [record], _ = bring("voc", voc(tmp_path / "VOC", a=xml), tmp_path / "out")
    assert (record.width, record.height) == (40, 30)


def listed(tmp_path, **lists: str | bytes):
    names = {name: DOG for name in ("car (1)", "car (2)", "van 1", "van", "a.b", "café")}
    src = voc(tmp_path / "VOC", **names)
    (src / "ImageSets/Main").mkdir(parents=True)
    for name, text in lists.items():
        (src / f"ImageSets/Main/{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return src


def splits(src, out, **options) -> dict[str, str]:
    records, _ = bring("voc", src, out, **options)
    return {r.uri.removeprefix("JPEGImages/").removesuffix(".jpg"): r.split for r in records if r.split}


def left_out(out) -> dict[str, int]:
    return {what: count for what, count in Corpus(out).manifest["meta"]["left_out"].items() if what.startswith("line")}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("car (1)", "car (1)"),
        ("car (1).jpg", "car (1)"),
        ("car (1).PNG\r", "car (1)"),
        ("JPEGImages\\car (1).jpg\r", "car (1)"),
        ("D:\\data\\VOC\\JPEGImages\\car (1).jpg", "car (1)"),
        ('"car (1)"', "car (1)"),
        ("car (1)  1", "car (1)"),
        ("car (1).jpg -1", "car (1)"),
        ("van 1", "van 1"),
        ("van", "van"),
        ("van 0", "van"),
        ("a.b", "a.b"),
        ("a.b.jpg", "a.b"),
        ("cafe\u0301", "café"),
        ("\ufeffvan", "van"),
    ],
)
def test_a_line_names_its_picture_however_it_is_written(tmp_path, line, name):
    src = listed(tmp_path, val=line + "\n", train="")
    assert splits(src, tmp_path / "out") == {name: "val"}
    assert left_out(tmp_path / "out") == {}


def test_lists_of_the_classes_are_read_where_there_is_no_whole_one(tmp_path):
    src = listed(tmp_path, car_train="car (1)  1\nvan -1\n", car_val="car (2)  1\n", car_trainval="van 1 1\n")
    assert splits(src, tmp_path / "out") == {"car (1)": "train", "van": "train", "car (2)": "val"}


def test_lines_that_name_nothing_are_counted_and_shown(tmp_path):
    src = listed(tmp_path, train="van\nbus\n\ntruck\n", val="car (2)\n")
    assert splits(src, tmp_path / "out") == {"van": "train", "car (2)": "val"}
    assert left_out(tmp_path / "out") == {"line of a split list that names no picture": 2}
    summary = import_corpus("voc", src, tmp_path / "again")
    assert "2  line of a split list that names no picture (train.txt:2: 'bus')" in str(summary)


def test_pictures_are_not_trained_on_because_the_list_that_holds_them_out_is_damaged(tmp_path):
    src = listed(tmp_path, train="van\n", val="car_1\ncar_2\n")
    with pytest.raises(CorpusError, match=r"val.txt:1: 'car_1': none of 2 lines for val names a picture, and 5 "):
        bring("voc", src, tmp_path / "out")
    reported = splits(src, tmp_path / "out", split="test")
    assert (reported.pop("van"), set(reported.values()), len(reported)) == ("train", {"test"}, 5)


def test_a_picture_in_two_lists_is_held_out(tmp_path):
    src = listed(tmp_path, train="van\nvan 1\na.b\n", val="van 1\na.b", test="a.b\n")
    assert splits(src, tmp_path / "out") == {"van": "train", "van 1": "val", "a.b": "test"}
    assert left_out(tmp_path / "out") == {"line of a split list, its picture being held out by another": 3}


def test_a_list_in_another_encoding_is_named_or_read_in_the_one_that_is_named(tmp_path):
    src = listed(tmp_path, train="van\n", val="café\n".encode("cp1252"))
    with pytest.raises(CorpusError, match=r"ImageSets/Main/val.txt: bad-encoding: val.txt is not UTF-8: name its enc"):
        bring("voc", src, tmp_path / "out")
    assert splits(src, tmp_path / "out", encoding="cp1252") == {"van": "train", "café": "val"}


@pytest.mark.parametrize(
    ("written", "declared", "named", "text"),
    [
        ("utf-8", "", "", "狗"),
        ("utf-8-sig", "", "gb18030", "狗"),
        ("utf-16", "utf-16", "", "狗"),
        ("gbk", "gbk", "", "狗"),
        ("gbk", "", "gb18030", "狗"),
        ("gbk", "utf-8", "gb18030", "狗"),
        ("utf-8", "utf-16", "", "狗"),
        ("cp1251", "windows-1251", "", "собака"),
        ("cp1251", "windows-1251", "latin-1", "собака"),
        ("gbk", "", "", None),
        ("gbk", "utf-8", "", None),
        ("utf-8", "punycode", "", None),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares_or_else_the_named_one(tmp_path, written, declared, named, text):
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    xml = (head + DOG.replace("dog", text or "狗")).encode(written)
    records, refused = bring("voc", voc(tmp_path / "VOC", good=DOG, zoo=xml), tmp_path / "out", encoding=named)
    assert [r.regions[0].text for r in records] == (["dog", text] if text else ["dog"])
    assert [r.reason for r in refused] == ([] if text else ["bad-xml"])


def test_pictures_or_annotations_of_one_name_are_ambiguous(tmp_path):
    src = voc(tmp_path / "VOC", a=DOG, b=DOG, c=DOG)
    save(src / "JPEGImages/a.png")
    (src / "Annotations/b.XML").write_text(DOG)
    [record], refused = bring("voc", src, tmp_path / "out")
    assert record.uri == "JPEGImages/c.jpg"
    assert [(r.reason, r.uri, r.regions) for r in refused] == [
        ("ambiguous-id", "JPEGImages/a.jpg", 2), ("ambiguous-id", "JPEGImages/a.png", 0),
        ("ambiguous-id", "JPEGImages/b.jpg", 4),
    ]  # fmt: skip


def test_the_regions_of_missing_pictures_are_counted(tmp_path):
    src = voc(tmp_path / "VOC", a=DOG, b=DOG, c=DOG.replace("<width>40", "<width>41"))
    (src / "JPEGImages/b.jpg").unlink()
    summary = import_corpus("voc", src, tmp_path / "out")
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (6, 2, 4)


def test_folders_named_after_their_splits_hold_pictures_and_annotations_side_by_side(tmp_path):
    for name in ("train", "valid", "test"):
        save(tmp_path / name / "1.jpg")
        (tmp_path / name / "1.xml").write_text(DOG)
    for other in ("notes.txt", "._1.jpg", "._1.xml", ".DS_Store"):
        (tmp_path / "train" / other).write_bytes(b"\0\5\x16\7")
    voc(tmp_path / "dev", d=DOG)
    records, refused = bring("voc", tmp_path, tmp_path / "out")
    assert {r.uri: r.split for r in records} == {
        "train/1.jpg": "train", "valid/1.jpg": "val", "test/1.jpg": "test", "dev/JPEGImages/d.jpg": "val",
    }  # fmt: skip
    assert refused == []
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"]["file that is neither picture nor annotation"] == 4
    records, _ = bring("voc", tmp_path / "valid", tmp_path / "one")
    assert [(r.uri, r.split) for r in records] == [("1.jpg", "val")]


def test_pipes_huge_files_and_deep_nesting_cost_their_picture_only(tmp_path, monkeypatch):
    monkeypatch.setattr(voc_importer, "MAX_FILE_BYTES", 1_000_000)
    deep = "<a>" * 100_000 + "</a>" * 100_000
    src = voc(tmp_path / "VOC", a=DOG, b=DOG, c=DOG.replace("<size>", " " * 1_000_000 + "<size>"), d=deep)
    (src / "Annotations/b.xml").unlink()
    os.mkfifo(src / "Annotations/b.xml")
    records, refused = bring("voc", src, tmp_path / "out")
    assert [r.uri for r in records] == ["JPEGImages/a.jpg", "JPEGImages/d.jpg"]
    assert [(r.reason, r.uri) for r in refused] == [("bad-xml", "JPEGImages/b.jpg"), ("bad-xml", "JPEGImages/c.jpg")]
