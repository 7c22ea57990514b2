"""FG-CLIP's captions: relative boxes with a score behind, and texts that are wrong on purpose."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import CorpusError
from granvit.regions import Region

PATH = "coyo_image_0/00000/000000016.jpg"


def entry(regions, path=f"grit-20m/data-12m/{PATH}", **more):
    return {"f_path": path, "caption": "A long caption.", "short_caption": "short", "bbox_info": regions, **more}


def info(bbox, short="red car", long="a red car by the kerb"):
    negatives = {"0": "blue car", "1": "green car"}
    return {"bbox": bbox, "short_expr": short, "long_expr": long, "flag_short_neg": 1, "short_expr_negs": negatives}


def finehard(folder, entries):
    save(folder / "data/grit-12m" / PATH, (40, 20))
    file = folder / "FineHARD/jsonfiles/2024-12-06_18-32-53_results_10_218_126_44_1025.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(entries))
    return folder / "FineHARD"


@pytest.mark.parametrize("place", ["", "jsonfiles", "jsonfiles/2024-12-06_18-32-53_results_10_218_126_44_1025.json"])
def test_regions(tmp_path, place):
    src = finehard(tmp_path, [entry([info([0.25, 0.5, 0.75, 1.0, 0.5]), info([0, 0, 0.5, 0.5], "", "a wall")])])
    [got], refused = bring("finehard", src / place, tmp_path / "out")
    assert (got.id, got.caption, got.split) == (f"finehard/{PATH}", "A long caption.", "train")
    by = {"box_by": "model:FineHARD", "text_by": "model:FineHARD"}
    assert got.regions == [
        Region((10, 10, 30, 20), "red car", score=0.5, alternatives=["a red car by the kerb"], **by),
        Region((0, 0, 20, 10), "a wall", **by),
    ]
    assert refused == []


def test_damage(tmp_path):
    regions = [info([0.2, 0.2, 0.1, 0.4]), info([2, 2, 3, 3]), info("0 0 1 1"), info([0, 0, 1, 1, 7]), "x",
               info([0, 0, 1, 1])]  # fmt: skip
    gone, outside = entry([], "grit-20m/data-12m/gone.jpg"), entry([], "../../secret.jpg")
    entries = [entry(regions), gone, outside, {"caption": "x"}, 7]
    [got], refused = bring("finehard", finehard(tmp_path, entries), tmp_path / "out")
    assert len(got.regions) == 1
    assert [(r.reason, r.region) for r in refused] == [
        ("inverted", 0), ("outside", 1), ("bad-box", 2), ("bad-score", 3), ("empty-text", 4),
        ("missing-image", None), ("path-outside", None), ("missing-field", None), ("missing-field", None),
    ]  # fmt: skip


def test_other_places(tmp_path):
    src = finehard(tmp_path, {"not": "a list"})
    with pytest.raises(CorpusError, match="a list in JSON is expected"):
        bring("finehard", src, tmp_path / "out")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match="name the folder of the pictures"):
        bring("finehard", src, tmp_path / "out")
    with pytest.raises(CorpusError, match=r"holds no jsonfiles/\*\.json"):
        bring("finehard", tmp_path / "elsewhere", tmp_path / "out")


def test_what_is_not_used_is_counted(tmp_path):
    regions = [info([0, 0, 1, 1]), {**info([0, 0, 0.5, 1]), "short_expr_negs": {}}]
    entries = [entry(regions), entry(regions, "grit-20m/data-12m/gone.jpg"), entry({"0": regions[0]})]
    summary = import_corpus("finehard", finehard(tmp_path, entries), tmp_path / "out")
    assert summary.left_out == {"short captions": 1, "regions' hard negatives": 1}
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (4, 2, 2)
    assert summary.reasons == {"missing-image": 1, "bad-field": 1}
