"""How a question becomes tokens: the checkpoint's chat template, cut after the image, and text that stays text."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from granvit.errors import GranvitError
from granvit.model.packing import LEAST_STEM, Branch
from granvit.questions import BEGINNINGS, CONVERSATION, Coded, Exchange, Woven
from granvit.regions import Conversation, Role, without_system

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
        """`image_tokens` is the number of tokens that show one canvas.

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
        self._image_name = image_token
        self._beginnings: dict[str, list[int]] = {}
        self._around: dict[tuple[tuple[Role, ...], bool], list[str]] = {}
        self._head, self._tail = (self.plain.control(part) for part in after.split(_MARK))
        self._before: list[int] = self.plain.encode([self.plain.control(before)])[0]
        self.prefix_ids = self.prefix(image_tokens)

    def prefix(self, image_tokens: int) -> list[int]:
        """What stands before every question about an image that so many tokens show."""
        return self._before + [self.image_token] * image_tokens

    def _render(self, messages: Sequence[Mapping[str, Any]], answered: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not answered)
        assert isinstance(text, str)
        return text

    def _written(self, text: str) -> str:
        if isinstance(text, Woven):
            return "".join(map(self._written, text.parts))
        return self.plain.places(text) if isinstance(text, Coded) else text

    def _asked(self, question: str) -> str:
        return self._head + self._written(question) + self._tail

    def ask(self, question: str) -> list[int]:
        """The branch's tokens up to where the answer begins."""
        return self.plain.encode([self._asked(question)])[0]

    def converse(self, messages: Sequence[Mapping[str, Any]], image_tokens: Sequence[int]) -> list[int]:
        """Tokens of a whole conversation up to where the next answer begins, with all tokens of every image in it.

        `messages` have lists of parts as contents, each {"type": "image"} or {"type": "text", "text": ...}; each of
        their images is shown by as many tokens as `image_tokens` says.
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
        return first + [i for n, ids in zip(image_tokens, others, strict=True) for i in [self.image_token] * n + ids]

    def branch(self, exchange: Exchange, max_answer: int | None = None) -> Branch:
        """Question and answer as a branch; an answer longer than `max_answer` tokens is cut, without an end token."""
        return self.branches([exchange], max_answer)[0]

    def branches(self, exchanges: Sequence[Exchange], max_answer: int | None = None) -> list[Branch]:
        """Each exchange as `branch` makes it; the tokenizer is called once, which a feed of many images notices."""
        if not exchanges:
            return []
        texts = [self._asked(exchange.question) for exchange in exchanges]
        ids = self.plain.encode([*texts, *(self._written(exchange.answer) for exchange in exchanges)])
        answers = [[*answer, self.end_token] for answer in ids[len(texts) :]]
        return [
            Branch(
                question + answer[:max_answer],
                len(question),
                exchange.task,
                stem=self._stem(question, exchange.task),
                cut=max_answer is not None and len(answer) > max_answer,
            )
            for question, answer, exchange in zip(ids, answers, exchanges, strict=False)
        ]

    def _stem(self, question: list[int], task: str) -> int:
        """How many tokens a question has in common with all of its kind, 0 where these are too few to be shared."""
        if task not in self._beginnings:
            self._beginnings[task] = self.plain.encode([self._head + BEGINNINGS.get(task, "").rstrip()])[0]
        same = len(commonprefix((question[:-1], self._beginnings[task])))
        return same if same >= LEAST_STEM else 0

    def conversations(self, said: Sequence[Conversation], pictured: bool, most: int | None = None) -> list[Branch]:
        """Each conversation as a branch, of which every answer with the token that ends it is predicted.

        Behind an image it goes on where the prefix ends, and a system turn stands before the first question, in the
        user's turn: what stands before the image is the same for all. Without one it is the template's own beginning
        too. Of one with more than `most` tokens the rest is cut.
        """
        plans = [self._turns(without_system(turns) if pictured else turns, pictured) for turns in said]
        ids = iter(self.plain.encode([text for plan in plans for text in plan]))
        found: list[Branch] = []
        for plan in plans:
            tokens: list[int] = []
            answers: list[tuple[int, int]] = []
            for _ in range(len(plan) // 2):
                tokens += next(ids)
                start = len(tokens)
                tokens += next(ids)
                answers.append((start, len(tokens) + 1))  # the next question's first token ends this answer
            tokens.append(self.end_token)
            cut = most is not None and len(tokens) > most
            if cut:
                tokens = tokens[:most]
                answers = [(start, min(end, len(tokens))) for start, end in answers if start < len(tokens)]
            start = answers[0][0] if answers else len(tokens)
            found.append(Branch(tokens, start, CONVERSATION, answers, cut=cut))
        return found

    def _turns(self, turns: Conversation, pictured: bool) -> list[str]:
        """Questions, with what the template has around them, and answers by turns."""
        roles = tuple(turn.role for turn in turns)
        around = self._around.get((roles, pictured)) or self._around_of(roles, pictured)
        self._around[roles, pictured] = around
        texts: list[str] = [""]
        for before, turn in zip(around, turns, strict=True):
            texts[-1] += before
            if turn.role == "assistant":
                texts += [turn.text, ""]
            else:
                texts[-1] += turn.text
        return texts[:-1]

    def _around_of(self, roles: Sequence[Role], pictured: bool) -> list[str]:
        """What the template has before each turn's text, behind the image where there is one.

        Raises:
            GranvitError: it does not show the turns in their order, or ends an answer with another token.
        """
        marked = [{"type": "text", "text": f"{_MARK}{n}{_MARK}"} for n in range(len(roles))]
        messages = [{"role": role, "content": [part]} for role, part in zip(roles, marked, strict=True)]
        if pictured:
            messages[0]["content"] = [{"type": "image"}, marked[0]]
        rendered = self._render(messages, answered=True)
        if pictured:
            rendered = rendered.partition(self._image_name)[2]
        pieces = _MARKED.split(rendered)
        if pieces[1::2] != [str(n) for n in range(len(roles))]:
            raise GranvitError("the chat template does not show all turns of a conversation in their order")
        around = [self.plain.control(piece) for piece in pieces[::2]]
        behind = [after for role, after in zip(roles, around[1:], strict=True) if role == "assistant"]
        if any(ids[:1] != [self.end_token] for ids in self.plain.encode(behind)):
            raise GranvitError("the chat template does not end an answer with the tokenizer's end token (eos_token)")
        return around[:-1]

    def decode(self, ids: list[int]) -> str:
        """Generated tokens as text, without special tokens and surrounding space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _image_and(text: str) -> list[dict[str, Any]]:
    return [{"type": "image"}, {"type": "text", "text": text}]


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


_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    + _PARTS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    + _PARTS
    + "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Of the from-scratch presets' tokenizer, which has these tokens.
PLAIN = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|answer|>' if message['role'] == 'user' else '<|end|>' }}{% endfor %}"
)

# Known to end, so they need no trial (see `granvit.loading.chat_template`).
OWN_TEMPLATES = (CHATML, LLAMA3, PLAIN)


def template_for(vocabulary: dict[str, int], own: str | None) -> tuple[str, str | None]:
    """The template for a tokenizer, recognised by its special tokens, and the token that ends a turn.

    A template that already shows an image (as the presets' does) is kept; its end token is the tokenizer's own
    (None here).

    Raises:
        ValueError: neither ChatML nor Llama 3 tokens are in the vocabulary.
    """
    if isinstance(own, str) and "<image>" in own:
        return own, None
    if "<|im_start|>" in vocabulary:
        return CHATML, "<|im_end|>"
    if "<|start_header_id|>" in vocabulary:
        return LLAMA3, "<|eot_id|>"
    raise GranvitError("no chat template with an image is known for this tokenizer: it has no ChatML or Llama 3 tokens")
