"""Against human boxes: which images are compared, and scores worked out by hand."""

from dataclasses import replace

import pytest
from helpers.audited import corpus, picture, record, text

from granvit.corpus.audit.human import against_human, join
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage, Turn

A, B, C, D = (0, 0, 40, 20), (50, 0, 90, 20), (0, 50, 40, 70), (50, 50, 90, 70)


def scores(tmp_path, found, true, kind="text"):
    """The scores of one image with these regions; the two corpora know it by the same id."""
    machine, human = corpus(tmp_path / "machine", record("a", *found)), corpus(tmp_path / "human", record("a", *true))
    return against_human(machine.records(), join(machine, human)).sources["shop"][kind]


def values(kind_scores):
    return {name: None if e is None else e.value for name, e in kind_scores.scores.items()}


# --- which images ----------------------------------------------------------------------------------------------------


def test_images_are_joined_by_their_id(tmp_path):
    # The same picture in another file, as after recompression: the id is enough.
    machine = corpus(tmp_path / "machine", record("a"), record("only here"))
    human = corpus(tmp_path / "human", record("a", image=picture("other bytes")), record("absent", text(A, "x")))
    joined = join(machine, human)
    assert list(joined.human) == ["a"]
    assert (joined.by_id, joined.by_content, joined.only_here, joined.absent) == (1, 0, 1, 1)
    assert joined.absent_regions == {"text": 1}


def test_images_are_joined_by_their_file_where_ids_differ(tmp_path):
    machine = corpus(tmp_path / "machine", record("m/1", image=picture("p")), record("m/2", image=picture("q")))
    human = corpus(tmp_path / "human", record("h/7", text(A, "seven"), image=picture("q")), record("h/8"))
    joined = join(machine, human)
    assert {id: partner.id for id, partner in joined.human.items()} == {"m/2": "h/7"}
    assert (joined.by_id, joined.by_content, joined.only_here, joined.absent) == (0, 1, 1, 1)


def test_images_of_one_id_but_two_sizes_are_not_compared(tmp_path):
    small = record("b", text(A, "x"), image=picture("b", (100, 50)), width=100, height=50)
    machine, human = (
        corpus(tmp_path / "machine", record("a"), small),
        corpus(tmp_path / "human", record("a"), record("b")),
    )
    joined = join(machine, human)
    assert list(joined.human) == ["a"] and joined.other_size == 1


def test_corpora_of_other_images_are_an_error(tmp_path):
    machine, human = corpus(tmp_path / "machine", record("a")), corpus(tmp_path / "human", record("b"))
    with pytest.raises(CorpusError, match="human: no image of .*machine is in it"):
        join(machine, human)


def test_conversations_without_an_image_are_nobodys_partner(tmp_path):
    def talk(id):
        said = [[Turn("user", "Hi"), Turn("assistant", "Ho")]]
        return RegionImage(id, None, 0, 0, [], source="talk", conversations=said)

    machine = corpus(tmp_path / "machine", record("a"), talk("t/1"), talk("t/2"))
    joined = join(machine, corpus(tmp_path / "human", record("a"), talk("t/1"), talk("t/3")))
    assert list(joined.human) == ["a"]
    assert (joined.by_id, joined.only_here, joined.absent, joined.other_size) == (1, 0, 0, 0)
    with pytest.raises(CorpusError, match="human: no image of .*machine is in it"):
        join(machine, corpus(tmp_path / "others" / "human", record("b"), talk("t/1")))


# --- scores ----------------------------------------------------------------------------------------------------------


def test_precision_and_recall_by_hand(tmp_path):
    # Three found: two right (IoU 1 and 0.5), one on nothing. Three true: one missed.
    found = [text(A, "total"), text((50, 0, 70, 20), "12.50"), text((150, 50, 190, 70), "?")]
    mine = scores(tmp_path, found, [text(A, "total"), text(B, "12.50"), text(C, "cash")])
    assert (mine.found, mine.true, mine.matched) == (3, 3, 2)
    expected = {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "mean_iou": 0.75, "exact": 1.0, "cer": 0.0}
    assert {name: values(mine)[name] for name in expected} == pytest.approx(expected)


def test_ignored_regions_are_neither_misses_nor_make_false_boxes(tmp_path):
    found = [text(A, "total"), text(B, "something"), text(D, "false")]
    true = [text(A, "total"), text(B, "", ignore=True), text(C, "", ignore=True)]
    mine = scores(tmp_path, found, true)
    assert (mine.found, mine.true, mine.matched, mine.ignored) == (2, 1, 1, 1)
    assert values(mine)["precision"] == 0.5 and values(mine)["recall"] == 1


def test_what_the_corpus_itself_ignores_is_not_found(tmp_path):
    mine = scores(tmp_path, [text(A, "total", ignore=True)], [text(A, "total")])
    assert (mine.found, mine.matched) == (0, 0) and values(mine)["recall"] == 0 and values(mine)["precision"] is None


def test_texts_with_and_without_regard_to_case(tmp_path):
    # "Total" is TOTAL: 4 of 5 characters wrong with case, none without. "12.S0": 1 of 5 either way.
    mine = scores(tmp_path, [text(A, "Total"), text(B, "12.S0")], [text(A, "TOTAL"), text(B, "12.50")])
    expected = {"cer": 5 / 10, "cer_any_case": 1 / 10, "exact": 0.0, "exact_any_case": 0.5}
    assert {name: values(mine)[name] for name in expected} == pytest.approx(expected)


def test_of_peoples_wordings_the_best_counts(tmp_path):
    mine = scores(tmp_path, [text(A, "exit")], [text(A, "way out", alternatives=["exit"])])
    assert values(mine)["cer"] == 0


def test_captions_of_matched_objects(tmp_path):
    found = [Region(A, "a car"), Region(B, "a dog")]
    mine = scores(tmp_path, found, [Region(A, "a red car"), Region(B, "sky", alternatives=["a dog"])], "object")
    assert values(mine)["rouge_l"] == pytest.approx((0.8 + 1) / 2) and "cer" not in mine.scores


def test_kinds_don_t_match_each_other(tmp_path):
    found, true = [text(A, "exit"), Region(B, "a sign")], [Region(A, "exit"), text(B, "x")]
    mine = scores(tmp_path, found, true)
    assert (mine.found, mine.true, mine.matched) == (1, 1, 0)


def test_sums_are_over_all_images_and_intervals_over_images(tmp_path):
    true = [text(A, "a"), text(B, "b")]
    machine = corpus(tmp_path / "m", *(record(str(i), *(true if i % 2 else true[:1])) for i in range(20)))
    human = corpus(tmp_path / "h", *(record(str(i), *true) for i in range(20)))
    mine = against_human(machine.records(), join(machine, human)).sources["shop"]["text"]
    recall = mine.scores["recall"]
    assert mine.images == 20 and recall.value == 0.75 and 0.6 < recall.low < 0.75 < recall.high < 0.9
    assert mine.scores["precision"] == (1, 1, 1)
    # Tiles of one picture are drawn together, and one tells nothing of others.
    machine = corpus(tmp_path / "mt", *(record(f"p@{i},0,64", *(true if i % 2 else true[:1])) for i in range(20)))
    human = corpus(tmp_path / "ht", *(record(f"p@{i},0,64", *true) for i in range(20)))
    tiles = against_human(machine.records(), join(machine, human)).sources["shop"]["text"]
    assert tiles.images == 20 and tiles.scores["recall"] == (0.75, None, None)


def test_a_kind_that_nobody_annotated_is_not_judged(tmp_path):
    machine = corpus(
        tmp_path / "m",
        record("a", text(A, "exit"), Region(B, "a sign")),
        record("b", text(A, "exit"), source="street"),
    )
    human = corpus(tmp_path / "h", record("a", Region(B, "a sign")), record("b", text(A, "exit"), source="street"))
    result = against_human(machine.records(), join(machine, human))
    assert {source: list(kinds) for source, kinds in result.sources.items()} == {"shop": ["object"], "street": ["text"]}
    assert result.unjudged == {("shop", "text"): 1}


# --- granularity -----------------------------------------------------------------------------------------------------

LINE = (0, 0, 100, 10)
WORDS = [(0, 0, 30, 10), (35, 0, 60, 10), (65, 0, 100, 10)]


def test_lines_against_words(tmp_path):
    mine = scores(tmp_path, [text(LINE, "a b c")], [text(box, "w") for box in WORDS])
    assert mine.granularity == "coarser" and (mine.merged, mine.merged_true) == (1, 3)
    assert values(mine)["recall"] == 0 and values(mine)["covered"] == 1 and values(mine)["supported"] == 1


def test_words_against_lines(tmp_path):
    mine = scores(tmp_path, [text(box, "w") for box in WORDS], [text(LINE, "a b c")])
    assert mine.granularity == "finer" and (mine.split, mine.split_found) == (1, 3)
    assert values(mine)["precision"] == 0 and values(mine)["covered"] == 1 and values(mine)["supported"] == 1


def test_like_against_like(tmp_path):
    moved = [text((x1, 8, x2, 18), "w") for x1, _, x2, _ in WORDS]
    mine = scores(tmp_path, moved, [text(box, "w") for box in WORDS])
    assert mine.granularity == "same" and values(mine)["recall"] == values(mine)["covered"] == 0


def test_the_records_are_left_as_they_are(tmp_path):
    one = record("a", text(A, "x"))
    machine, human = corpus(tmp_path / "m", one), corpus(tmp_path / "h", one)
    against_human([one], join(machine, human))
    assert one == replace(one, regions=[text(A, "x")])


def test_peoples_data_sets_are_not_mixed_in_one_folder_of_pictures(tmp_path):
    machine = corpus(tmp_path / "m", *(record(id, text(A, "x"), source="folder") for id in "ab"))
    human = corpus(tmp_path / "h", record("a", text(A, "x"), source="one"), record("b", text(B, "x"), source="two"))
    result = against_human(machine.records(), join(machine, human))
    recalls = {source: values(kinds["text"])["recall"] for source, kinds in result.sources.items()}
    assert recalls == {"folder / one": 1, "folder / two": 0}
