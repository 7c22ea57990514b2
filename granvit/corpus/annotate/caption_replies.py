"""What a chat server's reply says: the one place that knows the forms in which servers put an answer."""

from __future__ import annotations

from typing import Any

from granvit.corpus.annotate.caption_answers import Answer

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
