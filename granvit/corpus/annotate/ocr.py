"""Reading text: PP-OCR finds the lines of a picture and transcribes them, as in the paper's text part (section 3).

The weights of PP-OCRv6-small come with the `rapidocr` package and run on a CPU. Other PP-OCR checkpoints run through
`transformers` (`granvit.corpus.annotate.ocr_networks`), inside the same chain of cutting, scaling and decoding.

RapidOCR finds boxes, cuts them out and reads them. Added here is what a whole page needs: windows for long and large
ones, words written letter below letter, and turned ones. Upside down, a line is read with little confidence (four
receipts: means of 0.63 to 0.73, upright 0.97 to 0.99); so what is read badly is read upside down as well, and where
most letters of a page turn out to lie otherwise, the page is turned and read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granvit import geometry
from granvit.corpus.annotate.base import MODEL, AnnotateError, Annotator, Item, each_or_error
from granvit.corpus.annotate.ocr_boxes import (
    Quad,
    Window,
    closer,
    columns,
    is_tall,
    joined,
    thickness,
    windows,
)
from granvit.corpus.importers.text_lines import outlined
from granvit.regions import Region

# How small text may be: of a page that is seen smaller than `_NEAR_ENOUGH` and read with little confidence, or whose
# lines the detector sees less high than `_LEAST_HEIGHT` pixels, the quarters are read instead, and then theirs.
_NEAR_ENOUGH, _LEAST_HEIGHT, _MOST_NEARER = 0.8, 10.0, 4
# Where nothing is found, the quarters are looked at if the page was seen smaller than this.
_TOO_FAR = 0.3
# Narrower pictures are widened to this, pixels: the least that the detector can see.
_NARROWEST = 32
# A line read with less confidence may lie upside down; it does where it is then read with so much more.
_UNSURE, _CLEARLY = 0.85, 0.1
# What a page may lose in confidence when it is turned, and be turned all the same.
_AS_CERTAIN = 0.02
# Only lines tell how a page lies: a letter or two read alike in more ways than one.
_TELLING_LETTERS = 3

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """A line as it was read.

    Attributes:
        quad: corners in pixels, clockwise from the top left one of the text, shape (4, 2): of a line written downwards
            this is the one at the top right.
        words: quad, text and score of each word; empty where only lines are asked for.
    """

    quad: Quad
    text: str
    score: float
    words: list[tuple[Quad, str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """What was read on a page: its lines in reading order, and by how many degrees it was turned clockwise."""

    lines: list[Line]
    turned: int = 0


@dataclass(frozen=True)
class _Read:
    """A line before it is known how the page lies; `quad` from the top left, whichever way the text runs."""

    quad: Quad
    crop: Pixels
    text: str
    score: float
    cut: Any
    flipped: bool = False


class Reader:
    """Reads pages by a RapidOCR engine.

    Args:
        max_side: longer pictures are scaled down to this side to find lines, in pixels.
        any_way_up: whether turned pages and lines are looked for.
    """

    def __init__(self, engine: Any, max_side: int, any_way_up: bool = True) -> None:
        self._engine, self._max_side, self._any_way_up = engine, max_side, any_way_up

    def read(self, picture: Image.Image) -> Reading:
        """The lines of an RGB picture, whatever their score; boxes are those of the picture as it is."""
        bgr_hw3 = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
        best: list[_Read] = []
        best_turns = 0
        for nearer in range(_MOST_NEARER):
            read, turns, scale = self._any_way(bgr_hw3, nearer)
            if _certainty(read) >= _certainty(best):
                best, best_turns = read, turns
            if not read and scale >= _TOO_FAR:
                break
            if read and (scale >= _NEAR_ENOUGH or not _is_small(read, scale)):
                break
        if not best_turns:
            return Reading([_line(one) for one in best])
        height, width = bgr_hw3.shape[:2]
        size = (width, height) if best_turns == 2 else (height, width)
        return Reading([_turned_back(_line(one), best_turns, size) for one in best], 90 * best_turns)

    def _any_way(self, bgr_hw3: Pixels, nearer: int) -> tuple[list[_Read], int, float]:
        """Lines of the page as it is to be turned, the quarter turns counterclockwise, and how small it was seen."""
        read, scale = self._lines(bgr_hw3, nearer)
        if turns := _turns(read):
            again, _ = self._lines(np.ascontiguousarray(np.rot90(bgr_hw3, turns)), nearer)
            if _certainty(again) >= _certainty(read) - _AS_CERTAIN:
                return again, turns, scale
        return read, 0, scale

    def _lines(self, bgr_hw3: Pixels, nearer: int) -> tuple[list[_Read], float]:
        height, width = bgr_hw3.shape[:2]
        looked = windows((width, height), self._max_side)
        for _ in range(nearer):
            looked = closer(looked)
        scale = self._max_side / max(max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in looked)
        read = self._recognized(self._with_columns(bgr_hw3, self._find(bgr_hw3, looked)))
        if not self._any_way_up:
            return read, scale
        unsure = [i for i, one in enumerate(read) if one.score < _UNSURE or not one.text.strip()]
        flipped = self._recognized([(read[i].quad, np.ascontiguousarray(np.rot90(read[i].crop, 2))) for i in unsure])
        for i, other in zip(unsure, flipped, strict=True):
            if other.text.strip() and other.score > read[i].score + _CLEARLY:
                read[i] = replace(other, crop=read[i].crop, flipped=True)
        return read, scale

    def _recognized(self, found: list[tuple[Quad, Pixels]]) -> list[_Read]:
        if not found:
            return []
        result = self._engine.recognize_txt([crop for _, crop in found])
        rows = zip(found, result.txts, result.scores, result.word_results, strict=True)
        return [_Read(quad, crop, text, float(score), cut) for (quad, crop), text, score, cut in rows]

    def _find(self, bgr_hw3: Pixels, looked: list[Window]) -> list[tuple[Quad, Pixels]]:
        """The boxes of all lines in reading order, and what is in them."""
        found = [self._detect(bgr_hw3, window) for window in looked]
        if len(found) == 1:
            return list(zip(*found[0], strict=True))
        height, width = bgr_hw3.shape[:2]
        quads = joined([quads for quads, _ in found], looked, (width, height), self._max_side)
        if len(quads) == 0:
            return []
        quads = self._engine.text_det.sorted_boxes(quads)
        return list(zip(quads, self._cropped(bgr_hw3, quads), strict=True))

    def _detect(self, bgr_hw3: Pixels, window: Window) -> tuple[NDArray[np.float64], list[Pixels]]:
        """The boxes in a window, (N, 4, 2) in pixels of the page, and what is in them."""
        from rapidocr.main import RapidOCRError
        from rapidocr.utils.process_img import map_boxes_to_original

        x1, y1, x2, y2 = window
        part = bgr_hw3[y1:y2, x1:x2]
        if part.shape[1] < _NARROWEST:  # or it would be scaled down to nothing; a low one RapidOCR widens itself
            edges = ((0, 0), (0, _NARROWEST - part.shape[1]), (0, 0))
            part = np.pad(part, edges, mode="edge")
        scaled, scaling = self._engine.preprocess_img(np.ascontiguousarray(part))
        try:
            crops, found = self._engine.detect_and_crop(scaled, scaling)
        except RapidOCRError:  # it found nothing
            return np.zeros((0, 4, 2)), []
        quads = map_boxes_to_original(found.boxes, scaling, *part.shape[:2]).astype(np.float64)
        return quads + [x1, y1], crops

    def _cropped(self, bgr_hw3: Pixels, quads: NDArray[np.float64]) -> list[Pixels]:
        return self._engine.crop_text_regions(bgr_hw3, quads.astype(np.float32))

    def _with_columns(self, bgr_hw3: Pixels, found: list[tuple[Quad, Pixels]]) -> list[tuple[Quad, Pixels]]:
        """Letters below each other as the word that they make, in the place of its first letter."""
        boxes = found
        for column in columns(np.array([quad for quad, _ in found])):
            x1, y1, x2, y2 = geometry.hull(np.concatenate([found[i][0] for i in column]))
            quad = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)
            (word,) = self._recognized([(quad, self._cropped(bgr_hw3, quad[None])[0])])
            if word.score < _UNSURE:
                continue
            members = {id(found[i][0]) for i in column}
            first = next(i for i, (box, _) in enumerate(boxes) if id(box) in members)
            rest = [entry for entry in boxes if id(entry[0]) not in members]
            boxes = [*rest[:first], (quad, word.crop), *rest[first:]]
        return boxes


def _certainty(read: list[_Read]) -> float:
    """The mean score, by letters."""
    letters = sum(len(one.text) for one in read)
    return sum(one.score * len(one.text) for one in read) / letters if letters else 0.0


def _is_small(read: list[_Read], scale: float) -> bool:
    """Whether the text is so small that it is to be looked at from nearer by."""
    heights = thickness(np.array([one.quad for one in read])) * scale
    return bool(_certainty(read) < _UNSURE or np.percentile(heights, 25) < _LEAST_HEIGHT)


def _turns(read: list[_Read]) -> int:
    """By how many quarters the page is to be turned counterclockwise so that most of its letters stand upright."""
    votes: Counter[int] = Counter()
    for one in read:
        sides = np.sort(np.linalg.norm(np.roll(one.quad, -1, axis=0) - one.quad, axis=1))
        if len(one.text.strip()) >= _TELLING_LETTERS and sides[-1] >= 1.5 * sides[0]:
            corners = _in_text_order(one)
            along = corners[1] - corners[0]
            votes[round(np.arctan2(along[1], along[0]) / (np.pi / 2)) % 4] += len(one.text)
    if not votes:
        return 0
    ((turns, most),) = votes.most_common(1)
    return turns if 2 * most > votes.total() else 0


def _in_text_order(one: _Read) -> Quad:
    """The corners from the top left one of the text: a tall box is read downwards, a flipped one from its end."""
    quad = np.roll(one.quad, 2, axis=0) if one.flipped else one.quad
    return np.roll(quad, -1, axis=0) if is_tall(quad) else quad


def _line(one: _Read) -> Line:
    words: list[tuple[Quad, str, float]] = []
    if one.cut:
        quad = np.roll(one.quad, 2, axis=0) if one.flipped else one.quad
        back = -1 if is_tall(quad) else 0
        words = [(np.roll(word, back, axis=0), text, score) for word, text, score in words_of(quad, one.text, one.cut)]
    return Line(_in_text_order(one), one.text, one.score, words)


def _turned_back(line: Line, turns: int, size: tuple[int, int]) -> Line:
    """A line of the upright page where it lies on the page as it was given; `size` is that of the upright one."""
    words = [(geometry.rotated_back(quad, turns, *size), text, score) for quad, text, score in line.words]
    return replace(line, quad=geometry.rotated_back(line.quad, turns, *size), words=words)


def words_of(line: Quad, text: str, cut: Any) -> list[tuple[Quad, str, float]]:
    """Quad, text and score of each word of a line.

    The recognizer reads a line as a row of `cut.line_txt_len` columns and names for each character the column where
    it saw it: a word reaches half a character's width beyond its first and last one, and not into its neighbour.
    """
    places = [np.asarray(word) + 0.5 for word in cut.word_cols]
    if not places:
        return []
    steps = np.concatenate([np.diff(word) for word in places])
    half = (float(steps.mean()) if len(steps) else cut.line_txt_len / len(text)) / 2
    starts = np.array([word[0] - half for word in places])
    ends = np.array([word[-1] + half for word in places])
    middles = (ends[:-1] + starts[1:]) / 2
    ends[:-1] = np.minimum(ends[:-1], middles)
    starts[1:] = np.maximum(starts[1:], middles)
    sure = iter([score for char, score in zip(text, cut.confs, strict=True) if not char.isspace()])
    return [
        (
            geometry.part_of_line(line, start / cut.line_txt_len, end / cut.line_txt_len),
            "".join(chars),
            float(np.mean([next(sure) for _ in chars])),
        )
        for start, end, chars in zip(starts, ends, cut.words, strict=True)
    ]


# A picture that can be read, pixels.
_PLAIN = (256, 256)

Level = Literal["line", "word", "both"]


@dataclass(frozen=True)
class OcrConfig:
    """Text lines or words with their boxes, by PP-OCR.

    Boxes are float pixels of the upright image. Text that is tilted or turned also gets its four corners as polygon,
    clockwise from the top left one of the text: the first side is its upper edge.
    """

    level: Level = "line"
    """What becomes a region: lines, the words of the lines, or both."""
    max_side: int = 960
    """Longer pictures are scaled down to this side, in pixels, to find lines; they are never scaled up. Long strips
    are looked at in parts, and so are pages whose text would become too small."""
    any_way_up: bool = True
    """Also read pages and lines that are turned by 90, 180 or 270 degrees."""
    box_score: float = 0.5
    """Lines that the detector is less sure of, 0 to 1, are not seen."""
    text_score: float = 0.5
    """Lines that the recognizer is less sure of, 0 to 1, are refused."""
    lines_at_once: int = 6
    """Lines recognized together."""
    detector: str = field(default="", metadata=MODEL)
    """A PP-OCRv5/v6 detection checkpoint for transformers (name or folder); empty: the one of rapidocr."""
    recognizer: str = field(default="", metadata=MODEL)
    """A PP-OCRv5/v6 recognition checkpoint for transformers (name or folder); empty: the one of rapidocr."""

    @property
    def name(self) -> str:
        """The annotator's name, as written into the regions."""
        shipped = "PP-OCRv6-small"
        if not (self.detector or self.recognizer):
            return f"rapidocr:{shipped}"
        models = [name.rstrip("/").rpartition("/")[2] or shipped for name in (self.detector, self.recognizer)]
        return f"ppocr:{'+'.join(models)}"

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU would be of use: for a network of transformers, or where onnxruntime is built for it."""
        return bool(self.detector or self.recognizer) or _onnxruntime_has_cuda()

    def build(self, device: str = "cpu") -> Annotator:
        """Load the models.

        Raises:
            AnnotateError: rapidocr is not installed, or a checkpoint cannot be loaded.
        """
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise AnnotateError(f"OCR needs two packages: pip install rapidocr onnxruntime ({error})") from error
        engine: Any = RapidOCR(params=self._engine_settings(device))
        if self.detector or self.recognizer:
            from granvit.corpus.annotate.ocr_networks import NetworkDetector, NetworkRecognizer

            if self.detector:
                engine.text_det = NetworkDetector(self.detector, device, self.max_side, self.box_score)
            if self.recognizer:
                engine.text_rec = NetworkRecognizer(self.recognizer, device, self.lines_at_once)
        _load(engine)
        return OcrAnnotator(self, engine)

    def _engine_settings(self, device: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "Global.log_level": "critical",  # a picture without text is no news
            "Global.use_cls": False,
            "Global.return_word_box": self.level != "line",
            "Det.limit_type": "max",
            "Det.limit_side_len": self.max_side,
            "Det.box_thresh": self.box_score,
            "Rec.rec_batch_num": self.lines_at_once,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if device.startswith("cuda"):
            settings["EngineConfig.onnxruntime.use_cuda"] = _onnxruntime_has_cuda()
            settings["EngineConfig.onnxruntime.cuda_ep_cfg.device_id"] = int(device.partition(":")[2] or 0)
        return settings


def _load(engine: Any) -> None:
    """RapidOCR loads each model when it first needs it: let that be now, where an error is one of installation."""
    blank_hw3 = np.full((64, 64, 3), 255, np.uint8)
    engine.run_ocr_steps(blank_hw3, {})
    engine.recognize_txt([blank_hw3])


def _onnxruntime_has_cuda() -> bool:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return False  # `build` tells what is missing
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


class OcrAnnotator:
    """Replaces the regions of each item by the text that is read in its picture."""

    def __init__(self, config: OcrConfig, engine: Any) -> None:
        self._config = config
        self._reader = Reader(engine, config.max_side, config.any_way_up)

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        for item in items:
            self._annotate(item)
        return list(items)

    def _read(self, pictures: Sequence[Image.Image]) -> list[Reading]:
        return [self._reader.read(picture) for picture in pictures]

    def _annotate(self, item: Item) -> None:
        item.record.regions = []
        (reading,) = each_or_error(self._read, [item.picture], Image.new("RGB", _PLAIN, "white"))
        if isinstance(reading, Exception):
            item.refuse("ocr-failed", f"{type(reading).__name__}: {reading}")
            return
        if reading.turned:
            item.changes[f"page-turned-{reading.turned}"] += 1
        for number, line in enumerate(reading.lines):
            if not line.text.strip():
                item.refuse("unread-text", f"box {_corners(line.quad)}", number)
            elif line.score < self._config.text_score:
                item.refuse("low-text-score", f"{line.score:.2f}: {line.text[:80]}", number)
            else:
                item.record.regions += self._regions(line)

    def _regions(self, line: Line) -> list[Region]:
        whole = [self._region(line.quad, line.text, line.score)] if self._config.level != "word" else []
        return whole + [self._region(*word) for word in line.words]

    def _region(self, quad: Quad, text: str, score: float) -> Region:
        name = self._config.name
        region = outlined(quad.ravel().tolist(), text)
        if region.polygon is None and quad[0].tolist() != list(region.box[:2]):
            region = replace(region, polygon=quad.ravel().tolist())  # which way the text runs
        return replace(region, score=min(max(score, 0.0), 1.0), box_by=name, text_by=name)


def _corners(quad: Quad) -> list[int]:
    return [round(v) for v in geometry.hull(quad)]
