"""Copies of one file: one record stays and says what all of them said, once; what went all the same is counted."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from helpers.drawn import corpus, jpeg, picture, record

from granvit.corpus.check import verify
from granvit.corpus.curate import copies as joining
from granvit.corpus.curate.balance import Repeats
from granvit.corpus.curate.copies import Copies
from granvit.corpus.curate.curation import Curation, curate
from granvit.corpus.curate.filters import Filters, apply_filters
from granvit.corpus.store import Corpus
from granvit.regions import Region, Turn

TALK = [Turn("user", "What?"), Turn("assistant", "A dog.")]
DOG, TREE = Region((10, 10, 200, 200), "a dog"), Region((250, 10, 450, 200), "a tree")


def talked_about(number: int, **options):
    """Conversations about a picture, as LLaVA's data has them."""
    given = {"regions": [], "source": "llava", "licence": "theirs", "conversations": [TALK], **options}
    return record(given.pop("id", f"llava/{number}"), jpeg(picture(number)), **given)


def annotated(number: int, quality: int = 90, **options):
    """The same picture with regions and a caption, as COCO has it."""
    given = {"regions": [DOG, TREE], "source": "coco", "licence": "ours", "caption": "A dog by a tree.", **options}
    return record(given.pop("id", f"coco/{number}"), jpeg(picture(number), quality), **given)


def curated(tmp_path, records, **settings):
    report = curate(corpus(tmp_path / "in", records), tmp_path / "out", Curation(**settings))
    for source in report.sources.values():
        assert source.images_in == source.images_out + source.images_dropped.total()
        assert source.regions_in == source.regions_out + source.regions_dropped.total()
    assert verify(tmp_path / "out") == []
    return report, {one.id: one for one in Corpus(tmp_path / "out")}


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_takes_over_what_is_said_of_its_copies(order, tmp_path):
    records = [*map(talked_about, range(4)), *map(annotated, range(4))][::order]
    report, kept = curated(tmp_path, records)
    assert sorted(kept) == [f"coco/{i}" for i in range(4)]
    for one in kept.values():
        assert (one.regions, one.caption, one.conversations) == ([DOG, TREE], "A dog by a tree.", [TALK])
        assert (one.source, one.licence) == ("coco+llava", "ours; theirs")
    assert report.joined == {"conversations": 4} and not report.with_copies and report.losses() == []
    assert report.sources["llava"].images_out == 0 and report.sources["llava"].conversations_out == 4
    assert "taken over from copies: conversations 4" in str(report) and "captions 4 of 4 kept" in str(report)


def test_regions_are_not_doubled_and_the_held_out_one_stays(tmp_path):
    """The copy calls the same box something else, has one of another kind there, and one where there is none."""
    puppy, sign = replace(DOG, text="a puppy", box=(12, 9, 203, 199)), replace(DOG, text="DOG", kind="text")
    first = talked_about(0, regions=[DOG], split="val", caption="Outdoors.")
    report, kept = curated(tmp_path, [annotated(0, regions=[puppy, sign, TREE], conversations=[TALK, TALK[:2]]), first])
    (one,) = kept.values()
    assert (one.id, one.split, one.caption) == ("llava/0", "val", "Outdoors.")
    assert one.regions == [DOG, sign, TREE] and one.conversations == [TALK]
    assert report.joined == {"regions": 2} and report.stood_for == {"captions": 1}
    assert report.sources["coco"].regions_dropped == {"with-image": 1} and report.sources["coco"].regions_out == 2
    # A record has one caption: no setting would have kept the other.
    assert not report.with_copies and report.losses() == []
    assert "of copies, that another stands for: captions 1" in str(report)


@pytest.mark.parametrize("settled", ["larger", "smaller"])
def test_a_text_is_not_taken_over_that_is_in_or_around_a_known_box(settled, tmp_path):
    """The copy's is surer: it would stay of one record's, but the one that stays is believed. Curated again, alike."""
    boxes = {"larger": (10, 10, 400, 400), "smaller": (20, 20, 200, 200)}
    first = replace(DOG, box=boxes.pop(settled), score=0.5)
    other = replace(DOG, box=boxes.popitem()[1], text="A dog", score=0.75)
    records = [annotated(0, regions=[first, TREE], conversations=[TALK]), talked_about(0, regions=[other])]
    report, kept = curated(tmp_path, records)
    assert kept["coco/0"].regions == [first, TREE] and not report.joined
    assert report.sources["llava"].regions_dropped == {"nested-box": 1}
    curate(Corpus(tmp_path / "out"), tmp_path / "again", Curation())
    assert list(Corpus(tmp_path / "again")) == list(kept.values())
    report, kept = curated(tmp_path / "not-nested", records, filters=Filters(nested=False))
    assert kept["coco/0"].regions == [first, TREE, other]


def test_what_is_ignored_takes_no_word_for_it_from_a_copy(tmp_path):
    ignored = replace(DOG, text="", ignore=True)
    copies = [annotated(0), replace(annotated(0), id="again", regions=[ignored])]
    report, kept = curated(tmp_path, [annotated(0, id="val", split="val", regions=[ignored, TREE]), *copies])
    assert kept["val"].regions == [ignored, TREE, DOG] and report.joined == {"regions": 1}


def test_sources_and_terms_are_named_once_and_none_for_another(tmp_path):
    """Joined, merged with more of the same and joined again; the terms of the first were never stated."""
    again = [talked_about(i, id=f"again/{i}", conversations=[[*TALK, *TALK]]) for i in range(2)]
    _, kept = curated(tmp_path / "1", [*(annotated(i, licence="") for i in range(2)), *map(talked_about, range(2))])
    assert {(one.source, one.licence) for one in kept.values()} == {("coco+llava", "unknown; theirs")}
    more = annotated(0, id="more", source="vg", licence="", regions=[replace(DOG, box=(10, 260, 200, 450))])
    _, kept = curated(tmp_path / "2", [*kept.values(), *again, more])
    assert (kept["coco/0"].source, kept["coco/0"].licence) == ("coco+llava+vg", "unknown; theirs")
    assert (kept["coco/1"].source, kept["coco/1"].licence) == ("coco+llava", "unknown; theirs")
    _, kept = curated(tmp_path / "3", [annotated(0, source="c++", licence=""), talked_about(0, licence="")])
    assert (kept["coco/0"].source, kept["coco/0"].licence) == ("c+++llava", "")


def test_the_same_record_twice_is_itself(tmp_path):
    report, kept = curated(tmp_path, [annotated(0), replace(annotated(0), id="again")])
    assert list(kept.values()) == [annotated(0)] and not report.joined and not report.with_copies


def test_a_copy_whose_boxes_are_of_another_size_is_not_joined(tmp_path):
    shrunk = replace(annotated(0), width=500, height=470, regions=[TREE])
    report, kept = curated(tmp_path, [talked_about(0), shrunk])
    assert list(kept) == ["llava/0"] and kept["llava/0"].regions == []
    assert report.other_size == {"regions": 1, "captions": 1} and not report.joined and not report.with_copies
    assert report.losses() == [] and "gone with copies of another stated size: regions 1, captions 1" in str(report)


def test_near_copies_cost_what_is_said_of_them(tmp_path):
    """Of pictures of one size the one stays of which more is said, whichever comes first."""
    talk = [talked_about(i, conversations=[TALK]) for i in range(3)]
    report, kept = curated(tmp_path, [*talk, *(annotated(i, quality=60) for i in range(3))])
    assert sorted(kept) == ["coco/0", "coco/1", "coco/2"] and not report.joined
    assert report.with_copies == {"conversations": 3} and "gone with near duplicates: conversations 3" in str(report)
    assert report.losses() == [
        "3 of 3 conversations went with near duplicates of pictures that stay: what is said of copies is taken over "
        "from the very same file alone, see --no-near-duplicates and --similarity"
    ]


def test_what_was_taken_over_goes_with_its_image(tmp_path):
    """The joined file is itself the copy of a larger one."""
    larger = record("large", jpeg(picture(0).resize((1024, 960))), (1024, 960))
    report, kept = curated(tmp_path, [annotated(0), talked_about(0), larger])
    assert list(kept) == ["large"] and report.with_copies == {"regions": 2, "captions": 1, "conversations": 1}
    # No file stays that is the same as the joined one's.
    dropped = report.sources["coco"].images_dropped + report.sources["llava"].images_dropped
    assert dropped == {"near-duplicate": 2}


def captioned(number: int, file: int):
    return record(f"{number}", jpeg(picture(file)), regions=[replace(DOG, text="a dog", text_by="captioner:x")])


def test_texts_are_counted_without_copies(tmp_path):
    """Sixty records, of twelve pictures: what a captioner said of each occurs twelve times, not sixty."""
    records = [captioned(i, i % 12) for i in range(60)]
    report, kept = curated(tmp_path, records, repeats=Repeats(max_share=0, min_count=20), near_duplicates=False)
    assert len(kept) == 12 and report.repeated == []


def test_texts_taken_over_are_counted(tmp_path):
    """All twelve regions come from copies that do not stay."""
    talks = [talked_about(i, regions=[TREE, replace(TREE, box=(250, 210, 450, 400), text="grass")]) for i in range(12)]
    settings = {"repeats": Repeats(max_share=0, min_count=4), "near_duplicates": False}
    report, kept = curated(tmp_path, [*talks, *(captioned(i, i) for i in range(12))], **settings)
    assert len(kept) == 12 and all(name.startswith("llava/") for name in kept)
    (said,) = report.repeated
    assert (said["source"], said["text"], said["count"]) == ("web", "a dog", 12)
    assert (
        sum(region.text == "a dog" for one in kept.values() for region in one.regions) == report.joined["regions"] < 12
    )


def test_texts_are_counted_without_what_caps_leave_out(tmp_path):
    records = [replace(captioned(i, 0), image=None) for i in range(60)]
    report, kept = curated(tmp_path, records, repeats=Repeats(max_share=0, min_count=20), caps={"web": 20})
    assert len(kept) == 20 and report.repeated == []


@pytest.mark.parametrize("memory", [1, 64 << 20])
def test_copies_that_lie_anywhere_are_read_in_their_order_and_once(memory, tmp_path, monkeypatch):
    """They are in twenty shards: more than a corpus remembers."""

    def talk(number):
        return [Turn("user", "Who?"), Turn("assistant", f"{number}")]

    monkeypatch.setattr(joining, "_IN_MEMORY", memory)
    one, talked = replace(annotated(0), image=None), replace(talked_about(0), image=None)
    stay = [replace(one, id=f"{i}") for i in range(400)]
    talks = [replace(talked, id=f"t{i}", conversations=[talk(i)]) for i in range(400)]
    whole = corpus(tmp_path / "in", [*stay, *talks])
    shuffled = random.Random(0).sample(range(400), 400)
    read = []
    monkeypatch.setattr(Corpus, "_read_described", _noted(Corpus._read_described, read))
    with Copies(
        Corpus(whole.path), Filters(), {row: [400 + copy] for row, copy in enumerate(shuffled)}, tmp_path
    ) as copies:
        assert len(read) == 20 and read == sorted(set(read))
        for _ in range(2):  # passes
            for row, filtered in enumerate(apply_filters(stay, Filters())):
                own, share = copies.shares(row, filtered)
                assert own.record == stay[row] and share.conversations == [talk(shuffled[row])]
                assert 400 + row in copies and row not in copies
        assert len(read) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def _noted(read, notes):
    def noting(self, shard, group):
        notes.append((shard, group))
        return read(self, shard, group)

    return noting


# With caps and weights


@pytest.mark.parametrize("setting", [{"caps": {"coco": 0}}, {"weights": {"coco": 0, "llava": 1}}])
@pytest.mark.parametrize("quality", [90, 60])
def test_a_source_that_is_left_out_takes_nothing_of_another(setting, quality, tmp_path):
    """More is said in its records, one of which is held out; the copies are the same files, or near ones."""
    left_out = [annotated(i, quality, split="val" if i == 0 else "") for i in range(4)]
    report, kept = curated(tmp_path, [*left_out, *map(talked_about, range(4))], **setting)
    assert list(kept.values()) == [talked_about(i) for i in range(4)]
    assert report.sources["coco"].images_dropped == {next(iter(setting)).rstrip("s"): 4}
    assert not (report.groups or report.joined or report.with_copies) and report.losses() == [
        'no image of the split "val" is left, of 1'
    ]


@pytest.mark.parametrize(("quality", "joined"), [(90, {"conversations": 1}), (60, {})])
def test_a_copy_whose_source_has_room_stays_for_one_that_a_cap_took(quality, joined, tmp_path):
    records = [*(annotated(i, quality) for i in range(4)), *map(talked_about, range(4))]
    report, kept = curated(tmp_path / "1", records, caps={"coco": 1})
    assert sorted(name[-1] for name in kept) == ["0", "1", "2", "3"]
    coco, llava = report.sources["coco"], report.sources["llava"]
    assert (coco.images_out, llava.images_out, report.joined) == (1, 3, joined)
    assert report.with_copies == Counter(conversations=1) - Counter(joined)
    assert coco.images_dropped == {"cap": 3} and llava.images_dropped.total() == 1
    assert sum(bool(one.regions) for one in kept.values()) == 1  # a cap's images do not come back by another's record
    # One of them has no room: it goes by the cap as the one that stood for it.
    report, kept = curated(tmp_path / "2", records, caps={"coco": 1, "llava": 2})
    assert (len(kept), report.sources["llava"].images_out) == (3, 2)
    assert report.sources["coco"].images_dropped == {"cap": 3} and report.sources["llava"].images_dropped["cap"] == 1


def test_the_ones_that_stand_in_take_over_from_each_other(tmp_path):
    """Two sources have the same files, a capped one near copies of them."""
    twice = [talked_about(i, id=f"p/{i}", source="plain", conversations=[[*TALK, *TALK]]) for i in range(3)]
    report, kept = curated(
        tmp_path, [*(annotated(i, 60) for i in range(3)), *map(talked_about, range(3)), *twice], caps={"coco": 1}
    )
    talked = [one for one in kept.values() if not one.regions]
    assert len(kept) == 3 and {one.source for one in talked} == {"llava+plain"} and len(talked) == 2
    assert all(one.conversations == [TALK, [*TALK, *TALK]] for one in talked)
    assert report.joined == {"conversations": 2} and report.with_copies == {"conversations": 2}
    assert report.sources["plain"].images_dropped == {"exact-duplicate": 2, "near-duplicate": 1}


def test_a_copy_of_the_capped_source_is_not_taken_over_by_the_one_that_stands_in(tmp_path):
    """It was dropped for that one, before both went for a larger picture of its own source."""
    large = [record(f"l/{i}", jpeg(picture(i).resize((1024, 960))), (1024, 960), source="coco") for i in range(2)]
    talks = [[TALK[0], Turn("assistant", f"{n}")] for n in range(4)]
    records = [*(talked_about(i, conversations=talks) for i in range(2)), *map(annotated, range(2)), *large]
    report, kept = curated(tmp_path, records, caps={"coco": 1})
    (alone,) = [one for one in kept.values() if one.source != "coco"]
    assert len(kept) == 2 and (alone.source, alone.regions, alone.conversations) == ("llava", [], talks)
    assert report.sources["coco"].images_dropped == {"cap": 2, "near-duplicate": 1} and not report.joined


@pytest.mark.parametrize("quality", [90, 60])
def test_what_goes_with_an_image_that_weights_take_is_not_said_to_go_with_one_that_stays(quality, tmp_path):
    records = [*(annotated(i, quality) for i in range(4)), *map(talked_about, range(4)), captioned(9, 9)]
    report, kept = curated(tmp_path, records, weights={"coco": 1, "llava": 1, "web": 1})
    assert len(kept) == 2 and report.sources["coco"].images_dropped == {"weight": 3}
    assert report.sources["llava"].images_dropped["weight"] == 3
    assert report.joined + report.with_copies == {"conversations": 1}
