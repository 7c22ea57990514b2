"""Which answers of a captioner become captions: a refusal, an echo or a lecture does not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rapidfuzz import fuzz

from granvit.corpus.annotate.caption_cleaning import Unusable, plain_text


@dataclass(frozen=True)
class Answer:
    """What a captioner said.

    Attributes:
        text: its words as they came, thoughts and control tokens included.
        cut: it ran into the limit of tokens.
        refusal: it was no answer, and the server said so: "caption-refused" or "caption-tool-call"; "" otherwise.
    """

    text: str
    cut: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why there is no caption: `reason` is counted, `detail` is for a reader."""

    reason: str
    detail: str = ""


# What models say instead of a description. Anchored: a shop's sign may well say that it is sorry.
_REFUSALS = re.compile(
    r"""^(?:
      (?:i['’]?m|i\ am|we['’]?re|we\ are)\ (?:very\ |so\ |really\ )?(?:sorry|unable|not\ able|afraid)\b
    | (?:sorry|apologies|unfortunately),\ (?:but\ )?(?:i|we|there|the\ image|this\ image|the\ picture)\b
    | sorry\ (?:but\ )?i\b
    | (?:i|we)\ (?:can['’]?t|can\ ?not|could\ ?n['’]?t|could\ not|do\ not|don['’]?t|won['’]?t)\b
    | as\ an\ (?:ai|artificial|language\ model)\b
    | (?:it\ is|it['’]?s)\ (?:not\ possible|impossible|unclear)\b
    | (?:unable|not\ able|impossible)\ to\b
    | (?:there\ is|i\ see|there['’]?s)\ no\ (?:image|picture|content|object)\b
    | no\ (?:image|picture|content|description|object)s?\b(?:\ (?:was|is|were|are)\b.*)?\W*$
    | (?:please|could\ you|can\ you)\ (?:provide|upload|share|send|give)\b
    | (?:n/?a|none|null|unknown|unclear|nothing)\W*$
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_ECHO_WORDS, _ECHO_LIKENESS = 4, 90
# Scripts without blanks between words; two of their characters count as one word.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff]")


def judge(answer: Answer, prompt: str, max_words: int | None) -> str | Refusal:
    """The caption in an answer, or why there is none.

    Args:
        answer: as the captioner gave it.
        prompt: what it was asked; an answer that repeats it, or a good part of it, is an echo.
        max_words: most words of a region's caption, None for the paragraph about a whole image.

    Returns:
        The caption without thoughts, control tokens, markup, surrounding quotes and doubled space; or a `Refusal` with
        one of the reasons "caption-empty", "caption-cut-off", "caption-refused", "caption-tool-call", "caption-echo",
        "caption-too-long", "caption-location", "caption-structured", "caption-control-token", "caption-loop".
    """
    shown = answer.text.strip()[:200]
    if answer.refusal:
        return Refusal(answer.refusal, shown)
    try:
        text = plain_text(answer.text, one_line=max_words is not None)
    except Unusable as unusable:
        if _is_echo(answer.text, prompt):
            return Refusal("caption-echo", shown)
        # Half an answer is often half a list or half a thought: what is wrong with it is that it is half.
        return Refusal("caption-cut-off" if answer.cut else unusable.reason, shown)
    if not any(c.isalnum() for c in text):
        return Refusal("caption-cut-off" if answer.cut else "caption-empty", shown)
    if _REFUSALS.match(text):
        return Refusal("caption-refused", shown)
    if _is_echo(text, prompt):
        return Refusal("caption-echo", shown)
    if max_words is not None and (words := _words(text)) > max_words:
        return Refusal("caption-too-long", f"{words} words: {shown}")
    if answer.cut:
        return Refusal("caption-cut-off", shown)
    return text


def _words(text: str) -> int:
    unspaced = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + unspaced // 2


def _is_echo(text: str, prompt: str) -> bool:
    """The shorter of the two is found in the longer one, nearly letter by letter."""
    said, asked = (" ".join(re.findall(r"[\w.]+", t.lower())) for t in (text, prompt))
    return len(said.split()) >= _ECHO_WORDS and fuzz.partial_ratio(said, asked) >= _ECHO_LIKENESS
