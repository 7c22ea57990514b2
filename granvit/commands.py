"""The commands of the main program, each a typed dataclass with `run() -> int`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional

from granvit.devices import Device, pick_device
from granvit.errors import GranvitError
from granvit.train.recipes.base import Recipe

DEFAULT_MODEL = Path("runs/demo/checkpoint")


@dataclass
class Demo:
    """Run the whole recipe at nano size and write an HTML report: a few minutes on two CPU cores."""

    out: Path = Path("runs/demo")
    """Where report.html, metrics.json and checkpoint/ go."""
    corpus: Path | None = None
    """A corpus of your own (see `granvit corpus import`); the embedded one by default."""
    processes: int | None = None
    """Processes that share each batch; by default two where there are two cores and no GPU."""
    resumes: ClassVar[bool] = True

    def run(self) -> int:
        from granvit.demo import run_demo

        report = run_demo(self.out, self.corpus, processes=self.processes)
        print(f"\nreport: {report}\nmetrics: {self.out / 'metrics.json'}\ncheckpoint: {self.out / 'checkpoint'}")
        return 0


@dataclass
class Train:
    """Train a recipe. Every setting of it can be overridden; the resolved recipe is saved with the run."""

    recipe: Recipe
    corpus: tuple[str, ...] = ()
    """Corpus folders, each DIR or DIR=WEIGHT; their training images are mixed. The recipe's embedded corpus if none."""
    embedded_corpus: bool = False
    """Train on the embedded corpus, drawn shapes, also where the model comes pretrained."""
    out: Path | None = None
    """The run folder; runs/RECIPE by default."""
    init: Path | None = None
    """Start from this checkpoint, not the recipe's parts."""
    resume: bool = True
    """Go on where an interrupted run in `out` stopped."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; "auto" takes a GPU where there is one."""

    def run(self) -> int:
        self._check_corpus()
        out = self.out or Path("runs") / self.recipe.name
        return train_into(out, self.recipe, self.corpus, init=self.init, resume=self.resume, device=self.device)

    @property
    def resumes(self) -> bool:
        return self.resume

    def _check_corpus(self) -> None:
        if self.corpus and self.embedded_corpus:
            raise GranvitError("--corpus and --embedded-corpus exclude each other")
        if self.corpus or self.embedded_corpus:
            return
        foreign = [str(self.init)] if self.init is not None else self.recipe.pretrained_parts()
        if foreign:
            raise GranvitError(
                f"{' and '.join(foreign)} would be trained on the drawn shapes of the embedded corpus: name pictures "
                "with --corpus DIR, or say --embedded-corpus if that is what you want"
            )


def train_into(
    out: Path,
    recipe: Recipe,
    corpora: Sequence[str],
    *,
    init: Path | None = None,
    resume: bool,
    device: Literal["auto", "cpu"],
) -> int:
    """Train a recipe into a run folder, and tell where the checkpoint is; of several processes the first one tells."""
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from granvit.train.build import sources_of
    from granvit.train.run import run_recipe

    disable_progress_bar()
    run_recipe(recipe, out, sources_of(recipe, corpora), init=init, resume=resume, device=device)
    if PartialState().is_main_process:
        print(f"checkpoint: {out / 'checkpoint'}")
    return 0


def load_model(model: Path, device: Device) -> Any:
    from transformers.utils.logging import disable_progress_bar

    from granvit.predict import GranViT

    disable_progress_bar()
    if model == DEFAULT_MODEL and not model.exists():
        raise GranvitError(f"{model} is not there yet: run `granvit demo`, or name a checkpoint with --model")
    return GranViT.load(model, pick_device(device))


def check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise GranvitError(f"--window {window}: a window has a side of at least 1 pixel")


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

    def open(self) -> Any:
        """The picture; a --draw that can't work is told before anything is computed."""
        from PIL import Image

        from granvit.images import ImageError
        from granvit.predict import open_picture

        if self.draw is not None:
            if Image.registered_extensions().get(self.draw.suffix.lower()) not in Image.SAVE:
                raise GranvitError(f"--draw {self.draw}: the name must end as a picture's does, such as .png")
            if self.draw.exists() and self.image.exists() and self.draw.samefile(self.image):
                raise GranvitError(f"--draw {self.draw} is the picture itself; name another file")
        try:
            picture: Any = open_picture(self.image)
        except ImageError as error:
            raise GranvitError(f"{self.image}: {error}") from error
        picture.filename = str(self.image)  # for errors
        return picture

    def finish(self, picture: Any, boxes: Sequence[Sequence[float] | None], texts: Sequence[str]) -> int:
        """Print and draw the answers; boxes are xyxy pixels of the picture."""
        if self.json:
            rows = [{"box": b and [round(v, 2) for v in b], "text": t} for b, t in zip(boxes, texts, strict=True)]
            print(json.dumps(rows))
        else:
            for box, text in zip(boxes, texts, strict=True):
                print(f"{'no box' if box is None else ','.join(f'{v:.0f}' for v in box)}\t{_in_one_line(text)}")
        if self.draw is not None:
            from granvit.draw import colors_for, draw_boxes, save_picture

            shown = [(b, t) for b, t in zip(boxes, texts, strict=True) if b is not None]
            drawn = draw_boxes(picture, [b for b, _ in shown], [t for _, t in shown], colors_for(len(shown)))
            save_picture(drawn, self.draw)
        return 0


def _in_one_line(text: str) -> str:
    """A line break or another control character in an answer is shown, not sent to the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), text)


Boxes = Annotated[
    list[str],
    tyro.conf.arg(name="box", metavar="X1,Y1,X2,Y2", help="A box, in pixels; give --box once for each."),
]


def parse_box_option(text: str) -> tuple[float, float, float, float]:
    """`x1,y1,x2,y2`, in pixels or shares.

    Raises:
        GranvitError: that is not four numbers.
    """
    try:
        x1, y1, x2, y2 = (float(v) for v in text.split(","))
    except ValueError:
        raise GranvitError(f"--box {text!r} is not x1,y1,x2,y2 (four numbers, in pixels)") from None
    return x1, y1, x2, y2


@dataclass
class AskBoxes(Ask):
    """What the commands share that ask about boxes."""

    box: tyro.conf.UseAppendAction[Boxes] = field(default_factory=list)
    normalized: bool = False
    """Boxes are shares of the picture's width and height, from 0 to 1, in place of pixels. Answers are in pixels."""

    def open_with_boxes(self) -> tuple[Any, list[tuple[float, float, float, float]], Any]:
        """The picture, the boxes as given, and the same (N, 4) in its pixels, cut to it."""
        from granvit.predict import checked_boxes

        if not self.box:
            raise GranvitError("give at least one --box x1,y1,x2,y2 (pixels)")
        boxes = [parse_box_option(text) for text in self.box]
        picture = self.open()
        return picture, boxes, checked_boxes(boxes, picture.size, self.normalized)


@dataclass
class Describe(AskBoxes):
    """Say what is in each box of a picture."""

    def run(self) -> int:
        picture, boxes, cut = self.open_with_boxes()
        model = load_model(self.model, self.device)
        return self.finish(picture, cut.tolist(), model.describe(picture, boxes, self.normalized))


@dataclass
class Read(AskBoxes):
    """Transcribe the text in each box of a picture."""

    window: int | None = None
    """Read each box in a window of so many pixels around it, for small print."""

    def run(self) -> int:
        check_window(self.window)
        picture, boxes, cut = self.open_with_boxes()
        model = load_model(self.model, self.device)
        return self.finish(picture, cut.tolist(), model.read(picture, boxes, self.window, self.normalized))


@dataclass
class Locate(Ask):
    """Find the region that each phrase describes."""

    phrases: Positional[tuple[str, ...]] = ()
    """One or more phrases, quoted."""

    def run(self) -> int:
        if not self.phrases:
            raise GranvitError("give at least one phrase to locate")
        picture = self.open()
        model = load_model(self.model, self.device)
        return self.finish(picture, model.locate(picture, self.phrases), self.phrases)


@dataclass
class Caption(Ask):
    """Describe the whole picture."""

    def run(self) -> int:
        picture = self.open()
        model = load_model(self.model, self.device)
        return self.finish(picture, [(0, 0, *picture.size)], [model.caption(picture)])
