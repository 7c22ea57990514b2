"""Receipts of SROIE: eight coordinates and a text a line."""

from pathlib import Path

import pytest
from importing import bring, save

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
        "sroie", sroie(tmp_path / "raw", suffix, encoding), tmp_path / "out", split="train"
    )
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
    told = [(r.reason, r.uri, r.region) for r in refused]
    assert told[0] == ("missing-annotation", "img/000.jpg", None)
    assert told[-1] == ("missing-image", "box/002.csv", None)
    with pytest.raises(CorpusError, match="lacks the folder img/"):
        bring("sroie", src / "box", tmp_path / "other")
