"""The first hour on a GPU: what stops is gone on with, what fails is told, and the table lands in its place."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = ROOT / "benchmarks" / "first_hour.py"

PACKING = {
    "regions_per_image": {
        "8": {
            "regions_per_second": 1234.5,
            "speedup_vs_one_by_one": 5.25,
            "share_of_bound": 0.91,
            "memory_vs_one_by_one": 0.4,
        }
    }
}


@pytest.fixture(scope="module")
def hour():
    spec = importlib.util.spec_from_file_location("first_hour", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["first_hour"] = module
    spec.loader.exec_module(module)
    return module


def options(out, minutes=0.5, **others):
    return Namespace(out=out, minutes=minutes, all=False, rehearse=True, **others)


def says(hour, name, text, needs=(), mark=""):
    """A piece that prints, and leaves a line in the file `mark` whenever it runs."""
    code = f"open({str(mark)!r}, 'a').write('ran\\n');" if mark else ""
    return hour.Piece(name, [], ["-c", f"{code}print({text!r})"], needs)


def test_pieces_run_once_and_the_table_tells_how_each_ended(hour, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    fails = hour.Piece("step", [], ["-c", "raise SystemExit('out of memory')"])
    pieces = [says(hour, "packing, few", json.dumps(PACKING), mark=mark), fails, says(hour, "peers", "", ("no_such",))]
    monkeypatch.setattr(hour, "PIECES", pieces)
    results = hour.work(options(tmp_path), "a device")
    assert [r.ended for r in results.values()] == ["done", "failed", "left out"]
    assert hour.work(options(tmp_path), "a device") == results and mark.read_text() == "ran\n"
    made = hour.table(results, "a device")
    assert "1,234 regions/s, 5.25x (91% of the bound), 0.40 of its memory" in made or "1,235 regions/s" in made
    assert "failed: out of memory" in made and "needs no_such" in made
    hour.work(options(tmp_path), "another device")
    assert mark.read_text() == "ran\nran\n"


def test_what_was_cut_short_is_taken_again_and_what_had_all_the_time_is_not(hour, tmp_path, monkeypatch):
    slow = hour.Piece("step", [], ["-c", "import time; time.sleep(60)"])
    given, run = [], hour.run
    monkeypatch.setattr(hour, "PIECES", [says(hour, "tests", "2 passed"), slow])
    monkeypatch.setattr(hour, "run", lambda piece, *rest: given.append(rest[1]) or run(piece, *rest))
    chosen = options(tmp_path, minutes=2.0)
    monkeypatch.setattr(hour.time, "perf_counter", iter([0.0, 1.0, 1.0, 2.0, 119.0, 119.5]).__next__)
    assert list(hour.work(chosen, "a device")) == ["tests"]  # the slow one had a second of its two minutes
    assert given == [119.0, 1.0]
    monkeypatch.undo()
    assert run(slow, options(tmp_path, minutes=0.01), 0.5, "a device") is None
    result = run(slow, options(tmp_path, minutes=0.01), 0.6, "a device")
    assert result is not None and result.ended == "too long"
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_table_place_is_named(hour):
    assert hour.written(f"a\n{hour.BEGIN}\nold\n{hour.END}\nb", "new") == f"a\n{hour.BEGIN}\nnew\n{hour.END}\nb"
    with pytest.raises(SystemExit, match="performance.md"):
        hour.written("a page without marks", "new")
    assert "new" in hour.written(hour.PAGE.read_text(), "new")


def test_every_piece_calls_what_there_is(hour):
    for piece in hour.PIECES:
        assert piece.name.partition(",")[0] in hour.ROWS
        for words in (piece.words, piece.rehearsed):
            files = [word for word in words if word.endswith(".py")]
            assert files and all((ROOT / file).exists() for file in files)
            if files[0].startswith("benchmarks/"):
                source = (ROOT / files[0]).read_text()
                assert all(f'"{word}"' in source for word in words if word.startswith("--")), piece.name


def test_without_a_gpu_it_says_how_to_rehearse(hour, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--rehearse"):
        hour.device_name(rehearse=False)
