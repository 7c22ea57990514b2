"""Copies of one file: one record stays and says what all of them said, once; what went all the same is counted."""

from dataclasses import replace

import pytest
from helpers.drawn import corpus, jpeg, picture, record

from granvit.corpus.check import verify
from granvit.corpus.curate.balance import Repeats
from granvit.corpus.curate.curation import Curation, curate
from granvit.corpus.store import Corpus
from granvit.regions import Region, Turn

TALK = [Turn("user", "What?"), Turn("assistant", "A dog.")]
DOG, TREE = Region((10, 10, 200, 200), "a dog"), Region((250, 10, 450, 200), "a tree")


def talked_about(number: int, **options):
    """Conversations about a picture, as LLaVA's data has them."""
    given = {"regions": [], "source": "llava", "licence": "theirs", "conversations": [TALK], **options}
    return record(f"llava/{number}", jpeg(picture(number)), **given)


def annotated(number: int, quality: int = 90, **options):
    """The same picture with regions and a caption, as COCO has it."""
    given = {"regions": [DOG, TREE], "source": "coco", "licence": "ours", "caption": "A dog by a tree.", **options}
    return record(f"coco/{number}", jpeg(picture(number), quality), **given)


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
    assert report.joined == {"regions": 2} and report.with_copies == {"captions": 1}
    assert report.sources["coco"].regions_dropped == {"with-image": 1} and report.sources["coco"].regions_out == 2
    assert report.losses() == [
        "1 of 2 captions went with copies of pictures that stay; those are joined to files that are the same byte by "
        "byte alone, see --no-near-duplicates and --similarity"
    ]


def test_the_same_record_twice_is_itself(tmp_path):
    report, kept = curated(tmp_path, [annotated(0), replace(annotated(0), id="again")])
    assert list(kept.values()) == [annotated(0)] and not report.joined and not report.with_copies


def test_a_copy_whose_boxes_are_of_another_size_is_not_joined(tmp_path):
    shrunk = replace(annotated(0), width=500, height=470, regions=[TREE])
    report, kept = curated(tmp_path, [talked_about(0), shrunk])
    assert list(kept) == ["llava/0"] and kept["llava/0"].regions == []
    assert report.with_copies == {"regions": 1, "captions": 1} and not report.joined


def test_near_copies_cost_what_is_said_of_them(tmp_path):
    """Of pictures of one size the one stays of which more is said, whichever comes first."""
    talk = [talked_about(i, conversations=[TALK]) for i in range(3)]
    report, kept = curated(tmp_path, [*talk, *(annotated(i, quality=60) for i in range(3))])
    assert sorted(kept) == ["coco/0", "coco/1", "coco/2"] and not report.joined
    assert report.with_copies == {"conversations": 3} and "gone with copies: conversations 3" in str(report)
    assert any(line.startswith("3 of 3 conversations went with copies of pictures") for line in report.losses())


def test_what_was_taken_over_goes_with_its_image(tmp_path):
    """The joined file is itself the copy of a larger one."""
    larger = record("large", jpeg(picture(0).resize((1024, 960))), (1024, 960))
    report, kept = curated(tmp_path, [annotated(0), talked_about(0), larger])
    assert list(kept) == ["large"] and report.with_copies == {"regions": 2, "captions": 1, "conversations": 1}


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
