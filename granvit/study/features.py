"""What frozen features of regions hold and how far they spread: probes image by image, rank and spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.evaluate.probe_tasks import Questions, Task, probe_questions, usable, vocabulary
from granvit.evaluate.probes import CELLS, HEADS, checked_questions, fit_head, read_text, region_features
from granvit.regions import RegionImage
from granvit.texts import edit_cost


def probe_tables(
    encoder: PatchEncoder,
    train: Sequence[RegionImage],
    held_out: Sequence[RegionImage],
    task: Task,
    steps: int,
    max_regions: int = 16,
) -> dict[str, np.ndarray]:
    """By head, what each held-out image adds to a share of right answers: (images, 2), sums and counts.

    Heads, regions and seeds are those of `granvit.evaluate.probes.probe`. The share is a ratio of sums over images, so
    that two encoders can be compared image by image: of an "attribute" question as many of the highest ranked words are
    taken as the region's text has known words, and the right ones counted; of "read" the letters less the errors, none
    less than zero.

    Raises:
        GranvitError: too few regions for the task.
    """
    raw = probe_questions(task, train, max_regions, seed=0)
    targets = vocabulary(task, raw)
    training = usable(task, raw, targets)
    scored = usable(task, probe_questions(task, held_out, max_regions, seed=1), targets)
    features = region_features(encoder, train, training.items, CELLS[task], progress=False)
    unseen = region_features(encoder, held_out, scored.items, CELLS[task], progress=False)
    check = checked_questions(training)
    tables = {}
    for name, kind in HEADS[task].items():
        fitted = fit_head(task, kind, features, training.items, targets, check, 0, steps)
        tables[name] = _by_image(right(task, fitted.scores(unseen), scored, targets), scored, len(held_out))
    return tables


def right(task: Task, scores: Tensor, questions: Questions, targets: Sequence[object]) -> np.ndarray:
    """What each question adds, (N, 2): how much was right, out of how much."""
    place = {target: n for n, target in enumerate(targets)}
    rows = []
    for question, row in zip(questions.items, scores, strict=True):
        if task == "attribute":
            known = {place[word] for word in question.target if word in place}
            rows.append((len(known & set(row.topk(len(known)).indices.tolist())) if known else 0, len(known)))
        elif task == "read":
            wrong, length = edit_cost(read_text(row, targets), question.target)  # type: ignore[arg-type]
            rows.append((max(length - wrong, 0), length))
        else:
            rows.append((int(targets[int(row.argmax())] == question.target), 1))
    return np.array(rows, float).reshape(-1, 2)


def _by_image(rows: np.ndarray, questions: Questions, images: int) -> np.ndarray:
    table = np.zeros((images, 2))
    np.add.at(table, [question.image for question in questions.items], rows)
    return table


def rank_and_spread(features: Tensor) -> tuple[float, float]:
    """How many directions the features of regions take, and how much of them differs from region to region.

    The effective rank is the exponential of the entropy of the centred features' singular values, as shares of their
    sum (Roy and Vetterli 2007; RankMe, Garrido et al. 2023): 1 where all lie on a line, and at most the width. The
    spread is the share of the features' mean square that is left when their mean is taken away: 0 where all are alike.
    Both are of layer-normalised features, which the distillation compares.

    Args:
        features: (R, D), at least two.
    """
    normed = F.layer_norm(features.double(), features.shape[-1:])
    centred = normed - normed.mean(0)
    spread = float(centred.square().mean() / normed.square().mean().clamp(min=1e-12))
    values = torch.linalg.svdvals(centred)
    if float(values.sum()) < 1e-9:
        return 1.0, spread
    shares = (values / values.sum()).clamp(min=1e-12)
    return float((-(shares * shares.log()).sum()).exp()), spread
