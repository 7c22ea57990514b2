"""Text to tokens, where a control token comes only from what this package wrote itself."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from granvit.errors import GranvitError

# What looks like one, in the text of a template or of a codec.
_BRACKETED = re.compile(r"<[^<>]+>")


class PlainText:
    """A tokenizer to which `<image>` is seven letters, like any other text, unless `control` has marked it.

    Tokenizers cut their added tokens out of a text before they look at anything else, whoever wrote them. Here every
    control token goes by another name, which nobody can guess: what is given as it stands is plain text; `control`
    puts the names in where the control tokens are meant. All else is done by the tokenizer's own parts, so that a text
    without control tokens becomes the very tokens that the tokenizer makes of it.

    Control tokens are the special tokens and all added ones that begin with a bracket, as location tokens do. Others,
    such as runs of spaces or the fixed pieces of the presets' questions, are only shorter ways to write a text.

    Attributes:
        ids: the ids of the control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str | None = None):
        """`key` is part of the other names, for a copy that understands texts marked by another.

        Raises:
            GranvitError: the tokenizer is none of the `tokenizers` library.
        """
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise GranvitError(f"{type(tokenizer).__name__}: only tokenizers with a tokenizer.json can be used")
        self._tokenizer, self._key = tokenizer, key or secrets.token_hex(8)
        added = sorted(backend.get_added_tokens_decoder().items())
        self._names = {
            token.content: f"\U000f0000{self._key}:{i}\U000f0001" for i, token in added if _is_control(token)
        }
        self.ids = frozenset(i for i, token in added if token.content in self._names)
        self._words = Tokenizer(backend.model)  # the model is shared, not copied
        if backend.normalizer is not None:
            self._words.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._words.pre_tokenizer = backend.pre_tokenizer
        bare = Tokenizer(backend.model)
        self._words.add_tokens([_renamed(token, self._names.get(token.content, token.content)) for _, token in added])
        # Ids of the copy that are not the tokenizer's.
        self._meant: dict[int, int] = {}
        for i, token in added:
            name = self._names.get(token.content, token.content)
            mine = self._words.token_to_id(name)
            assert mine is not None, "it was added above"
            if name != token.content and bare.id_to_token(mine) is not None:
                raise GranvitError("the tokenizer's vocabulary has gaps: its control tokens cannot be told from words")
            if mine != i:
                self._meant[mine] = i
        # A model that holds control tokens among its words (sentencepiece's do) might find one in a text; the one for
        # what it doesn't know it may.
        words = self.ids - {tokenizer.unk_token_id, bare.token_to_id(getattr(backend.model, "unk_token", None) or "")}
        self._confusable = frozenset(i for i in words if bare.id_to_token(i) is not None)
        self._any = re.compile("|".join(re.escape(t) for t in sorted(self._names, key=len, reverse=True)) or r"(?!)")

    def __reduce__(self) -> tuple[type[PlainText], tuple[PreTrainedTokenizerBase, str]]:
        return PlainText, (self._tokenizer, self._key)

    def control(self, text: str) -> str:
        """`text`, which this package or a chat template wrote, with its control tokens marked as such."""
        return self._any.sub(lambda found: self._names[found[0]], text)

    def places(self, text: str) -> str:
        """As `control`, for what a codec wrote: its tokens all stand in angle brackets, which are found faster."""
        return _BRACKETED.sub(lambda found: self._names.get(found[0], found[0]), text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without any around it.

        Raises:
            GranvitError: a text is not valid Unicode, or this tokenizer cannot but read a control token in it.
        """
        try:
            encodings = self._words.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise GranvitError(f"{self._broken(texts)} is not valid Unicode: it has a lone surrogate") from None
        rows = [encoding.ids for encoding in encodings]
        for text, row in zip(texts, rows, strict=True):
            if self._confusable and not self._confusable.isdisjoint(row):
                raise GranvitError(f"the tokenizer reads a control token in the plain text {text[:60]!r}")
        meant = self._meant
        return [[meant.get(i, i) for i in row] for row in rows]

    def _broken(self, texts: Iterable[str]) -> str:
        """The first lone surrogate with what stands around it, for people."""
        for text in (re.sub(rf"\U000f0000{self._key}:\d+\U000f0001", "", text) for text in texts):
            if found := re.search(r"[\ud800-\udfff]", text):
                return ascii(text[max(found.start() - 30, 0) : found.end() + 30])
        return "a text"


def _is_control(token: AddedToken) -> bool:
    return token.special or token.content.startswith(("<", "["))


def _renamed(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
