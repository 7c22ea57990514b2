"""Every command is killed at every file operation, and given again; two of one command run at once.

    PYTHONPATH=tests python -m kills.sweep [CASE ...] [--points N] [--seed S]

A case runs in a forked process that kills itself (SIGKILL) before the n-th operation that changes a file or folder:
opening for writing, renaming, removing, making folders, and writing or closing Parquet and safetensors files. Then the
same command must end as if nothing had happened: with the same files, byte for byte, and none besides. For two at once
the first is stopped in its middle (SIGSTOP), and the second must say who is there and change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from kills.cases import Case, cases, make_inputs, preload  # noqa: E402

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink", "os.link", "kills.write")
# What differs from run to run by its nature: times.
_TIMED = ("speed.jsonl", "tensorboard", "events.out", "report.html")


@dataclass
class Outcome:
    """What became of a case."""

    points: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)


# --- a process that counts, dies or stops ----------------------------------------------------------------------------


def _instrument(root: Path, act: Callable[[int], None]) -> None:
    """Calls `act` with the number of each change below `root`, before it is made, in this process from now on."""
    count = 0
    inside = f"{root}{os.sep}"

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & _WRITING)
        else:
            changes = event in _CHANGES
        if changes and args and _path(args[0]).startswith(inside):
            count += 1
            act(count)

    sys.addaudithook(hook)
    import pyarrow.parquet as pq

    for owner, name in ((pq.ParquetWriter, "write_table"), (pq.ParquetWriter, "close")):
        _announce(owner, name, lambda self, *_, **__: str(getattr(self, "where", "") or ""))
    if "safetensors.torch" in sys.modules:
        from granvit.model import assemble, region_model
        from granvit.train import tensorfile

        _announce(tensorfile, "save_file", lambda tensors, path, **_: str(path))
        for module in (assemble, region_model):
            _announce(module, "save_torch_state_dict", lambda weights, folder, **_: str(folder))


def _announce(owner: Any, name: str, where: Callable[..., str]) -> None:
    """Has a writer in another language say so before it writes."""
    original = getattr(owner, name)

    def announced(*args: Any, **options: Any) -> Any:
        sys.audit("kills.write", where(*args, **options))
        return original(*args, **options)

    setattr(owner, name, announced)


def _path(given: object) -> str:
    try:
        return os.path.abspath(os.fsdecode(given))  # type: ignore[arg-type]
    except TypeError:
        return ""  # a descriptor: its file was opened before


def fork(work: Callable[[], int], log: Path) -> int:
    """Starts `work` in a forked process that writes what it says into `log`; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    """The exit status of a forked process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- the sweep -------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    """The checksum of every file below a folder, hidden ones too, and every folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(_TIMED) for part in path.relative_to(folder).parts):
            continue
        found[name] = "folder" if path.is_dir() else _digest(path)
    return found


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        # Tensors that are tied are stored under either name, and files hold theirs in any order.
        from granvit.train.tensorfile import read_tensors

        tensors = sorted(read_tensors(path).items())
        return hashlib.sha256(b"".join(n.encode() + t.numpy().tobytes() for n, t in tensors)).hexdigest()
    if path.name in ("history.jsonl", "scores.jsonl", "state.json"):
        data = json.dumps([_untimed(json.loads(line)) for line in data.splitlines()]).encode()
    return hashlib.sha256(data).hexdigest()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(v) for key, v in value.items() if key not in ("files", "seconds")}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


class Sweep:
    """One case, in folders of its own."""

    def __init__(self, case: Case, inputs: Path, scratch: Path) -> None:
        self.case, self.inputs, self.scratch = case, inputs, scratch
        self.work = scratch / "work"
        self.log, self.notes = scratch / "log", scratch / "notes"

    def _fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        assert ended(fork(lambda: self.case.before(self.inputs, self.work) and 0 or 0, self.log)) == 0, self._said()

    def _said(self) -> str:
        return self.log.read_text(errors="replace").strip()[-2000:]

    def _start(self, act: Callable[[int], None] | None = None, log: Path | None = None) -> int:
        def work() -> int:
            if act is not None:
                _instrument(self.work, act)
            return self.case(self.inputs, self.work)

        return fork(work, log or self.log)

    def whole(self) -> tuple[int, dict[str, str]]:
        """How many changes the command makes, and what it leaves."""
        self._fresh()

        def note(number: int) -> None:
            os.pwrite(descriptor, b"%-12d" % number, 0)

        descriptor = os.open(self.notes, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            assert ended(self._start(note)) == 0, f"{self.case.name}: {self._said()}"
            return int(os.pread(descriptor, 12, 0)), contents(self.work)
        finally:
            os.close(descriptor)

    def kill_at(self, point: int, expected: dict[str, str]) -> str:
        """What is wrong after a kill before change number `point` and a second run; empty where nothing is."""
        self._fresh()
        before = contents(self.work / self.case.out)

        def die(number: int) -> None:
            if number == point:
                os.kill(os.getpid(), signal.SIGKILL)

        status = ended(self._start(die))
        if status != -signal.SIGKILL:
            return f"was to be killed at {point} and ended with {status}: {self._said()}"
        if problem := self._half(before, expected):
            return f"killed at {point}: {problem}"
        if (status := ended(self._start())) != 0:
            return f"killed at {point}, the same command ends with {status}: {self._said()}"
        return _difference(expected, contents(self.work), f"killed at {point} and given again")

    def _half(self, before: dict[str, str], expected: dict[str, str]) -> str:
        """A corpus that can be opened after a kill is the old one or the new one."""
        folder = self.work / self.case.out
        if not (folder / "manifest.json").exists():
            return ""
        found = contents(folder)
        new = {
            name.split("/", 1)[1]: digest for name, digest in expected.items() if name.startswith(f"{self.case.out}/")
        }
        shown = {name for name in found if not name.startswith(".")}
        if all(found[name] == before.get(name) for name in shown) or all(
            found[name] == new.get(name) for name in shown
        ):
            return ""
        return f"{folder} is neither the old nor the new one: {sorted(shown)}"

    def two_at_once(self, points: int, expected: dict[str, str]) -> str:
        """What is wrong when the command is given while another process is in the middle of it."""
        self._fresh()

        def stop(number: int) -> None:
            if number == max(points // 2, 2):
                os.kill(os.getpid(), signal.SIGSTOP)

        first = self._start(stop)
        _, status = os.waitpid(first, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return f"was to be stopped and ended with {status}: {self._said()}"
        other = self.scratch / "other"
        second = ended(self._start(log=other))
        os.kill(first, signal.SIGCONT)
        status = ended(first)
        reported = other.read_text(errors="replace")
        if (
            second == 0
            or f"another process is writing here (process {first} on" not in reported
            or "Traceback" in reported
        ):
            return f"of two at once the second ended with {second}: {reported[-1000:]}"
        if status != 0:
            return f"of two at once the first ended with {status}: {self._said()}"
        return _difference(expected, contents(self.work), "of two at once")


def _difference(expected: dict[str, str], found: dict[str, str], when: str) -> str:
    if found == expected:
        return ""
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    return f"{when}: missing {missing}, more {more}, other contents {other}"


def sweep(case: Case, inputs: Path, scratch: Path, most: int, seed: int) -> Outcome:
    """Kill a case at up to `most` points (0: all), and run two of it at once."""
    run = Sweep(case, inputs, scratch)
    points, expected = run.whole()
    assert expected, f"{case.name} writes nothing"
    outcome = Outcome(points)
    chosen = list(range(1, points + 1))
    if most and most < points:
        chosen = sorted(random.Random(f"{seed}:{case.name}").sample(chosen, most))
    for point in chosen:
        outcome.kills += 1
        if problem := run.kill_at(point, expected):
            outcome.faults.append(f"{case.name}: {problem}")
    if problem := run.two_at_once(points, expected):
        outcome.faults.append(f"{case.name}: {problem}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--points", type=int, default=0, help="kills of each case, at random; 0: at every point")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chosen = [case for case in cases() if not given.cases or case.name in given.cases]
    preload({case.name for case in chosen})
    # In memory where there is such a place: what is waited for on a disk is not what is tried here.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="granvit-kills-", dir=memory) as folder:
        inputs, scratch = Path(folder).resolve() / "inputs", Path(folder).resolve() / "scratch"
        inputs.mkdir()
        scratch.mkdir()
        os.chdir(scratch)
        log = Path(folder) / "inputs.log"
        if ended(fork(lambda: make_inputs(inputs, {case.name for case in chosen}), log)) != 0:
            print(log.read_text())
            return 1
        kills, faults = 0, []
        for case in chosen:
            outcome = sweep(case, inputs, scratch, given.points, given.seed)
            kills += outcome.kills
            faults += outcome.faults
            print(
                f"{case.name:<20} {outcome.points:>4} changes, {outcome.kills:>4} kills, {len(outcome.faults)} faults"
            )
            for fault in outcome.faults:
                print(f"  {fault}")
            sys.stdout.flush()
    print(f"{len(chosen)} commands, {kills} kills, {len(chosen)} pairs at once, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
