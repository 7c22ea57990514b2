import json
import time
from dataclasses import replace

import pytest
import torch
from helpers.tiny_stage import TinyStage, make_feed

from granvit.train.loop import LoopConfig, train
from granvit.train.timing import OTHER, SECTIONS, HostClock, Timing, section


class Ticks:
    """A clock that moves only when it is set, and refuses moments that nobody waited for."""

    def __init__(self):
        self.now, self.passed = 0.0, -1.0

    def mark(self):
        return self.now

    def wait(self, mark):
        self.passed = mark

    def seconds(self, start, end):
        assert end <= self.passed
        return end - start


def test_a_section_inside_another_is_taken_out_of_it_and_all_add_up():
    clock = Ticks()
    timing = Timing(clock)
    clock.now = 100.0
    with timing.running():
        clock.now += 1
        with section("head"):
            clock.now += 2
            with section("teacher"):
                clock.now += 4
            clock.now += 8
        with section("head"):
            clock.now += 16
        assert timing.read() == {OTHER: 1, "head": 26, "teacher": 4}
        clock.now += 32
        with section("encode"):
            clock.now += 64
            assert timing.read() == {OTHER: 32, "encode": 64}
            clock.now += 128
        assert timing.read() == {"encode": 128, OTHER: 0}


def test_a_section_that_raises_ends_all_the_same():
    clock = Ticks()
    timing = Timing(clock)
    with timing.running():
        with pytest.raises(KeyError), section("encode"):
            clock.now += 1
            raise KeyError
        clock.now += 2
        assert timing.read() == {OTHER: 2, "encode": 1}


def test_outside_a_run_nothing_is_measured_and_nothing_is_paid():
    timing = Timing(Ticks())
    with timing.running():
        pass
    with section("encode"):
        pass
    assert "encode" not in timing.read()
    start = time.perf_counter()
    for _ in range(10_000):
        with section("encode"):
            pass
    assert time.perf_counter() - start < 0.5, "50 microseconds each, a hundred times what it takes"


def test_the_host_clock_tells_seconds():
    timing = Timing.on(torch.device("cpu"))
    assert isinstance(timing.clock, HostClock)
    with timing.running(), section("encode"):
        time.sleep(0.02)
        assert 0.02 <= timing.read()["encode"] < 0.5


@pytest.mark.gpu
def test_the_cuda_clock_sees_the_kernels_and_not_their_launches():
    device = torch.device("cuda")
    timing = Timing.on(device)
    a = torch.randn(4096, 4096, device=device)
    torch.mm(a, a)
    with timing.running():
        timing.read()
        with section("encode"):
            for _ in range(50):
                a = torch.mm(a, a).clamp(-1, 1)
        with section("head"):
            pass
        seconds = timing.read()
    assert seconds["encode"] > 50 * seconds["head"]


CONFIG = LoopConfig(steps=5, batch_size=4, lr=0.01, log_every=2, trackers=())


class Counted(TinyStage):
    def flops(self, batch):
        return 1e12 * len(batch.ids)


def test_every_line_of_speed_has_rates_and_the_shares_of_all_sections(tmp_path):
    train(Counted(), make_feed(4), CONFIG, tmp_path, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        assert sum(row["time"].values()) == pytest.approx(1)
        assert {"data", "backward", "optimizer", OTHER} == row["time"].keys() <= set(SECTIONS)
        assert row["tflops"] == pytest.approx(row["images_per_second"]), "a TFLOP an image"
        assert row["tokens_per_second"] > row["regions_per_second"] >= row["images_per_second"] > 0
        assert "mfu" not in row, "a CPU has no peak to compare with"


def test_what_is_not_counted_and_not_measured_is_not_reported(tmp_path):
    train(TinyStage(), make_feed(4), replace(CONFIG, timing=False), tmp_path, device="cpu")
    row = json.loads((tmp_path / "speed.jsonl").read_text().splitlines()[0])
    assert row["time"] == {} and "tflops" not in row


def test_timing_changes_no_number_and_may_change_when_a_run_is_resumed(tmp_path):
    on = train(TinyStage(), make_feed(4), CONFIG, tmp_path / "on", device="cpu").history
    off = replace(CONFIG, timing=False, first_batch=False)
    assert train(TinyStage(), make_feed(4), off, tmp_path / "off", device="cpu").history == on
    assert train(TinyStage(), make_feed(4), off, tmp_path / "on", device="cpu").history == on
