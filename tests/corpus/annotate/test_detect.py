import importlib.util
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_detectors
from PIL import Image
from safetensors.torch import load_file, save_file

from granvit.corpus.annotate.base import AnnotateError, Item
from granvit.corpus.annotate.detect import Detect, DetectConfig, KeepConfig
from granvit.corpus.annotate.detect_models import Found
from granvit.corpus.check import check_record
from granvit.geometry import iou
from granvit.regions import Region, RegionImage

WIDE, HIGH = (200, 100), (60, 150)


def make_item(size=WIDE, seed=0, regions=()):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Item(RegionImage(f"{size}", file.getvalue(), *size, list(regions)), picture)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that gives the folder of a tiny detector by name, each made once."""
    made = {}

    def make(name, **options):
        key = (name, *options.items())
        if key not in made:
            made[key] = getattr(tiny_detectors, name)(tmp_path_factory.mktemp("detectors") / name, **options)
        return str(made[key])

    return make


def detect(model, *items, device="cpu", **settings):
    config = DetectConfig(model, **{"threshold": 0.0, "nms_iou": 1.0, "top_k": 1000, **settings})
    annotated = config.build(device)(items)
    assert [a is b for a, b in zip(annotated, items, strict=True)] == [True] * len(items)
    return [item.record.regions for item in items]


def boxes_of(regions):
    return np.array([r.box for r in regions]).reshape(-1, 4)


# --- boxes in the right pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolos", "detr"])
def test_a_known_box_lands_on_the_right_pixels_of_pictures_that_are_not_square(checkpoint, name):
    """The heads say centre (0.5, 0.25), size (0.2, 0.4); both pictures go through as one padded batch."""
    wide, high = detect(checkpoint(name), make_item(WIDE), make_item(HIGH))
    np.testing.assert_allclose(boxes_of(wide), [[80, 5, 120, 45]] * len(wide), atol=1e-3)
    np.testing.assert_allclose(boxes_of(high), [[24, 7.5, 36, 67.5]] * len(high), atol=1e-3)


@pytest.mark.parametrize(("name", "queries", "label", "score"), [("yolos", 5, "dog", 0.757), ("detr", 4, "cat", 0.870)])
def test_one_region_per_query_before_nms_and_one_after(checkpoint, name, queries, label, score):
    """Softmax by hand: e^2 / (1 + e^2 + e^-1 + 1) = 0.757 and e^3 / (e^3 + 3) = 0.870."""
    model = checkpoint(name)
    assert len(detect(model, make_item())[0]) == queries
    (region,) = detect(model, make_item(), nms_iou=0.7)[0]
    assert region.score == pytest.approx(score, abs=1e-3)
    assert (region.text, region.kind, region.ignore) == (label, "object", False)
    assert region.box_by == region.text_by == f"detector:{name}"
    assert detect(model, make_item(), threshold=score + 0.01)[0] == []


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine"])
def test_the_queries_of_the_rt_detr_family_lie_on_their_anchors(checkpoint, name):
    """2 x 2 places, so centres at 1/4 and 3/4; an anchor of the finest level has 1/20 of width and height."""
    wide, high = detect(checkpoint(name), make_item(WIDE), make_item(HIGH))
    expected = [[45, 22.5, 55, 27.5], [45, 72.5, 55, 77.5], [145, 22.5, 155, 27.5], [145, 72.5, 155, 77.5]]
    np.testing.assert_allclose(sorted(boxes_of(wide).round(1).tolist()), expected)
    expected = [[13.5, 33.75, 16.5, 41.25], [13.5, 108.75, 16.5, 116.25]]
    expected += [[43.5, 33.75, 46.5, 41.25], [43.5, 108.75, 46.5, 116.25]]
    np.testing.assert_allclose(sorted(boxes_of(high).round(1).tolist()), expected, atol=0.1)


def test_boxes_of_owlv2_are_shares_of_its_padded_square(checkpoint):
    """2 x 2 patches: the first patch says centre (0.5, 0.5), size 0.5 of the square that pads right and bottom."""
    labels = ("cat", "traffic light")
    wide, high = detect(checkpoint("owlv2"), make_item(WIDE), make_item(HIGH), labels=labels)
    # Square of 200: 50 to 150 both ways, and the picture ends at a height of 100.
    assert iou(boxes_of(wide), [50, 50, 150, 100]).max() > 0.999
    # Square of 150: 37.5 to 112.5 both ways, and the picture ends at a width of 60.
    assert iou(boxes_of(high), [37.5, 37.5, 60, 112.5]).max() > 0.999
    assert {r.text for r in wide + high} <= set(labels)


@pytest.mark.parametrize("name", ["grounding_dino", "mm_grounding_dino"])
def test_the_queries_of_grounding_dino_lie_on_their_grid(checkpoint, name):
    """200 x 100 is shown as 64 x 32, in patches of 4: a grid of 16 x 8, anchors of 1/20."""
    labels = ("cat", "Traffic light.", "dogs")
    wide, _ = detect(checkpoint(name), make_item(WIDE), make_item(HIGH), labels=labels)
    assert len(wide) == 64 and {r.text for r in wide} <= {"cat", "traffic light", "dogs"}
    boxes = boxes_of(wide)
    inner = boxes[(boxes > 0.01).all(1) & (boxes[:, 2] < 199.9) & (boxes[:, 3] < 99.9)]
    assert len(inner) > 30
    np.testing.assert_allclose(inner[:, 2:] - inner[:, :2], [[10, 5]] * len(inner), atol=1e-3)
    cells = (inner[:, :2] + inner[:, 2:]) / 2 / 12.5 - 0.5
    np.testing.assert_allclose(cells, np.round(cells), atol=1e-3)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_every_token_of_a_sentence_belongs_to_its_label(checkpoint):
    detector = DetectConfig(checkpoint("grounding_dino"), ("cat", "traffic light", "dogs")).build().detector
    ((sentence, names),) = detector.passes
    assert sentence == "cat. traffic light. dogs."
    # [CLS] cat . traffic light . dog ##s . [SEP]
    assert names == {1: "cat", 3: "traffic light", 4: "traffic light", 6: "dogs", 7: "dogs"}


def test_a_box_belongs_to_the_label_of_its_best_token(checkpoint):
    """The full stop matches best, the second word of "traffic light" next: the box is a traffic light."""
    detector = DetectConfig(checkpoint("grounding_dino"), ("cat", "traffic light"), threshold=0.6).build().detector
    run = detector._run

    def scripted(inputs):
        outputs = run(inputs)
        logits = torch.full_like(outputs.logits, -9.0)
        logits[:, 0, 2], logits[:, 0, 4], logits[:, 0, 1] = 5.0, 1.0, 0.9
        logits[:, 1, 2] = 5.0  # a full stop alone names nothing
        outputs.logits = logits
        return outputs

    detector._run = scripted
    (found,) = detector([make_item().picture])
    assert found.labels == ["traffic light"]
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-1))], atol=1e-6)


def test_labels_that_do_not_fit_one_sentence_go_in_several(checkpoint):
    """8 tokens hold the two marks and three labels of one token with their full stops."""
    model = checkpoint("grounding_dino", longest=8)
    labels = ("cat", "dog", "wheel", "light", "traffic")
    detector = DetectConfig(model, labels).build().detector
    assert [text for text, _ in detector.passes] == ["cat. dog. wheel.", "light. traffic."]
    (regions,) = detect(model, make_item(), labels=labels)
    assert len(regions) == 2 * 64
    with pytest.raises(AnnotateError, match="longer than the detector's 8"):
        DetectConfig(model, ("cat dog wheel light traffic cat dog",)).build()


def test_a_detector_of_fixed_classes_keeps_those_asked_for(checkpoint):
    model = checkpoint("yolos")
    assert len(detect(model, make_item(), labels=("dog", "cat"))[0]) == 5
    assert detect(model, make_item(), labels=("traffic light",))[0] == []
    with pytest.raises(AnnotateError, match="has no class 'zebra'"):
        DetectConfig(model, ("zebra",)).build()


# --- choosing --------------------------------------------------------------------------------------------------------


class Script:
    """A detector that sees the same in every picture."""

    def __init__(self, boxes, scores, labels):
        self.found = Found(np.array(boxes, float), np.array(scores, float), list(labels))

    def __call__(self, pictures):
        return [self.found for _ in pictures]


def test_boxes_are_cut_to_the_picture_and_slivers_left_out():
    boxes = [[-10, -10, 50, 50], [190, 90, 230, 130], [199.5, 0, 260, 50], [-30, 0, -5, 20], [60, 10, 60.4, 40]]
    item = make_item()
    Detect(DetectConfig("m/det"), Script(boxes, [0.5, 0.9, 0.8, 0.7, 0.6], "abcde"))([item])
    assert [(r.text, r.box) for r in item.record.regions] == [("b", (190, 90, 200, 100)), ("a", (0, 0, 50, 50))]
    assert item.record.regions[0].box_by == "detector:det"
    assert not check_record(item.record).rejections


def test_nms_does_not_look_at_classes():
    item = make_item()
    boxes = [[0, 0, 50, 50], [1, 0, 51, 50], [100, 0, 150, 50]]
    Detect(DetectConfig("det"), Script(boxes, [0.5, 0.9, 0.4], ["car", "truck", "car"]))([item])
    assert [r.text for r in item.record.regions] == ["truck", "car"]


@pytest.mark.parametrize(("balance", "kept"), [(False, ["p", "p", "p"]), (True, ["p", "p", "q"])])
def test_a_rare_class_is_not_crowded_out_when_classes_are_balanced(balance, kept):
    boxes = [[20 * i, 0, 20 * i + 10, 50] for i in range(6)]
    item = make_item()
    config = DetectConfig("det", top_k=3, balance_classes=balance)
    Detect(config, Script(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "pppppq"))([item])
    assert [r.text for r in item.record.regions] == kept
    scores = [r.score for r in item.record.regions]
    assert scores == sorted(scores, reverse=True)


def test_regions_found_before_stay():
    text = Region((0, 0, 9, 9), "EXIT", "text")
    item = make_item(regions=[text])
    Detect(DetectConfig("det"), Script([[20, 20, 60, 60]], [0.9], ["door"]))([item])
    assert [r.text for r in item.record.regions] == ["EXIT", "door"]


def test_broken_arithmetic_is_reported_and_counted(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint("yolos"), tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    # Finite, as a checkpoint's weights must be, but not so what comes of them: infinity less infinity.
    weights["bbox_predictor.layers.0.bias"][:] = 3e38
    weights["bbox_predictor.layers.1.weight"] *= 1e4
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    item = make_item()
    assert detect(str(folder), item) == [[]]
    assert [r.reason for r in item.rejections] == ["detector-not-finite"]


# --- what cannot be loaded -------------------------------------------------------------------------------------------


def test_no_checkpoint_is_a_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotateError, match="empty: cannot be loaded as a detector"):
        DetectConfig(str(tmp_path / "empty")).build()


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    with pytest.raises(AnnotateError, match="'siglip_vision_model' is no object detector"):
        DetectConfig(str(tmp_path)).build()


def test_pickled_weights_are_refused(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint("yolos"), tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(AnnotateError, match="cannot be loaded as a detector"):
        DetectConfig(str(folder)).build()


def test_a_zero_shot_detector_wants_labels(checkpoint):
    for labels in ((), ("cat", " . ")):
        with pytest.raises(AnnotateError, match="labels must say what to look for"):
            DetectConfig(checkpoint("owlv2"), labels).build()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_processor_that_needs_torchvision_is_reported(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint("detr"), tmp_path / "rf"))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "RfDetrImageProcessor"}')
    with pytest.raises(AnnotateError, match="(?i)torchvision"):
        DetectConfig(str(folder)).build()


@pytest.mark.parametrize("settings", [{"threshold": 1.0}, {"nms_iou": 0.0}, {"top_k": 0}, {"batch_size": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(AnnotateError, match="detect: "):
        DetectConfig("det", **settings).build()


def test_settings_are_plain_data_and_import_nothing_heavy():
    code = (
        "import sys; from granvit.corpus.annotate.detect import DetectConfig; "
        "assert DetectConfig('hub/dfine-l').name == 'detector:dfine-l'; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- keep ------------------------------------------------------------------------------------------------------------


def test_keep_leaves_boxes_and_names_images_without():
    region = Region((1, 2, 30, 40), "a cat", box_by="human")
    items = [make_item(regions=[region]), make_item(HIGH)]
    assert KeepConfig().build()(items) == items
    assert items[0].record.regions == [region] and items[0].rejections == []
    assert [r.reason for r in items[1].rejections] == ["no-box"]


# --- what a detector says or does that it should not -----------------------------------------------------------------


class Scripted:
    """A detector that finds the same in every picture, and fails on those that are 60 pixels wide, or on all."""

    def __init__(self, found, fails=(60,)):
        self.found, self.fails = found, fails

    def __call__(self, pictures):
        if any(picture.width in self.fails for picture in pictures):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return [self.found for _ in pictures]


def scripted(found, **options):
    return Detect(DetectConfig("scripted"), Scripted(found, **options))


def test_a_picture_that_the_detector_cannot_look_at_costs_neither_its_batch_nor_the_run():
    items = [make_item(WIDE), make_item(HIGH), make_item(WIDE, 1)]
    scripted(Found(np.array([[10.0, 10, 50, 50]]), np.array([0.9]), ["dog"]))(items)
    assert [[r.text for r in item.record.regions] for item in items] == [["dog"], [], ["dog"]]
    assert [(r.reason, r.detail) for r in items[1].rejections] == [
        ("detector-failed", "ValueError: absolute aspect ratio must be smaller than 200")
    ]


def test_a_detector_that_fails_on_a_plain_picture_too_is_broken():
    with pytest.raises(ValueError, match="aspect ratio"):
        scripted(Found(np.zeros((0, 4)), np.zeros(0), []), fails=(60, 256))([make_item(HIGH)])


def test_what_a_detector_cannot_mean_is_refused_with_its_reason_and_the_rest_stays():
    good = [10.0, 10, 50, 50]
    rows = [
        (good, 0.9, "dog", None),
        ([60.0, 60, 90, 90], 0.8, "N/A", "detector-class-without-name"),
        ([60.0, 10, 90, 50], 0.8, "LABEL_7", "detector-class-without-name"),
        ([60.0, 10, 90, 50], 0.8, " ", "detector-class-without-name"),
        ([300.0, 10, 350, 50], 0.8, "cat", "detector-box-outside"),
        ([50.0, 50, 10, 10], 0.8, "cat", "detector-box-outside"),
        ([float("nan"), 0, 10, 10], 0.8, "cat", "detector-box-outside"),
        ([100.0, 10, 150, 50], float("nan"), "cat", "detector-bad-score"),
        ([100.0, 10, 150, 50], 1.7, "cat", "detector-bad-score"),
        ([150.0, 50, 260, 130], 0.7, "cat", None),
    ]
    boxes, scores, labels, reasons = zip(*rows, strict=True)
    item = make_item(WIDE)
    scripted(Found(np.array(boxes), np.array(scores), list(labels)))([item])
    assert [(r.text, r.box) for r in item.record.regions] == [("dog", (10, 10, 50, 50)), ("cat", (150, 50, 200, 100))]
    assert sorted(r.reason for r in item.rejections) == sorted(reason for reason in reasons if reason)
    assert check_record(item.record).rejections == []
    assert "'cat' 1.7 at [100.0, 10.0, 150.0, 50.0]" in [r.detail for r in item.rejections]


@pytest.mark.parametrize("name", ["yolos", "detr", "rt_detr_v2", "d_fine"])
def test_a_very_thin_picture_is_looked_at_or_refused(checkpoint, name):
    items = [make_item(WIDE), make_item((8, 4000)), make_item((4000, 8))]
    first, *_ = detect(checkpoint(name), *items)
    assert first and {r.reason for r in items[0].rejections} <= {"detector-box-outside"}
    for item in items:
        assert item.record.regions or item.rejections
