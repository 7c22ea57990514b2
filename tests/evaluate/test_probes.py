import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_model import make_tower
from PIL import Image, ImageDraw

from granvit.corpus.synthetic.scenes import encode
from granvit.evaluate import probes
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.evaluate.probe_tasks import (
    average_precisions,
    ctc_steps,
    probe_questions,
    ratio,
    usable,
    vocabulary,
    with_intervals,
)
from granvit.evaluate.probes import AttentiveHead, LinearHead, ReadingHead, fit, probe
from granvit.geometry import intersection
from granvit.regions import Region, RegionImage

COLORS = {"red": "#e02020", "blue": "#2040e0"}


def scene(n, kind="object", size=(64, 64)):
    """Two boxes on grey, one red and one blue, in turn; named after their colours."""
    picture = Image.new("RGB", size, "#808080")
    regions = []
    for (name, color), left in zip(list(COLORS.items())[:: 1 if n % 2 else -1], (4, 34), strict=True):
        box = (left, 8 + n % 9, left + 26, 44 + n % 9)
        ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=color)
        regions.append(Region(tuple(float(v) for v in box), f"a {name} box", kind))
    return RegionImage(f"scene{n}", encode(picture), *size, regions)


@pytest.fixture(scope="module")
def encoder():
    return PatchEncoder("tiny", make_tower(), ([0.5] * 3, [0.5] * 3))


@pytest.fixture(autouse=True)
def small_heads(monkeypatch):
    monkeypatch.setattr(probes, "_WIDTH", 32)
    monkeypatch.setattr(probes, "LEARNING_RATES", (3e-3, 1e-2))
    monkeypatch.setattr(probes, "_STEPS", 40)
    monkeypatch.setattr(probes, "_CTC_TRAINING_STEPS", 10)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_targets_of_every_task():
    records = [scene(n) for n in range(20)]
    assert vocabulary("label", probe_questions("label", records, 16, 0)) == ["a blue box", "a red box"]
    assert sorted(vocabulary("attribute", probe_questions("attribute", records, 16, 0))) == ["blue", "box", "red"]
    lines = [scene(n, "text") for n in range(20)]
    assert set(vocabulary("read", probe_questions("read", lines, 16, 0))) == set("a red blue box")
    assert probe_questions("read", records, 16, 0).items == [] and probe_questions("label", lines, 16, 0).items == []


def test_background_beside_text_touches_no_region():
    records = [
        RegionImage("wide", b"", 300, 300, [Region((10.0, 10.0, 60.0, 30.0), "tea", "text")]),
        RegionImage("full", b"", 60, 30, [Region((0.0, 0.0, 60.0, 30.0), "tea", "text")]),
        scene(0),
    ]
    items = probe_questions("is-text", records, 16, seed=3).items
    assert [(q.image, q.target) for q in items] == [(0, 1), (0, 0), (1, 1), (2, 0), (2, 0)]
    assert intersection(items[1].box, items[0].box) == 0
    assert np.subtract(items[1].box[2:], items[1].box[:2]) == pytest.approx([50, 20])
    assert min(items[1].box) >= 0 and max(items[1].box) <= 300
    assert (
        probe_questions("is-text", records, 16, seed=3).items
        == items
        != probe_questions("is-text", records, 16, seed=4).items
    )


def test_what_has_no_target_is_counted():
    lines = [scene(0, "text")]
    lines[0].regions += [
        Region((0.0, 0.0, 9.0, 9.0), text, "text", ignore=text == "skip") for text in ("x" * 30, "ab" * 30, " ", "skip")
    ]
    assert ctc_steps("x" * 30) == 59 and ctc_steps("ab" * 20) == 40
    kept = usable("read", probe_questions("read", lines, 16, 0), list("abx"))
    assert len(kept.items) == 2 and kept.left_out == {"line too long or empty": 3}
    other = usable("label", probe_questions("label", [scene(0)], 16, 0), ["a red box", "a green box"])
    assert [q.target for q in other.items] == ["a red box"] and other.left_out == {"text is no class": 1}


def test_too_little_to_learn_from_is_reported(encoder):
    few = [scene(n) for n in range(4)]
    with pytest.raises(ValueError, match="label: 0 texts stand on 10 training regions or more.*there are 8"):
        probe([encoder], few, few, "label", progress=False)
    with pytest.raises(ValueError, match="are too few"):
        probe([encoder], [scene(n) for n in range(20)], [scene(0, "text")], "label", progress=False)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_a_linear_head_knows_the_mean_an_attentive_one_also_places():
    rng = np.random.default_rng(0)
    where = torch.from_numpy(rng.integers(0, 2, 200))
    features = torch.from_numpy(rng.normal(0, 0.1, (200, 2, 2, 8))).float()
    features[:, 0, 0, 0] += 1 - where
    features[:, 1, 1, 0] += where  # the mean is the same for both classes

    def loss(scores, chosen):
        return F.cross_entropy(scores, where[list(chosen)])

    def hits(head, shift=0.0):
        fitted = fit(lambda: head((2, 2), 8, 2), features + shift, loss, range(160, 200), 150, seed=0)
        return float((fitted.scores(features[160:] + shift).argmax(-1) == where[160:]).float().mean())

    assert hits(LinearHead) < 0.75 and hits(AttentiveHead) == 1
    # The scale and place of features make no difference.
    assert hits(AttentiveHead, shift=100.0) == 1


def test_a_reader_reads_letters_in_their_order():
    rng = np.random.default_rng(1)
    texts = rng.integers(1, 4, (120, 4))
    steps = np.repeat(texts, 3, axis=1)
    steps[:, ::3] = 0  # a gap before every letter
    features = torch.from_numpy(np.eye(4)[steps]).float()[:, None].repeat(1, 2, 1, 2)
    letters = torch.from_numpy(texts)

    def loss(scores, chosen):
        lengths = torch.full((len(chosen),), 4)
        steps = torch.full((len(chosen),), 12)
        return F.ctc_loss(scores.transpose(0, 1), letters[list(chosen)], steps, lengths)

    fitted = fit(lambda: ReadingHead((2, 12), 8, 3), features, loss, range(100, 120), 150, seed=0)
    said = [probes.read_text(steps, "abc") for steps in fitted.scores(features[100:])]
    assert said == ["".join("?abc"[n] for n in row) for row in texts[100:]]


def test_the_same_seed_teaches_the_same_head():
    features = torch.randn(60, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    truth = (features.mean((1, 2))[:, 0] > 0).long()

    def taught(seed):
        torch.manual_seed(np.random.default_rng().integers(1000))  # what went before must not matter
        loss = lambda scores, chosen: F.cross_entropy(scores, truth[list(chosen)])  # noqa: E731
        return fit(lambda: AttentiveHead((2, 2), 8, 2), features, loss, range(10), 20, seed).scores(features)

    assert torch.equal(taught(1), taught(1)) and not torch.equal(taught(1), taught(2))


# --- scores ----------------------------------------------------------------------------------------------------------


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    truth = np.array([[True, False], [False, False], [True, False], [False, True]])
    precisions = average_precisions(scores, truth, [0, 0, 1, 1])
    first, second = (1 + 2 / 3) / 2, 1.0
    # The second row of weights draws the second image twice and the first never: only its two questions count.
    np.testing.assert_allclose(precisions(np.array([[1.0, 1.0], [0.0, 2.0]])), [[first, second], [1, 1]])
    nothing = average_precisions(np.zeros((4, 2)), truth, [0, 0, 1, 1])
    np.testing.assert_allclose(nothing(np.array([[1.0, 1.0]])), [[0.5, 0.25]])


def test_counting_an_image_twice_is_having_it_twice():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(12, 3)), rng.random((12, 3)) < 0.4
    image = np.repeat(range(4), 3)
    again = np.concatenate([np.arange(12), np.arange(3, 6)])
    twice = average_precisions(scores[again], truth[again], [*image, 9, 9, 9])(np.ones((1, 10)))
    assert average_precisions(scores, truth, image)(np.array([[1.0, 2.0, 1.0, 1.0]])) == pytest.approx(twice)


def test_differences_are_drawn_together():
    """Two encoders that are right about the same questions differ by nothing, however wide their intervals."""
    hits = [True, False, True, True, False, False, True, False]
    one, same, best = (ratio(h, [1.0] * 8, range(8), 8) for h in (hits, hits, [True] * 8))
    found, changes = with_intervals([one, same, best], 8)
    assert found[0].value == 0.5 and found[0].low < 0.3 and found[0].high > 0.7
    assert changes[0] is None and changes[1] == (0, 0, 0) and changes[2].value == 0.5


# --- the whole -------------------------------------------------------------------------------------------------------


def test_colours_are_distinguished_by_their_features(encoder):
    train, held_out = [scene(n) for n in range(40)], [scene(n) for n in range(40, 56)]
    report = probe([encoder], train, held_out, "label", progress=False)
    assert (report.trained_on, report.scored_on) == ({"images": 40, "regions": 80}, {"images": 16, "regions": 32})
    assert [(row.head, row.metric) for row in report.rows] == [("linear", "accuracy"), ("attentive", "accuracy")]
    for row in report.rows:
        assert row.scores["tiny"].value == 1 and row.majority.value == 0.5 and row.majority.low is not None
    tiles = [replace(record, id=f"page@{n},0,64") for n, record in enumerate(held_out)]
    of_tiles = probe([encoder], train, tiles, "label", progress=False)  # all of one image: drawn together
    assert [row.majority for row in of_tiles.rows] == [(0.5, None, None)] * 2
    reported = report.as_text()
    assert "linear, accuracy" in reported and "majority 50.0 %" in reported and "100.0 %" in reported
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["rows"][0]["scores"]["tiny"]["value"] == 1 and plain["rates"]["tiny"]["linear"] in (3e-3, 1e-2)


def test_an_encoder_is_compared_with_the_first_on_every_task(encoder):
    other = PatchEncoder("other", make_tower(canvas=32, seed=5), ([0.5] * 3, [0.5] * 3))
    train = [scene(n, "text" if n % 2 else "object") for n in range(48)]
    for task, heads in (("attribute", 2), ("is-text", 2), ("read", 2)):
        report = probe([encoder, other], train, train[:9], task, progress=False)
        assert len(report.rows) == heads
        for row in report.rows:
            first, second = row.scores["tiny"], row.scores["other"]
            assert 0 <= first.low <= first.value <= first.high <= 1
            assert row.changes["tiny"] is None
            assert row.changes["other"].value == pytest.approx(second.value - first.value)
            assert row.less_is_better == (row.metric == "CER")
