"""Conversations, and records without a picture, go through everything that takes a corpus: nothing is lost silently."""

import io
import json

import pytest
from PIL import Image

from granvit.cli.corpus_look import Head, Stats
from granvit.corpus import derive
from granvit.corpus.audit.run import audit, write_audit
from granvit.corpus.audit.sheet import write_sheet
from granvit.corpus.check import Rejection, check_record, read_quarantine, verify
from granvit.corpus.curate.curation import Curation, curate
from granvit.corpus.curate.filters import Filters, ImageFilter
from granvit.corpus.dedup.leakage import find_leaks, load_benchmarks
from granvit.corpus.importers import import_corpus
from granvit.corpus.stats import Statistics
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.regions import Region, RegionImage, Turn


def said(*texts):
    return [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def png(number, size=(60, 40)):
    data = io.BytesIO()
    Image.effect_mandelbrot(size, (-2 + number / 9, -1.5, 1, 1.5), 40).convert("RGB").save(data, "PNG")
    return data.getvalue()


RECORDS = [
    RegionImage("mix/alone", None, 0, 0, [], source="mix", conversations=[said("1+1?", "2", "And 2+2?", "4")]),
    RegionImage(
        "mix/both", png(1), 60, 40, [Region((5, 5, 45, 35), "a blob")], source="mix", caption="A blob.",
        conversations=[said("What?", "A blob."), said("Where?", "In the middle.")],
    ),
    RegionImage("mix/talk", png(4), 60, 40, [], source="mix", conversations=[said("Hm?", "No.")], split="val"),
    RegionImage("mix/plain", png(8), 60, 40, [Region((5, 5, 45, 35), "a fleck")], source="mix"),
    RegionImage("chat/7", None, 0, 0, [], source="chat", conversations=[said("Hi", "Ho")], split="val"),
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    with CorpusWriter(tmp_path / "corpus") as writer:
        for record in RECORDS:
            writer.write(record)
    assert verify(tmp_path / "corpus") == []
    return Corpus(tmp_path / "corpus")


def test_statistics(corpus, capsys):
    mix, chat = Statistics.of(corpus.records()).values()
    assert (mix.images, mix.without_picture, mix.empty, mix.conversations) == (4, 1, 1, 4)
    assert (chat.images, chat.without_picture, chat.empty, chat.conversations) == (1, 1, 0, 1)
    assert (mix.short_side.total, mix.short_side.min, mix.regions_per_image.total) == (3, 40, 3)
    assert (mix.turns.total, mix.turns.max, chat.conversation_words.sum) == (4, 4, 2)
    assert json.loads(json.dumps(mix.to_json()))["conversations"] == 4
    assert Stats(corpus.path).run() == 0
    assert "  talk     4 conversations of 2 (2 to 4) turns" in capsys.readouterr().out


def test_looking_at_it(corpus, tmp_path, capsys):
    assert Head(corpus.path).run() == 0
    out = capsys.readouterr().out
    assert "mix/alone  no picture  mix\n  user:      1+1?\n  assistant: 2\n" in out and "60x40" in out
    assert write_sheet(corpus, tmp_path / "show.html", "mix") == 5
    page = (tmp_path / "show.html").read_text()
    assert "No picture: a conversation alone" in page and "And 2+2?" in page
    assert "2 regions, 5 conversations" in page


def test_parts_of_it(corpus, tmp_path):
    parts = derive.split(corpus, tmp_path / "parts", val=0.0)
    assert parts == {"train": 3, "val": 2}
    assert [r.id for r in Corpus(tmp_path / "parts/val")] == ["mix/talk", "chat/7"]
    both = [Corpus(tmp_path / "parts" / name) for name in ("train", "val")]
    assert derive.merge(both, tmp_path / "merged") == 5
    merged = {r.id: r.conversations for r in Corpus(tmp_path / "merged")}
    assert merged == {r.id: r.conversations for r in RECORDS}
    places = derive.sample(corpus, 1, per_source=True)
    derive.write_part(corpus, [corpus[place] for place in places], tmp_path / "sample", {})
    assert verify(tmp_path / "sample") == []


def test_tiles_hold_no_conversation(corpus, tmp_path):
    made = derive.tile(corpus, tmp_path / "tiles", derive.Tiling(40), progress=False)
    # What is talked about and has no region is not cut.
    assert (made.whole, made.conversations, made.captions) == (3, 2, 1) and made.tiles >= 2
    tiles = list(Corpus(tmp_path / "tiles"))
    assert [r.id for r in tiles if r.conversations] == ["mix/alone", "mix/talk", "chat/7"] and verify(
        tmp_path / "tiles"
    ) == []


def test_curation(corpus, tmp_path):
    """Filters are about pictures and regions: what is talked about needs no region, conversations alone no picture."""
    filters = Filters(object_image=ImageFilter(min_short_side=10))
    report = curate(corpus, tmp_path / "curated", Curation(filters))
    kept = {record.id: record for record in Corpus(tmp_path / "curated")}
    assert set(kept) == {"mix/alone", "mix/both", "mix/talk", "chat/7"}  # the boxes are below 100^2 pixels
    assert (kept["mix/both"].regions, kept["mix/both"].conversations) == ([], RECORDS[1].conversations)
    assert report.total("conversations_in") == report.total("conversations_out") == 5 + 1 - 1
    assert report.without_fingerprint == {} and "conversations 5 of 5 kept" in str(report)
    gone = curate(corpus, tmp_path / "large", Curation())
    assert [r.id for r in Corpus(tmp_path / "large")] == ["mix/alone", "chat/7"]
    assert (gone.total("conversations_in"), gone.total("conversations_out")) == (5, 2)


def test_copies_and_leaks(corpus, tmp_path):
    report = find_leaks(corpus, load_benchmarks([corpus.path]))
    assert {leak.id for leak in report.leaks} == {"mix/both", "mix/talk", "mix/plain"}
    assert report.unseen["no-image-bytes"] == 0 and report.unseen["no-picture"] == 0


def test_the_audit(corpus, tmp_path):
    result = audit(corpus, count=10)
    assert {card.id for card in result.cards} == {"mix/both", "mix/talk", "mix/plain"}
    assert result.duplication["chat"].images == 0
    write_audit(result, tmp_path / "audit")


def test_what_has_neither_picture_nor_conversation(tmp_path):
    for record, reason in (
        (RegionImage("a", None, 0, 0, []), "no-size"),
        (RegionImage("a", None, 0, 0, [Region((0, 0, 9, 9), "x")], conversations=[said("Hi", "Ho")]), "missing-image"),
        (RegionImage("a", None, 0, 0, [], uri="a.jpg", conversations=[said("Hi", "Ho")]), "no-size"),
        (RegionImage("a", None, 0, 0, [], conversations=[said("Hi")]), "bad-turns"),
    ):
        checked = check_record(record)
        assert checked.record is None
        assert checked.rejections == [
            Rejection(
                reason, "a", record.uri, None, checked.rejections[0].detail, len(record.regions),
                conversations=len(record.conversations),
            )
        ]  # fmt: skip


def test_one_bad_conversation_costs_itself(tmp_path):
    good = RECORDS[1]
    record = RegionImage(
        "a", good.image, 60, 40, [], conversations=[said("Hi\x00", "Ho"), said("", "Ho"), said("A", "B")]
    )
    checked = check_record(record)
    assert checked.record.conversations == [said("Hi", "Ho"), said("A", "B")]
    assert [(r.reason, r.region, r.conversation) for r in checked.rejections] == [("empty-turn", None, 1)]
    assert checked.changes["cleaned"] == 1


def exchange(folder, *rows):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images/a.png").write_bytes(png(1))
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_exchange_format(tmp_path):
    base = {"image": "images/a.png", "width": 60, "height": 40, "regions": [], "source": "pack"}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    src = exchange(
        tmp_path / "pack",
        base | {"conversations": [turns, [turns[0]]], "qa": [{"question": "Total?", "answer": 7.5}, {"question": "?"}]},
        {"conversations": [turns], "split": "val"},
        {"conversations": [turns], "regions": [{"bbox": [0, 0, 1, 1], "text": "x"}]},
        {"conversations": "hello"},
    )
    summary = import_corpus("jsonl", src, tmp_path / "out")
    pictured, alone = Corpus(tmp_path / "out")
    assert pictured.conversations == [said("Hi", "Ho"), said("Total?", "7.5")]
    assert alone == RegionImage(
        "pack/annotations.jsonl:2", None, 0, 0, [], source="pack", split="val", conversations=[said("Hi", "Ho")]
    )
    refused = read_quarantine(tmp_path / "out/quarantine.jsonl")
    assert [(r.reason, r.conversation, r.conversations) for r in refused] == [
        ("bad-turns", 1, 0), ("empty-turn", 3, 0), ("missing-image", None, 1), ("bad-field", None, 1),
    ]  # fmt: skip
    assert (summary.conversations_seen, summary.conversations_written, summary.conversations_with_image) == (7, 3, 2)
    import_corpus("jsonl", src, tmp_path / "short", short_answers=True)
    asked = Corpus(tmp_path / "short")[0].conversations[1][0].text
    assert asked == "Total?\nAnswer the question using a single word or phrase."
