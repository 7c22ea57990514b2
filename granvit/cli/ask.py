"""Commands that ask about pictures: `describe`, `read`, `locate`, `caption`, `ask`, and `app`, the page."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL import Image
from tyro.conf import Positional

from granvit.cli.ask_pictures import DEFAULT_MODEL, AskCommand, Row, check_made, drawn_note, load_model
from granvit.errors import GranvitError
from granvit.loading.devices import Device
from granvit.questions import ask_global

if TYPE_CHECKING:
    import numpy as np

    from granvit.predict import GranViT, ImageQuestions, Text


def check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise GranvitError(f"--window {window}: a window has a side of at least 1 pixel")


_Pictures = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...", help="Picture files.")]
_MinConfidence = Annotated[
    float,
    tyro.conf.arg(
        help="An answer that the model is less sure of, by the mean probability of its tokens (0 to 1), is no answer."
    ),
]
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
    """What the commands share that ask about boxes, the same ones in every picture."""

    box: tyro.conf.UseAppendAction[Boxes] = field(default_factory=list)
    normalized: bool = False
    """Boxes are shares of the picture's width and height, from 0 to 1, in place of pixels. Answers are in pixels."""

    def check(self) -> None:
        self._boxes = [parse_box_option(text) for text in self.box]

    def check_picture(self, picture: Image.Image) -> None:
        self.boxes(picture)

    def boxes(self, picture: Image.Image) -> np.ndarray:
        """The boxes (N, 4) in pixels of the picture, cut to it."""
        from granvit.predict import checked_boxes

        return checked_boxes(self._boxes, picture.size, self.normalized)


@dataclass
class _BoxTexts(AskAboutBoxes):
    """What `describe` and `read` share."""

    images: _Pictures = ()

    def files(self) -> Sequence[Path]:
        return self.images

    def check(self) -> None:
        super().check()
        if not self.box:
            raise GranvitError("give at least one --box x1,y1,x2,y2 (pixels)")

    def questions(self, model: GranViT, picture: Image.Image, name: str) -> list[ImageQuestions]:
        return model.about_boxes(picture, self.boxes(picture), name=name)

    def rows(
        self, model: GranViT, picture: Image.Image, asks: Sequence[ImageQuestions], said: Sequence[Text]
    ) -> list[Row]:
        return [Row(box, text, text.confidence) for box, text in zip(self.boxes(picture).tolist(), said, strict=True)]


@dataclass
class Describe(_BoxTexts):
    """Say what is in each box of pictures."""

    min_confidence: _MinConfidence = 0.0

    def rows(
        self, model: GranViT, picture: Image.Image, asks: Sequence[ImageQuestions], said: Sequence[Text]
    ) -> list[Row]:
        return [
            row if row.confidence >= self.min_confidence else replace(row, text=None)
            for row in super().rows(model, picture, asks, said)
        ]


@dataclass
class Read(_BoxTexts):
    """Transcribe the text in each box of pictures."""

    window: int | None = None
    """Read each box in a window of so many pixels around it, for small text; larger where the box is."""

    def check(self) -> None:
        check_window(self.window)
        super().check()

    def questions(self, model: GranViT, picture: Image.Image, name: str) -> list[ImageQuestions]:
        return model.about_boxes(picture, self.boxes(picture), self.window, name)


@dataclass
class Locate(AskCommand):
    """Find the region that each phrase describes."""

    words: Annotated[
        Positional[tuple[str, ...]],
        tyro.conf.arg(
            metavar="IMAGE... PHRASE...",
            help="Picture files, then phrases, each quoted: the first word is a picture, and so is each after it "
            "that is a file or ends as a picture's name does.",
        ),
    ] = ()
    phrase: tyro.conf.UseAppendAction[
        Annotated[list[str], tyro.conf.arg(metavar="PHRASE", help="A phrase that could be taken for a picture.")]
    ] = field(default_factory=list)
    min_confidence: _MinConfidence = 0.0

    def check(self) -> None:
        from granvit.predict import check_phrases

        pictures = next((n for n, word in enumerate(self.words) if n and not _is_picture(word)), len(self.words))
        self._files, self._phrases = [Path(word) for word in self.words[:pictures]], list(self.words[pictures:])
        if late := next(filter(_is_picture, self._phrases), None):
            raise GranvitError(f"{late} is a picture's name: pictures come before phrases (or give --phrase {late})")
        self._phrases += self.phrase
        if not self._phrases:
            raise GranvitError("give at least one phrase to locate")
        check_phrases(self._phrases)

    def files(self) -> Sequence[Path]:
        return self._files

    def questions(self, model: GranViT, picture: Image.Image, name: str) -> list[ImageQuestions]:
        return [model.about_phrases(picture, self._phrases, name)]

    def say(self, model: GranViT, asks: Sequence[ImageQuestions]) -> list[list[Text]]:
        from granvit.predict import LONGEST_BOX

        return model.answer(asks, LONGEST_BOX)

    def rows(
        self, model: GranViT, picture: Image.Image, asks: Sequence[ImageQuestions], said: Sequence[Text]
    ) -> list[Row]:
        return [
            Row(model.place(text, asks[0].view, self.min_confidence), phrase, text.confidence)
            for phrase, text in zip(self._phrases, said, strict=True)
        ]


def _is_picture(word: str) -> bool:
    ending = Path(word).suffix.lower()
    return os.path.isfile(word) or (not re.search(r"\s", word) and ending in Image.registered_extensions())


@dataclass
class Caption(AskCommand):
    """Describe whole pictures."""

    images: _Pictures = ()

    def files(self) -> Sequence[Path]:
        return self.images

    def questions(self, model: GranViT, picture: Image.Image, name: str) -> list[ImageQuestions]:
        return [model.about_whole(picture, [ask_global()], name)]

    def say(self, model: GranViT, asks: Sequence[ImageQuestions]) -> list[list[Text]]:
        from granvit.predict import LONGEST_CAPTION

        return model.texts(asks, LONGEST_CAPTION)

    def rows(
        self, model: GranViT, picture: Image.Image, asks: Sequence[ImageQuestions], said: Sequence[Text]
    ) -> list[Row]:
        return [Row((0, 0, *picture.size), text, text.confidence) for text in said]


@dataclass
class Ask(AskAboutBoxes):
    """Ask a question in your own words about pictures, or about boxes in them.

    Example: granvit ask shots/*.png "How many people are at {box}?" --box 40,30,120,110 --jsonl
    """

    words: Annotated[
        Positional[tuple[str, ...]],
        tyro.conf.arg(
            metavar="IMAGE... QUESTION",
            help="Picture files, then the question, quoted. A box of --box is put where it says {box}, or behind it.",
        ),
    ] = ()
    max_tokens: int = 256
    """Answers end after so many tokens at the latest."""

    def check(self) -> None:
        from granvit.predict import check_questions

        super().check()
        if self.max_tokens < 1:
            raise GranvitError(f"--max-tokens {self.max_tokens}: an answer has at least one")
        if len(self.words) < 2 or os.path.isfile(self.words[-1]):
            raise GranvitError('name at least one picture, then the question in quotes: granvit ask IMAGE "QUESTION"')
        if "{box}" in self.words[-1] and not self.box:
            raise GranvitError("the question says {box}: give at least one --box x1,y1,x2,y2 (pixels)")
        check_questions(self.words[-1:])

    def files(self) -> Sequence[Path]:
        return [Path(word) for word in self.words[:-1]]

    def questions(self, model: GranViT, picture: Image.Image, name: str) -> list[ImageQuestions]:
        return [model.about(picture, self.words[-1:], self.boxes(picture) if self.box else None, name)]

    def say(self, model: GranViT, asks: Sequence[ImageQuestions]) -> list[list[Text]]:
        return model.answer(asks, self.max_tokens)

    def rows(
        self, model: GranViT, picture: Image.Image, asks: Sequence[ImageQuestions], said: Sequence[Text]
    ) -> list[Row]:
        boxes = self.boxes(picture).tolist() if self.box else [(0, 0, *picture.size)]
        stated = [model.to_pixels(text, asks[0].view) for text in said]
        return [Row(box, text, text.confidence, found) for box, text, found in zip(boxes, said, stated, strict=True)]


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
        from granvit.app import Limits, ServedModels, build, example_pictures
        from granvit.loading.run_folder import checkpoint_of
        from granvit.model.provenance import read_sources
        from granvit.model.settings import read_settings

        folders = _named(self.checkpoints)
        sources = {}
        for name, path in folders.items():  # what is no checkpoint is refused before there is a page
            check_made(path)
            read_settings(checkpoint_of(path))
            sources[name] = read_sources(checkpoint_of(path))
        desk = ServedModels(list(folders), Limits(self.max_pixels, self.max_upload_mb, self.max_questions, self.queue))
        with tempfile.TemporaryDirectory(prefix="granvit-app-") as folder:
            notes = [f"{name} {note}" for name in folders if (note := drawn_note(sources[name]))]
            page = build(desk, example_pictures(Path(folder)), notes)
            try:
                page.launch(
                    server_name=self.host,
                    server_port=self.port or None,
                    share=self.share,
                    inbrowser=self.open,
                    max_file_size=f"{self.max_upload_mb}mb",
                    allowed_paths=[folder],
                    show_error=True,
                    prevent_thread_lock=True,
                )
            except OSError as error:  # gradio's own words about a port that is taken
                raise GranvitError(f"--port {self.port}: {error}") from error
            try:
                # torch and the models take as long as all the rest: the page is there meanwhile.
                desk.serve({name: load_model(path, self.device) for name, path in folders.items()})
                page.block_thread()
            finally:
                page.close(verbose=False)
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
