"""GGUF files of language models, as llama.cpp has them: read within their bounds before a library reads them.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What `transformers` makes of such a file loses two
things without a word: weights that its class has no place for, and the way in which the tokenizer cuts text. So the
first are refused here, and the tokenizer is made here, of the file's own tokens and merges.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from granvit.loading.checkpoint_files import LoadError

# How Qwen2's and Llama 3's tokenizers cut text before merging.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True)
class Split:
    """How a byte-level tokenizer cuts text before it merges, which llama.cpp knows by a name (`tokenizer.ggml.pre`).

    Attributes:
        regex: of the pieces; None: single digits first, then as GPT-2 does.
        ignore_merges: a piece that is a token is never cut.
    """

    regex: str | None
    ignore_merges: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The same in the `tokenizers` library."""
        if self.regex is None:
            bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(self.regex), "isolated"), bytewise])


SPLITS = {"qwen2": Split(_QWEN2), "llama-bpe": Split(_LLAMA3, ignore_merges=True), "smollm": Split(None)}
# The same under other names.
_ALSO = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}

# Architectures, and the weights of a block beside the matrices that all have.
_BLOCK = r"(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down))\.weight"
_OWN = {"llama": "", "qwen2": r"|attn_[qkv]\.bias", "qwen3": r"|attn_[qk]_norm\.weight"}
# What a file says of its model's shape: least and most.
_SIZES = {
    "block_count": (1, 1_000),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (1, 1 << 20),
    "attention.head_count": (1, 4_096),
    "context_length": (1, 1 << 31),
}
# By how much Llama 3.1 and later ones slow rotary frequencies down, and what these factors leave open of the scaling.
_SLOWER = "rope_freqs.weight"
_LLAMA31 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Value types of the format: what struct calls them. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CONTROL, _USER_DEFINED = 3, 4
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufFile:
    """What a file says of itself, its tensors unread.

    Attributes:
        facts: its metadata by name; texts, numbers, flags and lists of them.
        elements: how many numbers each of its tensors has.
        kind: the type that most of its numbers are stored in, such as "Q4_1".
        slower: by how much each rotary frequency is slowed down, as in Llama 3.1's files; empty in others.
    """

    path: Path
    facts: dict[str, Any]
    elements: dict[str, int]
    kind: str
    slower: tuple[float, ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.facts["general.architecture"])


def gguf_of(name: str | Path) -> Path | None:
    """The GGUF file that a name means: a file, or the one in a folder that holds no other checkpoint; None for others.

    Raises:
        LoadError: there is no such file, or the folder holds several.
    """
    path = Path(name)
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise LoadError(path, "not a regular file" if path.exists() else "no such file")
        return path
    if not str(name) or not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    if len(files) > 1:
        raise LoadError(path, f"several GGUF files: name one of them ({', '.join(file.name for file in files[:4])})")
    return files[0] if files else None


def read_gguf(path: Path) -> GgufFile:
    """A file's metadata and table of tensors.

    Raises:
        LoadError: the package `gguf` is not installed, the file is damaged, of an architecture that is not supported,
            or of a variant of one that would be computed otherwise.
    """
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ModuleNotFoundError as error:
        raise LoadError(path, f"GGUF files need the gguf package: pip install gguf ({error})") from error
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content)
            facts, table = reader.metadata(), reader.tensors
            data = reader.data_start(facts.get("general.alignment", 32))
            length = len(content)
            slower = reader.floats(_SLOWER, data)
    except (OSError, ValueError) as error:  # ValueError: an empty file, what `_Reader` says, bytes that are no UTF-8
        raise LoadError(path, f"no readable GGUF file: {error}") from error
    elements: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for name, sides, kind, offset in table:
        if kind not in list(GGMLQuantizationType):
            raise LoadError(path, f"tensor {name} is of type {kind}, which the gguf package does not know")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        elements[name] = math.prod(sides)
        if data + offset + elements[name] // block * size > length:
            raise LoadError(path, f"ends before its tensor {name} does: the file is not whole")
        label = GGMLQuantizationType(kind).name
        numbers[label] = numbers.get(label, 0) + elements[name]
    found = GgufFile(path, facts, elements, max(numbers, key=lambda label: numbers[label], default=""), slower)
    _check(found)
    return found


def _check(file: GgufFile) -> None:
    """Raises `LoadError` where a file is not of a model that transformers computes as llama.cpp does."""
    kind = file.facts.get("general.architecture")
    if kind not in _OWN:
        raise LoadError(file.path, f"language model of architecture {kind!r}, supported in GGUF: {', '.join(_OWN)}")
    for name, (least, most) in _SIZES.items():
        value = file.facts.get(f"{kind}.{name}")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise LoadError(file.path, f"{kind}.{name} is {value!r}, not a whole number from {least} to {most:,}")
    scaling = file.facts.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or (_SLOWER in file.elements and (kind != "llama" or not file.slower)):
        raise LoadError(
            file.path, "rotary positions scaled otherwise than Llama 3.1's, which are not read from GGUF files"
        )
    places = re.compile(rf"token_embd\.weight|output(_norm)?\.weight|blk\.\d+\.({_BLOCK}{_OWN[kind]})")
    for name in file.elements:
        if not places.fullmatch(name) and name != _SLOWER:
            raise LoadError(file.path, f"tensor {name!r} has no place in a {kind}")


def scale_positions(config: PretrainedConfig, file: GgufFile) -> None:
    """Give a config the scaling of rotary positions whose factors a file holds; it states no more than these.

    Raises:
        LoadError: no scaling as in Llama 3.1 and 3.2 has these factors.
    """
    if not file.slower:
        return
    plain = ROPE_INIT_FUNCTIONS["llama3"]
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {"rope_theta": theta, **_LLAMA31, "factor": max(file.slower)}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = theta ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    made = frequencies / plain(config, torch.device("cpu"))[0].double()
    stated = torch.tensor(file.slower, dtype=torch.float64)
    if stated.shape != made.shape or not torch.allclose(stated, made, rtol=1e-3):
        raise LoadError(file.path, f"{_SLOWER}: rotary positions scaled otherwise than Llama 3.1's and 3.2's")


class _Reader:
    """Goes through a file from its beginning; ValueError where it ends too early or says what cannot be."""

    def __init__(self, content: mmap.mmap):
        self._content, self._at = content, 4
        if content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, self._count, self._fields = self._take("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format, 2 and 3 are read")
        self.tensors: list[tuple[str, tuple[int, ...], int, int]] = []

    def metadata(self) -> dict[str, Any]:
        """All fields; the table of tensors behind them is in `tensors` then: name, sides, type, offset."""
        facts: dict[str, Any] = {}
        for _ in range(self._fields):
            name = self._text()
            if name in facts:
                raise ValueError(f"{name} stands there twice")
            facts[name] = self._value(self._take("I")[0])
        for _ in range(self._count):
            name = self._text()
            (dimensions,) = self._take("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
            sides = self._take(f"{dimensions}Q")
            self.tensors.append((name, sides, *self._take("IQ")))
        return facts

    def data_start(self, alignment: Any) -> int:
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise ValueError(f"general.alignment is {alignment!r}")
        return -(-self._at // alignment) * alignment

    def floats(self, name: str, data: int) -> tuple[float, ...]:
        """The numbers of a tensor of 32-bit floats; none where there is no such tensor."""
        for found, sides, kind, offset in self.tensors:
            if found == name and kind == 0 and len(sides) == 1 and sides[0] <= 1 << 12:
                self._at = data + offset
                return self._take(f"{sides[0]}f")
        return ()

    def _take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + layout)
        if self._at + size > len(self._content):
            raise ValueError("it ends within its metadata")
        found = struct.unpack_from("<" + layout, self._content, self._at)
        self._at += size
        return found

    def _text(self) -> str:
        (length,) = self._take("Q")
        if self._at + length > len(self._content):
            raise ValueError("it ends within its metadata")
        self._at += length
        return self._content[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a value of type {kind}, which the format does not have")
        inner, count = self._take("IQ")
        if inner == _STRING:
            return [self._text() for _ in range(count)]
        if inner not in _SCALARS:
            raise ValueError(f"a list of values of type {inner}")
        if count > len(self._content):  # before struct is asked for so many
            raise ValueError("it ends within its metadata")
        return list(self._take(f"{count}{_SCALARS[inner]}"))


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer of a file, which cuts text as llama.cpp does under the name in `tokenizer.ggml.pre`.

    Raises:
        LoadError: it is no byte-level tokenizer, cuts text in a way that is not known here, or its parts do not fit.
    """
    facts = {name.removeprefix("tokenizer.ggml."): value for name, value in file.facts.items()}
    kind, pre = facts.get("model"), facts.get("pre")
    split = SPLITS.get(_ALSO.get(pre, pre) if isinstance(pre, str) else "")
    if kind != "gpt2" or split is None:
        known = ", ".join([*SPLITS, *_ALSO])
        raise LoadError(
            file.path, f"tokenizer.ggml.model is {kind!r} with pre {pre!r}, supported: 'gpt2' with one of {known}"
        )
    tokens, merges, types = (facts.get(name) for name in ("tokens", "merges", "token_type"))
    for name, value, wanted in (("tokens", tokens, str), ("merges", merges, str), ("token_type", types, int)):
        if not isinstance(value, list) or not all(isinstance(each, wanted) for each in value):
            raise LoadError(file.path, f"tokenizer.ggml.{name} is missing, or no list of its kind")
    assert isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, list)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise LoadError(
            file.path, "tokenizer.ggml.token_type is not of as many as the tokens, or a token is there twice"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    words = {token: i for i, token in enumerate(tokens)}
    try:
        made = Tokenizer(models.BPE(words, pairs, ignore_merges=split.ignore_merges))
    except Exception as error:  # the library has no type of its own for it
        raise LoadError(file.path, f"tokenizer.ggml.merges do not fit its tokens: {error}") from error
    made.pre_tokenizer = split.pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    control = [
        AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types, strict=True) if k == _CONTROL
    ]
    made.add_special_tokens(control)
    made.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == _USER_DEFINED])
    named = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = facts.get(f"{theirs}_token_id")
        if number is not None:
            if not isinstance(number, int) or not 0 <= number < len(tokens):
                raise LoadError(file.path, f"tokenizer.ggml.{theirs}_token_id is {number!r}, of {len(tokens):,} tokens")
            named[f"{ours}_token"] = tokens[number]
    template = file.facts.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        model_max_length=file.facts[f"{file.architecture}.context_length"],
        **named,
    )


@contextmanager
def alone(path: Path) -> Iterator[tuple[str, str]]:
    """A folder in which a library finds this file and no other, and the file's name there."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(path.resolve())
        yield folder, "model.gguf"
