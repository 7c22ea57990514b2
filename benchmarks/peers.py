"""Training regions per second of granvit, of a plain `transformers.Trainer`, and of ms-swift where it is installed.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/peers.py [--quick] [--images 8] [--regions 8] [--steps 6] [--repeats 3]
        [--turns 3] [--model RUN] [--device cuda] [--swift /path/to/python]

All train the same stock checkpoint on the same pictures and Bbox2Caption questions with the same optimizer and loss:
the mean cross-entropy of the answers' tokens of `--images` x `--regions` questions a step, encoder and projector
training, the language model frozen, no self-distillation (the peers have none). The peers see each question as a
sample with its picture, as people train LLaVA there. The first step's losses of granvit and Trainer must be equal.
Float32 on a CPU, bfloat16 autocast on a GPU (`--device cuda`). A figure is the median over the steps of a round but the
first; arms take turns; the table gives medians over rounds and, in brackets, the range. A ratio is the median of the
rounds' own ratios.

With `--turns N` each picture has `--regions` conversations of N rounds in place of its questions, and every part but
the encoder trains, as in `finetune`: conversations per second, the loss on every answer, without ms-swift. The peer
finds the answers by tokenising a conversation up to each of them, once.

ms-swift runs in an interpreter of its own (`--swift`, with ms-swift and what its multimodal models need installed), by
its own command line and in its own words around the questions (its LLaVA-1.5 template): with its packing, which puts
samples one behind the other in a row, and without. Where an arm can't run its row has its own last words; packing wants
flash attention, and so a GPU.
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
from granvit.regions import RegionImage, Turn
from granvit.train.build import build_model
from granvit.train.config import ConversationSample, LoopConfig, SampleConfig
from granvit.train.feed import Feed
from granvit.train.loop import train
from granvit.train.prepare import Prepare
from granvit.train.stages.base import AnsweringStage
from granvit.train.stages.finetune import Finetune
from granvit.train.stages.pretrain import Pretrain

GRANVIT, TRAINER, SWIFT = "granvit", "transformers.Trainer", "ms-swift"
SWIFT_PACKED = "ms-swift, packing"
LR = 1e-5
# Seconds per step of one round, and the first step's loss.
Round = tuple[list[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a run or checkpoint; nano's untrained parts by default")
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--regions", type=int, default=8, help="questions per image")
    parser.add_argument("--turns", type=int, default=0, help="rounds of a conversation; 0 asks about regions")
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
    if options.turns:
        corpus = talked_about(corpus, folder / "talk", options.turns)
    samples = one_by_one(checkpoint, corpus)
    arms: dict[str, Callable[[Path], Round]] = {
        GRANVIT: lambda out: run_granvit(checkpoint, corpus, options, out),
        TRAINER: lambda out: run_trainer(checkpoint, samples, options, out),
    }
    why = {} if options.turns else dict.fromkeys((SWIFT, SWIFT_PACKED), "not asked for (--swift /path/to/python)")
    if options.swift is not None and not options.turns:
        write_swift_data(samples, folder / "swift")
        for name in (SWIFT, SWIFT_PACKED):
            packing = name == SWIFT_PACKED
            try:
                run_swift(checkpoint, options, folder / "swift", packing)  # warms up, and shows whether it runs at all
            except RuntimeError as error:
                why[name] = str(error)
            else:
                del why[name]
                arms[name] = lambda out, packing=packing: run_swift(checkpoint, options, folder / "swift", packing)
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
    unit = f"conversations of {options.turns} rounds" if options.turns else "regions"
    print(f"{options.images} images x {options.regions} {unit} a step; first losses agree to {difference:.1e}")
    per_second = "conversations" if options.turns else "regions"
    print(f"{'':22}{f'{per_second}/s':>26}{'granvit is':>12}")
    facts: dict[str, Any] = {}
    for name, of in speeds.items():
        ratio = statistics.median(g / s for g, s in zip(speeds[GRANVIT], of, strict=True))
        print(f"{name:22}{f'{statistics.median(of):.1f} [{min(of):.1f}, {max(of):.1f}]':>26}{ratio:11.2f}x")
        facts[name] = {f"{per_second}_per_second": round(statistics.median(of), 2), "speedup": round(ratio, 3)}
    for name, reason in why.items():
        print(f"{name:22}{'left out':>26}  {reason}")
        facts[name] = {"left_out": reason}
    head = {"benchmark": "peers", "images": options.images, "regions": options.regions, "device": options.device}
    head["turns"] = options.turns
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


def about(number: int, texts: list[str]) -> list[Turn]:
    """One round of a conversation."""
    return [Turn("user", f"What is number {number}?"), Turn("assistant", texts[number % len(texts)])]


def talked_about(corpus: Corpus, folder: Path, turns: int) -> Corpus:
    """The same pictures with a conversation for each region: so many rounds about it and those after it."""
    with CorpusWriter(folder) as writer:
        for record in corpus:
            texts = [region.text for region in record.regions]
            said = [[turn for k in range(turns) for turn in about(n + k, texts)] for n in range(len(texts))]
            writer.write(replace(record, regions=[], caption=None, conversations=said))
    return Corpus(folder)


def run_granvit(checkpoint: Path, corpus: Corpus, options: argparse.Namespace, out: Path) -> Round:
    """Stage 1 without distillation, through the feed and the loop."""
    model = RegionModel.load(checkpoint)
    sample = SampleConfig({"bbox2caption": 1.0}, max_regions=options.regions)
    if options.turns:
        sample = ConversationSample({}, max_conversations=options.regions)
    prepare = Prepare(model, sample)
    config = LoopConfig(steps=options.steps, batch_size=options.images, lr=LR, trackers=(), log_every=1)
    moments: list[float] = []
    stage: AnsweringStage = Finetune(model) if options.turns else Pretrain(model, distill_weight=0)
    stage.after_step = lambda: moments.append(time.perf_counter())  # type: ignore[method-assign]
    with Feed([(corpus, 1.0)], prepare, prepare.collate, options.images, seed=0) as feed:
        result = train(stage, feed, config, out, device="auto" if options.device == "cuda" else "cpu")
    return [b - a for a, b in zip(moments, moments[1:], strict=False)], result.history["loss"][0][1]


# A picture and what is said of it: questions and answers by turns.
Sample = tuple[RegionImage, list[str]]


def one_by_one(checkpoint: Path, corpus: Corpus) -> list[Sample]:
    """Every question with its answer, or every conversation, as a sample of its own."""
    model = RegionModel.load(checkpoint)
    samples: list[Sample] = []
    for record in corpus:
        samples += [(record, [turn.text for turn in said]) for said in record.conversations]
        if not record.regions:
            continue
        view = model.view((record.width, record.height))
        boxes = view.to_relative([region.box for region in record.regions], model.settings.frame)
        asked = [ask_caption(box, model.codec) for box in boxes]
        samples += [(record, [q, region.text]) for q, region in zip(asked, record.regions, strict=True)]
    return samples


class Collate:
    """Samples -> the stock processor's inputs, with the answers' tokens as labels."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.end = processor.tokenizer.eos_token
        self.answers: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        whole = [self.asked(said[:-1]) + said[-1] + self.end for _, said in samples]
        pictures = [decode(record.image or b"") for record, _ in samples]
        inputs = self.processor(images=pictures, text=whole, padding=True, return_tensors="pt")
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        for row, ((_, said), text) in enumerate(zip(samples, whole, strict=True)):
            if text not in self.answers:
                self.answers[text] = self.places(said, pictures[row])
            for start, end in self.answers[text]:
                labels[row, start:end] = inputs["input_ids"][row, start:end]
        return {**inputs, "labels": labels}

    def asked(self, said: list[str]) -> str:
        """What is said so far, up to where the next answer begins."""
        chat = [
            {"role": ("user", "assistant")[n % 2], "content": [{"type": "text", "text": text}]}
            for n, text in enumerate(said)
        ]
        chat[0]["content"] = [{"type": "image"}, {"type": "text", "text": said[0]}]
        return str(self.processor.apply_chat_template(chat, add_generation_prompt=True))

    def places(self, said: list[str], picture: Any) -> list[tuple[int, int]]:
        """Where the answers' tokens lie, those that end them included."""
        begun = [self.asked(said[:n]) for n in range(1, len(said), 2)]
        ended = [text + answer + self.end for text, answer in zip(begun, said[1::2], strict=True)]
        lengths = [len(self.processor(images=picture, text=text)["input_ids"][0]) for text in (*begun, *ended)]
        return list(zip(lengths[: len(begun)], lengths[len(begun) :], strict=True))


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


def run_trainer(checkpoint: Path, samples: list[Sample], options: argparse.Namespace, out: Path) -> Round:
    """The same under `transformers.Trainer`, as one writes it today."""
    llava = load_model(LlavaForConditionalGeneration, checkpoint, dtype=torch.float32)
    processor = load(AutoProcessor, checkpoint)
    processor.tokenizer.padding_side = "right"
    frozen = (llava.model.vision_tower,) if options.turns else (llava.model.language_model, llava.lm_head)
    for part in frozen:
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


def write_swift_data(samples: list[Sample], folder: Path) -> None:
    """The samples as ms-swift reads them: a line of JSON each, and the pictures as files."""
    folder.mkdir()
    with (folder / "data.jsonl").open("w") as file:
        for record, (question, answer) in samples:
            picture = folder / f"{record.id}.png"
            if not picture.exists():
                decode(record.image or b"").save(picture)
            messages = [
                {"role": "user", "content": f"<image>{question}"},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages, "images": [str(picture)]}) + "\n")


def run_swift(checkpoint: Path, options: argparse.Namespace, folder: Path, packing: bool) -> Round:
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
        "packing": "true" if packing else "false",
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
    words = (str(x) for k, v in flags.items() for x in (f"--{k}", v))
    done = subprocess.run([str(options.swift), "-m", "swift.cli.sft", *words], capture_output=True, text=True)
    logs = sorted(out.rglob("logging.jsonl"))
    if done.returncode or not logs:
        raise RuntimeError(f"ms-swift: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    rows = [json.loads(line) for line in logs[-1].read_bytes().splitlines()]
    steps = [row for row in rows if "loss" in row and "elapsed_time" in row]
    # It logs the mean of all steps up to each, as seconds or, where they are short, as steps per second.
    means = [row.get("train_speed(s/it)") or 1 / row["train_speed(iter/s)"] for row in steps]
    ends = [count * mean for count, mean in enumerate(means, start=1)]
    return [b - a for a, b in zip(ends, ends[1:], strict=False)], steps[0]["loss"]


if __name__ == "__main__":
    main()
