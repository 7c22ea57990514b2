"""`granvit attend`, `granvit attention-mass`, `granvit probe`: what an encoder sees and knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from granvit.cli.ask import Boxes, parse_box_option
from granvit.cli.ask_pictures import drawn_note
from granvit.errors import GranvitError
from granvit.files import check_replaceable, locked, write_text
from granvit.loading.devices import Device, pick_device
from granvit.loading.run_folder import checkpoint_of

Models = Annotated[
    list[Path],
    tyro.conf.arg(
        name="model", metavar="DIR", help="A checkpoint, a run, or any vision encoder; give --model once for each."
    ),
]
Points = Annotated[
    list[str], tyro.conf.arg(name="point", metavar="X,Y", help="A point in pixels; give --point once for each.")
]
Phrases = Annotated[
    list[str],
    tyro.conf.arg(
        name="phrase",
        metavar="TEXT",
        help="What a checkpoint is to locate; the n-th is what the n-th box holds. Give --phrase once for each.",
    ),
]


@dataclass
class Attend:
    """Show where encoders look from a box or a point, what is alike to it, and what an answer's words look at."""

    image: Positional[Path]
    """A picture file."""
    model: tyro.conf.UseAppendAction[Models] = field(default_factory=list)
    box: tyro.conf.UseAppendAction[Boxes] = field(default_factory=list)
    point: tyro.conf.UseAppendAction[Points] = field(default_factory=list)
    phrase: tyro.conf.UseAppendAction[Phrases] = field(default_factory=list)
    normalized: bool = False
    """Boxes are shares of the picture's width and height, from 0 to 1, in place of pixels; points are pixels always."""
    out: Path = Path("runs/attend")
    """Where attend.html and the PNGs go."""
    device: Device = "auto"

    def run(self) -> int:
        from granvit.evaluate.attention_page import write_picture
        from granvit.images import ImageError, open_picture
        from granvit.predict import checked_boxes

        if not self.model:
            raise GranvitError("give at least one --model DIR")
        if not self.box and not self.point:
            raise GranvitError("give at least one --box x1,y1,x2,y2 or --point x,y (pixels)")
        boxes = [parse_box_option(text) for text in self.box]
        points = [_point(text) for text in self.point]
        try:
            picture = open_picture(self.image)
        except ImageError as error:
            raise GranvitError(f"{self.image}: {error}") from error
        cut = [tuple(box) for box in checked_boxes(boxes, picture.size, self.normalized).tolist()]
        for x, y in points:
            if not (0 <= x < picture.width and 0 <= y < picture.height):
                raise GranvitError(
                    f"--point {x:g},{y:g} lies outside the picture of {picture.width}x{picture.height} pixels"
                )
        encoders = _encoders(self.model, self.device)
        title = f"What it sees: {self.image.name}"
        with locked(self.out):
            print(f"page: {write_picture(self.out, picture, encoders, cut, points, self.phrase, title)}")
        return 0


@dataclass
class AttentionMass:
    """Measure how much of what encoders see from a region lies in that region, over a corpus."""

    models: Positional[tuple[Path, ...]]
    """Checkpoints, runs or any vision encoders; each is compared with the first."""
    corpus: Path
    """The corpus; its "val" images count, or "test", or a tenth chosen by hash."""
    limit: int = 200
    """At most so many images."""
    examples: int = 4
    """So many of the images are drawn on the page."""
    out: Path = Path("runs/attention-mass")
    """Where attention-mass.html, attention-mass.json and the PNGs go."""
    device: Device = "auto"

    def run(self) -> int:
        from granvit.corpus.derive import held_out_part
        from granvit.corpus.store import Corpus
        from granvit.evaluate.attention_mass import HEADLINES, attention_mass
        from granvit.evaluate.attention_page import write_mass

        if self.limit < 1:
            raise GranvitError(f"--limit {self.limit}: at least one image is needed")
        held_out = held_out_part(Corpus(self.corpus))
        encoders = _encoders(self.models, self.device)
        with locked(self.out):
            report = attention_mass(encoders, held_out, self.limit)
            page = write_mass(self.out, report, encoders, islice(iter(held_out), self.examples))
        for kind, table in report.shares.items():
            print(f"{kind} ({report.regions[kind]} regions of {report.images} images)")
            for name in HEADLINES:
                for encoder, share in zip(encoders, table.get(name, []), strict=False):
                    if share is not None:
                        change = f"   change {_with_interval(share.change)}" if share.change else ""
                        even = f"even {100 * share.chance:.1f}"
                        print(f"  {name:36s} {encoder.name:20s} {_with_interval(share.inside)} %   {even}{change}")
        print(f"page: {page}")
        return 0


@dataclass
class Probe:
    """Compare frozen encoders without a language model: by small heads on the features of regions."""

    encoders: Positional[tuple[Path, ...]]
    """Checkpoints, runs or any vision encoders; each is compared with the first."""
    corpus: Path
    """The corpus whose training images train the heads."""
    held_out: Path | None = None
    """A corpus of its own to score on, all of it; the held-out images of --corpus if none."""
    task: Literal["label", "attribute", "is-text", "read"] = "attribute"
    """label: the whole text of an object as a class. attribute: which words its text holds. is-text: text or not.
    read: the letters of a text."""
    limit: int = 2000
    """At most so many training images; as many again to score on."""
    seed: int = 0
    out: Path | None = None
    """Write the scores here, as JSON."""
    device: Device = "auto"

    def run(self) -> int:
        if self.limit < 1:
            raise GranvitError(f"--limit {self.limit}: at least one image is needed")
        if self.out is not None:
            check_replaceable("--out", self.out, "rows")
        with nullcontext() if self.out is None else locked(self.out):
            return self._probe()

    def _probe(self) -> int:
        from granvit.corpus.derive import train_and_held_out, training_part
        from granvit.corpus.store import Corpus
        from granvit.evaluate.probes import probe

        train: Iterable[Any]
        held_out: Iterable[Any]
        if self.held_out is None:
            train, held_out = train_and_held_out(Corpus(self.corpus))
        else:
            train, held_out = training_part(Corpus(self.corpus)), Corpus(self.held_out)
        encoders = _encoders(self.encoders, self.device)
        report = probe(encoders, train, held_out, self.task, limit=self.limit, seed=self.seed)
        print(report.as_text())
        if self.out is not None:
            write_text(self.out, json.dumps(report.to_json(), indent=1) + "\n")
        return 0


def _encoders(folders: Sequence[Path], device: Device) -> list[Any]:
    from transformers.utils.logging import disable_progress_bar

    from granvit.evaluate.patch_encoder import load_patch_encoders
    from granvit.model.provenance import read_sources

    disable_progress_bar()
    encoders = load_patch_encoders(folders, pick_device(device))
    for folder in folders:
        if note := drawn_note(read_sources(checkpoint_of(folder))):
            print(f"note: {folder} {note}", file=sys.stderr)
    return encoders


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(v) for v in text.split(","))
    except ValueError:
        raise GranvitError(f"--point {text!r} is not x,y (two numbers, in pixels)") from None
    return x, y


def _with_interval(estimate: Any) -> str:
    if estimate.low is None:
        return f"{100 * estimate.value:.1f}"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
