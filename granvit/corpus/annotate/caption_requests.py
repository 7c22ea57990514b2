"""What a captioner is asked: the words, the pictures, and the key under which an answer is remembered."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from granvit.coordinates import get_codec
from granvit.corpus.annotate.base import AnnotateError, Item, each_or_error
from granvit.corpus.annotate.caption_answers import Answer, Refusal
from granvit.geometry import Fit, Frame, View, whole_pixels
from granvit.questions import BBOX2CAPTION, GLOBAL

Mode = Literal["auto", "trained", "crop", "crop+image", "box"]

PROMPTS: dict[Mode, str] = {
    "crop": "Describe what this picture shows in no more than {words} words. Answer with the description alone.",
    "crop+image": (
        "The first picture is a part of the second one. Describe what the first picture shows in no more than {words} "
        "words; the second only tells what is around it. Answer with the description alone."
    ),
    "box": BBOX2CAPTION[0] + "{box} in no more than {words} words. Answer with the description alone.",
    "trained": BBOX2CAPTION[0] + "{box}" + BBOX2CAPTION[1],
}
_PLACEHOLDER = re.compile(r"\{\s*\w+\s*\}")
FIRMER = " Your answer must be a short phrase of at most {words} words, without any other text."
FIRMER_WHOLE = " Your answer must be one paragraph that describes the picture, without any other text."

# Vision towers with merged patches refuse pictures with a side below 28 pixels.
SHORTEST_SIDE = 56
# Part of the key: to be raised when the same request would be drawn or sampled differently.
_VERSION = 1


@dataclass(frozen=True)
class PromptConfig:
    """How a captioner is asked.

    Attributes:
        model: its name, or what it holds; part of the key.
        mode: "crop" shows the region alone (the paper, section 3.1), "crop+image" the region and then the whole image
            (FineViT), "box" the whole image with the box in the words, "trained" the same in the words of training.
        prompt: other words than the mode's own, with {words} and {box} where they belong.
        words: most words of a region's caption.
        longest_side: larger pictures are scaled down to it, pixels.
        region_tokens, global_tokens: most tokens of an answer.
        codec: how {box} is written, see `get_codec`.
        frame, fit: what {box} is relative to, see `View`.
    """

    model: str
    mode: Mode
    prompt: str
    words: int
    longest_side: int
    region_tokens: int
    global_tokens: int
    codec: str = "decimal"
    frame: Frame = "image"
    fit: Fit = "squash"


@dataclass(frozen=True)
class Request:
    """One question to a captioner; `crop` is in whole pixels, None where the whole picture is shown.

    `box` is the region that is asked about, xyxy pixels; None of the whole picture.
    """

    key: str
    prompt: str
    picture: Image.Image
    crop: tuple[int, int, int, int] | None
    with_image: bool
    longest_side: int
    max_tokens: int
    box: tuple[float, float, float, float] | None = None

    def images(self) -> list[Image.Image]:
        """The pictures to show, made only when they are sent: a thousand waiting crops would fill the memory."""
        shown = [] if self.crop is None else [_fitted(self.picture.crop(self.crop), self.longest_side)]
        if self.crop is None or self.with_image:
            shown.append(_fitted(self.picture, self.longest_side))
        return shown


def check_prompt(prompt: str, mode: Mode) -> None:
    """Whether words of one's own ask about a region in this mode. Without {words} they may say how long an answer is
    to be themselves.

    Raises:
        AnnotateError: they hold a placeholder that is not filled in, or {box} where only the region is shown; or lack
            it where the whole image is, so that all regions would be asked about alike.
    """
    unknown = sorted(set(_PLACEHOLDER.findall(prompt)) - {"{words}", "{box}"})
    if unknown:
        raise AnnotateError(f"caption: prompt: {unknown[0]} is not filled in, only {{words}} and {{box}} are")
    if mode == "box" and "{box}" not in prompt:
        raise AnnotateError(
            "caption: prompt: mode box shows the whole image, so without {box} every region gets the same caption"
        )
    if mode in ("crop", "auto") and "{box}" in prompt:
        raise AnnotateError(
            f"caption: prompt: mode {mode} shows the region alone, in which {{box}} means nothing; "
            "mode box shows the whole image"
        )


# Called with each answer as soon as it is there, so that an interrupted run keeps it.
Keep = Callable[[Request, Answer], None]
# A picture that any model can look at, pixels.
_PLAIN = (256, 256)


def ask_in_batches(
    requests: Sequence[Request],
    batches: Iterable[Sequence[int]],
    answers_of: Callable[[Sequence[Request]], Sequence[Answer]],
    keep: Keep,
) -> list[Answer | Refusal]:
    """The answers to all requests, in their order, of a model that is run here.

    Args:
        batches: which requests go together; one is divided where the limit of tokens changes, which is part of what
            is asked.
        answers_of: asks the model requests of one limit. A request that it alone fails at is refused as
            "captioner-failed".
    """
    answers: list[Answer | Refusal] = [Refusal("unasked")] * len(requests)
    grey = Image.new("RGB", _PLAIN, "grey")
    for group in batches:
        for longest in sorted({requests[i].max_tokens for i in group}):
            batch = [i for i in group if requests[i].max_tokens == longest]
            plain = replace(requests[batch[0]], picture=grey, crop=None, with_image=False, box=None)
            each = each_or_error(answers_of, [requests[i] for i in batch], plain)
            for i, answer in zip(batch, each, strict=True):
                if isinstance(answer, Exception):
                    answers[i] = Refusal("captioner-failed", f"{type(answer).__name__}: {answer}"[:500])
                else:
                    answers[i] = answer
                    keep(requests[i], answer)
    return answers


def _fitted(picture: Image.Image, longest_side: int) -> Image.Image:
    scale = max(1.0, SHORTEST_SIDE / min(picture.size))
    scale = min(scale, longest_side / max(picture.size))
    if scale == 1.0:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def region_request(item: Item, image_hash: str, index: int, prompts: PromptConfig) -> Request | None:
    """The question about one region, or None where its box holds no pixel of the image."""
    picture, box = item.picture, item.record.regions[index].box
    x1, y1, x2, y2 = crop = whole_pixels(box, *picture.size)
    if x1 >= x2 or y1 >= y2:
        return None
    relative = View.fit(prompts.fit, picture.size, 1).to_relative(box, prompts.frame)[0]
    words = (prompts.prompt or PROMPTS[prompts.mode]).replace("{words}", str(prompts.words))
    prompt = words.replace("{box}", get_codec(prompts.codec).encode(relative))
    request = Request(
        "",
        prompt,
        picture,
        None if prompts.mode in ("box", "trained") else crop,
        prompts.mode == "crop+image",
        prompts.longest_side,
        prompts.region_tokens,
        box,
    )
    return _keyed(request, prompts.model, image_hash)


def global_request(item: Item, image_hash: str, prompts: PromptConfig) -> Request:
    """The question about the whole image, in the paper's words."""
    request = Request("", GLOBAL, item.picture, None, False, prompts.longest_side, prompts.global_tokens)
    return _keyed(request, prompts.model, image_hash)


def firmer_request(request: Request, image_hash: str, prompts: PromptConfig, whole: bool) -> Request:
    """The same question once more, after an answer that could not be used: at temperature 0 the same words would only
    bring the same answer."""
    more = FIRMER_WHOLE if whole else FIRMER.replace("{words}", str(prompts.words))
    return _keyed(replace(request, prompt=request.prompt + more), prompts.model, image_hash)


def hash_of(item: Item) -> str:
    """What makes the image the same image: the bytes of its file, its pixels where the record has no file."""
    data = item.record.image if item.record.image is not None else item.picture.tobytes()
    return hashlib.sha256(data).hexdigest()


def _keyed(request: Request, model: str, image_hash: str) -> Request:
    facts = [
        _VERSION,
        model,
        image_hash,
        request.crop,
        request.with_image,
        request.prompt,
        request.longest_side,
        request.max_tokens,
    ]
    return replace(request, key=hashlib.sha256(json.dumps(facts).encode()).hexdigest())
