"""From what a chat server replies to a caption: which answers are used, and what is taken off them.

`answer_of` is the one place that knows the forms in which servers put an answer. Thoughts, control tokens and markup
are taken off. What cannot be taken off without guessing (a list of things, coordinates, a call of a tool) is refused
with its reason, and so are a refusal, an echo or a lecture.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from rapidfuzz import fuzz

# Longer than any caption, and short enough for every pattern below.
LONGEST = 20_000

_THOUGHT = r"think|thinking|thought|thoughts|reason|reasoning|reflection|scratchpad|analysis"
# The tags of thoughts, as <think>, [THINK] (Mistral) and ◁think▷ (Kimi); and of a question said back, [INST].
_OPENS = re.compile(rf"[<\[◁](?:seed:)?(?:{_THOUGHT}|inst)[>\]▷]", re.IGNORECASE)
_CLOSES = re.compile(rf"[<\[◁]/(?:seed:)?(?:{_THOUGHT}|inst)[>\]▷]", re.IGNORECASE)
# gpt-oss: <|channel|>analysis<|message|>... and then <|channel|>final<|message|>...
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|[^<|]*\|>[^<]*)?<\|message\|>")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
# Where a turn ends: what follows is the model talking to itself.
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|end|endoftext|end_of_text|return|start|user|assistant|system)\|>"
    r"|<[|｜]end▁of▁sentence[|｜]>|</s>|<eos>|<end_of_turn>|<end_of_utterance>"
)
_CONTROL = re.compile(
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>"
    r"|<(?:s|/s|pad|unk|bos|eos|mask|cls|sep|start_of_turn|end_of_turn|end_of_utterance|fake_token_around_image"
    r"|image|/image|img|/img|video|/video|im_start|im_end|im_patch|global-img|image_soft_token|start_of_image"
    r"|end_of_image|row_\d+_col_\d+|unused\d+|extra_id_\d+|grounding|obj|/obj|object|/object|ref|/ref|phrase|/phrase)>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]|<</?SYS>>"
)
_PLACE = re.compile(
    r"</?(?:loc|seg|bin|box|bbox|quad|poly|point|points|coord|patch_index|x|y)[_\- ]?\d*>"
    r"|<(?:point|points|box|bbox)\s[^>]*>"
    r"|<\d{1,4}>"
    r"|<(?:[xy][12]?|width|height)_?\d+>",
    re.IGNORECASE,
)
_NUMBER = r"-?\d+(?:\.\d+)?%?"
_COORDINATES = re.compile(
    rf"[\[({{]\s*{_NUMBER}(?:\s*[,;]\s*{_NUMBER}|\s+{_NUMBER}){{3,}}\s*[\])}}]"
    rf"|[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]\s*[,;]?\s*(?:to|and|-)?\s*[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]"
    rf"|\b(?:x|y)_?(?:0|1|2|min|max)\s*[=:]\s*{_NUMBER}"
    rf"|\A\W*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3,}}\W*\Z",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)(?:```|\Z)|~~~[\w+-]*[ \t]*\n(.*?)(?:~~~|\Z)", re.DOTALL)
_HTML = re.compile(r"</?(?:p|br|b|i|u|em|strong|div|span|h[1-6]|code|pre|small|sub|sup|center)(?:\s[^<>]*)?/?>", re.I)
_TAG = re.compile(r"</?[A-Za-z_][\w:.-]*(?:\s[^<>]*)?/?>|<!--|<!doctype", re.IGNORECASE)
_ITEM = re.compile(r"^\s{0,8}(?:[-*+•]|\d{1,2}[.)])\s+", re.MULTILINE)
_HEADING = re.compile(r"^\s{0,3}(?:#{1,6}|>)\s+", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*\)")
# As Markdown has it: blanks or punctuation around, none just inside, so that 5*3*2 and "M*A*S*H" stay. What is written
# without blanks between words (Chinese, Japanese, Korean, Thai) has letters around it.
_LETTER = r"[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0eff]"
_EMPHASIS = re.compile(
    rf"(?<!{_LETTER})(?<![*_)\]}}%])(\*{{1,3}}|__)(?=[^\s*_])([^*_\n]+?)(?<=\S)\1(?![*_(\[{{])(?!{_LETTER})"
)
_RULE = re.compile(r"^\s*(?:-{3,}|\*{3,}|_{3,}|={3,})\s*$", re.MULTILINE)
_TABLE = re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE)
_LEAD = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)\s*[,!.:]\s*)?(?:here(?:['’]s| is| are)\b[^:\n]{0,80}:\s*)?"
    r"(?:(?:assistant|answer|caption|description|output|response|final answer)\s*(?::|\n)\s*)?",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "`": "`", "*": "*", "«": "»", "「": "」"}
_MOST_QUOTES = 8
# Under which names a server that was asked for nothing of the kind puts a caption into JSON.
_CAPTION_KEYS = ("caption", "description", "answer", "text", "content", "response", "output", "label", "phrase")


class Unusable(Exception):
    """An answer that holds no caption, or none that can be separated from the rest."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def plain_text(said: str, one_line: bool) -> str:
    """The words of an answer; "" where nothing but thoughts was said.

    Args:
        one_line: whether a phrase was asked for, in which a list has no place.

    Raises:
        Unusable: "caption-too-long", "caption-location", "caption-structured", "caption-control-token" or
            "caption-loop".
    """
    if len(said) > LONGEST:
        raise Unusable("caption-too-long")
    text = _without_control(_last_words(said))
    text = _unfenced(text).strip()
    text = _unquoted(_LEAD.sub("", text, count=1).strip())
    if _PLACE.search(text):
        raise Unusable("caption-location")
    if text[:1] in ("{", "[") and (found := _of_json(text)) is not None:
        return plain_text(found, one_line)
    if _COORDINATES.search(text):
        raise Unusable("caption-location")
    text = _without_markup(text, one_line)
    text = " ".join(text.split())
    text = _unquoted(_LEAD.sub("", text, count=1).strip())
    if _CONTROL.search(text) or "<|" in text or "|>" in text:  # of what was taken apart, something new came together
        raise Unusable("caption-control-token")
    if _loops(text):
        raise Unusable("caption-loop")
    return text


def _last_words(said: str) -> str:
    """What is said after all thinking: pairs of tags go with what they hold, a closing tag alone with all before it,
    an opening one with all behind it."""
    channels = list(_CHANNEL.finditer(said))
    if channels:
        final = [match for match in channels if match.group(1) == "final"]
        said = said[final[-1].end() :] if final else ""
    kept: list[str] = []
    depth, position, closed = 0, 0, 0
    for match in sorted([*_OPENS.finditer(said), *_CLOSES.finditer(said)], key=lambda match: match.start()):
        if depth == 0:
            kept.append(said[position : match.start()])
        position = match.end()
        if _OPENS.fullmatch(match.group()):
            depth += 1
            continue
        closed = position
        if depth:
            depth -= 1
        else:
            kept.clear()
    if depth == 0:
        kept.append(said[position:])
    elif closed:  # opened twice and closed once
        kept.append(_OPENS.split(said[closed:])[0])
    text = " ".join(kept)
    answer = _ANSWER.search(text)
    return answer.group(1) if answer else text


def _without_control(text: str) -> str:
    """Control tokens gone, and with the end of the turn all that was said behind it."""
    begun = text
    while (match := _TURN_ENDS.match(begun.lstrip())) is not None:
        begun = begun.lstrip()[match.end() :]
    end = _TURN_ENDS.search(begun)
    return _CONTROL.sub(" ", begun[: end.start()] if end else begun)


def _unfenced(text: str) -> str:
    """The content of a fenced block where the answer is one."""
    match = _FENCE.search(text)
    if match is None:
        return text
    inside = match.group(1) if match.group(1) is not None else match.group(2)
    return inside if inside.strip() else text.replace("```", " ")


def _of_json(text: str) -> str | None:
    """The caption in JSON, where it holds one and says so; None for text that only begins with a bracket.

    Raises:
        Unusable: it is JSON, or meant to be, and is no caption.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        if re.match(r"[\[{]\s*(?:[\[{\"']|\w+\"?\s*:)", text):
            raise Unusable("caption-structured") from error
        return None
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        if not {"name", "arguments", "tool", "function", "tool_calls"} & value.keys():
            texts = [value[key] for key in _CAPTION_KEYS if isinstance(value.get(key), str)]
            if len(texts) == 1:
                return texts[0]
        raise Unusable("caption-structured")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        raise Unusable("caption-location")
    raise Unusable("caption-structured")


def _without_markup(text: str, one_line: bool) -> str:
    if _TABLE.search(text) or (one_line and len(_ITEM.findall(text)) > 1):
        raise Unusable("caption-structured")
    text = _HTML.sub(" ", text)
    if _TAG.search(text):
        raise Unusable("caption-structured")
    for pattern in (_RULE, _HEADING, _ITEM):
        text = pattern.sub("", text)
    text = _LINK.sub(r"\1", text)
    return _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text))  # one may lie in another


def _unquoted(text: str) -> str:
    """Without the quotation marks around the whole; those of "STOP" and "GO" are around two things."""
    for _ in range(_MOST_QUOTES):
        if len(text) < 2 or _QUOTES.get(text[0]) != text[-1] or _several_quoted(text):
            return text
        text = text[1:-1].strip()
    return text


def _several_quoted(text: str) -> bool:
    """Whether the first quotation mark ends before the last one begins: one that ends stands behind a letter."""
    opens, closes = re.escape(text[0]), re.escape(text[-1])
    inside = text[1:-1]
    ends = re.search(rf"(?<=\S){closes}(?!\w)", inside)
    begins = [match.start() for match in re.finditer(rf"(?<!\w){opens}(?=\S)", inside)]
    return ends is not None and bool(begins) and begins[-1] > ends.start()


@dataclass(frozen=True)
class _Loop:
    """How often words, or letters, in a row make a loop."""

    words: int
    times: int


_LOOPS = (_Loop(1, 5), _Loop(2, 4), _Loop(5, 3))
_LONGEST_LOOP = 40
_LOOPED_LETTERS = re.compile(r"(.{1,20}?)\1{7,}")
_LEAST_LOOPED_LETTERS = 24


def _loops(text: str) -> bool:
    """Whether a model has run into saying one thing again and again."""
    words = [word.strip(".,;:!?").casefold() for word in text.split()]
    for length in range(1, min(_LONGEST_LOOP, len(words) // 2) + 1):
        times = min(loop.times for loop in _LOOPS if length >= loop.words)
        run = 0
        for i in range(length, len(words)):
            run = run + 1 if words[i] == words[i - length] else 0
            if run >= length * (times - 1):
                return True
    return any(len(match.group()) >= _LEAST_LOOPED_LETTERS for match in _LOOPED_LETTERS.finditer(text))


@dataclass(frozen=True)
class Answer:
    """What a captioner said.

    Attributes:
        text: its words as they came, thoughts and control tokens included.
        cut: it ran into the limit of tokens.
        refusal: it was no answer, and the server said so: "caption-refused" or "caption-tool-call"; "" otherwise.
        confidence: how sure the model was, as `granvit.predict.Text` has it; None where that is not known.
    """

    text: str
    cut: bool = False
    refusal: str = ""
    confidence: float | None = None


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


def usable_caption(answer: Answer, prompt: str, max_words: int | None, min_confidence: float = 0.0) -> str | Refusal:
    """The caption in an answer, or why there is none.

    Args:
        answer: as the captioner gave it.
        prompt: what it was asked; an answer that repeats it, or a good part of it, is an echo.
        max_words: most words of a region's caption, None for the paragraph about a whole image.
        min_confidence: an answer with a lower confidence is none.

    Returns:
        The caption without thoughts, control tokens, markup, surrounding quotes and doubled space; or a `Refusal` with
        one of the reasons "caption-empty", "caption-cut-off", "caption-refused", "caption-tool-call", "caption-echo",
        "caption-too-long", "caption-location", "caption-structured", "caption-control-token", "caption-loop",
        "caption-unsure".
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
    if answer.confidence is not None and answer.confidence < min_confidence:
        return Refusal("caption-unsure", f"{answer.confidence:.3f}: {shown}")
    return text


def _words(text: str) -> int:
    unspaced = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + unspaced // 2


def _is_echo(text: str, prompt: str) -> bool:
    """The shorter of the two is found in the longer one, nearly letter by letter."""
    said, asked = (" ".join(re.findall(r"[\w.]+", t.lower())) for t in (text, prompt))
    return len(said.split()) >= _ECHO_WORDS and fuzz.partial_ratio(said, asked) >= _ECHO_LIKENESS


# How servers say that the limit of tokens ended an answer, and that a filter did.
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens")
_FILTERED = ("content_filter", "safety", "recitation", "prohibited_content", "refusal")
# Ended by the server, not by the model: asked again, it may say it whole.
_ABORTED = ("abort", "aborted", "error", "cancelled")


class Unfinished(Exception):
    """The server broke off: no answer of the model's."""


def answer_of(choice: Any) -> Answer:
    """The answer in the first choice of a chat completion.

    Content may be text, or a list of parts, of which the texts are the answer and thoughts are not. What a server keeps
    apart as reasoning is never part of it.

    Raises:
        Unfinished: the server says that it gave up on this one.
    """
    ended = str(getattr(choice, "finish_reason", None) or "").lower()
    if ended in _ABORTED:
        raise Unfinished(f"finish_reason {ended!r}")
    message = getattr(choice, "message", None)
    if message is None:
        raise Unfinished("a choice without a message")
    text = _readable(_text_of(getattr(message, "content", None)))
    refusal = getattr(message, "refusal", None)
    if isinstance(refusal, str) and refusal.strip():
        return Answer(_readable(refusal), refusal="caption-refused")
    if ended in _FILTERED:
        return Answer(text or f"finish_reason {ended!r}", refusal="caption-refused")
    if not text.strip() and (getattr(message, "tool_calls", None) or getattr(message, "function_call", None)):
        return Answer("the answer is a call of a tool", refusal="caption-tool-call")
    return Answer(text, ended in _CUT)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(_text_of_part(part) for part in parts)


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        part = getattr(part, "__dict__", {})
    text = part.get("text")
    if isinstance(text, dict):  # {"text": {"value": ...}}
        text = text.get("value")
    return text if part.get("type", "text") in ("text", "output_text") and isinstance(text, str) else ""


def _readable(text: str) -> str:
    """Without lone surrogates, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()
