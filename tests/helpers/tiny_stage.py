"""A stage of a few hundred parameters on random pictures, light to import: what the loop's tests train."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from granvit.model.packing import Batch, Branch, Sample, pack
from granvit.regions import RegionImage
from granvit.train.feed import Feed
from granvit.train.stages.base import Stage, Term


class Corpus:
    """`size` records named r0, r1..."""

    def __init__(self, size: int = 37):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> RegionImage:
        return RegionImage(f"r{index}", None, 8, 8, [])


def prepare(record: RegionImage, rng: np.random.Generator) -> Sample:
    """A random picture with 1 to 4 questions, answers of varying length, and 0 to 2 crops."""
    branches = [
        Branch(rng.integers(3, 9, 3 + int(rng.integers(4))).tolist(), 2, "global") for _ in range(rng.integers(1, 5))
    ]
    crops = rng.integers(0, 256, (int(rng.integers(3)), 2, 2, 3), dtype=np.uint8)
    boxes = np.zeros((len(crops), 4), np.float32)
    return Sample(record.id, branches, rng.integers(0, 256, (2, 2, 3), dtype=np.uint8), crops, boxes)


def collate(samples: list[Sample]) -> Batch:
    return pack(samples, [1, 0, 0], image_token=0, pad_token=2)


def make_feed(batch_size: int = 4, seed: int = 0, **options) -> Feed:
    return Feed([(Corpus(), 1.0)], prepare, collate, batch_size, seed, **{"prefetch": 1, "threads": 1, **options})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU())
        self.words = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.words.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.dropout = nn.Dropout(0.1)


class TinyStage(Stage):
    """Predicts answer tokens, and the mean colour of crops; keeps a moving average of itself."""

    name = "tiny"

    def __init__(self, seed: int = 0, dropout: float = 0.1, poison: str | None = None):
        super().__init__()
        torch.manual_seed(seed)
        self.model = Net()  # type: ignore[assignment]
        self.model.dropout.p = dropout
        self.poison = poison
        self.average = self.model.encoder[0].weight.detach().clone()
        self.seen: list[list[str]] = []

    def forward(self, batch: Batch) -> dict[str, Term]:
        model, pixels = self.model, batch.pixels
        assert pixels is not None
        self.seen.append(batch.ids)
        pictures = model.encoder(pixels.flatten(1) / 255.0)
        hidden = model.frozen(model.dropout(model.words(batch.input_ids) + pictures[:, None]))
        caption = nn.functional.cross_entropy(
            model.head(hidden).flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum"
        )
        if self.poison in batch.ids:
            caption = caption * torch.inf
        crops = pixels.new_zeros(0, 2, 2, 3) if batch.crops is None else batch.crops
        owners = pixels.new_zeros(0, dtype=torch.int64) if batch.crop_image is None else batch.crop_image
        distill = (pictures[owners].mean(1) - crops.flatten(1).float().mean(1) / 255).square().sum()
        return {"caption": Term(caption, "answer_tokens"), "distill": Term(distill, "crops", 0.5)}

    def after_step(self) -> None:
        self.average.lerp_(self.model.encoder[0].weight.detach(), 0.1)

    def extra_state(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_extra_state(self, state) -> None:
        self.average.copy_(state["average"])
