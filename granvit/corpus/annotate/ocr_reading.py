"""A page as PP-OCR reads it, whichever way it lies: in windows where it is too long, turned where it is turned.

RapidOCR finds boxes, cuts them out and reads them. Added here are what a whole page needs: windows for long and large
ones, words written letter below letter, and turned ones. Upside down, a line is read with little confidence (four
receipts: means of 0.63 to 0.73, upright 0.97 to 0.99); so what is read badly is read upside down as well, and where
most letters of a page turn out to lie otherwise, the page is turned and read again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granvit import geometry
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

# How small print may be: of a page that is seen smaller than `_NEAR_ENOUGH` and read with little confidence, or whose
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
    """Whether print is so small that it is to be looked at from nearer by."""
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
    words = [(geometry.turned_back(quad, turns, *size), text, score) for quad, text, score in line.words]
    return replace(line, quad=geometry.turned_back(line.quad, turns, *size), words=words)


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
            geometry.stretch(line, start / cut.line_txt_len, end / cut.line_txt_len),
            "".join(chars),
            float(np.mean([next(sure) for _ in chars])),
        )
        for start, end, chars in zip(starts, ends, cut.words, strict=True)
    ]
