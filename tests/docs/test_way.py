"""The files that one image goes through, from an import to the loss of stage 1, are those that CONTRIBUTING lists."""

import json
import re
import sys
from pathlib import Path

import numpy as np
from helpers.paths import ROOT
from helpers.tiny_recipe import save_parts, tiny_recipe
from PIL import Image

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import Corpus
from granvit.train.build import build_model
from granvit.train.feed import Feed

# Only measures.
BESIDE_THE_WAY = {"granvit/train/timing.py"}


def called(work) -> set[str]:
    """The files of the package of which `work()` calls a function."""
    files: set[str] = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(str(ROOT / "granvit")):
            files.add(Path(code.co_filename).relative_to(ROOT).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return files


def test_the_way_of_one_image(tmp_path):
    recipe = tiny_recipe(save_parts(tmp_path / "parts"))
    config, model = recipe.stages[0], build_model(recipe)
    prepare, stage = config.prepare(model), config.build(model)
    (tmp_path / "pack" / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pack" / "images" / "a.png")
    region = {"bbox": [4, 4, 40, 40], "text": "a red star", "kind": "object"}
    row = {"image": "images/a.png", "width": 64, "height": 64, "caption": "A red star.", "regions": [region]}
    (tmp_path / "pack" / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    terms = {}

    def follow():
        import_corpus("jsonl", tmp_path / "pack", tmp_path / "corpus")
        sources = [(Corpus(tmp_path / "corpus"), 1.0)]
        with Feed(sources, prepare, prepare.collate, batch_size=1, seed=0, prefetch=0) as feed:
            terms.update(stage(next(iter(feed))))

    files = called(follow) - BESIDE_THE_WAY
    assert terms.keys() == {"caption", "distill"}
    assert all(term.total > 0 for term in terms.values())
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"`(granvit/[\w/]+\.py)`", text.partition("## The way of one image")[2].partition("\n## ")[0])
    assert sorted(listed) == sorted(files)
    assert len(files) <= 25
