import itertools
import json
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks
from helpers.tiny_model import CANVAS, make_model
from helpers.tiny_recipe import tiny_recipe
from helpers.tiny_stage import TinyStage, make_feed
from safetensors.torch import load_file, save_file

from granvit.cli import main
from granvit.corpus.store import Corpus
from granvit.corpus.synthetic.synthesize import LazySynthetic, synthesize
from granvit.errors import CheckpointError
from granvit.nano.config import EncoderWarmupConfig, LanguageWarmupConfig
from granvit.train import loop
from granvit.train.debug.replay import replay
from granvit.train.loop import LoopConfig, NonFiniteLoss, train
from granvit.train.prepare import Prepare, SampleConfig
from granvit.train.run import run_stage
from granvit.train.stages.config import AdaptConfig, PretrainConfig

QUESTIONS = {"global": 0.8, "bbox2caption": 0.8, "caption2bbox": 0.8}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("corpus") / "c", 8, 0, CANVAS, 0.4, workers=1, progress=False)


def stage_recipe(config=PretrainConfig, **sample):
    settings = LoopConfig(steps=4, batch_size=2, accumulate=2, lr=1e-2, precision="fp32", trackers=(), seed=3)
    crops = {"crops": 1, "crop_size": 32} if config is PretrainConfig else {}
    kinds = get_type_hints(config)
    loop = kinds["loop"](**vars(settings))
    return config(kinds["sample"](**{"questions": QUESTIONS, **crops, **sample}), loop)


def stopped(stage, model, folder, records):
    """Trains until a number is not finite; the folder that is left."""
    with pytest.raises(NonFiniteLoss, match=r"granvit debug replay .*nonfinite"):
        run_stage(stage, tiny_recipe(folder), model, folder / "run", [(records, 1.0)], device="cpu")
    return folder / "run" / "nonfinite"


def poisoned(corpus):
    """A model that can't bear one token, and the id of the one record that it is in."""
    model = make_model("llama")
    prepare = Prepare(model, SampleConfig({"global": 1.0, "bbox2caption": 1.0}))
    used = {}
    for record in corpus:
        sample = prepare(record, np.random.default_rng(0))
        captions = [branch for branch in sample.branches if branch.task == "global"]
        used[record.id] = {token for branch in captions for token in branch.ids[:-1]}
    for offending, tokens in used.items():
        others = set().union(*(used[other] for other in used if other != offending))
        for token in sorted(tokens - others):
            with torch.no_grad():
                model.llava.get_input_embeddings().weight[token, 5] = torch.nan
            return model, offending
    raise AssertionError("every token is in two captions")


CAPTIONS = {"questions": {"global": 1.0}}


def test_the_module_and_the_sample_are_named(tmp_path, corpus, capsys):
    model, offending = poisoned(corpus)
    folder = stopped(stage_recipe(**CAPTIONS), model, tmp_path, corpus)
    result = replay(folder, device="cpu")
    assert result.reproduced and result.offending == [offending]
    assert [id for id, *_ in result.samples] == sum(json.loads((folder / "batch.json").read_text())["ids"][0], [])
    assert result.watch.output.startswith("model.model.language_model.embed_tokens (Embedding): ")
    assert [weight.split(":")[0] for weight in result.weights] == ["model.model.language_model.embed_tokens.weight"]
    assert math.isnan(result.now["caption"]) and math.isfinite(result.now["distill"])
    assert result.before["caption"] == "nan" and result.before["distill"] == repr(result.now["distill"])

    with pytest.raises(SystemExit) as exit:
        main(["debug", "replay", str(folder), "--corpus", str(corpus.path), "--device", "cpu"])
    reported = capsys.readouterr().out.splitlines()
    assert exit.value.code == 0
    assert reported[-1] == f"reproduced: step {result.step} is not finite again; 1 of 4 samples do it alone"
    assert sum(repr(offending) in line for line in reported) == 1

    # Without the poison the same step is finite, and the exit status says so.
    student = load_file(folder / "student.safetensors")
    save_file({name: tensor.nan_to_num() for name, tensor in student.items()}, folder / "student.safetensors")
    with pytest.raises(SystemExit) as exit:
        main(["debug", "replay", str(folder), "--device", "cpu"])
    assert exit.value.code == 1 and "not reproduced" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_fresh_process_finds_the_same(tmp_path, corpus):
    model, offending = poisoned(corpus)
    folder = stopped(stage_recipe(**CAPTIONS), model, tmp_path, corpus)
    command = [sys.executable, "-m", "granvit", "debug", "replay", str(folder), "--device", "cpu"]
    child = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1].startswith("reproduced: ") and repr(offending) in child.stdout


@pytest.mark.parametrize(
    "kind, sample",
    [
        (PretrainConfig, {"windows": 0.5, "max_regions": 2}),
        (LanguageWarmupConfig, {}),
        pytest.param(AdaptConfig, {"subphrases": 0.5}, marks=pytest.mark.slow),
        pytest.param(EncoderWarmupConfig, {}, marks=pytest.mark.slow),
    ],
)
def test_the_step_is_taken_again_to_the_last_bit(tmp_path, corpus, monkeypatch, kind, sample):
    """A healthy second step is declared ill; what its replay gives must be what the run had."""
    calls = itertools.count()
    healthy = 3 if kind is PretrainConfig else 2  # the first step's metrics but one: its terms, with the loss
    ill = SimpleNamespace(isfinite=lambda _: next(calls) <= healthy, fsum=math.fsum, inf=math.inf)
    monkeypatch.setattr(loop, "math", ill)
    records = LazySynthetic(50, 0, CANVAS, 0.2) if kind is LanguageWarmupConfig else corpus
    folder = stopped(stage_recipe(kind, **sample), make_model("qwen2"), tmp_path, records)
    result = replay(folder, device="cpu")
    assert result.step == 2 and not result.reproduced and not result.offending
    assert {name: repr(value) for name, value in result.now.items()} == result.before


def test_what_cannot_be_taken_again_is_refused(tmp_path, corpus):
    model, _ = poisoned(corpus)
    folder = stopped(stage_recipe(**CAPTIONS), model, tmp_path, corpus)
    other = synthesize(tmp_path / "other", 8, 1, CANVAS, 0.4, workers=1, progress=False)
    with pytest.raises(ValueError, match="other: not the corpus that the run read"):
        replay(folder, [str(other.path)], "cpu")
    with pytest.raises(ValueError, match="--corpus names 2 folder"):
        replay(folder, [str(corpus.path)] * 2, "cpu")
    ranks = (folder / "ranks.json").read_text()
    (folder / "ranks.json").write_text(ranks.replace('"position": ', '"position": 1'))
    with pytest.raises(ValueError, match="the corpora give the samples .*, the run had "):
        replay(folder, device="cpu")
    (folder / "ranks.json").write_text(ranks)
    (folder / "student.safetensors").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="student.safetensors"):
        replay(folder, device="cpu")
    facts = json.loads((folder / "batch.json").read_text())
    for name in ("step", "ids", "precision", "metrics"):
        (folder / "batch.json").write_text(json.dumps({**facts, name: None}))
        with pytest.raises(CheckpointError, match=f"batch.json: {name} is missing"):
            replay(folder, device="cpu")
    (folder / "batch.json").write_text(json.dumps(facts))
    for content in ("[]", "{}", '[{"feed": 1}]'):
        (folder / "ranks.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"ranks.json: .*(expected|missing)"):
            replay(folder, device="cpu")
    (folder / "ranks.json").write_text(ranks)
    (folder / "batch.json").write_text("{")
    with pytest.raises(CheckpointError, match="batch.json: cannot be read"):
        replay(folder, device="cpu")
    with pytest.raises(CheckpointError, match="is this a run's `nonfinite` folder"):
        replay(tmp_path, device="cpu")


def take_part(folder, corpus_path):
    """One rank's part of a run that ends at a poisonous token."""
    corpus = Corpus(corpus_path)
    run_stage(stage_recipe(**CAPTIONS), tiny_recipe(folder), poisoned(corpus)[0], folder / "run", [(corpus, 1.0)])


@pytest.mark.slow
def test_one_process_takes_the_step_of_two_ranks_again(tmp_path, corpus):
    assert run_ranks(2, take_part, tmp_path, corpus.path) == [1, 1]
    result = replay(tmp_path / "run" / "nonfinite", device="cpu")
    assert result.reproduced and result.offending == [poisoned(corpus)[1]] and len(result.samples) == 8
    assert result.now["distill"] == pytest.approx(float(result.before["distill"]), rel=1e-6)


def test_a_run_of_no_recipe_says_so(tmp_path):
    config = LoopConfig(steps=4, batch_size=37, trackers=())
    with pytest.raises(NonFiniteLoss):
        train(TinyStage(poison="r1"), make_feed(37), config, tmp_path, device="cpu")
    with pytest.raises(ValueError, match="not started from a recipe"):
        replay(tmp_path / "nonfinite", device="cpu")


def test_what_the_first_version_left_is_taken_again(tmp_path, corpus):
    """It named the provenance otherwise, and wrote every stage's settings down for each."""
    model, offending = poisoned(corpus)
    folder = stopped(stage_recipe(**CAPTIONS), model, tmp_path, corpus)
    facts = json.loads((folder / "batch.json").read_text())
    origin = facts.pop("provenance")
    others = {"noise": 0.3, "blur": 0.0, "smear": 0.0, "train_encoder": False}
    origin["stage"] |= others
    origin["stage"]["sample"] |= {"symbolic": False, "word_map": False}
    cache = {"feature_cache": None, "feature_cache_dtype": "fp32", "feature_cache_gb": 100.0}
    origin["stage"]["loop"] |= cache
    (folder / "batch.json").write_text(json.dumps({**facts, "origin": origin}))
    assert replay(folder, device="cpu").offending == [offending]
