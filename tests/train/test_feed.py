import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import granvit
from granvit.errors import GranvitError
from granvit.model.packing import Batch, Branch, Sample, pack
from granvit.regions import RegionImage
from granvit.train.feed import DataError, Feed, FeedError, Reject

PREFIX, IMAGE, PAD = [1, 0, 0], 0, 2


class Corpus:
    """`size` records named "<name>0", "<name>1"...; reading number `broken` fails as a damaged row would."""

    def __init__(self, size: int, name: str = "r", broken: int | None = None):
        self.size, self.name, self.broken = size, name, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> RegionImage:
        if index == self.broken:
            raise OSError("damaged row")
        return RegionImage(f"{self.name}{index}", None, 8, 8, [])


class Prepare:
    """A random picture; rejects the ids in `reject`, breaks on those in `crash`; `slow` varies the timing."""

    def __init__(self, reject: tuple[str, ...] = (), crash: tuple[str, ...] = (), slow: bool = False):
        self.reject, self.crash, self.slow = reject, crash, slow

    def __call__(self, record: RegionImage, rng: np.random.Generator) -> Sample:
        if record.id in self.reject:
            raise Reject("no regions")
        if record.id in self.crash:
            raise ZeroDivisionError("of nothing")
        if self.slow:
            time.sleep(0.004 * (int(record.id[1:]) % 3))
        pixels = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        return Sample(record.id, [Branch([3, 4, int(rng.integers(5, 99))], 1, "global")], pixels)


def collate(samples: list[Sample]) -> Batch:
    return pack(samples, PREFIX, IMAGE, PAD)


def feed(sources=None, prepare=None, **options) -> Feed:
    sources = [(Corpus(23), 1.0)] if sources is None else sources
    return Feed(sources, prepare or Prepare(), collate, **{"batch_size": 4, "seed": 0, "prefetch": 0, **options})


def take(stream: Feed, batches: int) -> list[tuple]:
    """The first batches as comparable values: ids, tokens and pixels."""
    taken = [next(stream) for _ in range(batches)]
    return [(b.ids, b.input_ids.tolist(), b.pixels.tolist()) for b in taken]


def ids(batches: list[tuple]) -> list[str]:
    return [i for b in batches for i in b[0]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_record_comes_up_once_per_epoch_over_all_ranks(world):
    records, epochs = 32, 3
    counts: Counter[str] = Counter()
    for rank in range(world):
        share = feed([(Corpus(records), 1.0)], rank=rank, world_size=world)
        counts.update(ids(take(share, records * epochs // world // 4)))
    assert counts == {f"r{i}": epochs for i in range(records)}


def test_an_epoch_that_ends_within_a_batch_still_holds_every_record_once():
    stream = ids(take(feed([(Corpus(23), 1.0)]), 12))
    assert sorted(stream[:23]) == sorted(stream[23:46]) == sorted(f"r{i}" for i in range(23))
    assert stream[:23] != stream[23:46], "every epoch has an order of its own"


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_make_the_batch_that_one_process_would(world):
    sources = [(Corpus(40, "a"), 1.0), (Corpus(40, "b"), 1.0)]
    whole = take(feed(sources, batch_size=4 * world), 5)
    shares = [take(feed(sources, rank=r, world_size=world), 5) for r in range(world)]
    for step in range(5):
        parts = {i: p for share in shares for i, p in zip(share[step][0], share[step][2], strict=True)}
        assert parts == dict(zip(whole[step][0], whole[step][2], strict=True))


def steps_of(world, states, steps, sources, reject=()):
    """So many steps of 12 images by `world` ranks that go on from `states`: the ids of each, and the states after."""
    shares = [
        feed(sources, Prepare(reject), rank=rank, world_size=world, batch_size=12 // world) for rank in range(world)
    ]
    for share in shares:
        if states:
            share.restore_from(json.loads(json.dumps(states)))
    batches = [sorted(i for share in shares for i in next(share).ids) for _ in range(steps)]
    return batches, [share.state() for share in shares]


@pytest.mark.parametrize("worlds", [(2, 1), (2, 4), (4, 2), (3, 2, 4, 1), (1, 3)])
def test_another_number_of_ranks_goes_on_with_the_batches_of_one(worlds):
    sources = [(Corpus(50, "a"), 1.0), (Corpus(70, "b"), 2.0)]
    whole, _ = steps_of(1, None, 4 * len(worlds), sources)
    states, batches = None, []
    for world in worlds:
        part, states = steps_of(world, states, 4, sources)
        batches += part
    assert batches == whole


@pytest.mark.parametrize("worlds", [(2, 1), (2, 4), (3, 2, 4, 1), (4, 4, 3)])
def test_no_record_is_lost_or_repeated_when_ranks_change_after_rejections(worlds):
    reject = tuple(f"r{i}" for i in range(240) if i % 7 in (0, 3) or i in range(40, 60))
    good = [f"r{i}" for i in range(240) if f"r{i}" not in reject]
    states, seen = None, []
    for world in worlds:
        part, states = steps_of(world, states, 2, [(Corpus(240), 1.0)], reject)
        seen += sum(part, [])
    rest = feed([(Corpus(240), 1.0)], Prepare(reject), batch_size=len(good) - len(seen))
    rest.restore_from(states)
    assert sorted(seen + next(rest).ids) == sorted(good)
    assert rest.rejected["no regions"] <= len(reject)


def test_states_of_another_mixture_are_refused_whatever_the_number_of_ranks():
    states = [feed(rank=rank, world_size=2).state() for rank in range(2)]
    with pytest.raises(ValueError, match="sizes"):
        feed([(Corpus(24), 1.0)]).restore_from(states)
    with pytest.raises(ValueError, match="rank is 1"):
        feed().restore_from(states[::-1])


def test_sources_are_mixed_by_weight_on_every_rank():
    sources = [(Corpus(50, "a"), 3.0), (Corpus(200, "b"), 1.0)]
    for rank in range(2):
        drawn = Counter(i[0] for i in ids(take(feed(sources, rank=rank, world_size=2), 100)))
        assert drawn["a"] == pytest.approx(300, abs=4)
    even = [(Corpus(50, "a"), 1.0), (Corpus(50, "b"), 1.0)]
    for rank in range(2):
        drawn = Counter(i[0] for i in ids(take(feed(even, rank=rank, world_size=2), 20)))
        assert drawn["a"] == pytest.approx(40, abs=5)


def test_a_small_source_repeats_evenly_within_a_mixture():
    drawn = Counter(i for i in ids(take(feed([(Corpus(5, "a"), 1.0), (Corpus(50, "b"), 1.0)]), 25)) if i[0] == "a")
    assert drawn == {f"a{i}": 10 for i in range(5)}


def test_sources_of_one_size_have_orders_of_their_own():
    stream = ids(take(feed([(Corpus(40, "a"), 1.0), (Corpus(40, "b"), 1.0)]), 20))
    assert [i[1:] for i in stream if i[0] == "a"] != [i[1:] for i in stream if i[0] == "b"]


def test_the_seed_decides_order_and_content():
    assert take(feed(seed=1), 3) == take(feed(seed=1), 3)
    assert ids(take(feed(seed=1), 3)) != ids(take(feed(seed=2), 3))


def test_a_record_looks_different_each_time_it_comes_up():
    pictures = {str(p) for b in take(feed([(Corpus(4), 1.0)]), 6) for p in b[2]}
    assert len(pictures) == 24


@pytest.mark.parametrize("options", [{"prefetch": 1, "threads": 1}, {"prefetch": 3, "threads": 4}])
def test_prefetching_changes_nothing(options):
    expected = take(feed(prepare=Prepare(reject=("r3", "r11"))), 12)
    with_threads = feed(prepare=Prepare(reject=("r3", "r11"), slow=True), **options)
    assert take(with_threads, 12) == expected
    with_threads.close()


def test_worker_processes_change_nothing_and_can_be_resumed():
    rejecting = Prepare(reject=("r3", "r11"))
    plain = feed(prepare=rejecting)
    expected = take(plain, 10)
    with_workers = feed(prepare=rejecting, prefetch=2, workers=2)
    assert take(with_workers, 4) == expected[:4]
    state = with_workers.state()
    with_workers.restore(state)
    assert take(with_workers, 6) == expected[4:]
    assert with_workers.state() == plain.state()
    with_workers.close()


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("after", [0, 1, 5, 7])
def test_restore_is_exact_wherever_the_run_stopped(prefetch, after):
    sources = [(Corpus(10, "a"), 2.0), (Corpus(17, "b"), 1.0)]
    rejecting = Prepare(reject=("a3", "b11"))
    expected = take(feed(sources, rejecting), 12)
    stopped = feed(sources, rejecting, prefetch=prefetch)
    take(stopped, after)
    state = json.loads(json.dumps(stopped.state()))
    stopped.close()
    resumed = feed(sources, rejecting, prefetch=prefetch)
    take(resumed, 2)
    resumed.restore(state)
    assert take(resumed, 12 - after) == expected[after:]
    resumed.close()


def test_a_state_of_another_run_is_refused():
    state = feed(seed=1).state()
    with pytest.raises(ValueError, match="seed is 1"):
        feed(seed=2).restore(state)
    with pytest.raises(ValueError, match="sizes"):
        feed([(Corpus(24), 1.0)], seed=1).restore(state)
    with pytest.raises(ValueError, match="world_size is 1"):
        feed(seed=1, world_size=2).restore(state)


def test_rejected_samples_are_skipped_counted_and_listed_once(tmp_path):
    list_ = tmp_path / "quarantine.jsonl"
    stream = feed(prepare=Prepare(reject=("r3", "r11")), quarantine=list_)
    taken = take(stream, 16)  # three epochs of 21 good records, and one more
    assert all(len(b[0]) == 4 for b in taken)
    assert not {"r3", "r11"} & set(ids(taken))
    assert stream.rejected["no regions"] in (6, 7, 8)
    rows = [json.loads(line) for line in list_.read_text().splitlines()]
    assert sorted(rows, key=lambda r: r["id"]) == [{"id": i, "reason": "no regions"} for i in ("r11", "r3")]
    again = feed(prepare=Prepare(reject=("r3", "r11")), quarantine=list_)
    again.restore(stream.state())
    take(again, 12)
    assert again.rejected["no regions"] > stream.rejected["no regions"]
    assert len(list_.read_text().splitlines()) == 2


def test_what_is_not_asked_by_chance_may_come_the_next_time():
    """Nine times of ten nothing is asked of a picture: more of them in a row are left out than there are."""
    refuses = np.random.default_rng(0)

    class Seldom(Prepare):
        def __call__(self, record, rng):
            if refuses.random() < 0.9:
                raise Reject("nothing to ask")
            return super().__call__(record, rng)

    stream = feed(prepare=Seldom())
    assert len(take(stream, 12)) == 12 and stream.rejected["nothing to ask"] > 200


def test_a_corpus_that_is_rejected_whole_stops_the_run():
    with pytest.raises(DataError, match="1000 records in a row were rejected.*no regions"):
        next(feed(prepare=Prepare(reject=tuple(f"r{i}" for i in range(23)))))


def test_a_list_of_rejected_records_that_was_cut_or_edited_is_gone_on_with(tmp_path):
    list_ = tmp_path / "quarantine.jsonl"
    list_.write_text('{"id": "r3", "reason": "no regions"}\n[1]\n{"id": "r11", "rea')
    stream = feed(prepare=Prepare(reject=("r3", "r11")), quarantine=list_)
    take(stream, 6)
    stream.close()
    assert [json.loads(line) for line in list_.read_text().splitlines()] == [
        {"id": "r3", "reason": "no regions"},
        [1],
        {"id": "r11", "reason": "no regions"},
    ]


@pytest.mark.parametrize("options", [{}, {"prefetch": 2}, {"prefetch": 1, "workers": 1}])
def test_any_other_error_names_the_sample(options):
    stream = feed(prepare=Prepare(crash=("r7",)), **options)
    with pytest.raises(FeedError, match="sample 'r7': ZeroDivisionError: of nothing") as error:
        take(stream, 6)
    assert not isinstance(error.value, GranvitError), "a bug keeps its traceback"
    with pytest.raises(FeedError, match="sample 'r7'"):
        next(stream)
    stream.close()


def test_an_unreadable_record_is_named_by_its_place():
    with pytest.raises(DataError, match="record 2 of source 1: OSError: damaged row"):
        take(feed([(Corpus(9, "a"), 1.0), (Corpus(9, "b", broken=2), 1.0)]), 5)


@pytest.mark.parametrize(
    "sources, options",
    [([], {}), ([(Corpus(0), 1.0)], {}), ([(Corpus(3), 0.0)], {}), (None, {"rank": 2, "world_size": 2})],
)
def test_impossible_feeds_are_refused(sources, options):
    with pytest.raises(ValueError):
        feed(sources, **options)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_worker_processes_do_not_outlive_a_killed_run():
    root = str(Path(granvit.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    workers = [int(pid) for pid in child.stdout.readline().split()]
    assert workers
    child.send_signal(signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in workers if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    stream = feed(prefetch=1, workers=1)
    take(stream, 2)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)
