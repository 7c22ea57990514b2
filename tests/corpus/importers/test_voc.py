"""PASCAL VOC: XML beside pictures, pixels counted from 1."""

import pytest
from importing import bring, save

from granvit.corpus.store import CorpusError
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


def test_pictures_and_annotations_that_do_not_match_are_told(tmp_path):
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
