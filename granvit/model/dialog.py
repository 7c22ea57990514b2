"""How a question becomes tokens: the checkpoint's chat template, cut after the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from granvit.errors import GranvitError
from granvit.model.packing import Branch
from granvit.questions import Exchange

_MARK = "\x00question\x00"


class Dialog:
    """Prefix and branches in the words of one tokenizer.

    The cut lies right after the image token. That is a special token, hence a hard border for any tokenizer:
    prefix + branch are the very tokens that the stock processor makes of the whole conversation.

    Attributes:
        prefix_ids: what stands before every question: the text before the image, then all image tokens.
        image_token, pad_token, end_token: token ids.
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
        rendered = self._render(_MARK)
        if rendered.count(image_token) != 1 or _MARK not in rendered:
            raise GranvitError("the chat template does not show exactly one image before the question")
        before, after = rendered.split(image_token)
        self._head, self._tail = after.split(_MARK)
        self.prefix_ids: list[int] = self._encode(before) + [self.image_token] * image_tokens

    def _render(self, question: str) -> str:
        content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def ask(self, question: str) -> list[int]:
        """The branch's tokens up to where the answer begins."""
        return self._encode(self._head + question + self._tail)

    def branch(self, exchange: Exchange, max_answer: int | None = None) -> Branch:
        """Question and answer as a branch; an answer longer than `max_answer` tokens is cut, without an end token."""
        return self.branches([exchange], max_answer)[0]

    def branches(self, exchanges: Sequence[Exchange], max_answer: int | None = None) -> list[Branch]:
        """Each exchange as `branch` makes it; the tokenizer is called once, which a feed of many images notices."""
        if not exchanges:
            return []
        texts = [self._head + exchange.question + self._tail for exchange in exchanges]
        ids = self.tokenizer([*texts, *(e.answer for e in exchanges)], add_special_tokens=False)["input_ids"]
        answers = [[*answer, self.end_token][:max_answer] for answer in ids[len(texts) :]]
        return [
            Branch(question + answer, len(question), exchange.task)
            for question, answer, exchange in zip(ids, answers, exchanges, strict=False)
        ]

    def decode(self, ids: list[int]) -> str:
        """Generated tokens as text, without special tokens and surrounding space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
