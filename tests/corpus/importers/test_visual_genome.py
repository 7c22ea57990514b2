"""Visual Genome: three JSON lists joined by image ids, pictures in two folders."""

import json
from itertools import count

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region

HOST = "https://cs.stanford.edu/people/rak248"


REGION_IDS = count(1382)


def phrase(text, x, y, width, height, **changes):
    return {
        "region_id": next(REGION_IDS), "width": width, "height": height, "phrase": text, "y": y, "x": x, **changes
    }  # fmt: skip


PHOTOS = [
    {"width": 40, "url": f"{HOST}/VG_100K_2/1.jpg", "height": 30, "image_id": 1, "coco_id": None, "flickr_id": None},
    # The file is not always named after the id.
    {"width": 50, "url": f"{HOST}/VG_100K/2370463.jpg", "height": 30, "image_id": 2, "coco_id": 547168},
]
REGIONS = [
    {"regions": [phrase("the clock is green in colour", 4, 5, 8, 13, image_id=1),
                 phrase("shade on the street ", 0, 0, 40, 9)], "id": 1},
    {"regions": [phrase("a cat", 45, 20, 30, 30, image_id=2)], "image_id": 2},
]  # fmt: skip
OBJECTS = [
    {"image_id": 1, "image_url": PHOTOS[0]["url"], "objects": [
        {"synsets": ["tree.n.01"], "h": 20, "object_id": 1058549, "merged_object_ids": [], "names": ["trees", "tree"],
         "w": 10, "y": 0, "x": 30},
    ]},
]  # fmt: skip


def genome(folder, photos=PHOTOS, regions=REGIONS, objects=OBJECTS):
    save(folder / "VG_100K_2/1.jpg")
    save(folder / "VG_100K/2370463.jpg", (50, 30))
    tables = {"image_data": photos, "region_descriptions": regions, "objects": objects}
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(table if isinstance(table, str) else json.dumps(table, indent=1))
    return folder


def test_phrases_are_regions(tmp_path):
    records, refused = bring("visual_genome", genome(tmp_path / "vg"), tmp_path / "out")
    assert refused == []
    assert [(r.id, r.width, r.licence) for r in records] == [
        ("visual_genome/VG_100K_2/1.jpg", 40, "CC BY 4.0"),
        ("visual_genome/VG_100K/2370463.jpg", 50, "CC BY 4.0"),
    ]
    assert records[0].regions == [
        Region((4, 5, 12, 18), "the clock is green in colour"),
        Region((0, 0, 40, 9), "shade on the street"),
    ]
    assert records[1].regions == [Region((45, 20, 50, 30), "a cat")]


def test_objects_follow_the_phrases_where_they_are_asked_for(tmp_path):
    records, _ = bring("visual_genome", genome(tmp_path / "vg"), tmp_path / "out", objects=True)
    assert records[0].regions[2:] == [Region((30, 0, 40, 20), "trees", alternatives=["tree"])]
    assert len(records[1].regions) == 1


@pytest.mark.parametrize("inside", ["images", ""])
def test_the_folders_of_pictures_may_be_elsewhere(tmp_path, inside):
    src = genome(tmp_path / "vg")
    place = src / inside if inside else tmp_path / "pictures"
    place.mkdir()
    for name in ("VG_100K", "VG_100K_2"):
        (src / name).rename(place / name)
    if not inside:
        with pytest.raises(CorpusError, match="found neither VG_100K/ nor VG_100K_2/"):
            bring("visual_genome", src, tmp_path / "out")
    records, _ = bring("visual_genome", src, tmp_path / "out", **({} if inside else {"images": place}))
    assert len(records) == 2


def test_damaged_entries_are_reported(tmp_path):
    regions = [
        REGIONS[0],
        {"id": 99, "regions": []},
        {"id": [1], "regions": []},
        {"regions": []},
        {"id": 2, "regions": [phrase(None, 1, 1, 5, 5), phrase("x", "1", 1, 5, 5), 7, phrase("x", 1, 1, 0, 5)]},
        {"id": 3, "regions": [phrase("x", 1, 1, 5, 5)]},
        {"id": 4, "regions": [phrase("x", 1, 1, 5, 5)]},
        {"id": 5},
    ]
    photos = [
        *PHOTOS,
        {"image_id": 3, "url": f"{HOST}/../../secret.jpg", "width": 40, "height": 30},
        {"image_id": 4, "width": 40, "height": 30},
        {"image_id": 5, "url": f"{HOST}/VG_100K/gone.jpg", "width": 40, "height": 30},
        {"image_id": {}, "url": ""},
    ]
    records, refused = bring("visual_genome", genome(tmp_path / "vg", photos, regions), tmp_path / "out")
    assert [(r.reason, r.uri, r.region) for r in refused] == [
        ("unknown-image", "region_descriptions.json:1", None),
        ("unknown-image", "region_descriptions.json:2", None),
        ("unknown-image", "region_descriptions.json:3", None),
        ("empty-text", "VG_100K/2370463.jpg", 0),
        ("bad-box", "VG_100K/2370463.jpg", 1),
        ("empty-text", "VG_100K/2370463.jpg", 2),
        ("degenerate", "VG_100K/2370463.jpg", 3),
        ("path-outside", "../secret.jpg", None),
        ("missing-image", "", None),
        ("missing-image", "VG_100K/gone.jpg", None),
    ]
    assert len(records) == 2


@pytest.mark.parametrize("table", ["", "{}", "[{}, ", "[{} {}]", '[{"a": 1},]', "[1]", "[" * 50_000])
@pytest.mark.parametrize("name", ["photos", "regions"])
def test_a_file_that_is_no_list_of_objects_stops_the_import(tmp_path, name, table):
    file = {"photos": "image_data.json", "regions": "region_descriptions.json"}[name]
    with pytest.raises(CorpusError, match=file):
        bring("visual_genome", genome(tmp_path / "vg", **{name: table}), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    src = genome(tmp_path / "vg")
    (src / "objects.json").unlink()
    assert len(bring("visual_genome", src, tmp_path / "out")[0]) == 2
    with pytest.raises(CorpusError, match="lacks objects.json"):
        bring("visual_genome", src, tmp_path / "other", objects=True)


def test_ids_are_joined_by_their_value(tmp_path):
    regions = [{"id": "1", "regions": [phrase("a", 4, 5, 8, 13, image_id=1.0)]}, {**REGIONS[1], "image_id": 2.0}]
    things = [{**OBJECTS[0], "image_id": "1"}]
    records, refused = bring("visual_genome", genome(tmp_path / "vg", PHOTOS, regions, things), tmp_path / "out",
                             objects=True)  # fmt: skip
    assert [[r.text for r in record.regions] for record in records] == [["a", "trees"], ["a cat"]]
    assert refused == []


def test_ids_of_several_are_ambiguous(tmp_path):
    one, two, three = (phrase(name, 4, 5, 8, 13) for name in "abc")
    regions = [{"id": 1, "regions": [one, {**two, "region_id": str(one["region_id"])}, three, three,
                                     phrase("d", 4, 5, 8, 13, image_id=2)]}, REGIONS[1]]  # fmt: skip
    photos = [*PHOTOS, {**PHOTOS[0], "image_id": 2}]
    [record], refused = bring("visual_genome", genome(tmp_path / "vg", photos, regions), tmp_path / "out")
    assert [r.text for r in record.regions] == ["c"]
    assert [(r.reason, r.region, r.regions) for r in refused] == [
        ("ambiguous-id", 0, 0), ("ambiguous-id", 1, 0), ("duplicate-id", 3, 0), ("ambiguous-id", 4, 0),
        ("ambiguous-id", None, 1),
    ]  # fmt: skip
    assert "it is listed for the image 1, and names 2" in refused[3].detail


def test_tables_and_photos_that_are_not_used_are_counted(tmp_path):
    src = genome(tmp_path / "vg", PHOTOS, REGIONS[:1], [{**OBJECTS[0], "image_id": 2}])
    (src / "relationships.json").write_text("[]")
    bring("visual_genome", src, tmp_path / "out", objects=True)
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {
        "photo that region_descriptions.json does not describe": 1,
        "object of a photo that is not described": 1,
        "table relationships.json": 1,
    }
