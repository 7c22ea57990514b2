"""Which answers of a captioner become captions: a refusal, an echo or a lecture does not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rapidfuzz import fuzz


@dataclass(frozen=True)
class Answer:
    """What a captioner said; `cut` where it ran into the limit of tokens."""

    text: str
    cut: bool = False


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
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_LEAD = re.compile(r"^(?:answer|caption|description|output)\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "`": "`", "*": "*", "«": "»"}
_ECHO_WORDS, _ECHO_LIKENESS = 4, 90


def judge(answer: Answer, prompt: str, max_words: int | None) -> str | Refusal:
    """The caption in an answer, or why there is none.

    Args:
        answer: as the captioner gave it.
        prompt: what it was asked; an answer that repeats it, or a good part of it, is an echo.
        max_words: most words of a region's caption, None for the paragraph about a whole image.

    Returns:
        The caption without thoughts, surrounding quotes and doubled space; or a `Refusal` with one of the reasons
        "caption-empty", "caption-cut-off", "caption-refused", "caption-echo", "caption-too-long".
    """
    text = _bare(answer.text)
    shown = answer.text.strip()[:200]
    words = text.split()
    if not any(c.isalnum() for c in text):
        return Refusal("caption-empty", shown)
    if _REFUSALS.match(text):
        return Refusal("caption-refused", shown)
    if _is_echo(text, prompt):
        return Refusal("caption-echo", shown)
    if max_words is not None and len(words) > max_words:
        return Refusal("caption-too-long", f"{len(words)} words: {shown}")
    if answer.cut:
        return Refusal("caption-cut-off", shown)
    return text


def _bare(text: str) -> str:
    text = " ".join(_THOUGHT.sub(" ", text).split())
    text = _LEAD.sub("", text.strip("*").strip())
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def _is_echo(text: str, prompt: str) -> bool:
    """The shorter of the two is found in the longer one, nearly letter by letter."""
    said, asked = (" ".join(re.findall(r"[\w.]+", t.lower())) for t in (text, prompt))
    return len(said.split()) >= _ECHO_WORDS and fuzz.partial_ratio(said, asked) >= _ECHO_LIKENESS
