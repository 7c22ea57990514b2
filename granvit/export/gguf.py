"""GGUF files for llama.cpp: the language model, and encoder with projector as its `mmproj`.

What is written is what llama.cpp's own converter writes for the same parts, and what its loader (`tools/mtmd/clip.cpp`,
projector type "mlp") reads. Its LLaVA graph takes square pictures, SigLIP and CLIP towers and a two-layer projector; it
leaves out the last layer unless a feature layer is named, and applies a final layer norm wherever the file has one: so
one is named and none is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from tokenizers import Tokenizer, models
from torch import Tensor

from granvit.errors import ExportError
from granvit.loading.gguf_file import SPLITS, Split
from granvit.model.families import body_of
from granvit.model.region_model import RegionModel
from granvit.model.settings import Precision

_TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
# The activation of the tower -> whether `clip.use_gelu` is set; without it llama.cpp takes x * sigmoid(1.702 x).
_GELU = {"gelu_pytorch_tanh": True, "gelu": True, "gelu_new": True, "quick_gelu": False}

_TOWERS = ("siglip_vision_model", "clip_vision_model")
# What the graph has a place for; not the final norm, nor a pooling head.
_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.")

# Language models by `model_type`.
_LANGUAGES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "llama": gguf.MODEL_ARCH.LLAMA}


# --- encoder and projector -------------------------------------------------------------------------------------------


def write_mmproj(model: RegionModel, path: Path, name: str, precision: Precision) -> None:
    """Encoder and projector, for `llama-server --mmproj`.

    Raises:
        ExportError: llama.cpp's LLaVA graph computes something else than this encoder.
    """
    vision, llava = model.llava.config.vision_config, model.llava
    if model.settings.tiles:
        raise ExportError("pictures in tiles (settings.tiles) are not written for llama.cpp, only those of one canvas")
    if vision.model_type not in _TOWERS:
        raise ExportError(f"llama.cpp's LLaVA graph takes towers of SigLIP and CLIP, this is a {vision.model_type}")
    if vision.hidden_act not in _GELU:
        raise ExportError(f"llama.cpp's LLaVA graph has no activation {vision.hidden_act!r}")
    if vision.intermediate_size == vision.hidden_size:
        raise ExportError("llama.cpp takes layers as wide inside as outside for an old file and swaps their matrices")
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_file_type(_TYPES[precision][1])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(_GELU[vision.hidden_act])
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_projection_dim(llava.config.text_config.hidden_size)
    writer.add_vision_image_mean(model.processor.image_processor.image_mean)
    writer.add_vision_image_std(model.processor.image_processor.image_std)
    # Counted from the input of the first layer, 0; ours from the end, as in `vision_feature_layer`.
    writer.add_array("clip.vision.feature_layer", [vision.num_hidden_layers + 1 + llava.config.vision_feature_layer])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision.num_hidden_layers)
    for key, tensor in body_of(llava.model.vision_tower).state_dict().items():
        if key.startswith(_PARTS):
            _add(writer, _renamed(names, f"vision_tower.vision_model.{key}"), tensor, precision)
    projector = llava.model.multi_modal_projector
    for number, layer in ((0, projector.linear_1), (2, projector.linear_2)):
        _add(writer, f"mm.{number}.weight", layer.weight, precision)
        _add(writer, f"mm.{number}.bias", layer.bias, precision)
    _finish(writer)


# --- language model --------------------------------------------------------------------------------------------------


def write_language(model: RegionModel, tokenizer: Path, path: Path, name: str, precision: Precision) -> None:
    """A Qwen2 or Llama language model with its tokenizer.

    Args:
        tokenizer: the checkpoint's tokenizer.json.

    Raises:
        ExportError: another architecture, or a tokenizer that llama.cpp cannot follow exactly; the message says why.
    """
    text = model.llava.config.text_config
    if text.model_type not in _LANGUAGES:
        raise ExportError(f"only Qwen2 and Llama language models are written, this is a {text.model_type}")
    rope = text.rope_parameters["rope_type"]
    if (rope != "default" and (rope, text.model_type) != ("llama3", "llama")) or getattr(text, "use_sliding_window", 0):
        raise ExportError(f"rotary positions of type {rope!r}, and sliding windows, are not written")
    split = json.loads(tokenizer.read_text(encoding="utf-8"))
    cut = _check_tokenizer(split)
    architecture = _LANGUAGES[text.model_type]
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_TYPES[precision][1])
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
    _add_tokenizer(writer, model, split, cut, text.vocab_size)
    names = gguf.get_tensor_name_map(architecture, text.num_hidden_layers)
    for key, tensor in _language_weights(model):
        _add(writer, _renamed(names, key), tensor, precision)
    if rope == "llama3":
        _add(writer, "rope_freqs.weight", _slower(model, head), precision)
    _finish(writer)


def _slower(model: RegionModel, head: int) -> Tensor:
    """By how much Llama 3.1's scaling slows each rotary frequency down, (head / 2,)."""
    rotary = model.llava.model.language_model.rotary_emb
    theta = model.llava.config.text_config.rope_parameters["rope_theta"]
    plain = 1.0 / theta ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    return plain / rotary.inv_freq.double().cpu()


def _language_weights(model: RegionModel) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in a causal language model; a tied head is left out."""
    text = model.llava.config.text_config
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    for key, tensor in model.llava.model.language_model.state_dict().items():
        projection = key.split(".")[-2]
        if text.model_type == "llama" and projection in heads:
            tensor = _paired(tensor, heads[projection])
        yield f"model.{key}", tensor
    if not text.tie_word_embeddings:
        yield "lm_head.weight", model.llava.lm_head.weight


def _paired(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a Llama's query or key projection (heads * head, ...) in the order of llama.cpp's rotation.

    It turns neighbours (0, 1), (2, 3) ... where transformers turns a number of a head's first half with that of its
    second: (0, head / 2), (1, head / 2 + 1) ... For Qwen2 both do the latter.
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def _check_tokenizer(split: Mapping[str, Any]) -> str:
    """Hold tokenizer.json to the ways of cutting text that llama.cpp knows; the name of its way.

    Raises:
        ExportError: llama.cpp would cut some text otherwise.
    """
    before, kind = split["pre_tokenizer"] or {}, split["model"]["type"]
    whole = bool(split["model"].get("ignore_merges"))
    known = [name for name, way in SPLITS.items() if _same(before, way) and whole == way.ignore_merges]
    if kind != "BPE" or not known:
        kinds = " + ".join(s.get("type", "none") for s in before.get("pretokenizers", [before]))
        raise ExportError(f"its tokenizer ({kind}, {kinds}) does not cut text as any of {', '.join(SPLITS)} does")
    if (split["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise ExportError(f"its tokenizer changes text first ({split['normalizer']['type']})")
    stripped = [t["content"] for t in split["added_tokens"] if t["lstrip"] or t["rstrip"]]
    if stripped:
        raise ExportError(f"its token {stripped[0]!r} swallows the spaces beside it, which llama.cpp's tokens do not")
    return known[0]


def _same(before: Mapping[str, Any], way: Split) -> bool:
    """Whether the "pre_tokenizer" of a tokenizer.json cuts text in this way."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = way.pre_tokenizer()
    ours = json.loads(plain.to_str())["pre_tokenizer"]
    return _without_offsets(dict(before)) == _without_offsets(ours)


def _without_offsets(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """What decides how text is cut; `trim_offsets` says where a piece was found."""
    return [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps.get("pretokenizers", [steps])]


def _add_tokenizer(writer: GGUFWriter, model: RegionModel, split: Mapping[str, Any], cut: str, rows: int) -> None:
    """Tokens, merges, special tokens and chat template, as llama.cpp's converter writes them.

    `cut` is llama.cpp's name of the way it cuts text, `rows` the size of the embedding; ids without a token become
    unused ones.
    """
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for token, i in split["model"]["vocab"].items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for added in split["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in split["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    tokenizer = model.processor.tokenizer
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)  # the chat template holds all there is
    writer.add_eos_token_id(model.dialog.end_token)
    writer.add_pad_token_id(model.dialog.pad_token)
    writer.add_chat_template(model.processor.chat_template)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _renamed(names: gguf.TensorNameMap, key: str) -> str:
    renamed = names.get_name(key, try_suffixes=(".weight", ".bias"))
    if renamed is None:
        raise ExportError(f"llama.cpp has no place for the weight {key}")
    return renamed


def _add(writer: GGUFWriter, name: str, tensor: Tensor, precision: Precision) -> None:
    """Matrices in the precision asked for; vectors, positions and what llama.cpp convolves with as it needs them."""
    kind = _TYPES[precision][0]
    if tensor.ndim == 1 or name == "v.position_embd.weight":
        kind = GGMLQuantizationType.F32
    elif name == "v.patch_embd.weight" and kind is GGMLQuantizationType.BF16:
        kind = GGMLQuantizationType.F32
    data = tensor.detach().to(torch.float32).cpu().contiguous().numpy()
    if kind is GGMLQuantizationType.F16 and np.abs(data).max(initial=0) > np.finfo(np.float16).max:
        raise ExportError(f"--precision float16: {name} holds a number too large for it; bfloat16 has room")
    if kind is GGMLQuantizationType.BF16:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, data.astype(np.float16 if kind is GGMLQuantizationType.F16 else np.float32))


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
