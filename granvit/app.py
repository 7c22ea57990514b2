"""The page: open a picture, draw boxes, ask one or several checkpoints about it. Needs the extra `app` (Gradio).

Every picture is made upright RGB before anything is asked of it, so a box that is drawn is the box that is asked, in
pixels of the upright picture. The same questions are an HTTP API without the page: see `docs/app.md`.
"""

from __future__ import annotations

import base64
import html
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when gradio is imported: the page tells nobody that it was opened.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from gradio_image_annotation import image_annotator
from PIL import Image

from granvit.coordinates import Box
from granvit.draw import colors_for, draw_boxes
from granvit.errors import GranvitError
from granvit.images import ImageError, open_picture

if TYPE_CHECKING:
    from granvit.predict import GranViT


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_pixels: of a picture.
        max_upload_mb: of a picture's file, in megabytes.
        max_questions: boxes or phrases.
        queue: requests that wait for their turn; one more is asked to come back later.
    """

    max_pixels: int = 40_000_000
    max_upload_mb: int = 20
    max_questions: int = 100
    queue: int = 16


class ServedModels:
    """The checkpoints that answer, by name, and what may be asked of them.

    They may still be loading when the first visitor comes, who then waits for an answer and not for the page. Boxes are
    xyxy pixels of the upright picture. One question is computed at a time, for any number of visitors.
    """

    def __init__(self, names: Sequence[str], limits: Limits):
        self.names, self.limits = list(names), limits
        self._loaded: Future[Mapping[str, GranViT]] = Future()
        self._turn = threading.Lock()

    def serve(self, models: Mapping[str, GranViT]) -> None:
        """The checkpoints are loaded: all of those that were named."""
        self._loaded.set_result({name: models[name] for name in self.names})

    @property
    def models(self) -> Mapping[str, GranViT]:
        """The checkpoints, by name; waits until they are there."""
        return self._loaded.result()

    def describe(self, picture: Image.Image, boxes: Sequence[Box]) -> dict[str, list[str]]:
        """What each box holds, by the name of the checkpoint."""
        self._check("boxes", len(boxes))
        return self._ask(lambda model: model.describe(picture, np.reshape(boxes, (-1, 4))))

    def read(self, picture: Image.Image, boxes: Sequence[Box]) -> dict[str, list[str]]:
        """The text in each box, by the name of the checkpoint."""
        self._check("boxes", len(boxes))
        return self._ask(lambda model: model.read(picture, np.reshape(boxes, (-1, 4))))

    def locate(self, picture: Image.Image, phrases: Sequence[str]) -> dict[str, list[Box | None]]:
        """Where each phrase is, by the name of the checkpoint; None where its answer is no box."""
        self._check("phrases", len(phrases))
        return self._ask(lambda model: model.locate(picture, phrases))

    def caption(self, picture: Image.Image) -> dict[str, str]:
        """One paragraph about the whole picture, by the name of the checkpoint."""
        return self._ask(lambda model: model.caption(picture))

    def attend(self, picture: Image.Image, point: tuple[float, float]) -> Image.Image:
        """Where each checkpoint's encoder looks from the patch under a point (x, y), and what is alike to it."""
        from granvit.evaluate.attention import attend_point
        from granvit.evaluate.attention_page import seen_figure
        from granvit.evaluate.patch_encoder import PatchEncoder

        encoders = [PatchEncoder.of(model.model, name) for name, model in self.models.items()]
        with self._turn:
            seen = [attend_point(encoder, picture, point) for encoder in encoders]
        return seen_figure(picture, [("the patch", point)], encoders, [seen])

    def open(self, data: bytes) -> Image.Image:
        """The upright RGB picture in a file's bytes.

        Raises:
            GranvitError: it is no picture, or larger than the limits allow.
        """
        if len(data) > self.limits.max_upload_mb * 1_000_000:
            raise GranvitError(f"The file is larger than {self.limits.max_upload_mb} MB.")
        try:
            picture = open_picture(data)
        except ImageError as error:
            raise GranvitError(f"This cannot be opened as a picture ({error}).") from error
        if picture.width * picture.height > self.limits.max_pixels:
            shown = f"{picture.width} x {picture.height}"
            raise GranvitError(f"The picture has {shown} pixels; at most {self.limits.max_pixels:,} are taken.")
        return picture

    def _check(self, what: str, count: int) -> None:
        if not count:
            raise GranvitError("Draw at least one box." if what == "boxes" else "Write at least one phrase.")
        if count > self.limits.max_questions:
            raise GranvitError(f"{count} {what} at once; at most {self.limits.max_questions} are answered.")

    def _ask(self, question: Callable[[GranViT], Any]) -> dict[str, Any]:
        with self._turn:
            return {name: question(model) for name, model in self.models.items()}


@contextmanager
def gradio_errors() -> Iterator[None]:
    """What a visitor did wrong is a sentence on the page; a bug stays one, in the server's log."""
    try:
        yield
    except GranvitError as error:
        text = str(error)
        raise gr.Error(html.escape(text[:1].upper() + text[1:]), print_exception=False) from error


def build(desk: ServedModels, examples: Sequence[Path] = (), notes: Sequence[str] = ()) -> gr.Blocks:
    """The page, ready to be launched.

    Args:
        desk: what answers; two or more checkpoints are answered side by side.
        examples: picture files that a visitor may start with.
        notes: what a visitor must know of the checkpoints, shown at the top.
    """
    # Uploads that are ten minutes old are deleted; looked for every minute, and at the end.
    with gr.Blocks(title="granvit", delete_cache=(60, 600), analytics_enabled=False) as page:
        gr.Markdown("# granvit\nOpen a picture, draw boxes on it with the mouse, and ask what they hold.")
        for note in notes:
            gr.HTML(f"<p>{html.escape(note[:1].upper() + note[1:])}.</p>", elem_classes="note")
        with gr.Row():
            with gr.Column():
                annotator = _annotator(desk)
                if examples:
                    shown = [[{"image": str(path), "boxes": []}] for path in examples]
                    gr.Examples(shown, annotator, label="Pictures to start with")
            with gr.Column():
                _questions(desk, annotator)
        _api(desk)
    page.queue(max_size=desk.limits.queue, default_concurrency_limit=2)
    return page


def _annotator(desk: ServedModels) -> Any:
    annotator = image_annotator(
        label="Picture",
        image_type="pil",
        sources=["upload", "clipboard"],
        disable_edit_boxes=True,
        box_min_size=1,
        show_download_button=False,
        show_share_button=False,
        show_remove_button=True,
        elem_id="picture",
    )

    # The component's own conversion drops transparency onto black and cuts 16 bits at 8: another picture than is asked.
    def upright(file: FileData | None) -> Image.Image | None:
        if file is None:
            return None
        with gradio_errors():
            return desk.open(Path(file.path).read_bytes())

    annotator.preprocess_image = upright
    return annotator


def _questions(desk: ServedModels, annotator: Any) -> None:
    names = desk.names
    with gr.Tab("What is in the boxes"):
        with gr.Row():
            describe = gr.Button("Describe", variant="primary", elem_id="describe")
            read = gr.Button("Read text", elem_id="read")
        said = gr.HTML(elem_id="said")
    with gr.Tab("Find"):
        phrases = gr.Textbox(label="Phrases, one on each line", lines=3, elem_id="phrases")
        locate = gr.Button("Find", variant="primary", elem_id="locate")
        found = gr.HTML(elem_id="found")
        drawn = gr.Gallery(label="Where they are", columns=max(1, min(len(names), 2)), elem_id="drawn")
    with gr.Tab("The whole picture"):
        caption = gr.Button("Caption", variant="primary", elem_id="caption")
        captions = gr.HTML(elem_id="captions")
    with gr.Tab("Attention"):
        show = gr.Button("Take the picture", elem_id="take")
        clickable = gr.Image(label="Click on a patch", interactive=False, type="pil", elem_id="clickable")
        seen = gr.Image(
            label="Where the encoder looks from there, and what is alike", interactive=False, elem_id="seen"
        )

    describe.click(lambda value: _answers(value, desk.describe), annotator, said, api_visibility="private")
    read.click(lambda value: _answers(value, desk.read), annotator, said, api_visibility="private")
    gr.on(
        [locate.click, phrases.submit],
        lambda value, text: _found(desk, value, text),
        [annotator, phrases],
        [found, drawn],
        api_visibility="private",
    )
    caption.click(lambda value: _captions(desk, value), annotator, captions, api_visibility="private")
    show.click(lambda value: _picture(value), annotator, clickable, api_visibility="private")

    def look(event: gr.SelectData, value: Any) -> Image.Image:
        with gradio_errors():
            x, y = event.index
            return desk.attend(_picture(value), (float(x) + 0.5, float(y) + 0.5))

    clickable.select(look, annotator, seen, api_visibility="private")


def _picture(value: Any) -> Image.Image:
    """The picture of the annotator's value, turned as the visitor turned it there."""
    with gradio_errors():
        if not value or value.get("image") is None:
            raise GranvitError("Open a picture first.")
        picture: Image.Image = value["image"]
        # The component counts quarter turns clockwise; Pillow turns the other way.
        return picture.rotate(-90 * (value.get("orientation") or 0), expand=True)


def _boxes(value: Any) -> list[Box]:
    return [(box["xmin"], box["ymin"], box["xmax"], box["ymax"]) for box in value.get("boxes") or []]


def _answers(value: Any, ask: Callable[[Image.Image, Sequence[Box]], dict[str, list[str]]]) -> str:
    picture = _picture(value)
    boxes = _boxes(value)
    with gradio_errors():
        answers = ask(picture, boxes)
    return _table(["box", *answers], list(zip(map(_coordinates, boxes), *answers.values(), strict=True)))


def _found(desk: ServedModels, value: Any, text: str) -> tuple[str, list[tuple[Image.Image, str]]]:
    picture = _picture(value)
    phrases = [line.strip() for line in text.splitlines() if line.strip()]
    with gradio_errors():
        answers = desk.locate(picture, phrases)
    return _table(["phrase", *answers], list(zip(phrases, *answers.values(), strict=True))), [
        (_drawn(picture, phrases, boxes), name) for name, boxes in answers.items()
    ]


def _drawn(picture: Image.Image, phrases: Sequence[str], boxes: Sequence[Box | None]) -> Image.Image:
    colors = colors_for(len(phrases))
    there = [(box, phrase, color) for box, phrase, color in zip(boxes, phrases, colors, strict=True) if box]
    return draw_boxes(
        picture, np.reshape([b for b, _, _ in there], (-1, 4)), [p for _, p, _ in there], [c for _, _, c in there]
    )


def _captions(desk: ServedModels, value: Any) -> str:
    picture = _picture(value)
    with gradio_errors():
        return _table(["checkpoint", "caption"], [[name, text] for name, text in desk.caption(picture).items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str | Box | None]]) -> str:
    """A table as HTML, beside each answer how sure the model was; what a model or a visitor wrote stays text."""
    cells = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    note = "<p><small>%: how sure the model was, the mean probability of its answer's tokens.</small></p>"
    whole = f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    return whole + note if "<small>" in body else whole


def _cell(answer: str | Box | None) -> str:
    text = html.escape(answer if isinstance(answer, str) else _coordinates(answer))
    confidence = getattr(answer, "confidence", math.nan)
    return text if math.isnan(confidence) else f"{text} <small>{confidence:.0%}</small>"


def _coordinates(box: Box | None) -> str:
    return "no box" if box is None else ", ".join(f"{side:.0f}" for side in box)


def _api(desk: ServedModels) -> None:
    """The questions as an HTTP API. Pictures travel as base64, so that no request names a file of the server's."""

    def opened(image: str) -> Image.Image:
        encoded = image.partition(",")[2] if image.startswith("data:") else image
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError as error:  # binascii.Error, and what is no ASCII
            raise GranvitError("image is not base64") from error
        return desk.open(data)

    def describe(image: str, boxes: list[list[float]]) -> dict[str, list[str]]:
        with gradio_errors():
            return desk.describe(opened(image), _quads(boxes))

    def read(image: str, boxes: list[list[float]]) -> dict[str, list[str]]:
        with gradio_errors():
            return desk.read(opened(image), _quads(boxes))

    def locate(image: str, phrases: list[str]) -> dict[str, list[list[float] | None]]:
        with gradio_errors():
            found = desk.locate(opened(image), phrases)
        return {name: [None if box is None else list(box) for box in boxes] for name, boxes in found.items()}

    def caption(image: str) -> dict[str, str]:
        with gradio_errors():
            return desk.caption(opened(image))

    for function in (describe, read, locate, caption):
        gr.api(function, api_name=function.__name__)


def _quads(boxes: Sequence[Sequence[float]]) -> list[Box]:
    try:
        return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes]
    except (TypeError, ValueError) as error:
        raise GranvitError("a box is a list of four numbers: x1, y1, x2, y2 in pixels") from error


def example_pictures(folder: Path, count: int = 3) -> list[Path]:
    """Drawn pictures of held-out scenes, written to `folder`: what the demo's checkpoint knows."""
    from granvit.corpus.synthetic.synthesize import make

    files = []
    for index in range(count):
        record = make(index, seed=1_000_001, size=160, documents=0.0)
        file = folder / f"scene-{index + 1}.png"
        file.write_bytes(record.image or b"")
        files.append(file)
    return files
