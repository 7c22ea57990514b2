"""Many questions about one picture: granvit against as many stock `generate` calls on the exported checkpoint.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/predict.py [--quick] [--model RUN] [--repeats 5] [--device cuda]

Described are 32 boxes and located 16 phrases of one picture. granvit encodes the picture once, runs the prefix once and
decodes the questions as a batch. The baselines are plain transformers on the checkpoint that `granvit export` writes:

    one call each   the stock processor and `generate` for every question, as a user without granvit asks
    generate alone  the same with the inputs made beforehand, so that only the model's own work is timed
    one batch       all questions in a single stock `generate`, each with its own copy of the picture

All must give the same answers, and the arms take turns, each round in another order; the table gives medians over the
rounds and, in brackets, the range. A ratio is the median of the rounds' own ratios. The model is `--model`, or nano's
shipped parts under a fresh projector. An answer ends after `--tokens` tokens at the latest.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from granvit.corpus.synthetic.synthesize import make
from granvit.export.llava import export
from granvit.images import decode
from granvit.loading.models import load, load_model
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano
from granvit.predict import GranViT, ImageQuestions
from granvit.questions import ask_box
from granvit.train.build import build_model

GRANVIT, ONE_CALL, ALONE, ONE_BATCH = "granvit", "one call each", "generate alone", "one batch"
ARMS = (GRANVIT, ONE_CALL, ALONE, ONE_BATCH)
Arm = Callable[[], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a run or checkpoint")
    parser.add_argument("--boxes", type=int, default=32)
    parser.add_argument("--phrases", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="8 boxes, 4 phrases, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.boxes, options.phrases, options.repeats = 8, 4, 2
    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        measure(options, exported(options.model, Path(folder)))


def exported(model: Path | None, folder: Path) -> Path:
    """The stock checkpoint of a run, or of nano's parts, with granvit's own settings beside it."""
    if model is None:
        model = folder / "model"
        build_model(nano()).save(model)
    export(model, folder / "exported")
    return folder / "exported"


def ask_all(model: GranViT, boxes: int, phrases: int) -> tuple[Image.Image, dict[str, list[str]]]:
    """A picture of the embedded corpus, and the questions about it by task."""
    rng = np.random.default_rng(0)
    record = make(3, seed=5, size=4 * model.model.canvas, documents=0.0)
    picture = decode(record.image or b"")
    corners = rng.uniform(0, 0.7, (boxes, 2))
    relative = np.concatenate([corners, corners + rng.uniform(0.1, 0.3, (boxes, 2))], axis=1)
    texts = [region.text for region in record.regions]
    asked = [f"{texts[i % len(texts)]}{' again' * (i // len(texts))}" for i in range(phrases)]
    pixels = relative * np.array([*picture.size, *picture.size])
    view = model.model.view(picture.size)
    return picture, {"describe": model.box_questions(view, pixels), "locate": [ask_box(text) for text in asked]}


def arms_of(model: GranViT, llava: Any, processor: Any, picture: Image.Image, asked: list[str], tokens: int) -> dict:
    """What each arm does with a list of questions about a picture: all of them give the answers' texts."""
    view = model.model.view(picture.size)
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in asked
    ]

    def inputs(chosen: list[str]) -> Any:
        made = processor(images=[picture] * len(chosen), text=chosen, padding=True, return_tensors="pt")
        return made.to(llava.device, llava.dtype)

    def generate(made: Any) -> list[str]:
        output = llava.generate(**made, max_new_tokens=tokens, do_sample=False)
        answers = processor.batch_decode(output[:, made["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    ready = [inputs([text]) for text in texts]
    return {
        GRANVIT: lambda: model.answer([ImageQuestions(picture, view, asked)], tokens)[0],
        ONE_CALL: lambda: [generate(inputs([text]))[0] for text in texts],
        ALONE: lambda: [generate(made)[0] for made in ready],
        ONE_BATCH: lambda: generate(inputs(texts)),
    }


def rounds(arms: dict[str, Arm], repeats: int, wait: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of each arm, a list over the rounds; the round before them warms up."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats + 1):
        at = repeat % len(arms)
        names = list(arms)
        for name in names[at:] + names[:at]:
            wait()
            start = time.perf_counter()
            arms[name]()
            wait()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Check that the answers are the same, time the arms in turns, and print the table."""
    model = GranViT(RegionModel.load(folder, options.device))
    llava = load_model(LlavaForConditionalGeneration, folder, dtype=torch.float32).to(options.device)
    processor = load(AutoProcessor, folder)
    processor.tokenizer.padding_side = "left"
    picture, questions = ask_all(model, options.boxes, options.phrases)
    wait = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}")
    print(f"{'questions':>14}  {'arm':16}{'seconds':>26}{'granvit is':>12}")
    facts: dict[str, Any] = {}
    for task, asked in questions.items():
        arms = arms_of(model, llava, processor, picture, asked, options.tokens)
        ours = arms[GRANVIT]()
        same = {name: sum(a == b for a, b in zip(ours, arms[name](), strict=True)) for name in (ONE_CALL, ONE_BATCH)}
        assert same[ONE_CALL] == len(asked), f"{len(asked) - same[ONE_CALL]} answers differ from stock generate's"
        times = rounds(arms, options.repeats, wait)
        facts[task] = {"questions": len(asked), "same_as_one_batch": same[ONE_BATCH]}
        for name in ARMS:
            of = times[name]
            shown = f"{statistics.median(of):.3f} [{min(of):.3f}, {max(of):.3f}]"
            faster = statistics.median(t / g for t, g in zip(of, times[GRANVIT], strict=True))
            print(f"{f'{len(asked)} {task}':>14}  {name:16}{shown:>26}{faster:11.2f}x")
            if name != GRANVIT:
                facts[task][f"speedup_vs_{name.replace(' ', '_')}"] = round(faster, 3)
    print(json.dumps({"benchmark": "predict", "repeats": options.repeats, "tokens": options.tokens, "tasks": facts}))


if __name__ == "__main__":
    main()
