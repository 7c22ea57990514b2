import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageColor

from granvit.draw import PALETTE
from granvit.evaluate.report import Example, ExampleRegion, drawn_examples, write_report

METRICS = {
    "before": {
        "describe": {"rouge_l": 0.0312, "exact": 0.0},
        "locate": {"acc50": 0.0, "miou": 0.011, "parse_rate": 0.02},
        "caption": {"rouge_l": 0.1},
        "read": {"exact": 0.0, "cer": 0.987},
    },
    "stage1": {
        "describe": {"rouge_l": 0.6543, "exact": 0.4},
        "locate": {"acc50": 0.05, "miou": 0.1, "parse_rate": 0.6},
        "caption": {"rouge_l": 0.5},
        "read": {"exact": 0.2, "cer": 0.41},
    },
    "stage2": {
        "describe": {"rouge_l": 0.6211, "exact": 0.4},
        "locate": {"acc50": 0.5525, "miou": 0.5, "parse_rate": 0.99},
        "caption": {"rouge_l": 0.5},
        "read": {"exact": 0.2, "cer": 0.44},
    },
    "baseline": {
        "describe": {"rouge_l": 0.2, "exact": 0.07},
        "locate": {"acc50": 0.08, "miou": 0.19, "parse_rate": 1.0},
    },
}


def example(text="a red car", size=(100, 80)):
    box = (10.0, 10.0, 60.0, 50.0)
    said = {"before": "the the", "stage1": "A red  car", "stage2": "a blue car"}
    found = {"before": None, "stage1": None, "stage2": (10.0, 10.0, 60.0, 30.0)}
    unread = {"before": None, "stage1": None, "stage2": None}
    regions = [ExampleRegion(box, text, said, found), ExampleRegion((0.0, 0.0, 9.0, 9.0), "exit", said, unread)]
    return Example(Image.new("RGB", size, "white"), regions)


def write(path, **changes):
    given = {
        "title": "A run",
        "summary": "What came of it.",
        "metrics": METRICS,
        "curves": {"stage1": {"loss": [(i, 4.0 - i / 100) for i in range(100)]}, "stage2": {"loss": [(0, 1.0)]}},
        "examples": [example()],
        "facts": {"Machine": "2 cores"},
        "commands": {"Ask": ["granvit describe runs/demo picture.jpg"], "Take": ["granvit export runs/demo"]},
        "speed": [{"stage": "Stage 1", "training": "9 min 5 s"}],
        "first_batches": {"stage1": Image.new("RGB", (30, 20), "red")},
        "recipe": '{"name": "a <recipe>"}',
    }
    write_report(path, **{**given, **changes})
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report") / "new folder" / "report.html")


def row(page, label, occurrence=0):
    """The cells of a score row as (text, is best)."""
    body = page.split(f'<th scope="row">{label}<')[occurrence + 1].split("</tr>")[0]
    return [(text.strip(), "best" in mark) for mark, text in re.findall(r"<td([^>]*)>([^<]*)<", body)]


def test_scores_appear_with_one_decimal_and_the_best_is_marked(page):
    assert row(page, "ROUGE-L") == [("3.1%", False), ("65.4%", True), ("62.1%", False), ("20.0%", False)]
    assert row(page, "Acc@0.5") == [("0.0%", False), ("5.0%", False), ("55.2%", True), ("8.0%", False)]


def test_equals_share_the_mark(page):
    assert [best for _, best in row(page, "Exact")] == [False, True, True, False]


def test_a_lower_error_rate_is_better_and_gaps_are_dashes(page):
    assert row(page, "CER") == [("98.7%", False), ("41.0%", True), ("44.0%", False), ("–", False)]


def test_a_constant_answer_is_not_praised_for_parsing(page):
    assert row(page, "Parse rate") == [("2.0%", False), ("60.0%", False), ("99.0%", True), ("–", False)]


def test_the_headlines_are_of_the_tasks_that_asked_most(tmp_path):
    counts = {"describe": 9, "locate": 7, "caption": 1, "read": 8}
    metrics = {
        stage: {task: {**scores, "count": counts[task]} for task, scores in tasks.items()}
        for stage, tasks in METRICS.items()
    }
    cards = [re.findall(r'<div class="card">\s*<strong>(.*?)</strong>', write(tmp_path / name, metrics=given))
             for name, given in (("all.html", METRICS), ("counted.html", metrics))]  # fmt: skip
    assert cards == [["Describe", "Locate", "Caption"], ["Describe", "Locate", "Read"]]


def test_headlines_curves_facts_and_commands_appear(page):
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "0.0% → 55.2% Acc@0.5, before → after stage 2 best constant answer: 8.0%" in text
    assert "Machine 2 cores" in text and "Stage 1 9 min 5 s" in text
    assert "ROUGE-L: words of the true text that are said" in text, "what a number means stands beside it"
    assert "<summary>Stage 1</summary><img" in page and "a &lt;recipe&gt;" in page
    assert "<code>granvit describe runs/demo picture.jpg</code>" in page
    assert page.count("<svg") == 2 and "<h3>Stage 1</h3>" in page


def test_answers_are_judged(page):
    assert '<td class="right">✓ A red car</td>' in page
    assert "<td>a blue car</td>" in page
    assert "IoU\N{NO-BREAK SPACE}0.50&nbsp;✓" in page and "no readable box" in page


def test_nothing_is_fetched(page):
    links = re.findall(r"""(?:src|href|srcset|data|action)\s*=\s*["']([^"']*)""", page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page and "<script" not in page and "<link" not in page


def test_the_picture_is_embedded_and_drawn_on(page):
    encoded = re.search(r"data:image/webp;base64,([^\"]*)", page).group(1)
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.size == (320, 256)
    assert min(picture.convert("L").getextrema()) < 128


def test_large_pictures_are_reduced(tmp_path):
    large = write(tmp_path / "large.html", examples=[example(size=(4000, 3000))])
    assert 'width="720" height="540"' in large


def test_texts_are_escaped(tmp_path):
    evil = "<script>alert('x')</script> & <b>"
    page = write(
        tmp_path / "evil.html",
        title=evil,
        summary=evil,
        examples=[example(evil)],
        facts={evil: evil},
        commands={evil: [evil]},
        speed=[{evil: evil}],
        first_batches={evil: Image.new("RGB", (3, 3))},
        recipe=evil,
        curves={evil: {evil: [(0, 1.0), (1, 2.0)]}},
    )
    assert "<script" not in page and "<b>" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_a_run_of_one_stage_has_no_empty_columns(tmp_path):
    page = write(
        tmp_path / "short.html",
        metrics={"before": METRICS["before"], "stage1": METRICS["stage1"]},
        curves={},
        examples=[],
    )
    assert "After stage 2" not in page and "Best constant answer" not in page and "Held-out pictures" not in page
    assert len(row(page, "ROUGE-L")) == 2


def test_tags_balance(page):
    class Balance(HTMLParser):
        void = {"meta", "img", "br"}
        open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in self.void:
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open.pop() == tag, tag

    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_an_older_report_is_replaced_whole(tmp_path):
    path = tmp_path / "report.html"
    write(path, title="first")
    assert "second" in write(path, title="second")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_every_score_says_what_it_means(page):
    """For who knows neither ROUGE nor IoU: a line in each row, and one beside each curve and headline."""
    rows = page.count('<th scope="row">') - page.count('<th scope="row"><span class="number"') - 1  # of speed
    assert page.count('<span class="meaning">') == rows == 8
    assert "what training lowers" in page


def test_stages_of_any_name_have_their_column(tmp_path):
    metrics = {"before": METRICS["before"], "finetune": METRICS["stage1"], "baseline": METRICS["baseline"]}
    page = write(tmp_path / "any.html", metrics=metrics, curves={"finetune": {"loss": [(0, 1.0)]}})
    assert "After finetune" in page and "<h3>Finetune</h3>" in page and "before → after finetune" in page
    assert "Stage 1 teaches" not in page
    assert len(row(page, "ROUGE-L")) == 3


def test_repeated_words_are_cut_and_two_digits_stay_together(tmp_path):
    box, said = (10.0, 10.0, 60.0, 50.0), "a red " + "dotted " * 30 + "<loc0001><loc0002> <loc0003>"
    regions = [ExampleRegion(box, f"thing {n}", {"before": said}, {}) for n in range(1, 13)]
    page = write(tmp_path / "long.html", examples=[Example(Image.new("RGB", (100, 80)), regions)])
    assert "<td>a red dotted (30 times) &lt;loc…&gt;</td>" in page
    number = re.search(r"^\.number \{(.*)\}$", page, re.MULTILINE).group(1)
    assert "white-space: nowrap" in number and "overflow-wrap: normal" in number
    assert ">12</span>thing 12" in page


def test_the_picture_for_trackers_has_a_panel_for_each():
    one, two = (drawn_examples([example()] * count, "stage2") for count in (1, 2))
    assert two.height > 1.8 * one.height and two.width == one.width
    colors = {tuple(pixel) for pixel in np.asarray(one).reshape(-1, 3).tolist()}
    assert {ImageColor.getrgb(color) for color in PALETTE[:2]} <= colors
