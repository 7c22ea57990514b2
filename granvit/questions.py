"""The paper's three questions (section 3.2): how they are asked, answered and parsed.

Regions of both kinds, objects and text, are asked about in the same words: the answer to Bbox2Caption is the
caption of an object and the transcription of a text region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from numpy.typing import ArrayLike

from granvit.coordinates import Box, Codec

Task = Literal["global", "bbox2caption", "caption2bbox"]
TASKS: tuple[Task, ...] = ("global", "bbox2caption", "caption2bbox")
# What a branch asks that is none of them, but in a record's own words.
CONVERSATION = "conversation"

GLOBAL = "Describe in detail what is shown in the image in one paragraph"
BBOX2CAPTION = (
    "Describe the content contained within the normalized bounding box coordinates ",
    " in no more than 10 words.",
)
# Behind a free question about a box, in the words that the model knows boxes from.
ABOUT_BOX = (" Answer about the content contained within the normalized bounding box coordinates ", ".")
CAPTION2BBOX = "Please provide the bounding box coordinate of the region this sentence describes: "
# What all questions of a kind begin with that are asked once for each region.
BEGINNINGS: dict[str, str] = {"bbox2caption": BBOX2CAPTION[0], "caption2bbox": CAPTION2BBOX}

# How benchmarks are asked that the paper reports but doesn't word: as LLaVA does, so that numbers can be compared.
SHORT_ANSWER = "Answer the question using a single word or phrase."
ONE_LETTER = "Answer with the option's letter from the given choices directly."


class Coded(str):
    """A question or an answer that this package wrote, without anybody else's words: its location tokens are tokens.

    In every other string they are plain text, as they are in a caption that happens to hold some.
    """


class Woven(str):
    """Somebody's words with boxes that this package wrote between them: plain text and `Coded`, one after the other."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> Woven:
        made = super().__new__(cls, "".join(parts))
        made.parts = parts
        return made


@dataclass(frozen=True)
class Exchange:
    """One question about an image and its answer: plain text, or `Coded` where a box was written."""

    task: Task
    question: str
    answer: str


def ask_global() -> str:
    """The question for a caption of the whole image."""
    return GLOBAL


def ask_caption(box: ArrayLike, codec: Codec) -> Coded:
    """Bbox2Caption for a relative box (x1, y1, x2, y2) in [0, 1]."""
    return Coded(BBOX2CAPTION[0] + codec.encode(box) + BBOX2CAPTION[1])


def ask_box(text: str) -> str:
    """Caption2Bbox for a phrase or a line of text."""
    return CAPTION2BBOX + text


def ask_about(question: str, box: ArrayLike, codec: Codec) -> Woven:
    """A free question about a relative box (x1, y1, x2, y2) in [0, 1], which stands where `question` says {box}.

    Where it doesn't, the box follows in the words of Bbox2Caption.
    """
    written = Coded(codec.encode(box))
    first, *others = question.split("{box}")
    if not others:
        return Woven(question, ABOUT_BOX[0], written, ABOUT_BOX[1])
    return Woven(first, *(part for other in others for part in (written, other)))


def ask_short(question: str) -> str:
    """A question that a word or phrase answers."""
    return f"{question}\n{SHORT_ANSWER}"


def ask_choice(question: str, options: Sequence[str], hint: str = "") -> str:
    """A question with its options, to be answered by a letter; `hint` is what must be known to answer it."""
    lines = [hint] if hint else []
    lines += [question, *(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))]
    return "\n".join([*lines, ONE_LETTER])


def global_exchange(caption: str) -> Exchange:
    return Exchange("global", ask_global(), caption)


def caption_exchange(box: ArrayLike, text: str, codec: Codec) -> Exchange:
    """`box` is relative (x1, y1, x2, y2) in [0, 1]."""
    return Exchange("bbox2caption", ask_caption(box, codec), text)


def box_exchange(box: ArrayLike, text: str, codec: Codec) -> Exchange:
    """`box` is relative (x1, y1, x2, y2) in [0, 1]."""
    return Exchange("caption2bbox", ask_box(text), Coded(codec.encode(box)))


def parse_box(answer: str, codec: Codec) -> Box | None:
    """The one reading of an answer to Caption2Bbox: a relative box, or None.

    The whole answer must be one box in the checkpoint's codec. Nothing is searched for, repaired or guessed, so
    that a score never profits from a generous reader.
    """
    return codec.decode(answer)
