import io
from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_model import make_model
from PIL import Image

from granvit.errors import GranvitError
from granvit.evaluate import answering, evaluation
from granvit.evaluate.evaluation import (
    Evaluation,
    _on_measures,
    group_scores,
    open_journal,
    read_scores,
    run_evaluation,
    write_scores,
)
from granvit.evaluate.evaluation_report import chosen, markdown, write_report
from granvit.evaluate.items import EvalImage, EvalSet, Item, Task
from granvit.evaluate.scoring import Scores, score
from granvit.geometry import View
from granvit.images import open_picture
from granvit.predict import GranViT, ImageQuestions
from granvit.questions import ask_box

TASKS = [
    Task("cups-testA", "boxes", "fine-grained", longest=6),
    Task("what", "anls", "ocr", longest=6),
    Task("read", "reading", "ocr", longest=6, window=20),
]
FACTS = {"Model": "tiny"}
COUNT = 9


def picture(i):
    file = io.BytesIO()
    Image.effect_noise((50 + i, 40), 60 + i).convert("RGB").save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(i) for i in range(COUNT)]
opened: list[str] = []


def eval_images(count=COUNT):
    for i in range(count):
        box = (5.0 + i, 5.0, 25.0 + i, 30.0)
        ask = [
            Item(f"img{i}", "cups-testA", (0, 0), ["cup"], box, key=f"{i}a", how="phrase", asked="cup"),
            Item(f"img{i}", "cups-testA", (0, 0), ["tea"], box, key=f"{i}b", how="phrase", asked="tea"),
            Item(f"img{i}", "what", (0, 0), ["star"], key=str(i), asked="What is it?"),
            Item(f"img{i}", "read", (0, 0), ["TEA"], box, key=str(i), how="box"),
        ]

        def load(i=i):
            opened.append(f"img{i}")
            return PICTURES[i]

        yield EvalImage(f"img{i}", load, ask[: 1 + i % 4])


def eval_set(**changes):
    return replace(EvalSet("pack", TASKS, eval_images, image_count=COUNT), **changes)


@pytest.fixture(scope="module")
def model():
    return GranViT(make_model())


def evaluated(model, journal=None, rows=256, limit=None):
    model.rows = rows
    opened.clear()
    return run_evaluation(model, [eval_set()], dict(FACTS), journal, limit, progress=False)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_answers_and_scores_are_the_same_at_any_batch_size(model, monkeypatch):
    whole = evaluated(model)
    assert len(whole.items) == sum(1 + i % 4 for i in range(COUNT)) and all(item.size[1] == 40 for item in whole.items)
    for rows, at_once in ((1, 1), (3, 2), (256, 4)):
        monkeypatch.setattr(answering, "_IMAGES_AT_ONCE", at_once)
        part = evaluated(model, rows=rows)
        assert part.items == whole.items
        confidences = [[item.confidence for item in result.items] for result in (part, whole)]
        assert confidences[0] == pytest.approx(confidences[1], abs=1e-5)
        assert {n: s.values for n, s in part.scores.items()} == {n: s.values for n, s in whole.scores.items()}
        assert {n: s.intervals for n, s in part.scores.items()} == {n: s.intervals for n, s in whole.scores.items()}


def test_every_question_is_asked_as_the_model_answers_it_alone(model):
    for item in evaluated(model, limit=4).items:
        image = open_picture(PICTURES[int(item.id.removeprefix("img"))])
        view = model.model.view(image.size)
        question = item.asked
        if item.task == "read":
            view = View.window_around(item.box, image.size, 26, model.model.canvas)  # boxes are 25 high
            question = model.box_questions(view, item.box)[0]
        elif item.task == "cups-testA":
            question = ask_box(item.asked)
        [[said]] = model.answer([ImageQuestions(image, view, [question])], 6)
        assert item.said == said and item.confidence == pytest.approx(said.confidence, abs=1e-5)
        assert item.found == (model.to_pixels(item.said, view) if item.how == "phrase" else None)


def test_an_evaluation_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "_IMAGES_AT_ONCE", 2)
    whole = evaluated(model)
    decoded: list[bytes] = []
    decode = answering.decode
    monkeypatch.setattr(answering, "decode", lambda data: decoded.append(data) or decode(data))

    class Killed(Exception):
        pass

    answer, calls = GranViT.answer, []

    def stop(self, asks, longest):
        calls.append(len(asks))
        if len(calls) > 2:
            raise Killed
        return answer(self, asks, longest)

    monkeypatch.setattr(GranViT, "answer", stop)
    with open_journal(tmp_path, "me") as journal, pytest.raises(Killed):
        evaluated(model, journal)
    monkeypatch.setattr(GranViT, "answer", answer)
    decoded.clear()
    with open_journal(tmp_path, "me") as journal:
        assert evaluated(model, journal).items == whole.items
    assert decoded == PICTURES[4:]  # two groups of two were answered and kept
    decoded.clear()
    with open_journal(tmp_path, "me") as journal:
        again = evaluated(model, journal, rows=2)
    assert again.items == whole.items and decoded == []


def test_answers_about_other_pictures_of_the_same_names_are_not_used(model, tmp_path):
    def exchanged():
        for i, image in enumerate(eval_images(4)):
            yield EvalImage(image.id, lambda i=i: PICTURES[i + 4], image.items)

    with open_journal(tmp_path, "me") as journal:
        evaluated(model, journal, limit=4)
    with open_journal(tmp_path, "me") as journal:
        kept = run_evaluation(model, [eval_set(images=exchanged)], {}, journal, progress=False)
    fresh = run_evaluation(model, [eval_set(images=exchanged)], {}, progress=False)
    assert kept.items == fresh.items and kept.items[0].size == (54, 40)


def test_boxes_of_a_picture_of_another_size_are_not_scored(model):
    def some():
        for image in eval_images(3):
            for item in image.items:
                item.size = (100, 80) if image.id == "img1" else (50 + int(image.id[3:]), 40)
            yield image

    result = run_evaluation(model, [eval_set(images=some)], {}, progress=False)
    assert {item.id for item in result.items} == {"img0", "img2"}
    assert any(
        "img1: its boxes are of a picture of 100 x 80 pixels, and upright it has 51 x 40" in n for n in result.notes
    )


def test_a_question_too_long_for_the_model_is_wrong_and_the_rest_is_scored(model, tmp_path, capsys):
    def some():
        for image in eval_images(3):
            if image.id == "img1":
                image.items[1].asked = "tea " * 3000
            yield image

    for _ in range(2):  # it is said again where the others are known
        with open_journal(tmp_path, "me") as journal:
            result = run_evaluation(model, [eval_set(images=some)], {}, journal, progress=False)
        [note] = [note for note in result.notes if "can't be asked" in note]
        assert note.startswith(
            "cups-testA: 1 questions can't be asked and count as answered wrongly, such as img1: 'tea "
        )
    [item] = [item for item in result.items if len(item.asked) > 100]
    assert (item.said, item.found, item.size) == ("", None, (51, 40)) and len(result.items) == 6
    answering.answer_all(model, some(), TASKS, progress=False)
    assert "1 questions can't be asked" in capsys.readouterr().out


def test_texts_without_a_word_have_no_main_score_and_the_rest_is_written(tmp_path):
    tasks = {"describe": Task("describe", "texts", "fine-grained")}
    items = [Item(f"i{n}", "describe", (9, 9), [sign], said=sign, confidence=0.5) for n, sign in enumerate("★→+%")]
    scores = {"describe": score(tasks["describe"], items, [item.id for item in items])}
    assert group_scores(tasks, scores) == {}
    assert "rouge_l" not in scores["describe"].values and scores["describe"].constant.keys() == {"exact"}


def test_a_picture_that_cannot_be_opened_is_named(model):
    def broken():
        yield EvalImage("img7", lambda: b"no picture", [Item("img7", "what", (0, 0), ["x"], asked="?")])

    with pytest.raises(ValueError, match="img7: not-an-image"):
        run_evaluation(model, [eval_set(images=broken)], {}, progress=False)


def test_one_absent_picture_is_counted_and_named_and_the_rest_is_scored(model, tmp_path):
    def some():
        for image in eval_images(4):
            yield EvalImage("img2", lambda: b"no picture", image.items) if image.id == "img2" else image

    made = eval_set(images=some)
    with open_journal(tmp_path, "me") as journal:
        result = run_evaluation(model, [made], dict(FACTS), journal, progress=False)
    assert {item.id for item in result.items} == {"img0", "img1", "img3"}
    [note] = [note for note in result.notes if "left out" in note]
    assert "1 pictures can't be used and are left out: img2: not-an-image" in note
    assert result.scores["cups-testA"].values["count"] == 5 == len(result.of("cups-testA"))
    # A picture that vanished after it was asked about is grey on the page.
    gone = eval_set(images=lambda: (EvalImage(image.id, lambda: b"", image.items) for image in eval_images(4)))
    write_report(result, [gone], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_nothing_or_the_same_task_twice_is_an_error(model):
    with pytest.raises(ValueError, match="nothing to evaluate: no question for cups-testA, what, read"):
        run_evaluation(model, [eval_set(images=lambda: iter(()))], {}, progress=False)
    with pytest.raises(ValueError, match="two sources would both be scored as 'cups-testA'"):
        run_evaluation(model, [eval_set(), eval_set(name="other")], {}, progress=False)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_splits_of_a_benchmark_count_once_in_its_group():
    tasks = {name: Task(name, "boxes", "fine-grained") for name in ("ref-testA", "ref-testB", "cups")}
    tasks["own"] = Task("own", "boxes")
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0.5, 0.1, 1000) for name in tasks}
    values = {"ref-testA": 0.2, "ref-testB": 0.4, "cups": 0.9, "own": 0.0}
    groups = group_scores(tasks, {n: Scores({"acc50": values[n]}, drawn=drawn[n]) for n in tasks})
    assert list(groups) == ["fine-grained"] and groups["fine-grained"].parts == pytest.approx({"ref": 0.3, "cups": 0.9})
    average = groups["fine-grained"].average
    assert average.value == pytest.approx(0.6)
    # The mean of (mean of two) and one: variance 0.01 (1 / 8 + 1 / 4).
    assert average.high - average.low == pytest.approx(2 * 1.96 * 0.1 * np.sqrt(3 / 8), rel=0.15)


def test_what_is_not_the_published_benchmark_is_reported(model):
    published = [replace(TASKS[0], expected=5_657), *TASKS[1:]]
    result = run_evaluation(model, [eval_set(tasks=published, notes=["left out"])], {}, progress=False)
    asked = int(result.scores["cups-testA"].values["count"])
    assert result.notes == [
        "left out",
        f"cups-testA: {asked} questions; published are 5,657, so this is not comparable",
    ]


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(model, tmp_path):
    result = evaluated(model)
    write_scores(result, tmp_path)
    content, items = read_scores(tmp_path)
    assert items == result.items and content["tasks"] == {task.name: task for task in TASKS}
    assert content["scores"]["what"] == result.scores["what"].values
    assert set(content["groups"]) == {"fine-grained", "ocr"} and content["facts"] == FACTS
    assert read_scores(tmp_path / "scores.json")[1] == items
    assert {p.name for p in tmp_path.iterdir()} == {"scores.json", "items.jsonl"}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("scores.json", "{", "scores.json: not the scores of an evaluation"),
        ("scores.json", "[]", "scores.json: not the scores of an evaluation"),
        ("scores.json", '{"tasks": {"a": {"colour": 1}}}', "scores.json: not the scores of an evaluation"),
        ("scores.json", '{"tasks": {"a": {"name": "a", "scorer": "taste"}}}', "scores.json: .*no scorer 'taste'"),
        ("scores.json", "[" * 100_000, "scores.json: not the scores of an evaluation"),
        ("scores.json", None, "no evaluation; compared are the single answers"),
        ("items.jsonl", "{}\n", "items.jsonl: answer 1"),
        ("items.jsonl", '{"box": [1], "found": null, "id": "a"}', "items.jsonl: answer 1"),
        ("items.jsonl", None, "items.jsonl: answer 1"),
    ],
)
def test_damaged_scores_are_named(model, tmp_path, file, text, said):
    write_scores(evaluated(model, limit=2), tmp_path)
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_scores(tmp_path)


def test_what_is_no_evaluation_is_named_as_typed_and_the_folder_to_give_is_reported(model, tmp_path):
    with pytest.raises(GranvitError, match=f"{tmp_path}/before.json: no such file or folder"):
        read_scores(tmp_path / "before.json")
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    write_scores(evaluated(model, limit=2), run / "eval")
    (run / "metrics.json").write_text("{}")
    for place in (run, run / "metrics.json"):
        with pytest.raises(GranvitError, match=f"{place}: no evaluation; .*items.jsonl.*give {run}/eval$"):
            read_scores(place)
    assert read_scores(run / "eval")[1]


def test_texts_without_words_or_in_other_scripts_are_reported():
    items = [
        Item(str(i), "t", (9, 9), [text], said=text, key=str(i))
        for i, text in enumerate(["%", "a dog", "собака", "狗"])
    ]
    task = Task("t", "reading")
    notes = _on_measures(task, score(task, items), items)
    assert notes[0] == "t: 1 true texts have no word, such as %; rouge_l is of the others"
    assert notes[1].startswith("t: 2 true texts are in other than Latin letters; for rouge_l, wer their words are")
    task = Task("t", "captions")
    assert [note[:24] for note in _on_measures(task, score(task, items[1:2]), items[1:2])] == [
        "t: bleu4 has no value: n",
        "t: cider has no value: i",
    ]


def test_markdown_tells_every_score_with_interval_and_constant(model):
    result = evaluated(model)
    text = markdown(result)
    values, intervals = result.scores["cups-testA"].values, result.scores["cups-testA"].intervals
    low, high = intervals["miou"]
    constant = result.scores["cups-testA"].constant["miou"]
    row = f"| Mean IoU | {100 * values['miou']:.1f}% | {100 * low:.1f}–{100 * high:.1f} | {100 * constant:.1f}% |"
    assert row in text and "## cups-testA: " in text and "| Fine-grained | " in text and "- Model: tiny" in text


# --- cases -----------------------------------------------------------------------------------------------------------


def reported(qualities, per_image=1):
    """Items whose ANLS is the quality, for tenths from one half up."""
    return [
        Item(f"img{i // per_image}", "what", (50, 40), ["x" * 10], said="x" * round(10 * q), key=str(i))
        for i, q in enumerate(qualities)
    ]


def test_the_worst_and_the_median_cases_are_chosen():
    cases = chosen(reported([0.9, 0.5, 1.0, 0.6, 0.8, 0.7, 1.0, 0.0, 0.9]), "anls", count=2)
    assert [(c.item.key, c.quality) for c in cases["worst"]] == [("7", 0), ("1", pytest.approx(0.5))]
    assert cases["median"][0].quality == pytest.approx(0.8)
    assert [c.item.key for c in cases["median"]] in (["4", "5"], ["4", "0"], ["4", "8"])


def test_each_case_is_of_another_image():
    cases = chosen(reported([0.0] * 4 + [1.0] * 4, per_image=4), "anls")
    assert [len(some) for some in cases.values()] == [2, 0]


def test_equal_cases_are_not_just_the_first():
    first = {c.item.key for c in chosen(reported([0.0] * 200), "anls")["worst"]}
    assert first != {"0", "1", "2"}


def test_the_page_holds_scores_notes_and_drawn_cases(model, tmp_path):
    result = evaluated(model)
    result.notes.append("something <b>odd</b>")
    write_report(result, [eval_set()], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<figure class="card">') == page.count("data:image/webp") >= 3 * 2
    assert page.count("<figure") - page.count('<figure class="card">') == page.count('class="card calibration"') == 2
    assert "something &lt;b&gt;odd" in page and "Fine-grained" in page and "Best constant answer" in page
    assert "cups-testA: worst" in page and "cups-testA: median" in page
    assert 'src="http' not in page


def test_the_checkpoint_and_the_machine_are_not_needed_to_score(model):
    """Scores follow from the items alone."""
    result = evaluated(model)
    alone = Evaluation({}, result.tasks, items=result.items)
    for task in TASKS:
        assert evaluation.score(task, alone.of(task.name)).values == result.scores[task.name].values
