"""A RegionModel of some thousand parameters with random weights, and samples for it."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from granvit.coordinates import get_codec
from granvit.model.assemble import assemble
from granvit.model.attention import Branches
from granvit.model.forward import answer_logits, project
from granvit.model.packing import Batch, Sample, pack
from granvit.model.region_model import RegionModel, Settings
from granvit.nano.models import train_tokenizer
from granvit.questions import box_exchange, caption_exchange, global_exchange

CANVAS, PATCH = 64, 16
TEXTS = ["small red star", "large blue plain circle", "TOTAL 12.50", "two green rings", "tea", "a striped heart"] * 3
# Wider than the usual 0.02, so that attention and features are far from uniform.
SPREAD = 0.3


def make_tower(canvas: int = CANVAS, seed: int = 0) -> SiglipVisionModel:
    torch.manual_seed(seed)
    config = SiglipVisionConfig(
        image_size=canvas,
        patch_size=PATCH,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config)
    for parameter in tower.parameters():  # SigLIP's own initialisation ignores `initializer_range`
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=SPREAD if parameter.ndim == 2 else 0.05)
    return tower


def make_language(kind: str, tokenizer: PreTrainedTokenizerBase, seed: int = 1, width: int = 32) -> PreTrainedModel:
    """Llama with a head of its own, or Qwen2, Qwen3 or SmolLM3 with a tied one; all with grouped keys."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": SPREAD,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **shared))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, head_dim=8, **shared))
    if kind == "smollm3":  # every second layer knows no positions
        return SmolLM3ForCausalLM(SmolLM3Config(tie_word_embeddings=True, no_rope_layer_interval=2, **shared))
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **shared))


def make_model(kind: str = "qwen2", seed: int = 0, canvas: int = CANVAS, **settings: str) -> RegionModel:
    """`settings` are those of `Settings`; the codec is loc:16 where none is named."""
    chosen = Settings(**{"codec": "loc:16", **settings})  # type: ignore[arg-type]
    tokenizer = train_tokenizer(TEXTS, 280, get_codec(chosen.codec))
    return assemble(make_tower(canvas, seed), (make_language(kind, tokenizer, seed + 1), tokenizer), chosen, seed)


def make_samples(
    model: RegionModel, counts: tuple[int, ...] = (3, 1, 2), seed: int = 0, crops: int = 0
) -> list[Sample]:
    """Random canvases, image i with `counts[i]` questions of all kinds and lengths and `crops` crops."""
    rng = np.random.default_rng(seed)
    samples = []
    for i, count in enumerate(counts):
        branches = []
        for n in range(count):
            box, text = np.sort(rng.random((2, 2)), 0).ravel(), str(rng.choice(TEXTS))
            exchange = (caption_exchange(box, text, model.codec), box_exchange(box, text, model.codec))[n % 2]
            branches.append(model.dialog.branch(global_exchange(text) if n == 2 else exchange))
        corners = np.sort(rng.uniform(0, model.canvas, (crops, 2, 2)), 1) + [[0], [4]]
        samples.append(
            Sample(
                f"image{i}",
                branches,
                rng.integers(0, 256, (model.canvas, model.canvas, 3), dtype=np.uint8),
                rng.integers(0, 256, (crops, model.canvas, model.canvas, 3), dtype=np.uint8),
                corners.reshape(crops, 4).astype(np.float32),
            )
        )
    return samples


def whole_mask():
    """Context or decorator: training attends by the whole mask, whose rounding other rows of a batch do not change.

    Branches are padded to the longest of their batch: ranks round unlike one process, and steps of Adam enlarge that.
    """
    return patch.object(Branches, "scores", 1 << 62)


def collate(model: RegionModel, samples: list[Sample], max_tokens: int | None = None) -> Batch:
    dialog = model.dialog
    return pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token, max_tokens)


def packed_logits(model: RegionModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (A, V) and labels (A,) of the answer tokens, pixels to end."""
    assert batch.pixels is not None
    return answer_logits(model.llava, batch, project(model.llava, model.features(batch.pixels)))


def packed_loss(model: RegionModel, batch: Batch) -> torch.Tensor:
    """The mean over answer tokens."""
    return F.cross_entropy(*packed_logits(model, batch))
