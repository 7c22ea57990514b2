"""What the asking commands do with any number of pictures: open, ask, print, draw; a bad one costs itself alone."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from granvit.errors import GranvitError, in_one_line
from granvit.loading.devices import Device, pick_device

if TYPE_CHECKING:
    from granvit.model.provenance import Sources
    from granvit.predict import GranViT, ImageQuestions, Text

DEFAULT_MODEL = Path("runs/demo/checkpoint")
# Pictures that are asked about at once: enough to fill a GPU, and so few that their pixels fit into memory.
_PICTURES = 16
_PIXELS = 1 << 26


def check_made(model: Path) -> None:
    """Says how to make the demo's checkpoint where that is meant and not there."""
    if model == DEFAULT_MODEL and not model.exists():
        raise GranvitError(f"{model} is not there yet: run `granvit demo`, or name a checkpoint with --model")


def load_model(model: Path, device: Device) -> GranViT:
    from transformers.utils.logging import disable_progress_bar

    from granvit.predict import GranViT

    disable_progress_bar()
    check_made(model)
    loaded = GranViT.load(model, pick_device(device))
    if note := drawn_note(loaded.model.sources):
        print(f"note: {model} {note}", file=sys.stderr)
    return loaded


def drawn_note(sources: Sources) -> str:
    """What must be known of a model that has learned from drawn pictures alone; "" for any other."""
    from granvit.model.provenance import drawn_alone

    if not drawn_alone(sources):
        return ""
    return "learned from drawn pictures alone: it names drawn shapes and texts, whatever a photograph shows"


@dataclass(frozen=True)
class Row:
    """One answer: the box it is about or that was found, xyxy pixels of the picture, and the text; None is "none".

    `stated` is a box that the answer to a free question states.
    """

    box: Sequence[float] | None
    text: str | None
    confidence: float
    stated: Sequence[float] | None = None

    def to_json(self) -> dict[str, Any]:
        stated = {} if self.stated is None else {"stated": _rounded(self.stated)}
        return {"box": _rounded(self.box), "text": self.text, **stated, "confidence": round(self.confidence, 4)}

    def to_line(self) -> str:
        box = "no box" if self.box is None else _in_pixels(self.box)
        text = "no answer" if self.text is None else _on_terminal(self.text)
        stated = "" if self.stated is None else f" = {_in_pixels(self.stated)}"
        return f"{box}\t{text}{stated}\t{self.confidence:.2f}"


def _rounded(box: Sequence[float] | None) -> list[float] | None:
    return None if box is None else [round(v, 2) for v in box]


def _in_pixels(box: Sequence[float]) -> str:
    return ",".join(f"{v:.0f}" for v in box)


def _on_terminal(text: str) -> str:
    """A line break or another control character in an answer is shown, not sent to the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), text)


@dataclass
class AskCommand:
    """What the asking commands share: any number of pictures, of which a bad one is reported and the others answered.

    A subclass says which `files` are asked about, what is asked of each, and what is printed of the answers.
    """

    model: Path = DEFAULT_MODEL
    """A checkpoint, or a run folder that holds one."""
    json: bool = False
    """Print one JSON list in place of lines: an object for each answer, which names the picture's file."""
    jsonl: bool = False
    """Print such an object a line, picture by picture as they are answered."""
    draw: Path | None = None
    """Write the picture with boxes and texts drawn on it; for several pictures name a folder."""
    device: Device = "auto"

    def run(self) -> int:
        self.check()
        return ask_all(self)

    def files(self) -> Sequence[Path]:
        """The pictures, in the order they were given."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises a GranvitError where the options alone show that nothing can be asked."""

    def check_picture(self, picture: Image.Image) -> None:
        """Raises a GranvitError where this picture cannot be asked about."""

    def questions(self, model: GranViT, picture: Image.Image, name: str) -> list[ImageQuestions]:
        """What is asked about a picture."""
        raise NotImplementedError

    def say(self, model: GranViT, asks: Sequence[ImageQuestions]) -> list[list[Text]]:
        """The answers to some questions."""
        from granvit.predict import LONGEST_DESCRIPTION

        return model.texts(asks, LONGEST_DESCRIPTION)

    def rows(
        self, model: GranViT, picture: Image.Image, asks: Sequence[ImageQuestions], said: Sequence[Text]
    ) -> list[Row]:
        """What is printed of the answers to the questions about a picture."""
        raise NotImplementedError


def ask_all(command: AskCommand) -> int:
    """Answers, in the order of the pictures; 1 where one of them could not be used."""
    files = command.files()
    if not files:
        raise GranvitError("name at least one picture")
    output = Output(command, files)
    model: GranViT | None = None
    for some in _groups(command, files):
        usable = [(file, found) for file, found in some if isinstance(found, Image.Image)]
        if usable and model is None:
            model = load_model(command.model, command.device)
        answers = iter(_answers(command, model, usable) if model is not None else ())
        for file, found in some:
            if isinstance(found, Image.Image):
                output.take(file, found, next(answers))
            else:
                output.refuse(file, found)
    return output.close()


_Problem = GranvitError | OSError


def _groups(command: AskCommand, files: Sequence[Path]) -> Iterator[list[tuple[Path, Image.Image | _Problem]]]:
    group: list[tuple[Path, Image.Image | _Problem]] = []
    pixels = 0
    for file in files:
        found = _opened(command, file)
        size = found.width * found.height if isinstance(found, Image.Image) else 0
        if group and (len(group) == _PICTURES or pixels + size > _PIXELS):
            yield group
            group, pixels = [], 0
        group.append((file, found))
        pixels += size
    yield group


def _opened(command: AskCommand, file: Path) -> Image.Image | _Problem:
    """The upright picture of a file, or why it cannot be asked about."""
    from granvit.images import open_picture

    try:
        picture = open_picture(file)
        command.check_picture(picture)
    except OSError as error:
        return error
    except GranvitError as error:
        named = str(error).startswith(str(file))
        return error if named else GranvitError(f"{file}: {error}")
    return picture


def _answers(
    command: AskCommand, model: GranViT, pictures: Sequence[tuple[Path, Image.Image]]
) -> list[list[Row] | GranvitError]:
    """What is said of each picture, or that the model's numbers were not finite for it.

    Raises:
        GranvitError: a question is longer than the model can read.
    """
    from granvit.model.generate import NonFiniteAnswer

    asks = [command.questions(model, picture, str(file)) for file, picture in pictures]
    try:
        said = iter(command.say(model, [ask for of_picture in asks for ask in of_picture]))
    except GranvitError as error:
        if not isinstance(error.__cause__, NonFiniteAnswer):
            raise
        if len(pictures) == 1:
            return [error]
        return [answer for each in pictures for answer in _answers(command, model, [each])]
    return [
        command.rows(model, picture, of_picture, [text for _ in of_picture for text in next(said)])
        for (_, picture), of_picture in zip(pictures, asks, strict=True)
    ]


class Output:
    """Where answers go: lines, JSON or pictures, as the command's options say.

    Raises:
        GranvitError: two options exclude each other, or a picture cannot be drawn where it is to be.
    """

    def __init__(self, command: AskCommand, files: Sequence[Path]) -> None:
        if command.json and command.jsonl:
            raise GranvitError("--json and --jsonl: choose one")
        self._command, self._several = command, len(files) > 1
        self._drawings = {} if command.draw is None else _drawings(command.draw, files)
        self._rows: list[dict[str, Any]] = []
        self._failed = False

    def take(self, file: Path, picture: Image.Image, answers: list[Row] | GranvitError) -> None:
        """Prints and draws what was said of a picture."""
        if isinstance(answers, GranvitError):
            self.refuse(file, answers)
            return
        for row in answers:
            self._emit(file, row.to_json(), row.to_line())
        if self._drawings:
            try:
                _draw(picture, answers, self._drawings[file])
            except GranvitError as error:
                self._complain(error)

    def refuse(self, file: Path, problem: _Problem) -> None:
        """Reports a picture that could not be used."""
        why = in_one_line(problem)
        self._emit(file, {"error": why.removeprefix(f"{file}: ")}, None)
        self._complain(problem)

    def close(self) -> int:
        if self._command.json:
            print(json.dumps(self._rows))
        return int(self._failed)

    def _complain(self, problem: _Problem) -> None:
        self._failed = True
        print(f"granvit: {in_one_line(problem)}", file=sys.stderr)

    def _emit(self, file: Path, row: dict[str, Any], line: str | None) -> None:
        if self._command.json:
            self._rows.append({"file": str(file), **row})
        elif self._command.jsonl:
            print(json.dumps({"file": str(file), **row}), flush=True)
        elif line is not None:
            print(f"{_on_terminal(str(file))}\t{line}" if self._several else line, flush=self._several)


def _drawings(draw: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """The file that each picture is drawn into: `draw` itself for one, in the folder `draw` for several."""
    if len(files) == 1 and not draw.is_dir():
        drawings = {files[0]: draw}
        if Image.registered_extensions().get(draw.suffix.lower()) not in Image.SAVE:
            raise GranvitError(f"--draw {draw}: the name must end as a picture's does, such as .png")
    else:
        if draw.is_file() or draw.suffix.lower() in Image.registered_extensions():
            raise GranvitError(f"--draw {draw}: for {len(files)} pictures name a folder")
        drawings = {file: draw / f"{file.stem}.png" for file in files}
        name, count = Counter(drawings.values()).most_common(1)[0]
        if count > 1:
            raise GranvitError(f"--draw {draw}: {count} pictures would be drawn into {name}")
    for drawing in drawings.values():
        if same := next((f for f in files if drawing.exists() and f.exists() and drawing.samefile(f)), None):
            raise GranvitError(f"--draw {drawing} is the picture itself ({same}); name another place")
    return drawings


def _draw(picture: Image.Image, rows: Sequence[Row], path: Path) -> None:
    from granvit.draw import colors_for, draw_boxes, save_picture

    shown = [(row.stated or row.box, row.text) for row in rows if row.text is not None]
    there = [(box, text) for box, text in shown if box is not None]
    save_picture(draw_boxes(picture, [b for b, _ in there], [t for _, t in there], colors_for(len(there))), path)
