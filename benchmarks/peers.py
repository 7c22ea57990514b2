"""Training regions per second of granvit, of a plain `transformers.Trainer`, and of ms-swift where it is installed.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/peers.py [--quick] [--images 8] [--regions 8] [--steps 6] [--repeats 3]
        [--model RUN] [--device cuda] [--swift /path/to/python]

All train the same stock checkpoint on the same pictures and Bbox2Caption questions with the same optimizer and loss:
the mean cross-entropy of the answers' tokens of `--images` x `--regions` questions a step, encoder and projector
training, the language model frozen, no self-distillation (the peers have none). The peers see each question as a
sample with its picture, as people train LLaVA there. The first step's losses of granvit and Trainer must be equal.
Float32 on a CPU, bfloat16 autocast on a GPU (`--device cuda`). A figure is the median over the steps of a round but the
first; arms take turns; the table gives medians over rounds and, in brackets, the range. A ratio is the median of the
rounds' own ratios.

ms-swift runs in an interpreter of its own (`--swift`, with ms-swift and what its multimodal models need installed), by
its own command line and in its own words around the questions (its LLaVA-1.5 template), packing on where there is a GPU
(it needs flash attention). Its row tells why where it can't run; this arm has not been run yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.synthesize import make
from granvit.export.llava import export
from granvit.images import decode
from granvit.loading.models import load, load_model
from granvit.model.packing import IGNORE
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano
from granvit.questions import ask_caption
from granvit.regions import RegionImage
from granvit.train.build import build_model
from granvit.train.config import LoopConfig, SampleConfig
from granvit.train.feed import Feed
from granvit.train.loop import train
from granvit.train.prepare import Prepare
from granvit.train.stages.pretrain import Pretrain

GRANVIT, TRAINER, SWIFT = "granvit", "transformers.Trainer", "ms-swift"
LR = 1e-5
# Seconds per step of one round, and the first step's loss.
Round = tuple[list[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a run or checkpoint; nano's untrained parts by default")
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--regions", type=int, default=8, help="questions per image")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--swift", type=Path, help="an interpreter with ms-swift")
    parser.add_argument("--quick", action="store_true", help="2 images a step, one round of 3 steps")
    options = parser.parse_args()
    if options.quick:
        options.images, options.steps, options.repeats = 2, 3, 1
    disable_progress_bar()
    set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run the arms in turns and print the table."""
    checkpoint = exported(options.model, folder)
    corpus = draw(folder / "corpus", options.images, options.regions, RegionModel.load(checkpoint).canvas)
    samples = one_by_one(checkpoint, corpus)
    arms: dict[str, Callable[[Path], Round]] = {
        GRANVIT: lambda out: run_granvit(checkpoint, corpus, options, out),
        TRAINER: lambda out: run_trainer(checkpoint, samples, options, out),
    }
    why = ""
    if options.swift is not None:
        try:
            write_swift_data(samples, folder / "swift")
            run_swift(checkpoint, options, folder / "swift")  # warms up, and shows whether it runs at all
            arms[SWIFT] = lambda out: run_swift(checkpoint, options, folder / "swift")
        except RuntimeError as error:
            why = str(error)
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    losses: dict[str, float] = {}
    questions = options.images * options.regions
    for repeat in range(options.repeats):
        names = list(arms)
        at = repeat % len(names)
        for name in names[at:] + names[:at]:
            seconds, losses[name] = arms[name](folder / f"{name}{repeat}")
            speeds[name].append(questions / statistics.median(seconds))
    difference = abs(losses[GRANVIT] - losses[TRAINER]) / losses[TRAINER]
    tolerance = 1e-4 if options.device == "cpu" else 2e-2
    assert difference < tolerance, f"the first losses differ: {losses}"
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}")
    print(f"{options.images} images x {options.regions} regions a step; first losses agree to {difference:.1e}")
    print(f"{'':22}{'regions/s':>26}{'granvit is':>12}")
    facts: dict[str, Any] = {}
    for name, of in speeds.items():
        ratio = statistics.median(g / s for g, s in zip(speeds[GRANVIT], of, strict=True))
        print(f"{name:22}{f'{statistics.median(of):.1f} [{min(of):.1f}, {max(of):.1f}]':>26}{ratio:11.2f}x")
        facts[name] = {"regions_per_second": round(statistics.median(of), 2), "speedup": round(ratio, 3)}
    if SWIFT not in arms:
        why = why or "not asked for (--swift /path/to/python)"
        print(f"{SWIFT:22}{'left out':>26}  {why}")
        facts[SWIFT] = {"left_out": why}
    head = {"benchmark": "peers", "images": options.images, "regions": options.regions, "device": options.device}
    print(json.dumps({**head, "loss_difference": difference, "arms": facts}))


def exported(model: Path | None, folder: Path) -> Path:
    """The stock checkpoint that all arms start from."""
    if model is None:
        model = folder / "model"
        build_model(nano()).save(model)
    export(model, folder / "exported")
    return folder / "exported"


def draw(folder: Path, images: int, regions: int, side: int) -> Corpus:
    """Embedded scenes, each with exactly so many regions: those that it has, again and again."""
    with CorpusWriter(folder) as writer:
        for i in range(images):
            record = make(i, seed=5, size=side, documents=0.0)
            own = record.regions
            writer.write(replace(record, id=str(i), regions=[own[n % len(own)] for n in range(regions)]))
    return Corpus(folder)


def run_granvit(checkpoint: Path, corpus: Corpus, options: argparse.Namespace, out: Path) -> Round:
    """Stage 1 without distillation, through the feed and the loop."""
    model = RegionModel.load(checkpoint)
    prepare = Prepare(model, SampleConfig({"bbox2caption": 1.0}, max_regions=options.regions))
    config = LoopConfig(steps=options.steps, batch_size=options.images, lr=LR, trackers=(), log_every=1)
    moments: list[float] = []
    stage = Pretrain(model, distill_weight=0)
    stage.after_step = lambda: moments.append(time.perf_counter())  # type: ignore[method-assign]
    with Feed([(corpus, 1.0)], prepare, prepare.collate, options.images, seed=0) as feed:
        result = train(stage, feed, config, out, device="auto" if options.device == "cuda" else "cpu")
    return [b - a for a, b in zip(moments, moments[1:], strict=False)], result.history["loss"][0][1]


def one_by_one(checkpoint: Path, corpus: Corpus) -> list[tuple[RegionImage, str, str]]:
    """Every question as a sample of its own: its record, the question and the answer."""
    model = RegionModel.load(checkpoint)
    samples = []
    for record in corpus:
        view = model.view((record.width, record.height))
        boxes = view.to_relative([region.box for region in record.regions], model.settings.frame)
        asked = [ask_caption(box, model.codec) for box in boxes]
        samples += [(record, q, region.text) for q, region in zip(asked, record.regions, strict=True)]
    return samples


class Collate:
    """Samples -> the stock processor's inputs, with the answers' tokens as labels."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.end = processor.tokenizer.eos_token

    def __call__(self, samples: list[tuple[RegionImage, str, str]]) -> dict[str, torch.Tensor]:
        asked, whole = [], []
        for _, question, answer in samples:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            chat = [{"role": "user", "content": content}]
            asked.append(self.processor.apply_chat_template(chat, add_generation_prompt=True))
            whole.append(asked[-1] + answer + self.end)
        pictures = [decode(record.image or b"") for record, _, _ in samples]
        inputs = self.processor(images=pictures, text=whole, padding=True, return_tensors="pt")
        prompts = self.processor(images=pictures, text=asked, padding=True, return_tensors="pt")["attention_mask"].sum(
            1
        )
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE)
        column = torch.arange(labels.shape[1])
        return {**inputs, "labels": labels.masked_fill(column < prompts[:, None], IGNORE)}


class Moments(TrainerCallback):
    """When each step ended, and the loss of the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.loss = 0.0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if state.global_step == 1 and "loss" in logs:
            self.loss = float(logs["loss"])


def run_trainer(
    checkpoint: Path, samples: list[tuple[RegionImage, str, str]], options: argparse.Namespace, out: Path
) -> Round:
    """The same under `transformers.Trainer`, as one writes it today."""
    llava = load_model(LlavaForConditionalGeneration, checkpoint, dtype=torch.float32)
    processor = load(AutoProcessor, checkpoint)
    processor.tokenizer.padding_side = "right"
    for part in (llava.model.language_model, llava.lm_head):
        part.requires_grad_(False)
    moments = Moments()
    arguments = TrainingArguments(
        str(out),
        max_steps=options.steps,
        per_device_train_batch_size=len(samples),
        learning_rate=LR,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=options.device == "cpu",
        bf16=options.device == "cuda",
    )
    trainer = Trainer(llava, arguments, Collate(processor), train_dataset=samples, callbacks=[moments])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [b - a for a, b in zip(moments.ends, moments.ends[1:], strict=False)], moments.loss


def write_swift_data(samples: list[tuple[RegionImage, str, str]], folder: Path) -> None:
    """The samples as ms-swift reads them: a line of JSON each, and the pictures as files."""
    folder.mkdir()
    with (folder / "data.jsonl").open("w") as file:
        for record, question, answer in samples:
            picture = folder / f"{record.id}.png"
            if not picture.exists():
                decode(record.image or b"").save(picture)
            messages = [
                {"role": "user", "content": f"<image>{question}"},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages, "images": [str(picture)]}) + "\n")


def run_swift(checkpoint: Path, options: argparse.Namespace, folder: Path) -> Round:
    """The same under ms-swift's command line.

    Raises:
        RuntimeError: it does not run; the message is its last word.
    """
    out = Path(tempfile.mkdtemp(dir=folder))
    flags = {
        "model": checkpoint,
        "model_type": "llava1_5_hf",
        "dataset": folder / "data.jsonl",
        "tuner_type": "full",
        "freeze_llm": "true",
        "freeze_vit": "false",
        "freeze_aligner": "false",
        "packing": "true" if options.device == "cuda" else "false",
        "attn_impl": "flash_attn" if options.device == "cuda" else "sdpa",
        "torch_dtype": "bfloat16" if options.device == "cuda" else "float32",
        "per_device_train_batch_size": options.images * options.regions,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": "false",
        "learning_rate": LR,
        "max_steps": options.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "split_dataset_ratio": 0,
        "report_to": "none",
        "output_dir": out,
    }
    start = "import sys; from swift.cli.sft import sft_main; sft_main()"
    command = [str(options.swift), "-c", start, *(str(x) for k, v in flags.items() for x in (f"--{k}", v))]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = sorted(out.rglob("logging.jsonl"))
    if done.returncode or not logs:
        raise RuntimeError(f"ms-swift: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    rows = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    steps = [row for row in rows if "loss" in row and "elapsed_time" in row]
    return [1 / row["train_speed(iter/s)"] for row in steps[1:]], steps[0]["loss"]


if __name__ == "__main__":
    main()
