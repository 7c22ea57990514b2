"""A shard whose worker dies is redone; what kills alone is set aside, and nothing else is."""

import pytest

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.shards import Task
from granvit.corpus.annotate.workers import CRASHED, TIMEOUT, Schedule


def work(deadly, images=9, batch=3, shards=1, together=(), reason=CRASHED):
    """Plays the workers: they die over each image of `deadly`, and over any batch that holds all of `together`.

    Gives the shards done, with what was excluded, and the number of deaths.
    """
    schedule = Schedule(range(shards), lambda shard: Task(shard, [("file", n) for n in range(images)], batch))
    done, deaths = {}, 0
    while task := schedule.next():
        batches = [(p,) for p in task.isolate] or [
            tuple(range(start, min(start + batch, images))) for start in range(0, images, batch)
        ]
        for positions in batches:
            alive = set(positions) - task.excluded.keys()
            if (task.shard == 0 and alive & set(deadly)) or (together and set(together) <= alive):
                deaths += 1
                schedule.died(task, positions, reason, "detail")
                break
        else:
            schedule.finished(task)
            if not task.isolate:
                done[task.shard] = set(task.excluded)
    assert schedule.open == 0
    return done, deaths


def test_without_deaths_everything_is_done_once():
    assert work(deadly=(), shards=3) == ({0: set(), 1: set(), 2: set()}, 0)


def test_an_image_that_kills_is_set_aside_alone():
    # Twice with its batch, twice alone.
    assert work(deadly=[4], shards=2) == ({0: {4}, 1: set()}, 4)


def test_several_in_one_batch_and_in_another():
    done, _ = work(deadly=[3, 4, 8])
    assert done == {0: {3, 4, 8}}


def test_one_too_slow_is_looked_for_at_once():
    assert work(deadly=[0], reason=TIMEOUT) == ({0: {0}}, 3)


def test_images_that_kill_only_together_are_set_aside_together():
    done, deaths = work(deadly=(), together=[3, 5])
    assert done == {0: {3, 4, 5}} and deaths <= 12


def test_a_worker_killed_by_something_else_costs_no_image():
    schedule = Schedule([0], lambda shard: Task(shard, [("file", n) for n in range(3)], 3))
    for _ in range(2):
        schedule.died(schedule.next(), (0, 1, 2), CRASHED, "killed")
    isolating = schedule.next()
    assert isolating.isolate == (0, 1, 2)
    schedule.died(isolating, (1,), CRASHED, "killed")
    rest = schedule.next()
    assert rest.isolate == (1, 2)
    schedule.finished(rest)
    whole = schedule.next()
    assert (whole.isolate, whole.excluded) == ((), {})


def test_deaths_with_no_image_in_work_are_reported_in_the_end():
    schedule = Schedule([0], lambda shard: Task(shard, [("file", 0)], 1))
    with pytest.raises(AnnotateError, match="shard 0: 5 workers died with no image in work: no space"):
        for _ in range(9):
            schedule.died(schedule.next(), (), CRASHED, "no space")
