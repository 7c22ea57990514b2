"""Receipts of SROIE: eight coordinates and a text a line."""

from pathlib import Path

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.importers.text_lines import unquoted
from granvit.corpus.store import CorpusError
from granvit.regions import Region


def sroie(folder: Path, box_suffix: str = ".csv", encoding: str = "utf-8") -> Path:
    """The raw tree: two receipts, the second with a turned line, a broken line, commas and an empty text."""
    for name in ("000", "001"):
        save(folder / f"img/{name}.jpg")
    (folder / "box").mkdir()
    (folder / f"box/000{box_suffix}").write_bytes("2,3,30,3,30,10,2,10,CAFÉ SDN, BHD\r\n".encode(encoding))
    (folder / f"box/001{box_suffix}").write_bytes(
        b"2,3,30,5,29,12,1,10,TOTAL: 1,234.00\n\n2,3,x,3,30,10,2,10,BROKEN\n2,3,30,3,30,10,2,10,\n2,3,30\n"
    )
    return folder


@pytest.mark.parametrize(("suffix", "encoding"), [(".csv", "utf-8"), (".txt", "latin-1"), (".txt", "utf-8-sig")])
def test_sroie(tmp_path, suffix, encoding):
    (first, second), refused = bring(
        "sroie", sroie(tmp_path / "raw", suffix, encoding), tmp_path / "out", split="train",
        encoding="latin-1" if encoding == "latin-1" else "",
    )  # fmt: skip
    assert (first.id, first.width, first.height, first.split) == ("sroie/img/000.jpg", 40, 30, "train")
    assert first.regions == [Region((2, 3, 30, 10), "CAFÉ SDN, BHD", "text")]
    assert second.regions == [Region((1, 3, 30, 12), "TOTAL: 1,234.00", "text", polygon=[2, 3, 30, 5, 29, 12, 1, 10])]
    assert [(r.reason, r.uri, r.region) for r in refused] == [
        ("bad-box", "img/001.jpg", 1),
        ("empty-text", "img/001.jpg", 2),
        ("bad-box", "img/001.jpg", 3),
    ]


def test_without_partner_or_folder(tmp_path):
    src = sroie(tmp_path / "raw")
    (src / "box/000.csv").rename(src / "box/002.csv")
    _, refused = bring("sroie", src, tmp_path / "out")
    reported = [(r.reason, r.uri, r.region) for r in refused]
    assert reported[0] == ("missing-annotation", "img/000.jpg", None)
    assert reported[-1] == ("missing-image", "box/002.csv", None)
    with pytest.raises(CorpusError, match="lacks the folder img/"):
        bring("sroie", src / "box", tmp_path / "other")


@pytest.mark.parametrize("encoding", ["gb18030", "cp1251", "shift_jis", "latin-1", "utf-16"])
def test_text_of_another_encoding_is_refused_with_its_file_unless_it_is_named(tmp_path, encoding):
    text = {"cp1251": "Чек", "latin-1": "CAFÉ"}.get(encoding, "領収書")
    src = tmp_path / "raw"
    for name in ("0", "1"):
        save(src / f"img/{name}.jpg")
    (src / "box").mkdir()
    (src / "box/0.csv").write_bytes(f"2,3,30,3,30,10,2,10,{text}\n".encode(encoding))
    (src / "box/1.csv").write_bytes(b"2,3,30,3,30,10,2,10,PLAIN\n")
    records, [refused] = bring("sroie", src, tmp_path / "out")
    assert ([r.regions[0].text for r in records], refused.reason) == (["PLAIN"], "bad-encoding")
    assert refused.detail.startswith("0.csv is not UTF-8")
    if encoding == "utf-16":  # in it, the plain file is none
        (src / "box/1.csv").write_bytes("2,3,30,3,30,10,2,10,PLAIN\n".encode(encoding))
    records, refused = bring("sroie", src, tmp_path / "named", encoding=encoding)
    assert ([r.regions[0].text for r in records], refused) == ([text, "PLAIN"], [])


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('"TAN, WOON ""YANN"""', 'TAN, WOON "YANN"'), ('14" DISC', '14" DISC'), ('"A" AND "B"', '"A" AND "B"'),
        ('""', ""), ('"SAID, "NO"', '"SAID, "NO"'), ("TOTAL, RM", "TOTAL, RM"), ('1/4",5/32"', '1/4",5/32"'),
    ],
)  # fmt: skip
def test_quotation_marks_are_those_of_csv_or_of_the_text(written, text):
    assert unquoted(written) == text


def test_the_lines_of_a_picture_that_is_missing_are_counted(tmp_path):
    src = sroie(tmp_path / "raw")
    (src / "img/001.jpg").unlink()
    summary = import_corpus("sroie", src, tmp_path / "out", split="train")
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (5, 1, 4)


def test_names_that_several_have_and_what_macos_adds(tmp_path):
    src = sroie(tmp_path / "raw")
    save(src / "img/000.png")
    (src / "box/001.txt").write_text("1,1,9,1,9,9,1,9,OTHER\n")
    save(src / "img/002.jpg")
    (src / "box/002.csv").write_text("1,1,9,1,9,9,1,9,GOOD\n")
    for name in ("img/._002.jpg", "box/._002.csv"):
        (src / name).write_bytes(b"\0\5\x16\7" + bytes(60))
    summary = import_corpus("sroie", src, tmp_path / "out")
    assert (summary.images_written, summary.reasons) == (1, {"ambiguous-id": 3})
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (7, 1, 6)
    assert summary.left_out == {"files that macOS adds": 2}


def test_fields_of_a_receipt_are_asked_for(tmp_path):
    """One question a field that has a value; what is no text is refused, and the receipt kept."""
    src = sroie(tmp_path / "raw")
    (src / "key").mkdir()
    (src / "key/000.json").write_text('{"company": "CAFÉ SDN, BHD ", "date": "", "total": "9.00"}', encoding="utf-8")
    (src / "key/001.json").write_text('{"company": 5, "date": "1/2/2018", "address": ["a"], "total": "3"}')
    (first, second), refused = bring("sroie", src, tmp_path / "out", split="train")
    short = "\nAnswer the question using a single word or phrase."
    assert [[(t.role, t.text) for t in said] for said in first.conversations] == [
        [("user", "Which company issued this receipt?" + short), ("assistant", "CAFÉ SDN, BHD")],
        [("user", "What is the total on this receipt?" + short), ("assistant", "9.00")],
    ]
    assert [said[1].text for said in second.conversations] == ["1/2/2018", "3"] and first.split == "train"
    assert [r.reason for r in refused].count("bad-field") == 2 and len(first.regions) == 1


def test_fields_are_in_the_encoding_of_the_lines(tmp_path):
    src = sroie(tmp_path / "raw")
    (src / "key").mkdir()
    (src / "key/000.json").write_bytes('{"company": "CAFÉ"}'.encode("latin-1"))
    (first, _), _ = bring("sroie", src, tmp_path / "out", encoding="latin-1")
    assert [said[1].text for said in first.conversations] == ["CAFÉ"]
    (first, _), refused = bring("sroie", src, tmp_path / "other")
    assert first.conversations == [] and ("bad-encoding", 0) in [(r.reason, r.conversation) for r in refused]


def test_fields_that_are_not_asked_for_are_counted(tmp_path):
    src = sroie(tmp_path / "raw")
    for folder, content in (("key", '{"company": "A", "tax": "1", "phone": ""}'), ("entities", '{"company": "B"}')):
        (src / folder).mkdir()
        (src / folder / "000.json").write_text(content)
    assert import_corpus("sroie", src, tmp_path / "out").left_out == {
        "further files of a receipt's fields": 1, "fields that are not asked for": 2, "fields without a value": 3,
    }  # fmt: skip


@pytest.mark.parametrize("content", ["[1]", "{", "no json", "[" * 100_000])
def test_a_damaged_file_of_fields_costs_the_fields_alone(tmp_path, content):
    src = sroie(tmp_path / "raw")
    (src / "entities").mkdir()
    (src / "entities/000.txt").write_text(content)
    (first, _), refused = bring("sroie", src, tmp_path / "out")
    assert first.conversations == [] and len(first.regions) == 1
    assert [(r.reason, r.uri) for r in refused][0] == ("bad-field", "img/000.jpg")
