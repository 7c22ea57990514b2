"""The loss on held-out records: how well the answers of each kind of question, and of conversations, are predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from granvit.bootstrap import Estimate, ratios
from granvit.errors import GranvitError
from granvit.model.forward import answer_logits
from granvit.model.packing import IGNORE, Batch, Sample
from granvit.model.region_model import RegionModel
from granvit.questions import CONVERSATION, TASKS
from granvit.regions import RegionImage
from granvit.train.config import ConversationSample
from granvit.train.feed import Reject, lost
from granvit.train.prepare import Prepare

KINDS = (*TASKS, CONVERSATION)
# Everything that can be asked of a record, as often as it can.
SAMPLE = ConversationSample(dict.fromkeys(TASKS, 1.0), max_regions=32, max_answer=256)


@dataclass
class HeldOutLoss:
    """The cross-entropy of answers of one kind, in nats per token, the mean over all tokens.

    Attributes:
        loss: with its 95 % interval, of drawing records again.
        tokens, questions: how many answer tokens, and how many questions or conversations.
    """

    loss: Estimate
    tokens: int
    questions: int


def held_out_losses(
    model: RegionModel,
    records: Iterable[RegionImage],
    limit: int | None = None,
    batch: int = 8,
    sample: ConversationSample = SAMPLE,
    progress: bool = True,
    total: int | None = None,
) -> tuple[dict[str, HeldOutLoss], dict[str, int]]:
    """The losses of up to `limit` records by kind, "all" for all of them; and by reason what is not in them: records
    that ask nothing, and of others what is cut.

    Each record is asked all that it can be: nothing is drawn but where it has more regions or conversations than
    `sample` allows, and that is the same every time.

    Raises:
        GranvitError: no record asks anything.
    """
    prepare = Prepare(model, sample)
    left_out: dict[str, int] = {}
    rows: list[np.ndarray] = []
    ids: list[str] = []
    model.llava.eval()
    shown = tqdm(islice(iter(records), limit), total=total, desc="loss", unit="img", disable=not progress)
    for some in _batches(_samples(shown, prepare, left_out), batch):
        rows += _sums(model, prepare.collate(some))
        ids += [sample.id for sample in some]
    if not rows:
        raise GranvitError(f"nothing to evaluate: {', '.join(f'{n} x {reason}' for reason, n in left_out.items())}")
    losses_nk, tokens_nk, questions_nk = np.stack(rows, axis=1)
    found = {}
    estimates = ratios(_with_all(losses_nk), _with_all(tokens_nk), ids=ids)
    for kind, value, tokens, questions in zip(
        (*KINDS, "all"), estimates, _with_all(tokens_nk).sum(0), _with_all(questions_nk).sum(0), strict=True
    ):
        if value is not None:
            found[kind] = HeldOutLoss(value, int(tokens), int(questions))
    return found, left_out


def _samples(records: Iterable[RegionImage], prepare: Prepare, left_out: dict[str, int]) -> Iterator[Sample]:
    for record in records:
        try:
            sample = prepare(record, np.random.default_rng(0))
        except Reject as reason:
            left_out[str(reason)] = left_out.get(str(reason), 0) + 1
        else:
            for what, count in lost(sample).items():
                left_out[what] = left_out.get(what, 0) + count
            yield sample


def _batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while some := list(islice(samples, size)):
        yield some


def _with_all(table_nk: np.ndarray) -> np.ndarray:
    return np.concatenate([table_nk, table_nk.sum(1, keepdims=True)], axis=1)


@torch.inference_mode()
def _sums(model: RegionModel, batch: Batch) -> list[np.ndarray]:
    """For each record of a batch its losses, answer tokens and questions, by kind: (3, K)."""
    batch = batch.to(model.device)
    hidden = model.llava.config.text_config.hidden_size
    embeds = torch.zeros(0, model.image_tokens, hidden, device=model.device, dtype=model.llava.dtype)
    if batch.pixels is not None:
        embeds = model.arranged(model.embed(batch.pixels), batch.views)
    logits, labels = answer_logits(model.llava, batch, embeds)
    losses = F.cross_entropy(logits.float(), labels, reduction="none").cpu().numpy()
    record_of, kind_of = _owners(batch)
    is_answer = (batch.labels[batch.branch_ids > 0] != IGNORE).cpu().numpy()
    # The first answer token is predicted by the last one before it, which is of the same branch.
    losses_nk, tokens_nk, questions_nk = np.zeros((3, len(batch.ids), len(KINDS)))
    np.add.at(losses_nk, (record_of[is_answer], kind_of[is_answer]), losses)
    np.add.at(tokens_nk, (record_of[is_answer], kind_of[is_answer]), 1)
    first = np.flatnonzero(_begins(batch))
    np.add.at(questions_nk, (record_of[first], kind_of[first]), 1)
    return list(np.stack([losses_nk, tokens_nk, questions_nk], axis=1))


def _segments(batch: Batch) -> Tensor:
    """For each position within a branch a number that its branch alone has."""
    rows = torch.arange(len(batch.input_ids), device=batch.input_ids.device)[:, None]
    blocks, branches = len(batch.ids) + 1, len(batch.tasks) + 1
    codes = (rows * blocks + batch.block_ids) * branches + batch.branch_ids
    return codes[batch.branch_ids > 0]


def _begins(batch: Batch) -> np.ndarray:
    codes = _segments(batch).cpu().numpy()
    return np.r_[True, codes[1:] != codes[:-1]]


def _owners(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """For each position within a branch which record it is of, and which kind of question."""
    task = np.cumsum(_begins(batch)) - 1
    rows = torch.arange(len(batch.input_ids), device=batch.input_ids.device)[:, None]
    block = (rows * (len(batch.ids) + 1) + batch.block_ids)[batch.branch_ids > 0].cpu().numpy()
    record = np.cumsum(np.r_[False, block[1:] != block[:-1]])
    kinds = np.array([KINDS.index(name) for name in batch.tasks])
    return record, kinds[task]


def as_table(losses: dict[str, HeldOutLoss]) -> str:
    """One line for each kind."""
    lines = [f"{'':14s}{'loss':>8s}  {'95 % interval':16s}{'tokens':>9s}{'questions':>11s}"]
    for kind, found in losses.items():
        value, low, high = found.loss
        interval = "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
        lines.append(f"{kind:14s}{value:8.3f}  {interval:16s}{found.tokens:9,}{found.questions:11,}")
    return "\n".join(lines)


def to_json(losses: dict[str, HeldOutLoss], left_out: dict[str, int], facts: dict[str, str]) -> dict[str, Any]:
    """All of it as JSON-able values."""
    rows = {k: {**v.loss.to_json(), "tokens": v.tokens, "questions": v.questions} for k, v in losses.items()}
    return {"facts": facts, "losses": rows, "left_out": left_out}
