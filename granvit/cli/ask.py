"""Commands that ask a checkpoint about pictures: `describe`, `read`, `locate`, `caption`, and `app`, the page."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from granvit.errors import GranvitError
from granvit.loading.devices import Device, pick_device

DEFAULT_MODEL = Path("runs/demo/checkpoint")


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
class AskCommand:
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
        """The picture; a --draw that can't work is refused before anything is computed."""
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
class AskAboutBoxes(AskCommand):
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
class Describe(AskAboutBoxes):
    """Say what is in each box of a picture."""

    def run(self) -> int:
        picture, boxes, cut = self.open_with_boxes()
        model = load_model(self.model, self.device)
        return self.finish(picture, cut.tolist(), model.describe(picture, boxes, self.normalized))


@dataclass
class Read(AskAboutBoxes):
    """Transcribe the text in each box of a picture."""

    window: int | None = None
    """Read each box in a window of so many pixels around it, for small text."""

    def run(self) -> int:
        check_window(self.window)
        picture, boxes, cut = self.open_with_boxes()
        model = load_model(self.model, self.device)
        return self.finish(picture, cut.tolist(), model.read(picture, boxes, self.window, self.normalized))


@dataclass
class Locate(AskCommand):
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
class Caption(AskCommand):
    """Describe the whole picture."""

    def run(self) -> int:
        picture = self.open()
        model = load_model(self.model, self.device)
        return self.finish(picture, [(0, 0, *picture.size)], [model.caption(picture)])


@dataclass
class App:
    """Open a page to draw boxes on pictures and ask checkpoints about them; several answer side by side.

    Needs the extra `app`. Only this machine can reach it, unless --host or --share says otherwise.
    """

    checkpoints: Positional[tuple[Path, ...]] = (DEFAULT_MODEL,)
    """Checkpoints, or run folders that hold one: the first is what came before, say."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets the whole network in."""
    port: int = 7860
    """The port; 0 for any that is free."""
    share: bool = False
    """Also open a public address through Gradio's servers, for a day."""
    max_pixels: int = 40_000_000
    """Larger pictures are refused."""
    max_upload_mb: int = 20
    """Larger files are refused."""
    max_questions: int = 100
    """Boxes or phrases of one request."""
    queue: int = 16
    """Requests that wait for their turn; one more is refused."""
    open: bool = False
    """Open the browser as well."""
    device: Device = "auto"
    """Where the models compute."""

    def run(self) -> int:
        try:
            import gradio  # noqa: F401
            import gradio_image_annotation  # noqa: F401
        except ModuleNotFoundError as error:
            raise GranvitError(f'the page needs the extra app: pip install -e ".[app]" ({error})') from error
        from granvit.app import Limits, build, example_pictures

        models = {name: load_model(path, self.device) for name, path in _named(self.checkpoints).items()}
        limits = Limits(self.max_pixels, self.max_upload_mb, self.max_questions, self.queue)
        with tempfile.TemporaryDirectory(prefix="granvit-app-") as folder:
            page = build(models, limits, example_pictures(Path(folder)))
            try:
                page.launch(
                    server_name=self.host,
                    server_port=self.port or None,
                    share=self.share,
                    inbrowser=self.open,
                    max_file_size=f"{self.max_upload_mb}mb",
                    allowed_paths=[folder],
                    show_error=True,
                )
            except OSError as error:  # gradio's own words about a port that is taken
                raise GranvitError(f"--port {self.port}: {error}") from error
        return 0


def _named(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Each checkpoint under a name of its own: its folder's, or as much of its path as tells it from the others.

    Raises:
        GranvitError: none is named, or one twice.
    """
    if not folders:
        raise GranvitError("name at least one checkpoint")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise GranvitError("the same checkpoint is named twice")
    names = [folder.parent.name if folder.name in ("checkpoint", "model") else folder.name for folder in folders]
    unique = len(set(names)) == len(names) and all(names)
    return dict(zip(names if unique else map(str, folders), folders, strict=True))
