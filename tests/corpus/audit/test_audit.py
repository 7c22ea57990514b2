"""The whole audit, from corpora on disk to the page and its numbers."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from helpers.audited import corpus, record, text

from granvit.cli.corpus_look import Audit
from granvit.corpus.annotate.detect import DetectConfig
from granvit.corpus.audit.agreement import Opinion
from granvit.corpus.audit.counts import EXAMPLES, count_refusals
from granvit.corpus.audit.run import audit, write_audit
from granvit.corpus.audit.sheet import REASONS, make_card
from granvit.corpus.check import Quarantine, Rejection
from granvit.corpus.layout import CorpusError
from granvit.regions import Region

A, B, C, D = (0, 0, 40, 20), (50, 0, 90, 20), (0, 50, 40, 70), (50, 50, 90, 70)
SCRIPT = "<script>alert('x')</script>&\""


@pytest.fixture
def machine(tmp_path):
    """Two sources; of the shop's first image, one region is right, one misread, one false, one ignored."""
    found = [
        Region((100, 0, 130, 90), "a logo"),
        text(A, "Total", score=0.9, box_by="ocr"),
        text(B, "12.S0", score=0.5, box_by="ocr"),
        text((150, 50, 190, 70), SCRIPT, score=0.6, box_by="ocr"),
        text(D, "smudge", score=0.4, box_by="ocr"),
    ]
    result = corpus(
        tmp_path / "machine",
        record("shop/1", *found),
        record("shop/2", text(A, "exit")),
        record("street/1", text(A, "STOP"), source="street"),
    )
    with Quarantine(result.path / "quarantine.jsonl") as quarantine:
        quarantine.add(Rejection("low-text-score", "shop/1", "", 3, f"0.31: {SCRIPT}"))
        quarantine.add(Rejection("not-an-image", "", "images/3.jpg", None, "no known image format"))
    return result


@pytest.fixture
def human(tmp_path):
    people = [text(A, "TOTAL"), text(B, "12.50"), text(C, "cash"), text(D, "", ignore=True)]
    return corpus(tmp_path / "human", record("shop/1", *people), record("shop/2", text(A, "EXIT")))


class Page(HTMLParser):
    """What of a page is not text: its tags with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def run(out, *corpora, **given):
    result = audit(*corpora, **given)
    write_audit(result, out)
    return json.loads((out / "audit.json").read_text()), (out / "index.html").read_text()


# --- what is shown of one image --------------------------------------------------------------------------------------


def test_every_region_has_its_reason(machine, human):
    card = make_card(machine[0], None, human[0], ["text"], {})
    shown = {(mark.text, tuple(mark.reasons)) for mark in card.marks}
    assert shown == {
        ("Total", ("matched",)),
        ("12.S0", ("text-differs",)),
        (SCRIPT, ("false",)),
        ("smudge", ("excused",)),
        ("a logo", ("unjudged",)),
        ("cash", ("missed",)),
    }
    assert card.marks[0].reasons == ["false"] and "people: 12.50" in card.marks[2].notes[0]
    assert card.counts["matched"] == 1 and set(card.counts) < set(REASONS)


def test_without_people_nothing_is_judged(machine):
    card = make_card(machine[0], None, None, (), {})
    assert card.counts == {"unjudged": 5} and not any(mark.problem for mark in card.marks)


def test_other_models_opinions_are_shown_too(machine, human):
    opinions = {"reread": Opinion([1], {3: "OK"}), "detector": Opinion(more=[Region(C, "a cup")])}
    card = make_card(machine[0], None, human[0], ["text"], opinions)
    reasons = {mark.text: (mark.reasons, mark.notes, mark.dashed) for mark in card.marks}
    assert reasons["Total"] == (["matched", "agreed"], ["IoU 1.00"], False)
    assert reasons[SCRIPT] == (["false", "reread-differs"], ["reread: OK"], False)
    assert reasons["a cup"] == (["detector-only"], [], True)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_the_numbers(machine, human, tmp_path):
    numbers, _ = run(tmp_path / "out", machine, human, seed=3)
    assert (numbers["corpus"]["images"], numbers["corpus"]["regions"], numbers["seed"]) == (3, 7, 3)
    scores = numbers["human"]["sources"]["shop"]["text"]
    # Found and not ignored: 4, of which 3 right; human: 4, of which 3 found. Of 14 characters one is wrong.
    assert (scores["found"], scores["true"], scores["matched"], scores["excused"]) == (4, 4, 3, 1)
    assert scores["scores"]["precision"]["value"] == scores["scores"]["recall"]["value"] == 0.75
    assert scores["scores"]["cer_any_case"]["value"] == pytest.approx(1 / 14)
    assert numbers["human"]["images"]["joined"] == 2 and numbers["human"]["images"]["only_here"] == 1
    assert numbers["human"]["unjudged"] == [{"source": "shop", "kind": "object", "regions": 1}]
    assert numbers["statistics"]["shop"]["kinds"]["text"]["scores"]["count"] == 4
    # Plain pictures, which these are, can't be compared.
    assert numbers["duplicates"]["shop"] == {"images": 0, "exact": 0, "near": 0, "rate": None}
    assert numbers["quarantine"]["counts"] == {"": {"not-an-image": 1}, "shop": {"low-text-score": 1}}
    assert sorted(image["id"] for image in numbers["sample"]) == ["shop/1", "shop/2"]  # those that people annotated


def test_the_same_audit_twice_is_the_same(machine, human, tmp_path):
    once, page = run(tmp_path / "1", machine, human, count=2, seed=7)
    again, same_page = run(tmp_path / "2", machine, human, count=2, seed=7)
    assert once == again and page == same_page


def test_the_sample_covers_the_sources(machine, tmp_path):
    numbers, page = run(tmp_path / "out", machine, count=2)
    assert {image["source"] for image in numbers["sample"]} == {"shop", "street"}
    assert numbers["human"] is None and "No human annotation" in page


def test_what_must_be_known_is_said(machine, human, tmp_path):
    more = [record("shop/3", text(A, "x"), text(B, "y")), *human]
    _, page = run(tmp_path / "out", machine, corpus(tmp_path / "more", *more))
    # 3 found of the 4 that could be, and of 6 with those of the image that is not there.
    assert "1 human image not in the corpus" in page and "2 text regions as misses" in page and "be 50.0%" in page
    assert "1 image of the corpus without human annotation" in page
    assert "people annotated no object regions, 1 region not judged" in page
    assert "where letter case counts" in page


def test_a_difference_in_granularity_is_said(tmp_path):
    line, words = text((0, 0, 100, 10), "a b"), [text((0, 0, 45, 10), "a"), text((55, 0, 100, 10), "b")]
    lines, split = corpus(tmp_path / "lines", record("a", line)), corpus(tmp_path / "words", record("a", *words))
    _, page = run(tmp_path / "out", lines, split)
    assert "cut differently" in page and "hold several human ones: 1, holding 2" in page


def test_peoples_data_sets_have_rows_of_their_own(tmp_path):
    machine = corpus(tmp_path / "machine", *(record(id, text(A, "x"), source="folder") for id in "ab"))
    people = corpus(tmp_path / "people", record("a", text(A, "x"), source="one"), record("b", source="two"))
    _, page = run(tmp_path / "out", machine, people)
    assert re.findall(r'<th scope="row">([^<]+)<', page) == ["folder", "folder / one"]
    assert "folder / two: people annotated no text regions" in page and "matched: box and text right" in page


# --- the page --------------------------------------------------------------------------------------------------------


def test_no_text_becomes_markup(machine, human, tmp_path):
    _, page = run(tmp_path / "out", machine, human)
    assert "&lt;script&gt;alert(" in page and "<script>alert" not in page
    assert len(Page(page).named("script")) == 1


def test_the_page_needs_nothing_else(machine, human, tmp_path):
    _, page = run(tmp_path / "out", machine, human)
    tags = Page(page)
    assert not tags.named("link") and all("src" not in script for script in tags.named("script"))
    images = tags.named("image")
    assert len(images) == 2 and all(image["href"].startswith("data:image/webp;base64,") for image in images)
    assert not re.search(r"url\(|@import|https?://", page)


def test_boxes_stand_where_they_are_and_under_their_reasons(machine, human, tmp_path):
    _, page = run(tmp_path / "out", machine, human)
    rects = {rect["data-reasons"]: rect for rect in Page(page).named("rect")}
    missed = rects["missed problem"]
    assert [float(missed[name]) for name in ("x", "y", "width", "height")] == [0, 50, 40, 20]
    assert missed["class"] == "dashed" and "class" not in rects["matched"]
    figures = [f["data-source"] for f in Page(page).named("figure")]
    assert figures == ["shop", "shop"]
    options = {option["value"] for option in Page(page).named("option")}
    assert {"*", "shop", "street", "problem", "matched", "missed", "false", "refused:low-text-score"} <= options


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize(
    ("source", "reason", "images", "regions", "refused"),
    [
        ("*", "*", 3, 7, 2 * 2),
        ("street", "*", 1, 1, 0),
        ("shop", "problem", 0, 0, 2),
        ("*", "refused:low-text-score", 0, 0, 2),
    ],
)
def test_the_filters_filter(machine, tmp_path, source, reason, images, regions, refused):
    _, page = run(tmp_path / "out", machine)
    choose = f'source.value = "{source}"; reason.value = "{reason}"; show();</script>'
    (tmp_path / "chosen.html").write_text(page.replace("</script>\n</main>", choose + "\n</main>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    dom = subprocess.run(
        [*command, f"file://{tmp_path}/chosen.html"], capture_output=True, text=True, timeout=60
    ).stdout
    assert f"{images} images, {regions} regions" in dom
    tags = Page(dom)
    assert sum("off" not in figure["class"] for figure in tags.named("figure")) == images
    rows = [row for row in tags.named("tr") if "refusal" in row.get("class", "")]
    assert sum("off" not in row["class"] for row in rows) == refused


# --- the quarantine --------------------------------------------------------------------------------------------------


def test_refusals_are_counted_and_some_are_shown():
    many = [Rejection("too-small", f"coco/val/{i}.jpg") for i in range(100)]
    found = count_refusals(
        [*many, Rejection("too-small", "coco/1.jpg"), Rejection("bad-box", "x.jpg")], ["coco", "coco/val"], 0
    )
    assert found.counts == {"": {"bad-box": 1}, "coco": {"too-small": 1}, "coco/val": {"too-small": 100}}
    assert found.total == 102 and len(found.examples) == EXAMPLES + 2
    numbers = [int(r.id[9:-4]) for source, r in found.examples if source == "coco/val"]
    assert numbers == sorted(numbers) and numbers != list(range(EXAMPLES))


# --- what cannot be audited ------------------------------------------------------------------------------------------


def command(*paths, **options):
    return Audit(*paths, **options).run()


def test_the_command(machine, human, tmp_path, capsys):
    assert command(machine.path, tmp_path / "out", against=human.path) == 0
    said = capsys.readouterr().out
    assert "shop, text: precision 75.0%, recall 75.0%" in said and "index.html" in said
    assert (tmp_path / "out" / "index.html").exists() and (tmp_path / "out" / "audit.json").exists()


def test_corpora_that_have_nothing_in_common(machine, tmp_path, capsys):
    other = corpus(tmp_path / "other", record("elsewhere", text(A, "x")))
    assert command(machine.path, tmp_path / "out", against=other.path) == 1
    assert "no image of" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_people_who_annotated_nothing(machine, tmp_path):
    nothing = corpus(tmp_path / "nothing", record("shop/1"))
    with pytest.raises(CorpusError, match="nothing: has no regions"):
        audit(machine, nothing)


def test_no_corpus(tmp_path, capsys):
    assert command(tmp_path, tmp_path / "out") == 1
    assert "manifest.json is missing" in capsys.readouterr().err


def test_the_audit_never_goes_into_a_corpus(machine, human, tmp_path, capsys):
    before = sorted(p.name for p in human.path.iterdir())
    assert command(machine.path, human.path) == 1
    assert "is a corpus: choose another folder" in capsys.readouterr().err
    assert sorted(p.name for p in human.path.iterdir()) == before


def test_a_picture_that_cannot_be_decoded(tmp_path):
    broken = corpus(tmp_path / "broken", record("a", text(A, "x"), image=b"no picture"))
    with pytest.raises(CorpusError, match="broken: image 'a': not-an-image"):
        audit(broken)


def test_an_image_without_its_file_is_shown_as_boxes(tmp_path):
    linked = corpus(tmp_path / "linked", record("a", text(A, "x"), image=None))
    _, page = run(tmp_path / "out", linked)
    assert not Page(page).named("image") and len(Page(page).named("rect")) == 1


def test_an_image_without_regions(tmp_path):
    _, page = run(tmp_path / "out", corpus(tmp_path / "bare", record("a")))
    assert "1 image without any region" in page and re.findall(r'<th scope="row">([^<]+)<', page) == ["shop"]


def test_a_damaged_quarantine_names_its_line(machine, capsys, tmp_path):
    with (machine.path / "quarantine.jsonl").open("a") as file:
        file.write('{"reason": 3, "shape": 4}\n')
    assert command(machine.path, tmp_path / "out") == 1
    assert "quarantine.jsonl:3: damaged" in capsys.readouterr().err


@pytest.mark.slow  # imports torch and transformers
def test_a_missing_detector_is_reported_in_a_line(machine, tmp_path, capsys):
    assert command(machine.path, tmp_path / "out", detect=DetectConfig(str(tmp_path / "nowhere"))) == 1
    assert "nowhere: cannot be loaded" in capsys.readouterr().err


@pytest.mark.slow  # imports torch and transformers
def test_a_real_second_detector(tmp_path):
    """A stock YOLOS that sees one box whatever it is shown: its centre at (0.5, 0.25), its size (0.2, 0.4)."""
    from helpers.tiny_detectors import yolos

    there, elsewhere = Region((80, 5, 120, 45), "a cat"), Region((0, 60, 40, 100), "a dog")
    path = corpus(tmp_path / "photos", record("a", there, elsewhere)).path
    assert command(path, tmp_path / "out", detect=DetectConfig(str(yolos(tmp_path / "yolos")))) == 0
    [check] = json.loads((tmp_path / "out" / "audit.json").read_text())["checks"]
    scores = {name: estimate["value"] for name, estimate in check["sources"]["shop"].items()}
    assert check["by"] == "detector:yolos" and scores == {"confirmed": 0.5, "known": 1.0, "mean_iou": pytest.approx(1)}
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert sorted(rect["data-reasons"] for rect in page.named("rect")) == ["agreed", "detector-differs problem"]
