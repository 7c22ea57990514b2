"""The real lmms-eval, where it is installed: a checkpoint through the plugin and through lmms-eval's own `llava_hf`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_model import make_model

from granvit.coordinates import Decimal
from granvit.corpus.store import Corpus
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.evaluate.metrics import box_scores
from granvit.evaluate.region_tasks import evaluate
from granvit.export.llava import export
from granvit.predict import GranViT
from granvit.questions import parse_box

INSTALLED = importlib.util.find_spec("lmms_eval")
pytestmark = pytest.mark.skipif(
    INSTALLED is None, reason="lmms-eval is not installed here; docs/lmms-eval.md says how it is"
)
CHILD = Path(__file__).with_name("lmms_child.py")


def lmms_eval(folder, codec, plan):
    """Runs a plan in a process of its own, offline."""
    (folder / "plan.json").write_text(json.dumps(plan))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "REGIONS_CODEC": codec}
    done = subprocess.run(
        [sys.executable, str(CHILD), "plan.json", "found.json"],
        cwd=folder,
        env=os.environ | offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_plugin_and_llava_hf_say_the_same_and_score_the_same(tmp_path):
    model = make_model("qwen2", codec="loc:16", canvas=96)
    model.save(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "exported")
    synthesize(tmp_path / "corpus", 6, seed=3, size=96, documents=0.0, split="val", workers=1)
    tasks = ["regions_describe", "regions_locate", "regions_refcoco"]
    plugin, one_by_one, stock, reported = lmms_eval(
        tmp_path,
        "loc:16",
        [
            {
                "model": "granvit",
                "model_args": "pretrained=checkpoint,boxes=verbatim",
                "batch_size": 64,
                "tasks": tasks,
            },
            {"model": "granvit", "model_args": "pretrained=exported,boxes=verbatim", "batch_size": 1, "tasks": tasks},
            {"model": "llava_hf", "model_args": "pretrained=exported,device_map=cpu", "batch_size": 1, "tasks": tasks},
            {"model": "granvit", "model_args": "pretrained=checkpoint", "batch_size": 5, "tasks": tasks},
        ],
    )
    assert "granvit.evaluate.lmms" in plugin["backend"] and "llava_hf" in stock["backend"]
    assert plugin["said"] == one_by_one["said"]
    # The plugin's answers have no blanks around them.
    assert plugin["said"] == {task: [s.strip() for s in said] for task, said in stock["said"].items()}
    assert plugin["scores"] == one_by_one["scores"] == stock["scores"]
    assert len(set(plugin["said"]["regions_describe"])) > 3

    own = evaluate(GranViT(model), Corpus(tmp_path / "corpus"), tasks=("describe", "locate"), progress=False)
    locate = [item for item in own.items if item.task == "locate"]
    assert reported["scores"]["regions_refcoco"]["refcoco_ACC@0.5,none"] == own.scores["locate"]["acc50"]
    assert reported["scores"]["regions_refcoco"]["refcoco_IoU,none"] == pytest.approx(
        own.scores["locate"]["miou"], abs=1e-5
    )
    assert plugin["said"]["regions_locate"] == [item.said for item in locate]


def refcoco():
    """lmms-eval's functions for RefCOCO, loaded without the rest of it."""
    path = Path(INSTALLED.origin).parent / "tasks" / "refcoco" / "utils_rec.py"
    spec = importlib.util.spec_from_file_location("lmms_utils_rec", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scores_of_both(answers, truths):
    """(Acc@0.5, mean IoU) by lmms-eval and by granvit of decimal answers to boxes relative to the image."""
    theirs = refcoco()
    key, rows = "refcoco_IoU", []
    for said, truth in zip(answers, truths, strict=True):
        rows.append(
            theirs.refcoco_bbox_rec_process_result({"question_id": 0, "answer": "", "bbox": truth}, [said])[key]
        )
    ours = box_scores([parse_box(said, Decimal()) for said in answers], truths)
    return (theirs.refcoco_bbox_rec_acc05(rows), theirs.refcoco_bbox_rec_iou(rows)), (ours["acc50"], ours["miou"])


def boxes(count, seed):
    rng = np.random.default_rng(seed)
    return [np.concatenate([low, low + size]).tolist() for low, size in rng.uniform(0.02, 0.48, (count, 2, 2))]


def test_the_same_boxes_get_the_same_score_as_lmms_eval_gives_for_refcoco():
    truths = boxes(500, seed=0)
    near = [np.clip(np.array(t) + np.random.default_rng(n).normal(0, 0.05, 4), 0, 1) for n, t in enumerate(truths)]
    said = [Decimal().encode(b) for b in near[:400]] + ["no idea", "", "[0.1, 0.2]", "[0.9, 0.9, 0.1, 0.1]"] * 25
    theirs, ours = scores_of_both(said, truths)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert 0.2 < ours[0] < 0.9


@pytest.mark.parametrize(
    ("said", "theirs", "ours"),
    [
        ("It is at [0.2, 0.2, 0.6, 0.6].", 1.0, 0.0),  # lmms-eval searches the answer
        ("[0.2, 0.2, 0.6, 0.6] or [0, 0, 1, 1]", 1.0, 0.0),  # and takes the first of several
        ("[0.20000, 0.2, 0.6, 0.6]", 1.0, 0.0),  # more than four decimals
        ("[0.0, 0.0, 1.2, 1.0]", 0.16 / 1.2, 0.0),  # outside the image
    ],
)
def test_where_the_two_readings_differ(said, theirs, ours):
    (_, lmms_iou), (_, own_iou) = scores_of_both([said], [[0.2, 0.2, 0.6, 0.6]])
    assert lmms_iou == pytest.approx(theirs) and own_iou == pytest.approx(ours)
