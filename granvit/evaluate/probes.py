"""Frozen encoders compared without a language model: probes on the features of regions.

The features of a region are ROIAligned from the whole image's, as in stage 1 (paper, section 3.3). What a small head
can tell from them, held-out images decide.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from granvit.bootstrap import Estimate
from granvit.errors import GranvitError
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.evaluate.probe_tasks import (
    LEAST_IMAGES,
    READING_STEPS,
    Question,
    Questions,
    Score,
    Task,
    images_of,
    mean_average_precision,
    probe_questions,
    ratio,
    usable,
    vocabulary,
    with_intervals,
)
from granvit.images import decode
from granvit.model.distill import roi_align
from granvit.regions import RegionImage, picture_id
from granvit.texts import edit_cost, exact_match

_WIDTH = 128
_BATCH = 64
# The rate that suits depends on the features' scale and differs from encoder to encoder, so each head tries all.
LEARNING_RATES = (3e-4, 1e-3, 3e-3)

Loss = Callable[[Tensor, Sequence[int]], Tensor]


class LinearHead(nn.Module):
    """One linear map of the region's mean feature: (N, rows, columns, D) -> (N, targets)."""

    def __init__(self, cells: tuple[int, int], depth: int, targets: int):
        super().__init__()
        self.score = nn.Linear(depth, targets)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.score(features.mean((1, 2)))
        return scores


class AttentiveHead(nn.Module):
    """A learned query that looks at the region's cells, then one linear map: (N, rows, columns, D) -> (N, targets)."""

    def __init__(self, cells: tuple[int, int], depth: int, targets: int):
        super().__init__()
        self.narrow = nn.Linear(depth, _WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(cells[0] * cells[1], _WIDTH))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, _WIDTH))
        self.attention = nn.MultiheadAttention(_WIDTH, 4, batch_first=True)
        self.score = nn.Linear(_WIDTH, targets)

    def forward(self, features: Tensor) -> Tensor:
        cells_ncd = self.narrow(features.flatten(1, 2)) + self.places
        query = self.query.expand(len(features), -1, -1)
        seen, _ = self.attention(query, cells_ncd, cells_ncd, need_weights=False)
        scores: Tensor = self.score(seen[:, 0])
        return scores


class ReadingHead(nn.Module):
    """A CTC reader: (N, rows, steps, D) -> (N, steps, letters + 1), log-probabilities, entry 0 the blank.

    Two convolutions see some five steps around each, less than a word: no language model hides in it.
    """

    def __init__(self, cells: tuple[int, int], depth: int, targets: int):
        super().__init__()
        self.narrow = nn.Linear(cells[0] * depth, _WIDTH)
        self.around = nn.Sequential(
            nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1), nn.GELU(), nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1), nn.GELU()
        )
        self.score = nn.Linear(_WIDTH, targets + 1)

    def forward(self, features: Tensor) -> Tensor:
        steps_nsd = F.gelu(self.narrow(features.transpose(1, 2).flatten(2)))
        steps_nsd = steps_nsd + self.around(steps_nsd.transpose(1, 2)).transpose(1, 2)
        return self.score(steps_nsd).log_softmax(-1)


@dataclass
class Fitted:
    """A trained head in evaluation mode; `rate` is the learning rate that won, `loss` what it left on unseen images."""

    head: nn.Module
    rate: float
    loss: float
    mean: Tensor
    scale: Tensor

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Tensor:
        """What the head makes of features (N, rows, columns, D)."""
        parts = ((part - self.mean) / self.scale for part in features.split(_BATCH))
        return torch.cat([self.head(part) for part in parts])


def fit(
    make: Callable[[], nn.Module], features: Tensor, loss: Loss, check: Sequence[int], steps: int, seed: int
) -> Fitted:
    """Train a head on features (N, rows, columns, D), each channel brought to mean 0 and deviation 1.

    AdamW with cosine decay, for each of `LEARNING_RATES`; the state that does best on the examples `check`, which are
    not trained on, is taken, looked at ten times on the way. Deterministic by `seed`.

    Args:
        make: a new head.
        loss: the mean loss of a head's scores on the examples of the given indices.
    """
    unseen = set(check)
    training = torch.tensor([n for n in range(len(features)) if n not in unseen])
    mean = features[training].mean((0, 1, 2))
    scale = features[training].std((0, 1, 2)).clamp(min=1e-6)
    best: Fitted | None = None
    for rate in LEARNING_RATES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = make()
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            chosen = training[torch.randint(len(training), (min(_BATCH, len(training)),), generator=order)]
            head.train()
            optimizer.zero_grad()
            loss(head((features[chosen] - mean) / scale), chosen.tolist()).backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(steps // 10, 1) == 0:
                now = Fitted(head.eval(), rate, 0.0, mean, scale)
                now.loss = float(loss(now.scores(features[list(check)]), check))
                if best is None or now.loss < best.loss:
                    best = Fitted(copy.deepcopy(head), rate, now.loss, mean, scale)
    assert best is not None
    return best


CELLS: dict[Task, tuple[int, int]] = {
    "label": (4, 4),
    "attribute": (4, 4),
    "is-text": (4, 4),
    "read": (2, READING_STEPS),
}
_REGION_HEADS: dict[str, Callable[..., nn.Module]] = {"linear": LinearHead, "attentive": AttentiveHead}
HEADS: dict[Task, dict[str, Callable[..., nn.Module]]] = {
    "label": _REGION_HEADS,
    "attribute": _REGION_HEADS,
    "is-text": _REGION_HEADS,
    "read": {"ctc": ReadingHead},
}
_STEPS = 600
_CTC_TRAINING_STEPS = 1000
_IMAGES_AT_ONCE = 16
# Of the training images, so many in ten choose the learning rate and when to stop.
_CHECKED_IN_TEN = 1


@dataclass
class Row:
    """One head, one metric: per encoder the score and its change to the first encoder, and the majority's score."""

    head: str
    metric: str
    less_is_better: bool
    scores: dict[str, Estimate | None]
    changes: dict[str, Estimate | None]
    majority: Estimate | None


@dataclass
class ProbeReport:
    """Scores of all encoders on one task.

    `left_out` counts held-out regions without a usable target, and words that too few of them have; `targets` are the
    classes, words or letters. `rates` holds the learning rate that won, by encoder and head.
    """

    task: Task
    targets: list[Any]
    trained_on: dict[str, int]
    scored_on: dict[str, int]
    left_out: dict[str, int]
    rows: list[Row] = field(default_factory=list)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; every score is {"value", "low", "high"}, in [0, 1]."""

        def plain(estimates: dict[str, Estimate | None]) -> dict[str, Any]:
            return {name: e and e.to_json() for name, e in estimates.items()}

        rows = [
            {
                **asdict(row),
                "scores": plain(row.scores),
                "changes": plain(row.changes),
                "majority": row.majority and row.majority.to_json(),
            }
            for row in self.rows
        ]
        return {**asdict(self), "rows": rows}

    def as_text(self) -> str:
        """A table of lines for the terminal, in percent."""
        lines = [
            f"{self.task}: {len(self.targets)} targets, trained on {_counted(self.trained_on)}, scored on "
            f"{_counted(self.scored_on)}" + "".join(f"; {n} left out: {why}" for why, n in self.left_out.items())
        ]
        for row in self.rows:
            note = ", less is better" if row.less_is_better else ""
            lines.append(f"{row.head}, {row.metric}{note}   majority {_percent(row.majority)}")
            for name, score in row.scores.items():
                change = row.changes[name]
                lines.append(f"  {name:24s} {_percent(score)}" + (f"   change {_percent(change)}" if change else ""))
        return "\n".join(lines)


def probe(
    encoders: Sequence[PatchEncoder],
    train: Iterable[RegionImage],
    held_out: Iterable[RegionImage],
    task: Task,
    limit: int = 2000,
    max_regions: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> ProbeReport:
    """Train a task's heads on up to `limit` training images and score them on as many held-out ones.

    Every encoder gets the same regions and the same seed. Beside each score stands the majority's: what the most
    frequent target of the training regions would get as the answer to everything (for average precision, what scores
    that tell nothing get).

    Raises:
        GranvitError: too few regions in either part for the task.
    """
    train_images, scored_images = list(islice(iter(train), limit)), list(islice(iter(held_out), limit))
    raw = probe_questions(task, train_images, max_regions, seed)
    targets = vocabulary(task, raw)
    training = usable(task, raw, targets)
    scored = usable(task, probe_questions(task, scored_images, max_regions, seed + 1), targets)
    shown = _pictures(scored.items, scored_images)
    check = checked_questions(training)
    if not check or len(check) == len(training.items) or not scored.items:
        raise GranvitError(
            f"{task}: {len(training.items)} regions of {len(train_images)} images to train on and {len(scored.items)} "
            f"of {len(scored_images)} to score on are too few"
        )
    if task == "attribute":
        on = images_of(_truth(scored.items, targets), shown)
        rare = int((on < LEAST_IMAGES).sum())
        if rare == len(targets):
            raise GranvitError(f"attribute: none of {rare} words stands on {LEAST_IMAGES} of the images to score on")
        scored.left_out += Counter({f"words on fewer than {LEAST_IMAGES} of these images": rare})
    report = ProbeReport(
        task,
        targets,
        {"images": len(train_images), "regions": len(training.items)},
        {"images": len(scored_images), "regions": len(scored.items)},
        dict(scored.left_out),
    )
    answers: dict[str, list[Tensor]] = {}
    for encoder in encoders:
        features = region_features(encoder, train_images, training.items, CELLS[task], progress)
        unseen = region_features(encoder, scored_images, scored.items, CELLS[task], progress)
        for name, kind in HEADS[task].items():
            fitted = fit_head(task, kind, features, training.items, targets, check, seed)
            report.rates.setdefault(encoder.name, {})[name] = fitted.rate
            answers.setdefault(name, []).append(fitted.scores(unseen))
    for name, of_encoders in answers.items():
        report.rows += _rows(task, name, [e.name for e in encoders], of_encoders, targets, training, scored, shown)
    return report


def region_features(
    encoder: PatchEncoder,
    records: Sequence[RegionImage],
    questions: Sequence[Question],
    cells: tuple[int, int],
    progress: bool = True,
) -> Tensor:
    """ROIAligned patch features of each question's box, float32 (R, rows, columns, D) on the CPU.

    `questions` stand in the order of their images.
    """
    found: list[Tensor] = []
    asked: dict[int, list[Question]] = {}
    for question in questions:
        asked.setdefault(question.image, []).append(question)
    images = sorted(asked)
    bar = tqdm(total=len(images), desc=encoder.name, unit="img", disable=not progress)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        some = images[start : start + _IMAGES_AT_ONCE]
        pictures = [decode(records[n].image or b"") for n in some]
        features = encoder.features(encoder.show(pictures)).unflatten(1, (encoder.grid, encoder.grid)).float()
        boxes = [encoder.view(p.size).to_canvas([q.box for q in asked[n]]) for p, n in zip(pictures, some, strict=True)]
        owner = torch.tensor(np.repeat(np.arange(len(some)), [len(b) for b in boxes]), device=features.device)
        boxes_r4 = torch.from_numpy(np.concatenate(boxes)).float().to(features.device)
        found.append(roi_align(features, boxes_r4, owner, cells, 1 / encoder.patch).cpu())
        bar.update(len(some))
    bar.close()
    return torch.cat(found)


def checked_questions(training: Questions) -> list[int]:
    """The training questions by which a learning rate is chosen: all of every tenth image with a question."""
    images = sorted({q.image for q in training.items})
    checked = set(images[:: 10 // _CHECKED_IN_TEN])
    return [n for n, question in enumerate(training.items) if question.image in checked]


def fit_head(
    task: Task,
    kind: Callable[..., Any],
    features: Tensor,
    questions: Sequence[Question],
    targets: Sequence[Any],
    check: Sequence[int],
    seed: int,
    steps: int | None = None,
) -> Fitted:
    """A head of a kind in `HEADS`, fitted to answer questions from their regions' features, by `fit`.

    `check` is as `checked_questions` says, `steps` what the task is fitted with where None.
    """
    place = {target: n for n, target in enumerate(targets)}
    outputs = len(targets)
    if task == "read":
        letters = [[1 + place[c] for c in q.target if c in place] for q in questions]

        def loss(scores: Tensor, chosen: Sequence[int]) -> Tensor:
            wanted = [letters[n] for n in chosen]
            lengths = torch.tensor([len(w) for w in wanted])
            steps = torch.full((len(wanted),), scores.shape[1])
            flat = torch.tensor([c for w in wanted for c in w])
            return F.ctc_loss(scores.transpose(0, 1), flat, steps, lengths, zero_infinity=True)

    elif task == "attribute":
        truth = torch.from_numpy(_truth(questions, targets)).float()

        def loss(scores: Tensor, chosen: Sequence[int]) -> Tensor:
            return F.binary_cross_entropy_with_logits(scores, truth[list(chosen)])

    else:
        classes = torch.tensor([place[q.target] for q in questions])

        def loss(scores: Tensor, chosen: Sequence[int]) -> Tensor:
            return F.cross_entropy(scores, classes[list(chosen)])

    cells, depth = (features.shape[1], features.shape[2]), features.shape[-1]
    training_steps = _CTC_TRAINING_STEPS if task == "read" else _STEPS
    return fit(lambda: kind(cells, depth, outputs), features, loss, check, steps or training_steps, seed)


def _pictures(questions: Sequence[Question], records: Sequence[RegionImage]) -> list[int]:
    """The picture of each question, as a number: of those that have one, tiles of an image being one picture."""
    names = [picture_id(records[question.image].id) for question in questions]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def _truth(questions: Sequence[Question], targets: Sequence[Any]) -> np.ndarray:
    return np.array([[word in q.target for word in targets] for q in questions])


def _rows(
    task: Task,
    head: str,
    names: Sequence[str],
    answers: Sequence[Tensor],
    targets: Sequence[Any],
    training: Questions,
    scored: Questions,
    image: Sequence[int],
) -> list[Row]:
    """The metrics of one head; `image` says of which picture each scored question is."""
    images = max(image) + 1

    def row(metric: str, scores: Sequence[Score], majority: Score, less_is_better: bool = False) -> Row:
        found, changes = with_intervals([*scores, majority], images, centred=task == "attribute")
        by_name = dict(zip(names, found, strict=False))
        return Row(head, metric, less_is_better, by_name, dict(zip(names, changes, strict=False)), found[-1])

    if task == "attribute":
        truth = _truth(scored.items, targets)
        precisions = [mean_average_precision(a.double().numpy(), truth, image) for a in answers]
        return [row("mean average precision", precisions, mean_average_precision(np.zeros(truth.shape), truth, image))]
    truth_texts = [q.target for q in scored.items]
    most = max(targets_of := [q.target for q in training.items], key=targets_of.count)
    if task == "read":
        said = [[read_text(steps, targets) for steps in a] for a in answers]
        constant = [most] * len(truth_texts)
        error_rates = [_error_rate(texts, truth_texts, image, images) for texts in [*said, constant]]
        exacts = [
            _accuracy([exact_match([s], [t]) for s, t in zip(texts, truth_texts, strict=True)], image)
            for texts in [*said, constant]
        ]
        return [
            row("CER", error_rates[:-1], error_rates[-1], less_is_better=True),
            row("exact", exacts[:-1], exacts[-1]),
        ]
    chosen = [[targets[n] for n in a.argmax(-1).tolist()] for a in answers]
    hits = [_accuracy([a == t for a, t in zip(texts, truth_texts, strict=True)], image) for texts in chosen]
    return [row("accuracy", hits, _accuracy([most == t for t in truth_texts], image))]


def _accuracy(hits: Sequence[float], image: Sequence[int]) -> Score:
    return ratio(hits, [1.0] * len(hits), image, max(image) + 1)


def _error_rate(said: Sequence[str], truth: Sequence[str], image: Sequence[int], images: int) -> Score:
    costs = [edit_cost(s, t) for s, t in zip(said, truth, strict=True)]
    return ratio([wrong for wrong, _ in costs], [length for _, length in costs], image, images)


def read_text(steps: Tensor, letters: Sequence[str]) -> str:
    """The best path: the likeliest letter at each step, repeats joined, blanks dropped."""
    best = torch.unique_consecutive(steps.argmax(-1)).tolist()
    return "".join(letters[n - 1] for n in best if n > 0)


def _counted(counts: dict[str, int]) -> str:
    return f"{counts['regions']} regions of {counts['images']} images"


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    interval = (
        ""
        if estimate.low is None or estimate.high is None
        else (f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]")
    )
    return f"{100 * estimate.value:.1f} %{interval}"
