"""A stock LLaVA of a few thousand parameters that says one thing of red pictures and another of blue ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from helpers.chat_server import PALETTE
from helpers.tiny_model import collate, make_model, packed_loss

from granvit.corpus.annotate.caption_requests import PROMPTS
from granvit.model.packing import Sample
from granvit.model.region_model import RegionModel
from granvit.questions import GLOBAL, Exchange

SAYS = {"red": "small red star", "blue": "large blue plain circle"}
STEPS = 60


@cache
def trained() -> RegionModel:
    """Trained for a few seconds on plain canvases."""
    model = make_model()
    rng = np.random.default_rng(0)
    prompts = [PROMPTS["crop"].replace("{words}", "10"), GLOBAL]
    model.llava.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.llava.parameters(), lr=3e-3)
    for _ in range(STEPS):
        samples = []
        for colour, text in SAYS.items():
            branches = [model.dialog.branch(Exchange("global", prompt, text)) for prompt in prompts]
            noise = rng.integers(-15, 16, (model.canvas, model.canvas, 3))
            pixels = (PALETTE[colour] + noise).clip(0, 255).astype(np.uint8)
            nothing = np.zeros((0, model.canvas, model.canvas, 3), np.uint8), np.zeros((0, 4), np.float32)
            samples.append(Sample(colour, branches, pixels, *nothing))
        loss = packed_loss(model, collate(model, samples))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1, "the little model has not learnt its two answers"
    return model


def save(folder: Path) -> Path:
    trained().save(folder)
    return folder
