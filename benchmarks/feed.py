"""What the feed costs: images per second of one core, against bare decoding and resizing; a training's data wait.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/feed.py [--quick] [--images 128] [--side 640] [--repeats 7] [--steps 40]

The pictures are scenes of the embedded corpus, drawn at `--side` pixels and stored as JPEG in a corpus on disk. The
feed reads, decodes and views them, chooses and tokenises the questions, cuts the teacher's crops where there are any,
and packs batches of 8. The baseline does nothing but Pillow's decode, resize to the same canvas, and the copy into an
array, from bytes in memory. Both work in one thread, and take turns; what is counted is the time that the processor
computed, so that others on the machine matter little. Before, both are held to give the same pixels. The shapes are

    nano     a canvas of 160 pixels, location tokens, one crop of 64 pixels for the teacher
    paper    a canvas of 512 pixels, decimal coordinates, with and without four crops of 512 pixels

The data wait is the share of a nano stage-1 training that is spent waiting for batches, which two threads make ahead.
The figures are medians over rounds; a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from granvit.coordinates import get_codec
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.scenes import sample_texts
from granvit.corpus.synthetic.synthesize import make, synthesize
from granvit.images import decode
from granvit.model.assemble import assemble
from granvit.model.region_model import RegionModel
from granvit.model.settings import Settings
from granvit.nano.models import nano_encoder, nano_language, train_tokenizer
from granvit.nano.recipes import nano
from granvit.train.build import build_model
from granvit.train.config import LoopConfig, SampleConfig
from granvit.train.feed import Feed
from granvit.train.loop import train
from granvit.train.prepare import Prepare
from granvit.train.recipes.paper import paper

BATCH = 8


@dataclass
class Shape:
    """A feed to be measured: its name, the model that says how samples look, and what is asked."""

    name: str
    model: RegionModel
    sample: SampleConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of the training whose data wait is measured")
    parser.add_argument("--quick", action="store_true", help="16 images, two rounds, 2 steps")
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats, options.steps = 16, 2, 2
    disable_progress_bar()
    print(f"{platform.machine()}, torch {torch.__version__}, {options.images} pictures of {options.side} pixels")
    print(f"{'':24}{'images/s per core':>28}{'of decode + resize':>20}")
    with tempfile.TemporaryDirectory() as folder:
        corpus = draw(Path(folder) / "pictures", options.images, options.side)
        facts = [measure(shape, corpus, options.repeats) for shape in shapes()]
        wait = data_wait(Path(folder), options.steps)
    print(f"data wait of a nano training: {wait:.2%}")
    print(json.dumps({"benchmark": "feed", "shapes": {k: v for f in facts for k, v in f.items()}, "data_wait": wait}))


def draw(folder: Path, images: int, side: int) -> Corpus:
    """Embedded scenes as JPEG."""
    with CorpusWriter(folder) as writer:
        for i in range(images):
            record, out = make(i, seed=5, size=side, documents=0.2), io.BytesIO()
            decode(record.image or b"").save(out, "JPEG", quality=90)
            writer.write(replace(record, id=str(i), image=out.getvalue()))
    return Corpus(folder)


def shapes() -> list[Shape]:
    """The feeds to be measured. The paper's encoder and language model are stood in for: they play no part here."""
    small, stage = nano(), paper().stages[0].sample
    codec = get_codec("decimal")
    tokenizer = train_tokenizer(sample_texts(500), 1024, codec)
    parts = nano_encoder(canvas=512), (nano_language(tokenizer, codec), tokenizer)
    large = assemble(*parts, Settings(codec.spec))
    return [
        Shape("nano", build_model(small), small.stages[0].sample),
        Shape("paper, no crops", large, replace(stage, crops=0)),
        Shape("paper, 4 crops", large, replace(stage, crops=4)),
    ]


def bare(data: bytes, canvas: int) -> np.ndarray:
    """The baseline: decode, resize, copy."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((canvas, canvas), Image.Resampling.BICUBIC))


def measure(shape: Shape, corpus: Corpus, repeats: int) -> dict[str, dict[str, float]]:
    """One line of the table: the feed and the baseline in turns, over the same pictures."""
    canvas = shape.model.canvas
    files = [record.image or b"" for record in corpus]
    prepare = Prepare(shape.model, shape.sample)
    check_pixels(prepare, corpus, canvas)
    speeds: dict[str, list[float]] = {"feed": [], "bare": []}
    for repeat in range(repeats + 1):
        for name in ("feed", "bare") if repeat % 2 else ("bare", "feed"):
            start = time.process_time()
            if name == "bare":
                for data in files:
                    bare(data, canvas)
            else:
                with Feed([(corpus, 1.0)], prepare, prepare.collate, BATCH, seed=repeat, prefetch=0) as feed:
                    for _ in range(len(files) // BATCH):
                        next(feed)
            if repeat:  # the first round warms up
                speeds[name].append(len(files) // BATCH * BATCH / (time.process_time() - start))
    ratio = statistics.median(f / b for f, b in zip(speeds["feed"], speeds["bare"], strict=True))
    for name, of in speeds.items():
        shown = f"{statistics.median(of):.1f} [{min(of):.1f}, {max(of):.1f}]"
        title = shape.name if name == "feed" else "   decode + resize"
        print(f"{title:24}{shown:>28}{f'{ratio:.2f}' if name == 'feed' else '1.00':>20}")
    return {
        shape.name: {"images_per_core_second": round(statistics.median(speeds["feed"]), 2), "ratio": round(ratio, 4)}
    }


def check_pixels(prepare: Prepare, corpus: Corpus, canvas: int) -> None:
    """A square picture padded to a square is the picture: both must see the same."""
    for record in (corpus[0], corpus[1]):
        pixels = prepare(record, np.random.default_rng(0)).pixels
        assert pixels is not None and (pixels == bare(record.image or b"", canvas)).all(), "the feed sees other pixels"


def data_wait(folder: Path, steps: int) -> float:
    """The share of a training of nano's stage 1 that waits for batches."""
    recipe = nano()
    stage = recipe.stages[0]
    model = build_model(recipe)
    prepare = Prepare(model, stage.sample)
    corpus = synthesize(folder / "corpus", 16 * stage.loop.batch_size, progress=False)
    config = LoopConfig(steps=steps, batch_size=stage.loop.batch_size, precision=stage.loop.precision, trackers=())
    with Feed([(corpus, 1.0)], prepare, prepare.collate, config.batch_size, seed=0) as feed:
        return train(stage.build(model), feed, config, folder / "run", device="cpu").data_wait


if __name__ == "__main__":
    main()
