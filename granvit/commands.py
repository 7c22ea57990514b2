"""The commands of the main program, each a typed dataclass with `run() -> int`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from granvit.train.recipes.base import Recipe

DEFAULT_MODEL = Path("runs/demo/checkpoint")
Device = Literal["auto", "cpu", "cuda"]


@dataclass
class Demo:
    """Run the whole recipe at nano size and write an HTML report: a few minutes on two CPU cores."""

    out: Path = Path("runs/demo")
    """Where report.html, metrics.json and checkpoint/ go."""
    corpus: Path | None = None
    """A corpus of your own (see `granvit corpus import`); the embedded one by default."""

    def run(self) -> int:
        from granvit.demo import run_demo

        report = run_demo(self.out, self.corpus)
        print(f"\nreport: {report}\nmetrics: {self.out / 'metrics.json'}\ncheckpoint: {self.out / 'checkpoint'}")
        return 0


@dataclass
class Train:
    """Train a recipe. Every setting of it can be overridden; the resolved recipe is saved with the run."""

    recipe: Recipe
    corpus: tuple[str, ...] = ()
    """Corpus folders, each DIR or DIR=WEIGHT; their training images are mixed. The recipe's embedded corpus if none."""
    out: Path | None = None
    """The run folder; runs/RECIPE by default."""
    init: Path | None = None
    """Start from this checkpoint in place of the recipe's parts."""
    resume: bool = True
    """Go on where an interrupted run in `out` stopped."""
    device: Literal["auto", "cpu"] = "auto"

    def run(self) -> int:
        from granvit.train.run import run_recipe, sources_of

        out = self.out or Path("runs") / self.recipe.name
        sources = sources_of(self.recipe, self.corpus)
        run_recipe(self.recipe, out, sources, init=self.init, resume=self.resume, device=self.device)
        print(f"checkpoint: {out / 'checkpoint'}")
        return 0


@dataclass
class Eval:
    """Score a checkpoint on the held-out images of a corpus, beside the best constant answer."""

    model: Positional[Path]
    """A checkpoint, or a run folder that holds one."""
    corpus: Path
    """The corpus; its "val" images count, or "test", or a tenth chosen by hash."""
    tasks: str = "describe,locate,read,locate_text,caption"
    """Comma-separated: describe and locate ask about objects, read and locate_text about text."""
    limit: int | None = None
    """At most so many images."""
    window: int | None = None
    """Read text in windows of so many pixels around it."""
    out: Path | None = None
    """Write scores and every single answer here, as JSON."""
    device: Device = "auto"

    def run(self) -> int:
        from granvit.corpus.select import train_and_held_out
        from granvit.corpus.store import Corpus
        from granvit.evaluate.region_tasks import evaluate

        _, held_out = train_and_held_out(Corpus(self.corpus))
        report = evaluate(
            _load(self.model, self.device), held_out, self.tasks.split(","), self.limit, window=self.window
        )
        for task, scores in report.scores.items():
            constants = report.baseline[task]
            print(f"{task} ({int(scores['count'])} questions)")
            for name, value in scores.items():
                if name != "count":
                    beside = f"   best constant answer {100 * constants[name]:5.1f} %" if name in constants else ""
                    print(f"  {name:10s} {100 * value:5.1f} %{beside}")
        if self.out is not None:
            plain = {"scores": report.scores, "baseline": report.baseline, "items": [asdict(i) for i in report.items]}
            self.out.write_text(json.dumps(plain, indent=1) + "\n")
        return 0


def _load(model: Path, device: Device) -> Any:
    import torch

    from granvit.predict import GranViT

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return GranViT.load(model, device)


@dataclass
class Ask:
    """What the asking commands share."""

    image: Positional[Path]
    """A picture file."""
    model: Path = DEFAULT_MODEL
    """A checkpoint, or a run folder that holds one."""
    json: bool = False
    """Print JSON in place of lines."""
    draw: Path | None = None
    """Write the picture with boxes and texts drawn on it."""
    device: Device = "auto"

    def finish(self, boxes: Sequence[Sequence[float] | None], texts: Sequence[str]) -> int:
        """Print and draw the answers; boxes are xyxy pixels of the picture."""
        if self.json:
            rows = [{"box": b and [round(v, 2) for v in b], "text": t} for b, t in zip(boxes, texts, strict=True)]
            print(json.dumps(rows))
        else:
            for box, text in zip(boxes, texts, strict=True):
                print(f"{'no box' if box is None else ','.join(f'{v:.0f}' for v in box)}\t{text}")
        if self.draw is not None:
            from granvit.draw import colors_for, draw_boxes
            from granvit.predict import open_picture

            shown = [(b, t) for b, t in zip(boxes, texts, strict=True) if b is not None]
            picture = draw_boxes(
                open_picture(self.image), [b for b, _ in shown], [t for _, t in shown], colors_for(len(shown))
            )
            picture.save(self.draw)
        return 0


Boxes = Annotated[
    list[str], tyro.conf.arg(name="box", metavar="X1,Y1,X2,Y2", help="A box in pixels; give --box once for each.")
]


def parse_box_option(text: str) -> tuple[float, float, float, float]:
    """`x1,y1,x2,y2` in pixels.

    Raises:
        ValueError: that is not four numbers.
    """
    try:
        x1, y1, x2, y2 = (float(v) for v in text.split(","))
    except ValueError:
        raise ValueError(f"--box {text!r} is not x1,y1,x2,y2 (four numbers, in pixels)") from None
    return x1, y1, x2, y2


@dataclass
class Describe(Ask):
    """Say what is in each box of a picture."""

    box: tyro.conf.UseAppendAction[Boxes] = field(default_factory=list)

    def run(self) -> int:
        boxes = _some_boxes(self.box)
        return self.finish(boxes, _load(self.model, self.device).describe(self.image, boxes))


@dataclass
class Read(Ask):
    """Transcribe the text in each box of a picture."""

    box: tyro.conf.UseAppendAction[Boxes] = field(default_factory=list)
    window: int | None = None
    """Read each box in a window of so many pixels around it, for small print."""

    def run(self) -> int:
        boxes = _some_boxes(self.box)
        return self.finish(boxes, _load(self.model, self.device).read(self.image, boxes, self.window))


def _some_boxes(options: Sequence[str]) -> list[tuple[float, float, float, float]]:
    if not options:
        raise ValueError("give at least one --box x1,y1,x2,y2 (pixels)")
    return [parse_box_option(text) for text in options]


@dataclass
class Locate(Ask):
    """Find the region that each phrase describes."""

    phrases: Positional[tuple[str, ...]] = ()
    """One or more phrases, quoted."""

    def run(self) -> int:
        if not self.phrases:
            raise ValueError("give at least one phrase to locate")
        return self.finish(_load(self.model, self.device).locate(self.image, self.phrases), self.phrases)


@dataclass
class Caption(Ask):
    """Describe the whole picture."""

    def run(self) -> int:
        from granvit.predict import open_picture

        picture = open_picture(self.image)
        return self.finish([(0, 0, *picture.size)], [_load(self.model, self.device).caption(picture)])
