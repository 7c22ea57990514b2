"""What every job is measured by, image by image, so that two arms can be compared on the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from granvit.bootstrap import by_picture
from granvit.evaluate.answering import answer_all
from granvit.evaluate.attention_mass import ATTENTION, WORDS, large_enough, region_sums
from granvit.evaluate.items import Item
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.evaluate.probe_tasks import Question
from granvit.evaluate.probes import region_features
from granvit.evaluate.region_tasks import MAX_REGIONS, region_images, region_tasks
from granvit.evaluate.scoring import SCORERS, by_image
from granvit.model.region_model import RegionModel
from granvit.predict import GranViT
from granvit.regions import RegionImage, picture_id
from granvit.sampling import evenly
from granvit.study.definition import Measuring
from granvit.study.features import probe_tables, rank_and_spread
from granvit.study.specificity import box_specificity
from granvit.train.feed import Records

# measure -> the task and the score of `granvit.evaluate.scoring` that it is.
_ANSWERED = {
    "describe": ("describe", "rouge_l"),
    "describe-exact": ("describe", "exact"),
    "locate": ("locate", "acc50"),
    "locate-iou": ("locate", "miou"),
    "caption": ("caption", "rouge_l"),
    "read": ("read", "exact"),
}


@dataclass
class Measured:
    """`tables` (pictures, 2) by measure, sums and counts, of tiles those of one picture together; `numbers` by measure;
    `images` says which images, and of how many pictures they are tiles."""

    images: dict[str, object]
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def measured_images(held_out: Records, count: int) -> list[RegionImage]:
    """The held-out images that are measured on, evenly from all that there are."""
    return [held_out[n] for n in evenly(range(len(held_out)), count)]


def measure(model: RegionModel, train: Records, held_out: Sequence[RegionImage], how: Measuring) -> Measured:
    """All measures of `granvit.study.definition.MEASURES` that the images have something for.

    Args:
        train: what the probes' heads learn from, the first `how.probe_train` of it.
        held_out: what is scored, see `measured_images`.
    """
    ids = [record.id for record in held_out]
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    found = Measured({"count": len(ids), "digest": digest})
    if how.tasks:
        _answers(found, GranViT(model), held_out, how)
    encoder = PatchEncoder.of(model, "encoder")
    learned_from = [train[n] for n in range(min(how.probe_train, len(train)))]
    for task in how.probes:
        for head, table in probe_tables(encoder, learned_from, held_out, task, how.probe_steps).items():
            found.tables[f"{task}-{head}"] = table
    _attention(found, encoder, held_out, how.attention)
    questions = [Question(n, r.box, None) for n, record in enumerate(held_out) for r in record.regions if not r.ignore]
    if len(questions) > 1:
        features = region_features(encoder, held_out, questions, (1, 1), progress=False)[:, 0, 0]
        found.numbers["rank"], found.numbers["spread"] = rank_and_spread(features)
    if (pictures := len(set(map(picture_id, ids)))) < len(ids):
        found.images["pictures"] = pictures
        found.tables = {name: by_picture(table, ids) for name, table in found.tables.items()}
    return found


def _answers(found: Measured, model: GranViT, held_out: Sequence[RegionImage], how: Measuring) -> None:
    tasks = region_tasks(how.tasks)
    items = answer_all(model, region_images(held_out, tasks, MAX_REGIONS), tasks, progress=False)
    ids = [record.id for record in held_out]
    asked: dict[str, list[Item]] = {task.name: [i for i in items if i.task == task.name] for task in tasks}
    for name, (task, score) in _ANSWERED.items():
        if asked.get(task):
            scorer = SCORERS[next(t.scorer for t in tasks if t.name == task)]
            found.tables[name] = by_image(scorer.measures[score].each(asked[task]), asked[task], ids)
    if asked.get("describe"):
        found.tables["distinct"], found.tables["swapped"] = box_specificity(asked["describe"], ids)


def _attention(found: Measured, encoder: PatchEncoder, held_out: Sequence[RegionImage], count: int) -> None:
    """Of objects alone, as the paper's figure shows it."""
    tables = {"attention": (ATTENTION, np.zeros((len(held_out), 2)))}
    tables["attention-words"] = (WORDS, np.zeros((len(held_out), 2)))
    for n in evenly(range(len(held_out)), count):
        record = held_out[n]
        objects = [r for r in record.regions if r.kind == "object" and not r.ignore][:MAX_REGIONS]
        regions = [r for r in objects if large_enough(encoder, record, r)]
        if regions:
            sums = region_sums(encoder, record, regions)
            for row, table in tables.values():
                if ("object", row) in sums:
                    table[n] = sums["object", row][0], len(regions)
    found.tables |= {name: table for name, (_, table) in tables.items() if table.any()}
