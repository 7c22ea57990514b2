"""Pages of DocBank: words on a canvas of a thousand, joined into lines."""

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import CorpusError
from granvit.regions import Region

NAME = "103.tar_1408.2982.gz_banach_4"


def row(token, box, label="paragraph"):
    return "\t".join([token, *map(str, box), "0", "0", "0", "MFYPWA+CMR12", label])


def page(folder, rows, texts="DocBank_500K_txt", pictures="DocBank_500K_ori_img"):
    save(folder / pictures / f"{NAME}_ori.jpg", (500, 2000))
    (folder / texts).mkdir(parents=True, exist_ok=True)
    (folder / texts / f"{NAME}.txt").write_text("".join(f"{line}\n" for line in rows))
    return folder


def by_pdf(box, text, kind="text", **more):
    return Region(box, text, kind, box_by="pdf", text_by="pdf", **more)


@pytest.mark.parametrize("folders", [("DocBank_500K_txt", "DocBank_500K_ori_img"), ("", "")])
def test_words_become_lines(tmp_path, folders):
    rows = [
        row("LAST", (100, 50, 200, 60)), row("QUESTION", (210, 50, 300, 60)),
        row("5", (900, 50, 914, 60)),  # the same line, another column
        row("a", (100, 61, 120, 71)), row("ﬁnite", (130, 61, 200, 71)),
        row("set", (210, 61, 300, 71), "list"),  # the same line, another label
    ]  # fmt: skip
    [got], refused = bring("docbank", page(tmp_path / "docbank", rows, *folders), tmp_path / "out")
    assert (got.id, got.width, got.height) == (f"docbank/{NAME}_ori.jpg", 500, 2000)
    assert got.regions == [
        by_pdf((50, 100, 150, 120), "LAST QUESTION"),
        by_pdf((450, 100, 457, 120), "5"),
        by_pdf((50, 122, 100, 142), "a finite"),
        by_pdf((105, 122, 150, 142), "set"),
    ]
    assert refused == []


def test_what_is_not_what_is_printed_is_ignored(tmp_path):
    rows = [
        row("L(cid:32)", (100, 50, 200, 60)),
        row("S´eances", (100, 70, 200, 80)),
        row("†", (100, 90, 200, 95)),
        row("x=1", (100, 110, 200, 120), "equation"),
        row("##LTFigure##", (100, 200, 500, 400), "figure"),
        row("##LTLine##", (100, 500, 500, 500), "table"),
    ]
    [got], refused = bring("docbank", page(tmp_path / "docbank", rows), tmp_path / "out")
    assert [r.ignore for r in got.regions] == [True] * 4 + [False]
    assert got.regions[-1] == by_pdf((50, 400, 250, 800), "figure", "object")
    assert refused == []


def test_published_lists_name_the_split(tmp_path):
    src = page(tmp_path / "docbank", [row("x", (0, 0, 9, 9))])
    (src / "indexed_files").mkdir()
    (src / "indexed_files/500K_train.txt").write_text("1.tar_1401.0001.gz_other_0.txt\r\n")
    (src / "indexed_files/500K_dev.txt").write_text(f"{NAME}.txt\r\n")
    [got], _ = bring("docbank", src, tmp_path / "out", split="train")
    assert got.split == "val"


def test_damage(tmp_path):
    rows = ["only two\tfields", row("x", (1, "one", 3, 4)), row("x", (1, 2, 3, 4), "poem"), row("x", (1, 1, 1, 9)),
            row("outside", (1001, 1001, 1200, 1200)), row("kept", (1, 20, 30, 40))]  # fmt: skip
    src = page(tmp_path / "docbank", rows)
    (src / "DocBank_500K_txt/gone.txt").write_text(row("x", (1, 2, 3, 4)))
    (src / "DocBank_500K_txt/text.txt").write_text(row("x", (1, 2, 3, 4)))
    (src / "DocBank_500K_ori_img/text_ori.jpg").write_text("no picture")
    [got], refused = bring("docbank", src, tmp_path / "out")
    assert [r.text for r in got.regions] == ["kept"]
    assert [(r.reason, r.region) for r in refused] == [
        ("bad-box", 0), ("bad-box", 1), ("bad-box", 2), ("degenerate", 3), ("outside", 4),
        ("missing-image", None), ("not-an-image", None),
    ]  # fmt: skip


def test_other_folders(tmp_path):
    with pytest.raises(CorpusError, match="DocBank_500K_txt"):
        bring("docbank", tmp_path, tmp_path / "out")


def test_nothing_goes_uncounted(tmp_path):
    src = page(tmp_path / "docbank", [row("café", (100, 50, 200, 60))])
    for name in ("other", "alone"):
        save(src / f"DocBank_500K_ori_img/{name}_ori.jpg", (500, 2000))
    (src / "DocBank_500K_txt/other.txt").write_bytes((row("café", (100, 50, 200, 60)) + "\n").encode("latin-1"))
    lost = [row("a", (9, 9, 90, 18)), row("b", (9, 60, 90, 69))]
    (src / "DocBank_500K_txt/lost.txt").write_text("\n".join(lost))
    (src / "indexed_files").mkdir()
    (src / "indexed_files/500K_train.txt").write_text(f"{NAME}.txt\nnowhere.txt\n")
    summary = import_corpus("docbank", src, tmp_path / "out")
    assert summary.reasons == {"bad-encoding": 1, "missing-image": 1, "missing-annotation": 1}
    assert (summary.images_seen, summary.regions_seen, summary.regions_with_image) == (4, 3, 2)
    assert summary.left_out == {"line of a split list that names no picture": 1}
    records, _ = bring("docbank", src, tmp_path / "named", encoding="latin-1")
    assert {record.split for record in records} == {"train", ""}
