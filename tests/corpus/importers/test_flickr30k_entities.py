"""Flickr30k Entities: captions with mentions, and XML that boxes what they mention."""

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region

SENTENCES = """[/EN#1/people Two guys] with [/EN#5/bodyparts shaggy hair] eye [/EN#4/bodyparts their hands] .
[/EN#2/people A man] in [/EN#3/clothing a blue shirt] is in [/EN#6/scene a yard] beside [/EN#0/notvisual another] .
[/EN#1/people/other Two friends] , [/EN#2/people one in blue] , enjoy time spent together in the yard of one of them .
"""


def element(*chains, box=None, flags=""):
    names = "".join(f"<name>{chain}</name>" for chain in chains)
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False)
    bndbox = "<bndbox>" + "".join(f"<{name}>{value}</{name}>" for name, value in corners) + "</bndbox>"
    return f"<object>{names}{bndbox if box else flags}</object>"


XML = """<annotation>
<filename>1000092795.jpg</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
{}
</annotation>
""".format(
    "".join(
        [
            element(1, 2, box=(1, 3, 15, 30)),
            element(1, box=(21, 5, 40, 28)),
            element(3, box=(2, 8, 14, 20)),
            element(5, box=(2, 3, 8, 7)),
            element(4, 4, box=(2, 8, 14, 20)),
            element(6, flags="<scene>1</scene><nobndbox>1</nobndbox>"),
        ]
    )
)


def entities(folder, sentences=SENTENCES, xml=XML, key="1000092795"):
    for name, text in ((f"Annotations/{key}.xml", xml), (f"Sentences/{key}.txt", sentences)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    save(folder / f"flickr30k-images/{key}.jpg")
    return folder


def test_a_region_for_every_chain_around_all_its_boxes(tmp_path):
    src = entities(tmp_path / "f30k")
    (src / "val.txt").write_text("36979\n1000092795\n")
    [record], refused = bring("flickr30k_entities", src, tmp_path / "out")
    assert refused == []
    assert (record.id, record.split) == ("flickr30k_entities/1000092795.jpg", "val")
    assert record.caption == "Two friends , one in blue , enjoy time spent together in the yard of one of them ."
    assert record.regions == [
        Region((0, 2, 40, 30), "Two guys", alternatives=["Two friends"]),
        Region((0, 2, 15, 30), "A man", alternatives=["one in blue"]),
        # Two chains with one box: the shirt, and the hands on it.
        Region((1, 7, 14, 20), "a blue shirt", alternatives=["their hands"]),
        Region((1, 2, 8, 7), "shaggy hair"),
    ]


def test_a_caption_of_another_photo_is_not_read(tmp_path):
    src = entities(tmp_path / "f30k")
    (src / "UNRELATED_CAPTIONS").write_text("# format: <imageID> <sentence number>\n36979 1\n1000092795 3\nnonsense\n")
    [record], _ = bring("flickr30k_entities", src, tmp_path / "out")
    assert record.caption.startswith("A man in a blue shirt is in a yard beside another .")
    assert [r.alternatives for r in record.regions] == [[], [], ["their hands"], []]


def test_a_chain_that_no_caption_mentions_and_damaged_boxes_are_reported(tmp_path):
    xml = XML.replace("<name>5</name>", "<name>99</name>").replace("<xmax>40</xmax>", "<xmax>?</xmax>")
    [record], refused = bring("flickr30k_entities", entities(tmp_path / "f30k", xml=xml), tmp_path / "out")
    assert [(r.reason, r.region) for r in refused] == [("bad-box", 0), ("empty-text", 3)]
    assert [r.text for r in record.regions] == ["A man", "a blue shirt"]


@pytest.mark.parametrize(
    "damaged", ["[/EN#1/people Two guys look .", "[/EN#x/people Two guys] look .", "[/EN#1/people] look .", "[/EN#1"]
)
def test_a_damaged_caption_is_reported_and_the_others_are_read(tmp_path, damaged):
    src = entities(tmp_path / "f30k", sentences=f"{damaged}\n[/EN#3/clothing A shirt] .\n")
    [record], refused = bring("flickr30k_entities", src, tmp_path / "out")
    assert ("bad-caption", "Sentences/1000092795.txt", 0) in [(r.reason, r.uri, r.region) for r in refused]
    assert record.caption == "A shirt ."
    assert [r.text for r in record.regions] == ["A shirt"]


def test_what_lacks_a_partner_is_reported(tmp_path):
    src = entities(tmp_path / "f30k")
    for key, gone in (("2", "Sentences/2.txt"), ("3", "Annotations/3.xml"), ("4", "flickr30k-images/4.jpg")):
        entities(src, key=key)
        (src / gone).unlink()
    entities(src, key="5", xml="<!DOCTYPE x><annotation/>")
    records, refused = bring("flickr30k_entities", src, tmp_path / "out")
    assert len(records) == 1
    assert [(r.reason, r.uri) for r in refused] == [
        ("missing-annotation", "2.jpg"),
        ("missing-image", "4.jpg"),
        ("bad-xml", "5.jpg"),
        ("missing-annotation", "Sentences/3.txt"),
    ]


def test_the_photos_may_be_elsewhere_but_must_be_somewhere(tmp_path):
    src = entities(tmp_path / "f30k")
    (src / "flickr30k-images").rename(tmp_path / "photos")
    with pytest.raises(CorpusError, match="name the folder of the photos"):
        bring("flickr30k_entities", src, tmp_path / "out")
    records, _ = bring("flickr30k_entities", src, tmp_path / "out", images=tmp_path / "photos")
    assert [r.uri for r in records] == ["1000092795.jpg"]
    with pytest.raises(CorpusError, match="lacks the folder Annotations/"):
        bring("flickr30k_entities", src / "Sentences", tmp_path / "other")


def test_what_a_record_has_no_place_for_is_counted(tmp_path):
    src = entities(tmp_path / "f30k")
    (src / "UNRELATED_CAPTIONS").write_text("1000092795 3\n")
    bring("flickr30k_entities", src, tmp_path / "out")
    # Of the phrases, "a yard" and "another" have no box.
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {
        "further caption of an image": 1, "caption in UNRELATED_CAPTIONS": 1, "object without a box": 1,
        "phrase without a box": 2,
    }  # fmt: skip


def test_all_boxes_of_an_object_count_and_a_damaged_one_refuses_its_chain(tmp_path):
    second = "<bndbox><xmin>31</xmin><ymin>20</ymin><xmax>{}</xmax><ymax>25</ymax></bndbox></object>"
    for xmax, boxes in (("35", {(1, 7, 35, 25)}), ("x", set())):
        box = element(3, box=(2, 8, 14, 20)).replace("</object>", second.format(xmax))
        src = entities(tmp_path / xmax, xml=XML.replace(element(3, box=(2, 8, 14, 20)), box))
        [record], refused = bring("flickr30k_entities", src, tmp_path / f"out-{xmax}")
        assert {r.box for r in record.regions if r.text == "a blue shirt"} == boxes
        assert [r.reason for r in refused] == ([] if boxes else ["bad-box"])


def test_lists_and_sentences_are_utf_8_or_what_is_named(tmp_path):
    src = entities(tmp_path / "f30k")
    entities(src, key="2")
    (src / "Sentences/2.txt").write_bytes(SENTENCES.replace("Two guys", "Deux garçons").encode("cp1252"))
    records, [refusal] = bring("flickr30k_entities", src, tmp_path / "out")
    assert len(records) == 1
    assert (refusal.reason, refusal.uri) == ("bad-encoding", "2.jpg")
    records, _ = bring("flickr30k_entities", src, tmp_path / "named", encoding="cp1252")
    assert records[1].regions[0].text == "Deux garçons"
    (src / "train.txt").write_bytes(b"2\n\xe9\n")
    with pytest.raises(CorpusError, match=r"f30k/train.txt: bad-encoding"):
        bring("flickr30k_entities", src, tmp_path / "other")


def test_a_photo_in_two_lists_is_held_out(tmp_path):
    src = entities(tmp_path / "f30k")
    (src / "train.txt").write_text("1000092795.jpg\r\n")
    (src / "test.txt").write_text("images\\1000092795.jpg\r\n")
    [record], _ = bring("flickr30k_entities", src, tmp_path / "out")
    assert record.split == "test"


def test_the_regions_of_a_missing_photo_are_counted(tmp_path):
    src = entities(entities(tmp_path / "f30k"), key="2")
    (src / "flickr30k-images/2.jpg").unlink()
    _, [refusal] = bring("flickr30k_entities", src, tmp_path / "out")
    assert (refusal.reason, refusal.regions) == ("missing-image", 4)
