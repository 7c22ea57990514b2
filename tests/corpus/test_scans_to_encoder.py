"""Scans without annotations become a corpus that trains: what people wrote about other scans becomes likelier."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import real_data

from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.annotate.pipeline import annotate
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.derive import held_out_part
from granvit.corpus.importers.run import import_corpus
from granvit.corpus.store import Corpus, Subset

pytest.importorskip("rapidocr")


def loss_per_token(model, records, seeds: int = 1) -> float:
    """The cross-entropy of reading the text in the boxes, in a window around one of them, nats per token."""
    from granvit.train.config import SampleConfig
    from granvit.train.prepare import Prepare
    from granvit.train.stages.pretrain import Pretrain

    prepare = Prepare(model, SampleConfig({"bbox2caption": 1.0}, max_regions=12, windows=1.0, window_side=(0.6, 0.6)))
    stage = Pretrain(model, distill_weight=0).eval()
    total = tokens = 0.0
    with torch.no_grad():
        for seed in range(seeds):
            for place in range(len(records)):
                batch = prepare.collate([prepare(records[place], np.random.default_rng([seed, place]))])
                total += float(stage(batch)["caption"].total)
                tokens += batch.counts["answer_tokens"]
    return total / tokens


def recipe(words: int, steps: int, batch: int):
    """The words and stage 1 of `nano-own`, with so many steps."""
    from granvit.nano.recipes import nano_own

    made = nano_own()
    made.stages = [
        replace(stage, loop=replace(stage.loop, steps=count, batch_size=batch, warmup_steps=count // 8))
        for stage, count in zip(made.stages[1:3], (words, steps), strict=True)
    ]
    return made


@pytest.mark.slow
def test_what_ocr_made_of_scans_teaches_reading(tmp_path):
    from granvit.train.run import run_recipe

    (receipts,) = real_data("sroie")
    import_corpus("jsonl", receipts, tmp_path / "people", val_fraction=0.1, group="first-line")
    people = held_out_part(Corpus(tmp_path / "people"))
    held_out = {Path(record.uri).name for record in people.corpus.records() if record.split == "val"}
    (tmp_path / "scans").mkdir()
    for file in [f for f in sorted((receipts / "images").iterdir()) if f.name not in held_out][:16]:
        shutil.copy(file, tmp_path / "scans")
    annotate(tmp_path / "scans", tmp_path / "read", Plan("ocr", OcrConfig()), workers=1, device="cpu")

    losses: dict[str, float] = {}
    few = Subset(people.corpus, people.indices[:12])
    run_recipe(
        recipe(words=8, steps=24, batch=8),
        tmp_path / "run",
        [(Corpus(tmp_path / "read"), 1.0)],
        device="cpu",
        on_stage=lambda name, model, _: losses.update({name: loss_per_token(model, few)}),
    )
    print(losses)
    assert losses["stage1"] < losses["words"] - 0.05
