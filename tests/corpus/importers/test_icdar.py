"""The two layouts of the Robust Reading challenges: quadrilaterals of 2015, rectangles of 2013."""

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import CorpusError
from granvit.regions import Region

BOM = "\ufeff"
LINES_2015 = [
    "3,4,13,4,13,9,3,9,Genaxis Theatre",
    "20,10,30,8,31,12,21,14,[06]",
    "1,20,9,20,9,25,1,25,###",
    "2,1,30,1,30,3,2,3,Stock, 3,50",
]


def challenge(folder, lines, name="img_1"):
    save(folder / f"ch4_training_images/{name}.jpg")
    truth = folder / f"ch4_training_localization_transcription_gt/gt_{name}.txt"
    truth.parent.mkdir(exist_ok=True)
    truth.write_bytes((BOM + "\r\n".join(lines) + "\r\n").encode())
    return folder


def test_words_of_2015(tmp_path):
    [got], refused = bring("icdar", challenge(tmp_path / "ic15", LINES_2015), tmp_path / "out", split="train")
    assert got.id == "icdar/ch4_training_images/img_1.jpg" and got.split == "train"
    assert got.regions == [
        Region((3, 4, 13, 9), "Genaxis Theatre", "text"),
        Region((20, 8, 31, 14), "[06]", "text", polygon=[20, 10, 30, 8, 31, 12, 21, 14]),
        Region((1, 20, 9, 25), "###", "text", ignore=True),
        Region((2, 1, 30, 3), "Stock, 3,50", "text"),
    ]
    assert refused == []


@pytest.mark.parametrize("line", ['3, 4, 13, 9, "Tiredness, "kills""', '3 4 13 9 "Tiredness, "kills""'])
def test_words_of_2013(tmp_path, line):
    [got], _ = bring("icdar", challenge(tmp_path / "ic13", [line]), tmp_path / "out")
    assert got.regions == [Region((3, 4, 13, 9), 'Tiredness, "kills"', "text")]


def test_pictures_elsewhere(tmp_path):
    src = challenge(tmp_path / "ic15", LINES_2015)
    (src / "ch4_training_images").rename(tmp_path / "pictures")
    [got], _ = bring("icdar", src, tmp_path / "out", images=tmp_path / "pictures")
    assert (got.uri, len(got.regions)) == ("img_1.jpg", 4)


def test_damage(tmp_path):
    src = challenge(tmp_path / "ic15", ["1,2,3", "a,b,c,d,e,f,g,h,word", "3,4,13,4,13,9,3,9", "3,4,13,4,13,9,3,9,fine"])
    save(src / "ch4_training_images/img_2.jpg")
    (src / "ch4_training_localization_transcription_gt/gt_img_3.txt").write_text("")
    [got], refused = bring("icdar", src, tmp_path / "out")
    assert [r.text for r in got.regions] == ["fine"]
    assert [(r.reason, r.region) for r in refused] == [
        ("bad-box", 0), ("bad-box", 1), ("bad-box", 2), ("missing-annotation", None), ("missing-image", None),
    ]  # fmt: skip


def test_two_splits_at_once_are_refused(tmp_path):
    src = challenge(tmp_path / "ic15", LINES_2015)
    save(src / "ch4_test_images/img_1.jpg")
    with pytest.raises(CorpusError, match="img_1.jpg have the same name: import one split at a time"):
        bring("icdar", src, tmp_path / "out")
    with pytest.raises(CorpusError, match=r"holds no gt_\*\.txt"):
        bring("icdar", src / "ch4_test_images", tmp_path / "out")


def test_words_in_another_encoding(tmp_path):
    save(tmp_path / "d/img_1.jpg")
    save(tmp_path / "d/img_2.jpg")
    (tmp_path / "d/gt_img_1.txt").write_bytes("1,1,20,1,20,9,1,9,出口\n".encode("gb18030"))
    (tmp_path / "d/gt_img_2.txt").write_bytes(b"1,1,20,1,20,9,1,9,EXIT\n")
    (tmp_path / "d/gt_img_3.txt").write_bytes(b"1,1,20,1,20,9,1,9,LOST\n1,1,20,1,20,9,1,9,TOO\n")
    [record], refused = bring("icdar", tmp_path / "d", tmp_path / "out")
    assert record.regions[0].text == "EXIT"
    assert [(r.reason, r.regions) for r in refused] == [("bad-encoding", 0), ("missing-image", 2)]
    records, _ = bring("icdar", tmp_path / "d", tmp_path / "named", encoding="gb18030")
    assert [r.regions[0].text for r in records] == ["出口", "EXIT"]


@pytest.mark.parametrize("number", ["1_0", "nan", "inf", "0x10", "1e400"])
def test_what_is_no_coordinate(tmp_path, number):
    save(tmp_path / "d/img_1.jpg")
    (tmp_path / "d/gt_img_1.txt").write_text(f"1,1,20,1,20,9,1,9,GOOD\n{number},1,20,1,20,9,1,9,BAD\n")
    [record], refused = bring("icdar", tmp_path / "d", tmp_path / "out")
    assert ([r.text for r in record.regions], [r.reason for r in refused]) == (["GOOD"], ["bad-box"])
