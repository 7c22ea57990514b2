"""Detectors of `transformers` with a few thousand random weights, saved as stock checkpoints.

Their box heads are set so that the boxes they emit are known beforehand.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPTokenizerFast,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    DFineConfig,
    DFineForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    ResNetConfig,
    RTDetrImageProcessorPil,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)
from transformers.models.hgnet_v2 import HGNetV2Config
from transformers.models.rt_detr import RTDetrResNetConfig

# What `emit` makes a model see: relative centre and size.
CENTRE_BOX = (0.5, 0.25, 0.2, 0.4)
CLASSES = {0: "cat", 1: "dog", 2: "traffic light"}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def constant(layer: nn.Linear, values: list[float]) -> None:
    """The layer gives `values` whatever it is given."""
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.tensor(values)


def yolos(folder: Path) -> Path:
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 96],
        patch_size=16,
        num_detection_tokens=5,
        id2label=CLASSES,
    )
    model = YolosForObjectDetection(config)
    constant(model.bbox_predictor.layers[-1], [logit(v) for v in CENTRE_BOX])
    constant(model.class_labels_classifier.layers[-1], [0.0, 2.0, -1.0, 0.0])  # the last is "no object"
    model.save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def detr(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=4,
        id2label=CLASSES,
    )
    model = DetrForObjectDetection(config)
    constant(model.bbox_predictor.layers[-1], [logit(v) for v in CENTRE_BOX])
    constant(model.class_labels_classifier, [3.0, 0.0, 0.0, 0.0])
    model.save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def _anchored(shared: dict) -> dict:
    """One level of features and as many queries as it has places: every query keeps its anchor."""
    return {
        "encoder_hidden_dim": 16,
        "encoder_in_channels": [16],
        "feat_strides": [32],
        "encoder_layers": 1,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "encode_proj_layers": [0],
        "d_model": 16,
        "num_queries": 4,
        "decoder_in_channels": [16],
        "decoder_ffn_dim": 16,
        "num_feature_levels": 1,
        "decoder_n_points": 2,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "id2label": CLASSES,
        **shared,
    }


def rt_detr_v2(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1], out_features=["stage1"])
    # The stem divides by 4 and the only stage not at all: stride 4, a picture of 8 pixels gives 2 x 2 places.
    config = RTDetrV2Config(backbone_config=backbone, **_anchored({"feat_strides": [4], "decoder_n_levels": 1}))
    model = RTDetrV2ForObjectDetection(config)
    for head in (model.model.enc_bbox_head, *model.model.decoder.bbox_embed):
        constant(head.layers[-1], [0.0] * 4)
    for head in (model.model.enc_score_head, *model.model.decoder.class_embed):
        constant(head, [-9.0, 1.0, -9.0])
    model.save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def d_fine(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = HGNetV2Config(
        embedding_size=8,
        hidden_sizes=[16],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8],
        stage_mid_channels=[8],
        stage_out_channels=[16],
        stage_num_blocks=[1],
        stage_downsample=[False],
        stage_light_block=[False],
        stage_kernel_size=[3],
        stage_numb_of_layers=[1],
        depths=[1],
        out_features=["stage1"],
    )
    model = DFineForObjectDetection(DFineConfig(backbone_config=backbone, **_anchored({"feat_strides": [4]})))
    model.save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def _bert_vocabulary(folder: Path) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "cat", "dog", "traffic", "light", "wheel", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(str(folder / "vocab.txt"))


def _grounding(folder: Path, config_class: type, model_class: type, longest: int) -> Path:
    torch.manual_seed(0)
    tokenizer = _bert_vocabulary(folder)
    swin = SwinConfig(
        window_size=2, embed_dim=16, depths=[1], num_heads=[2], image_size=32, patch_size=4, out_features=["stage1"]
    )
    bert = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    config = config_class(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        num_queries=64,
        num_feature_levels=1,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=longest,
    )
    model = model_class(config)
    heads = [model.model.encoder_output_bbox_embed, *model.model.decoder.bbox_embed]
    for head in heads:
        constant(head.layers[-1], [0.0] * 4)
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def grounding_dino(folder: Path, longest: int = 16) -> Path:
    return _grounding(folder, GroundingDinoConfig, GroundingDinoForObjectDetection, longest)


def mm_grounding_dino(folder: Path, longest: int = 16) -> Path:
    return _grounding(folder, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection, longest)


def owlv2(folder: Path) -> Path:
    torch.manual_seed(0)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizerFast(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**small, "vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    constant(model.box_head.dense2, [0.0] * 4)
    model.save_pretrained(folder)
    images = Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder
