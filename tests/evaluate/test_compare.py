import json
from dataclasses import replace

import numpy as np
import pytest

from granvit.errors import GranvitError
from granvit.evaluate.compare import as_table, compare, compare_means, compare_places
from granvit.evaluate.evaluation import Evaluation, Means, read_means, write_scores
from granvit.evaluate.items import Item, Task
from granvit.evaluate.scores_log import Scored, line_of
from granvit.evaluate.scoring import SCORERS, score

TASKS = {"t": Task("t", "texts"), "b": Task("b", "boxes")}
RNG = np.random.default_rng(0)


def answers(right, per_image=1, task="t"):
    return [
        Item(f"img{i // per_image}", task, (9, 9), [f"word{i}"], said=f"word{i}" if hit else "", key=str(i))
        for i, hit in enumerate(right)
    ]


def exact(first, second, **options):
    differences, _ = compare(TASKS, first, second, **options)
    return next(d for d in differences if d.measure == "exact")


def test_a_difference_that_holds_for_every_image_is_certain():
    reported = exact(answers([0] * 50), answers([1] * 50))
    assert (reported.first, reported.second, reported.difference, reported.low, reported.high) == (0, 1, 1, 1, 1)
    assert reported.p == pytest.approx(2 / 1001) and reported.questions == reported.images == 50


def test_images_that_add_nothing_to_a_measure_lend_it_no_certainty():
    """Of 40 texts two have words: by ROUGE-L no more is known than two images tell."""
    wordless = [Item(f"w{i}", "t", (9, 9), ["!"], said="!", key=f"w{i}") for i in range(38)]
    differences, _ = compare(TASKS, wordless + answers([0, 0]), wordless + answers([1, 1]))
    reported = next(d for d in differences if d.measure == "rouge_l")
    assert reported.images == 2 and reported.p >= 0.5


def test_a_task_of_one_evaluation_alone_is_said():
    boxes = [Item("img0", "b", (9, 9), [[0, 0, 5, 5]], said="", key="box")]
    alone = "b: 1 questions were answered in one evaluation only, and are left out"
    for first, second in ((answers([1, 0]), answers([1, 1]) + boxes), (answers([1, 0]) + boxes, answers([1, 1]))):
        assert alone in compare(TASKS, first, second)[1]
    means = Means({"t": {"exact": 0.5, "count": 2}})
    more = Means(means.scores | {"b": {"iou": 0.5, "count": 1}})
    for first, second in ((means, more), (more, means)):
        assert "b: in one of them only" in compare_means(first, second)[1]


def test_equal_answers_differ_by_nothing():
    reported = exact(answers([0, 1] * 20), answers([0, 1] * 20))
    assert (reported.difference, reported.low, reported.high, reported.p) == (0, 0, 0, 1)


def test_pairing_sees_what_unpaired_intervals_hide():
    """B is right wherever A is, and on one more image in ten; by themselves both scores are uncertain by more."""
    first = RNG.random(200) < 0.5
    second = first | (np.arange(200) % 10 == 0)
    reported = exact(answers(first), answers(second))
    assert 0 < reported.low < reported.difference < reported.high < 0.12 and reported.p < 0.01


def test_a_difference_by_chance_is_not_significant():
    """Under no difference p is below 0.05 about once in twenty times."""
    low = [exact(answers(RNG.random(80) < 0.5), answers(RNG.random(80) < 0.5)).p < 0.05 for _ in range(40)]
    assert sum(low) <= 7


def test_whole_images_are_drawn():
    """The same 40 answers tell less when they are about 4 images."""
    first, second = [0] * 40, [i % 40 < 20 for i in range(40)]
    many, few = (exact(answers(first, n), answers(second, n)) for n in (1, 10))
    assert few.images == 4 and few.high - few.low > 2 * (many.high - many.low)


def test_one_image_has_no_interval_and_no_p():
    """As in `granvit eval`: the difference is reported, and that nothing follows from it."""
    differences, notes = compare({"t": Task("t", "texts")}, answers([0] * 5, 5), answers([1] * 5, 5))
    reported = next(d for d in differences if d.measure == "exact")
    assert (reported.difference, reported.low, reported.high, reported.p) == (1, None, None, None)
    assert as_table([reported]).endswith("| t | exact | 5 | 0.0 | 100.0 | +100.0 | – | – |")
    assert notes == ["t: one image tells nothing of others, so there is no interval and no p"]


@pytest.mark.parametrize(("images", "p"), [(2, 0.5), (3, 0.25), (6, 2 / 64), (20, 2 / 1001)])
def test_few_images_that_agree_are_as_likely_as_coins_that_do(images, p):
    assert exact(answers([0] * images), answers([1] * images)).p == pytest.approx(p)


def test_what_is_not_defined_is_left_out_with_the_reason():
    asked = [Item(f"img{i}", "t", (9, 9), ["a big brown dog"], said="a big brown dog", key=str(i)) for i in range(3)]
    differences, notes = compare({"t": Task("t", "captions")}, asked, asked)
    assert [d.measure for d in differences] == ["rouge_l", "bleu4", "exact"]
    assert notes == [f"t: cider is left out: {SCORERS['captions'].measures['cider'].undefined}"]


def test_only_what_both_answered_counts_and_the_rest_is_reported():
    differences, notes = compare(TASKS, answers([1] * 30), answers([1] * 20))
    assert differences[0].questions == 20
    assert notes == ["t: 10 questions were answered in one evaluation only, and are left out"]


def test_other_questions_cannot_be_compared():
    other = [replace(item, truth=["else"]) for item in answers([1] * 3)]
    with pytest.raises(ValueError, match="t: question '0' has not the same right answer in both"):
        compare(TASKS, answers([1] * 3), other)
    with pytest.raises(ValueError, match="no question was answered in both"):
        compare(TASKS, answers([1]), answers([1], task="b"))


def test_the_table_tells_percentage_points():
    text = as_table([exact(answers([0, 1] * 50), answers([1, 1] * 50))])
    assert "| t | exact | 100 | 50.0 | 100.0 | +50.0 | +4" in text and text.endswith("| 0.002 |")


def test_means_alone_are_compared_without_interval_and_p(tmp_path):
    """A run's metrics.json: its last stage counts, and the best constant answer is no stage."""
    stages = {"before": 0.1, "baseline": 0.9, "stage1": 0.25}
    for name, shift, count in (("a", 0.0, 50), ("b", 0.5, 40)):
        scores = {s: {"t": {"exact": v + shift, "count": count}} for s, v in stages.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps({**scores, "seconds": 3.5}))
    first, second = read_means(tmp_path / "a.json"), read_means(tmp_path / "b.json")
    assert first == Means({"t": {"exact": 0.25, "count": 50}})
    (reported,), notes = compare_means(first, second)
    assert (reported.task, reported.measure, reported.first, reported.second) == ("t", "exact", 0.25, 0.75)
    assert (reported.low, reported.high, reported.p) == (None, None, None)
    assert any("means alone" in note for note in notes) and "t: of 50 questions in A, of 40 in B" in notes
    assert "| t | exact | 40 | 25.0 | 75.0 | +50.0 | – | – |" in as_table([reported])


@pytest.mark.parametrize("content", ["{}", "[]", "nothing", '{"stage1": 3}', '{"stage1": {"t": {"exact": 0.5}}}'])
def test_what_holds_no_means_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(GranvitError, match="a.json"):
        read_means(tmp_path / "a.json")
    with pytest.raises(GranvitError, match="missing.json: no such file"):
        read_means(tmp_path / "missing.json")


def test_means_without_a_common_task_are_refused():
    with pytest.raises(GranvitError, match="no task"):
        compare_means(Means({"a": {"exact": 0.5, "count": 1}}), Means({"b": {"exact": 0.5, "count": 1}}))


# --- what else differs -----------------------------------------------------------------------------------------------


def evaluation(folder, items, task=TASKS["t"], notes=(), **facts):
    folder.mkdir()
    tasks = {task.name: task}
    scores = {task.name: score(task, [item for item in items if item.task == task.name])}
    write_scores(Evaluation(facts, tasks, scores, notes=list(notes), items=items), folder)
    return folder


def test_settings_that_differ_are_told(tmp_path):
    wide = replace(TASKS["t"], window=200, longest=48)
    first = evaluation(tmp_path / "a", answers([1, 0]), Corpus="one", Boxes="loc:16", Machine="mine")
    second = evaluation(
        tmp_path / "b", answers([1, 1]), wide, ["t: 2 were too long"], Corpus="one", Boxes="int1000", Limit="2 images"
    )
    _, notes = compare_places(first, second)
    assert notes[:5] == [
        "Limit: not stated in A, 2 images in B",
        "Boxes: loc:16 in A, int1000 in B",
        "t: window is none in A, 200 in B",
        "t: longest is 32 in A, 48 in B",
        "of B alone: t: 2 were too long",
    ]
    assert not {note for note in compare_places(first, first)[1] if " in A" in note or "alone:" in note}


def test_a_task_that_was_scored_in_two_ways_is_refused(tmp_path):
    first = evaluation(tmp_path / "a", answers([1, 0]))
    second = evaluation(tmp_path / "b", answers([1, 0]), replace(TASKS["t"], scorer="reading"))
    with pytest.raises(GranvitError, match="t: scored as texts in A and as reading in B"):
        compare_places(first, second)


def test_a_key_that_several_questions_share_is_left_out_and_told():
    """Whichever of them came last would have stood for all."""
    doubled = answers([1, 1, 1]) + [replace(item, said="") for item in answers([1])]
    for first, second in ((doubled, answers([1, 1, 1])), (answers([1, 1, 1]), doubled)):
        differences, notes = compare(TASKS, first, second)
        assert notes == ["t: 1 keys stand for several questions, and are left out: '0'"]
        assert differences[0].questions == 2 and differences[0].difference == 0


@pytest.mark.parametrize("change", [{"id": "else"}, {"size": (8, 9)}, {"options": ["a"]}, {"kind": "k"}])
def test_a_question_about_something_else_is_refused(change):
    other = [replace(item, **change) for item in answers([1] * 3)]
    with pytest.raises(GranvitError, match="t: question '0' is not the same in both"):
        compare(TASKS, answers([1] * 3), other)


def test_questions_in_other_words_are_told():
    other = [replace(item, asked="What is it?") for item in answers([1] * 3)]
    assert compare(TASKS, answers([1] * 3), other)[1] == ["t: 3 questions were asked in other words"]


def test_tiles_of_one_image_tell_nothing_of_others():
    tiles = [replace(item, id=f"page@{n},0,64") for n, item in enumerate(answers([1, 0, 1]))]
    (found, *_), notes = compare(TASKS, tiles, tiles)
    assert found.low is None and notes == ["t: one image tells nothing of others, so there is no interval and no p"]


def test_means_of_other_questions_are_refused_and_of_unknown_ones_told(tmp_path):
    scores = {"stage1": {"t": {"exact": 0.5, "count": 4}}}
    for name, asked in (
        ("a", {"asked": "2:abc"}),
        ("b", {"asked": "2:abc"}),
        ("c", {"asked": "2:else"}),
        ("old", {}),
        ("named", {"asked": "abc"}),  # of an earlier version, which told names alone
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({**scores, **asked}))
    same = compare_places(tmp_path / "a", tmp_path / "b" / "metrics.json")[1]
    assert same == [
        "means alone: intervals and p need the single answers, in the folder that `granvit eval --out` writes"
    ]
    with pytest.raises(GranvitError, match="A and B were asked other questions, .* granvit eval --out"):
        compare_places(tmp_path / "a", tmp_path / "c")
    unknown = "it is not known whether both were asked the same questions: {} does not say"
    for place in ("old", "named"):
        assert unknown.format("B") in compare_places(tmp_path / "a", tmp_path / place)[1]
    answered = evaluation(tmp_path / "eval", answers([1, 0]))
    assert unknown.format("A and B") in compare_places(answered, tmp_path / "old")[1]


def trained(folder, value, asked="2:abc", end=True):
    folder.mkdir()
    stage = {"kind": "stage2", "name": "", "loop": {"steps": 9}}
    (folder / "recipe.json").write_text(json.dumps({"stages": [{**stage, "name": "first"}, stage]}))
    scores = {"t": {"exact": value, "count": 4.0}}
    rows = [
        Scored(*place, asked, scores, {}, 1.0, []) for place in (("before", 0, True), ("stage2", 9 if end else 6, end))
    ]
    (folder / "scores.jsonl").write_text("".join(map(line_of, rows)))
    return folder


def test_two_runs_are_compared_by_their_held_out_scores(tmp_path):
    first, second = trained(tmp_path / "a", 0.25), trained(tmp_path / "b", 0.75)
    for place in (second, second / "scores.jsonl"):
        (reported,), notes = compare_places(first, place)
        assert (reported.first, reported.second, reported.low) == (0.25, 0.75, None) and len(notes) == 1
    with pytest.raises(GranvitError, match="A and B were asked other questions"):
        compare_places(first, trained(tmp_path / "other", 0.5, asked="2:other"))
    early = trained(tmp_path / "early", 0.5, end=False)
    told = "4 questions, asked after step 6 of stage2, and not of this checkpoint, which is that after step 9 of stage2"
    assert compare_places(first, early)[1][0] == f"{early}: {told}"


def test_a_run_that_was_asked_nothing_is_told_what_to_do(tmp_path):
    run = trained(tmp_path / "a", 0.25)
    (run / "scores.jsonl").unlink()
    with pytest.raises(GranvitError, match=f"make one with granvit eval {run} --corpus DIR --out {run}/eval$"):
        compare_places(run, run)
