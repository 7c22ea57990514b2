"""Curation: what is kept is worth it, what is dropped is counted once, under its reason and its source."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.drawn import corpus, cropped, halved, jpeg, mirrored, picture, record

from granvit import images
from granvit.corpus.check import verify
from granvit.corpus.curate import curation as curating
from granvit.corpus.curate.balance import Repeats, TextCounts, mix, text_hash
from granvit.corpus.curate.curation import Curation, curate
from granvit.corpus.curate.filters import Filters
from granvit.corpus.dedup.copy_search import _candidates, exact_groups, near_groups
from granvit.corpus.dedup.perceptual_hash import FingerprintFile, store_fingerprints
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import Region

BARE = Curation(exact_duplicates=False, near_duplicates=False)


def thing(text: str = "a thing", **options) -> Region:
    return Region((10, 10, 200, 200), text, **options)


def ids(path) -> list[str]:
    return [r.id for r in Corpus(path).records()]


def check_sums(report) -> None:
    """Everything that came in went out or has a reason."""
    for source in report.sources.values():
        assert source.images_in == source.images_out + source.images_dropped.total()
        assert source.regions_in == source.regions_out + source.regions_dropped.total()


# Filters


def test_every_drop_has_its_reason_and_its_source(tmp_path):
    tiny = Region((0, 0, 20, 20), "tiny")
    records = [
        record("kept", None, regions=[thing(), tiny, Region((0, 0, 400, 100), "long")]),
        record("small", None, (400, 480), regions=[thing(), tiny]),
        record("empty", None, regions=[]),
        record("all-tiny", None, regions=[tiny, tiny], source="other"),
        record("text", None, (300, 900), regions=[Region((0, 0, 200, 20), "TOTAL", "text")], source="other"),
    ]
    report = curate(corpus(tmp_path / "in", records), tmp_path / "out", BARE)
    assert ids(tmp_path / "out") == ["kept", "text"]
    assert report.sources["web"].images_dropped == {"short-side": 1, "no-regions": 1}
    assert report.sources["web"].regions_dropped == {"box-area": 1, "box-aspect": 1, "with-image": 2}
    assert report.sources["other"].images_dropped == {"no-regions": 1}
    check_sums(report)
    account = json.loads((tmp_path / "out/curation.json").read_text())
    assert account["sources"]["other"]["regions_dropped"] == {"box-area": 2}
    assert account["sources"]["web"]["scripts"] == {"latin": 1}
    assert account["settings"]["filters"]["object_box"]["min_area"] == 10_000
    assert Corpus(tmp_path / "out").manifest["meta"]["curated"] == str(tmp_path / "in")


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    source = corpus(tmp_path / "in", [record("small", None, (100, 100))])
    with pytest.raises(CorpusError, match="no image is left: short-side 1"):
        curate(source, tmp_path / "out", BARE)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"caps": {"nope": 3}}, "--caps: there is no source 'nope', only 'web'"),
        ({"weights": {"web": -1.0}}, "--weights web -1.0: must be at least 0"),
        ({"similarity": 1.5}, "--similarity 1.5: must be above 0 and at most 1"),
    ],
)
def test_settings_that_make_no_sense(setting, message, tmp_path):
    source = corpus(tmp_path / "in", [record("a", None)])
    with pytest.raises(CorpusError, match=message):
        curate(source, tmp_path / "out", Curation(**setting))


def test_a_curated_corpus_is_replaced_only_when_asked(tmp_path):
    source = corpus(tmp_path / "in", [record("a", None)])
    curate(source, tmp_path / "out", BARE)
    with pytest.raises(CorpusError, match="not empty"):
        curate(source, tmp_path / "out", BARE)
    curate(source, tmp_path / "out", BARE, overwrite=True)


# Copies


@pytest.fixture
def crowded(tmp_path):
    """Twenty pictures; copies of four of them; two that are no pictures; two blank ones."""
    records = [record(f"p{i:02}", jpeg(picture(i))) for i in range(20)]
    zero, one, two, three = (picture(i) for i in range(4))
    records += [
        record("same-file", jpeg(zero)),
        record("larger", jpeg(one.resize((1024, 960))), (1024, 960)),
        record("mirrored", jpeg(mirrored(two), 40)),
        record("held-out", jpeg(halved(three)), split="test"),
        record("changed", jpeg(_pasted(picture(5)))),
        record("absent", None),
        record("broken", b"nothing"),
        record("blank-1", jpeg(picture(0).point(lambda v: 255))),
        record("blank-2", jpeg(picture(0).point(lambda v: 255), 50)),
    ]
    return corpus(tmp_path / "in", records)


def _pasted(image):
    image.paste(cropped(picture(40), 0.5), (0, 0))
    return image


def test_copies_go_and_the_best_of_them_stays(crowded, tmp_path):
    report = curate(crowded, tmp_path / "out", Curation(), workers=2)
    dropped = set(ids(crowded.path)) - set(ids(tmp_path / "out"))
    # The same file: the first. Larger: the larger. As large: the first. Held out: that one, though it is smaller.
    assert dropped == {"same-file", "p01", "mirrored", "p03"}
    assert report.sources["web"].images_dropped == {"exact-duplicate": 1, "near-duplicate": 3}
    assert report.groups == {"exact-duplicate": 1, "near-duplicate": 4}
    assert report.without_fingerprint == {"no-image-bytes": 1, "not-an-image": 1, "featureless": 2}
    check_sums(report)


def test_forms_that_look_alike_cost_a_comparison_each_not_one_for_every_pair():
    rng = np.random.default_rng(0)  # a thousand hashes, each three bits from one: all within six of each other
    alike = np.array([sum(1 << int(bit) for bit in rng.choice(64, 3, replace=False)) for _ in range(1_000)], np.uint64)
    portions = [(first, second, flipped) for first, second, flipped in _candidates(alike)]
    first, second = (np.concatenate([portion[side] for portion in portions if not portion[2]]) for side in (0, 1))
    assert (first < second).all() and len(first) < 40 * len(alike)
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(first)
    known = {place for pair in zip(first.tolist(), second.tolist(), strict=True) for place in pair}
    assert known == set(range(len(alike)))


def test_among_no_images_there_are_no_copies(crowded, tmp_path):
    file = store_fingerprints(crowded, tmp_path / "prints.parquet", workers=1)
    unreadable = np.array(sorted(file.problems))
    assert len(unreadable) == 4
    for entries in (unreadable, unreadable[:0]):
        assert near_groups(file, entries, 0.8) == []
    assert exact_groups(file.sha256, unreadable[:0]) == []


def test_records_without_a_file_are_nobodys_copies(tmp_path):
    source = corpus(tmp_path / "in", [record(f"{i}", None) for i in range(3)])
    report = curate(source, tmp_path / "out", Curation())
    assert report.total("images_out") == 3 and report.without_fingerprint == {"no-image-bytes": 3}


def test_each_kind_of_copy_has_its_switch(crowded, tmp_path):
    exact = curate(crowded, tmp_path / "exact", Curation(near_duplicates=False))
    assert exact.sources["web"].images_dropped == {"exact-duplicate": 1}
    strict = curate(crowded, tmp_path / "strict", Curation(exact_duplicates=False, similarity=1.0))
    assert strict.total("images_out") >= 28


def test_no_picture_is_decoded_without_need(crowded, tmp_path, monkeypatch):
    kept = tmp_path / "prints.parquet"
    first = curate(crowded, tmp_path / "first", Curation(), fingerprints=kept)

    def fail(*_):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(images, "thumbnail", fail)
    again = curate(crowded, tmp_path / "again", Curation(), fingerprints=kept)
    assert again.to_json() == first.to_json() and ids(tmp_path / "again") == ids(tmp_path / "first")
    curate(crowded, tmp_path / "bare", BARE)


def test_fingerprints_of_another_corpus_are_refused(crowded, tmp_path):
    other = corpus(tmp_path / "other", [record("a", jpeg(picture(77)))])
    store_fingerprints(other, tmp_path / "prints.parquet")
    with pytest.raises(CorpusError, match="not the fingerprints of"):
        curate(crowded, tmp_path / "out", Curation(), fingerprints=tmp_path / "prints.parquet")
    (tmp_path / "prints.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CorpusError, match="prints.parquet"):
        FingerprintFile(tmp_path / "prints.parquet", other)


def test_stored_thumbnails_come_back_for_any_choice_of_rows(crowded, tmp_path):
    wanted = np.array([1, 2, 19, 23])
    part = store_fingerprints(crowded, tmp_path / "part.parquet", wanted, workers=1)
    whole = store_fingerprints(crowded, tmp_path / "whole.parquet", workers=3)
    assert part.rows.tolist() == wanted.tolist() and len(whole.rows) == len(crowded)
    assert (part.thumbs(np.array([0, 3])) == whole.thumbs(wanted[[0, 3]])).all()
    assert part.sha256.tolist() == whole.sha256[wanted].tolist()
    batches = list(whole.batches(crowded))
    assert [r.id for batch in batches for r in batch.records] == ids(crowded.path)
    assert (np.concatenate([batch.thumbs for batch in batches]) == whole.thumbs(np.arange(len(crowded)))).all()


# Repeated texts


def test_what_a_captioner_keeps_saying_is_thinned_out(tmp_path):
    def regions(i):
        boxes = [(10.0, 10.0 + 200 * k, 200.0, 190.0 + 200 * k) for k in range(3)]
        texts = ["The image shows a blurry background" if i % 2 else f"scene {i}", "a dog", "a cat"]
        makers = ["captioner:x", "detector:y", "human"]
        return [Region(b, t, text_by=m) for b, t, m in zip(boxes, texts, makers, strict=True)]

    source = corpus(tmp_path / "in", [record(f"{i}", None, (800, 800), regions=regions(i)) for i in range(200)])
    settings = replace(BARE, repeats=Repeats(max_share=0.04, min_count=5))
    report = curate(source, tmp_path / "out", settings)
    # Allowed are 4 % of the 600 regions: 24 of 100. Names and people's words repeat as they like.
    dropped = report.sources["web"].regions_dropped["repeated-text"]
    assert 100 - 24 - 12 < dropped < 100 - 24 + 12
    assert report.repeated[0]["text"] == "The image shows a blurry background" and report.repeated[0]["count"] == 100
    texts = Counter(r.text for item in Corpus(tmp_path / "out").records() for r in item.regions)
    assert texts["a dog"] == texts["a cat"] == 200 and sum(t.startswith("scene") for t in texts) == 100
    check_sums(report)
    again = curate(source, tmp_path / "again", settings)
    assert again.to_json() == report.to_json()


def test_an_image_whose_only_text_is_thinned_out_goes_too(tmp_path):
    records = [record(f"{i}", None, regions=[thing("again", text_by="captioner:x")]) for i in range(100)]
    settings = replace(BARE, repeats=Repeats(max_share=0, min_count=10))
    report = curate(corpus(tmp_path / "in", records), tmp_path / "out", settings)
    assert report.sources["web"].images_dropped["no-regions"] == report.sources["web"].regions_dropped["repeated-text"]
    assert 0 < report.total("images_out") < 30
    check_sums(report)


def test_text_counts_merge(monkeypatch):
    counts = TextCounts()
    for i in range(1_000):
        counts.add(text_hash(f"Text {i % 10}" if i % 100 else " TEXT   0"))
        if i % 90 == 0:
            counts._merge()
    assert counts.total == 1_000 and counts.above(99) == {text_hash(f"text {i}"): 100 for i in range(10)}
    assert counts.above(100) == {}


# Caps and weights


def test_caps_and_weights(tmp_path):
    records = [record(f"{s}{i}", None, source=s) for s, n in (("a", 60), ("b", 30), ("c", 10)) for i in range(n)]
    source = corpus(tmp_path / "in", records)
    capped = curate(source, tmp_path / "capped", replace(BARE, caps={"a": 20}))
    assert {name: s.images_out for name, s in capped.sources.items()} == {"a": 20, "b": 30, "c": 10}
    assert capped.sources["a"].images_dropped == {"cap": 40}
    mixed = curate(source, tmp_path / "mixed", replace(BARE, weights={"a": 1, "b": 2, "c": 0}, caps={"b": 20}))
    assert {name: s.images_out for name, s in mixed.sources.items()} == {"a": 10, "b": 20, "c": 0}
    assert mixed.sources["c"].images_dropped == {"weight": 10} and mixed.sources["b"].images_dropped == {"cap": 10}
    # The seed decides which; a smaller choice is part of a larger one.
    fewer = curate(source, tmp_path / "fewer", replace(BARE, caps={"a": 7, "b": 0, "c": 0}))
    other = curate(source, tmp_path / "other", replace(BARE, caps={"a": 7, "b": 0, "c": 0}, seed=1))
    assert set(ids(tmp_path / "fewer")) < set(ids(tmp_path / "capped"))
    assert ids(tmp_path / "other") != ids(tmp_path / "fewer") and fewer.total("images_out") == 7
    for report in (capped, mixed, fewer, other):
        check_sums(report)


def test_caps_and_weights_are_about_what_is_trained_on(tmp_path):
    records = [record(f"{s}{i}", None, source=s, split="val" if i < 10 else "train") for s in "ab" for i in range(40)]
    source = corpus(tmp_path / "in", records)
    for name, setting in (("caps", {"caps": {"a": 3}}), ("weights", {"weights": {"a": 1, "b": 10}})):
        report = curate(source, tmp_path / name, replace(BARE, **setting))
        assert Corpus(tmp_path / name).manifest["images_by_split"] == {"val": 20, "train": 33}
        assert report.sources["a"].images_out == 13 and report.losses() == []
        check_sums(report)


@pytest.mark.parametrize("setting", [{"caps": {"a": 0}}, {"weights": {"a": 0, "b": 1}}])
def test_what_is_left_out_altogether_takes_its_held_out_images_and_that_is_said(setting, tmp_path):
    records = [
        record(f"{s}{i}", None, source=s, split="val" if s == "a" and i < 2 else "") for s in "ab" for i in range(9)
    ]
    report = curate(corpus(tmp_path / "in", records), tmp_path / "out", replace(BARE, **setting))
    assert ids(tmp_path / "out") == [f"b{i}" for i in range(9)] and report.losses() == [
        'no image of the split "val" is left, of 2'
    ]
    check_sums(report)


def test_every_source_that_is_left_needs_a_weight():
    source, draw = np.array([0, 1], np.int32), np.array([0.1, 0.2])
    with pytest.raises(CorpusError, match="no weight for the source 'b'"):
        mix(source, draw, ["a", "b"], {}, {"a": 1})
    assert mix(source, draw, ["a", "b"], {"b": 0}, {"a": 1})[1].tolist() == [False, False]


# Real pictures


def test_a_curated_corpus_is_in_order(crowded, tmp_path):
    whole = [r for r in crowded if r.image and r.id != "broken"]
    fitting = [replace(r, width=w, height=h) for r in whole for w, h in [images.upright_size(r.image)]]
    filters = Filters(object_image=replace(Filters().object_image, min_short_side=200))
    curate(corpus(tmp_path / "fit", fitting), tmp_path / "out", Curation(filters))
    assert verify(tmp_path / "out") == []


def test_the_account_stands_beside_the_corpus_not_in_its_way(tmp_path):
    source = corpus(tmp_path / "in", [record("a", None)])
    curate(source, tmp_path / "out", BARE)
    assert curating.CURATION in {p.name for p in (tmp_path / "out").iterdir()}
    assert verify(tmp_path / "out") == []


def test_a_loss_of_more_than_half_names_the_rule_that_took_most(tmp_path):
    records = [record(f"small{i}", None, (500, 375), regions=[thing()]) for i in range(4)]
    records += [record(f"large{i}", None, regions=[thing()]) for i in range(3)]
    report = curate(corpus(tmp_path / "in", records), tmp_path / "out", BARE)
    (reported,) = report.losses()
    assert reported.startswith("more than half of the images are dropped (4 of 7), most of them (4) by short-side: ")
    assert "--preset photos" in reported and "--filters.object-image.min-short-side" in reported
    # Half is not more than half.
    fewer = curate(corpus(tmp_path / "in2", records[1:]), tmp_path / "out2", BARE)
    assert fewer.losses() == []


def test_a_loss_of_regions_in_images_that_stay(tmp_path):
    tiny = [Region((0, 10 * n, 20, 10 * n + 8), f"tiny {n}") for n in range(5)]
    report = curate(corpus(tmp_path / "in", [record("a", None, regions=[thing(), *tiny])]), tmp_path / "out", BARE)
    (reported,) = report.losses()
    assert reported.startswith("more than half of the regions are dropped (5 of 6), most of them (5) by box-area: ")


def test_nothing_left_names_the_rule_too(tmp_path):
    source = corpus(tmp_path / "in", [record("small", None, (500, 375))])
    with pytest.raises(CorpusError, match=r"no image is left: short-side 1; more than half .* --preset photos"):
        curate(source, tmp_path / "out", BARE)
