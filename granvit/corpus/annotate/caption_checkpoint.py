"""Asking a granvit checkpoint of one's own: the questions that it was trained on, and how sure it is of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption_answers import Answer, Refusal
from granvit.corpus.annotate.caption_requests import Keep, Request, ask_in_batches
from granvit.errors import CheckpointError
from granvit.predict import GranViT, ImageQuestions, Text
from granvit.questions import ask_global

# Pictures that are asked about at once.
_PICTURES = 16


class CheckpointModel:
    """A granvit checkpoint as a captioner: Bbox2Caption about boxes, Global about whole pictures.

    The whole picture is shown as it is in training, whatever `longest_side` says. Answers are as they are said,
    location tokens included, so that one which states a place instead of a caption is known as such.

    Raises:
        AnnotateError: it cannot be loaded.
    """

    def __init__(self, folder: str, device: str, rows: int) -> None:
        try:
            self.model = GranViT.load(Path(folder), device)
        except CheckpointError as error:
            raise AnnotateError(str(error)) from error
        self.model.rows = rows

    def ask(self, requests: Sequence[Request], keep: Keep) -> list[Answer | Refusal]:
        """The answers to all requests, in their order; `keep` is called with each one as its pictures are done."""
        pictures = [list(of_one) for _, of_one in groupby(range(len(requests)), lambda i: id(requests[i].picture))]
        starts = range(0, len(pictures), _PICTURES)
        batches = [list(chain(*pictures[start : start + _PICTURES])) for start in starts]
        return ask_in_batches(requests, batches, self._answers, keep)

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests of one limit of tokens; those about one picture share one look at it."""
        asks: list[ImageQuestions] = []
        order: list[int] = []
        for _, of_one in groupby(range(len(requests)), lambda i: id(requests[i].picture)):
            mine = list(of_one)
            picture, about = requests[mine[0]].picture, [requests[i].box for i in mine]
            boxes = np.array([box for box in about if box is not None]).reshape(-1, 4)
            [asked] = self.model.about_boxes(picture, boxes)
            whole = [i for i, box in zip(mine, about, strict=True) if box is None]
            asked.questions += [ask_global()] * len(whole)
            asks.append(asked)
            order += [i for i, box in zip(mine, about, strict=True) if box is not None] + whole
        said = [text for texts in self.model.answer(asks, requests[0].max_tokens) for text in texts]
        answers: list[Answer] = [_answer(said[place]) for place in np.argsort(order).tolist()]
        return answers


def _answer(said: Text) -> Answer:
    return Answer(str(said), said.cut, confidence=said.confidence)
