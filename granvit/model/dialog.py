"""How a question becomes tokens: the checkpoint's chat template, cut after the image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from granvit.errors import GranvitError
from granvit.model.packing import Branch
from granvit.model.plain import PlainText
from granvit.questions import Coded, Exchange

_MARK = "\x00question\x00"
_MARKED = re.compile(_MARK + r"(\d+)" + _MARK)


class Dialog:
    """Prefix and branches in the words of one tokenizer.

    Control tokens come from the chat template and from codecs (`Coded`). Questions and answers are otherwise plain
    text: an `<image>` in a caption is seven letters.

    The cut lies right after the image token. That is a special token, hence a hard border for any tokenizer:
    prefix + branch are the very tokens that the stock processor makes of the whole conversation.

    Attributes:
        prefix_ids: what stands before every question: the text before the image, then all image tokens.
        image_token, pad_token, end_token: token ids.
        plain: the tokenizer as it reads what others wrote.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_token: str, image_tokens: int):
        """`image_tokens` is the number of patches of one canvas.

        Raises:
            ValueError: the tokenizer lacks the image token, an end token or a chat template that shows the image.
        """
        self.tokenizer = tokenizer
        ids = tokenizer.encode(image_token, add_special_tokens=False)
        if len(ids) != 1:
            raise GranvitError(f"the tokenizer does not know {image_token!r} as one token")
        if tokenizer.eos_token_id is None:
            raise GranvitError("the tokenizer has no end token (eos_token)")
        self.image_token: int = ids[0]
        self.end_token: int = tokenizer.eos_token_id
        self.pad_token: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_token
        self.plain = PlainText(tokenizer)
        rendered = self._render([{"role": "user", "content": _image_and(_MARK)}])
        if rendered.count(image_token) != 1 or _MARK not in rendered:
            raise GranvitError("the chat template does not show exactly one image before the question")
        before, after = rendered.split(image_token)
        self._image_tokens = image_tokens
        self._image_name = image_token
        self._head, self._tail = (self.plain.control(part) for part in after.split(_MARK))
        self.prefix_ids: list[int] = self.plain.encode([self.plain.control(before)])[0]
        self.prefix_ids += [self.image_token] * image_tokens

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    def _written(self, text: str) -> str:
        return self.plain.places(text) if isinstance(text, Coded) else text

    def _asked(self, question: str) -> str:
        return self._head + self._written(question) + self._tail

    def ask(self, question: str) -> list[int]:
        """The branch's tokens up to where the answer begins."""
        return self.plain.encode([self._asked(question)])[0]

    def converse(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Tokens of a whole conversation up to where the next answer begins, with all tokens of every image in it.

        `messages` have lists of parts as contents, each {"type": "image"} or {"type": "text", "text": ...}.
        """
        texts: list[str] = []

        def held_out(part: Mapping[str, Any]) -> Mapping[str, Any]:
            if part["type"] != "text":
                return part
            texts.append(part["text"])
            return {"type": "text", "text": f"{_MARK}{len(texts) - 1}{_MARK}"}

        rendered = self._render([{**m, "content": [held_out(part) for part in m["content"]]} for m in messages])
        pieces = [
            _MARKED.sub(lambda found: texts[int(found[1])], self.plain.control(piece))
            for piece in rendered.split(self._image_name)
        ]
        first, *others = self.plain.encode(pieces)
        return first + [i for ids in others for i in [self.image_token] * self._image_tokens + ids]

    def branch(self, exchange: Exchange, max_answer: int | None = None) -> Branch:
        """Question and answer as a branch; an answer longer than `max_answer` tokens is cut, without an end token."""
        return self.branches([exchange], max_answer)[0]

    def branches(self, exchanges: Sequence[Exchange], max_answer: int | None = None) -> list[Branch]:
        """Each exchange as `branch` makes it; the tokenizer is called once, which a feed of many images notices."""
        if not exchanges:
            return []
        texts = [self._asked(exchange.question) for exchange in exchanges]
        ids = self.plain.encode([*texts, *(self._written(exchange.answer) for exchange in exchanges)])
        answers = [[*answer, self.end_token][:max_answer] for answer in ids[len(texts) :]]
        return [
            Branch(question + answer, len(question), exchange.task)
            for question, answer, exchange in zip(ids, answers, exchanges, strict=False)
        ]

    def decode(self, ids: list[int]) -> str:
        """Generated tokens as text, without special tokens and surrounding space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _image_and(text: str) -> list[dict[str, Any]]:
    return [{"type": "image"}, {"type": "text", "text": text}]
