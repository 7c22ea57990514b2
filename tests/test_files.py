"""Files and folders are whole or absent, one process writes at a time, and what a file states is checked."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from granvit.errors import BusyError, CheckpointError, GranvitError
from granvit.files import (
    atomic_file,
    checked_field,
    child,
    locked,
    read_json,
    read_regular,
    refuse_non_empty,
    remove_folder,
    staged_folder,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def other_process(code: str, *args: object) -> subprocess.Popen:
    """A process that runs `code` and has said "ready"."""
    command = [
        sys.executable,
        "-c",
        f"import os, sys, time, signal\nfrom granvit.files import *\n{code}",
        *map(str, args),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


HOLD = "with locked(sys.argv[1]): print('ready', flush=True); sys.stdin.read()"


# --- locks -----------------------------------------------------------------------------------------------------------


def test_the_second_learns_who_holds_a_place_and_may_have_it_afterwards(tmp_path):
    holder = other_process(HOLD, tmp_path / "out", "some", "words")
    for place in (tmp_path / "out", tmp_path / "a" / ".." / "out"):
        with pytest.raises(BusyError, match=rf"out: another process is writing here \(process {holder.pid} on .*words"):
            with locked(place):
                pass
    with locked(tmp_path / "other"):
        pass
    holder.communicate()
    with locked(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_place_beside_which_nothing_can_be_written(tmp_path):
    (tmp_path / ".out.lock").mkdir()
    with pytest.raises(GranvitError, match=r"\.out\.lock: .*out is made beside its place, so in "):
        with locked(tmp_path / "out"):
            pass


def test_a_lock_ends_with_a_process_that_was_killed(tmp_path):
    holder = other_process(HOLD, tmp_path / "out")
    holder.kill()
    holder.wait()
    assert names(tmp_path) == [".out.lock"]
    with locked(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_one_process_may_hold_a_place_several_times(tmp_path):
    with locked(tmp_path / "out"), locked(tmp_path / "out"), staged_folder(tmp_path / "out") as folder:
        write_text(folder / "a", "b")
    assert names(tmp_path) == ["out", "out/a"]


def test_what_a_process_holds_it_holds_with_all_that_is_in_it(tmp_path):
    """So a kill between the publishing of an inner folder and the end of its lock leaves no lock behind."""
    with locked(tmp_path / "run"):
        with staged_folder(tmp_path / "run" / "model") as folder:
            write_text(folder / "a", "b")
            assert [name for name in names(tmp_path) if name.endswith(".lock")] == [".run.lock"]
        code = "print('ready', flush=True)\nwith locked(sys.argv[1]): pass"
        assert other_process(code, tmp_path / "run").wait() == 1
    assert names(tmp_path) == ["run", "run/model", "run/model/a"]


def test_waiting_for_a_lock(tmp_path):
    holder = other_process("with locked(sys.argv[1]): print('ready', flush=True); time.sleep(0.5)", tmp_path / "out")
    with locked(tmp_path / "out", wait=True):
        assert holder.poll() is not None or holder.wait() == 0
    assert names(tmp_path) == []


def test_what_another_writes_as_a_lock_does_no_harm(tmp_path):
    for content in ("", "[]", "{", '{"made": 3}', "[" * 9_000):
        (tmp_path / ".out.lock").write_text(content)
        with staged_folder(tmp_path / "out", refuse_non_empty) as folder:
            (folder / "a").touch()
        assert names(tmp_path) == ["out", "out/a"]
        remove_folder(tmp_path / "out")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_replaces_another_as_a_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert names(tmp_path) == ["out", "out/old"]
    with staged_folder(tmp_path / "out") as folder:
        assert names(folder) == [] and names(tmp_path / "out") == ["old"]
        (folder / "new").touch()
    assert names(tmp_path) == ["out", "out/new"]
    with pytest.raises(GranvitError, match="out is there already"), staged_folder(tmp_path / "out", refuse_non_empty):
        pass


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("place")
    with staged_folder(tmp_path / "link") as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "place") == ["a"]


@pytest.mark.parametrize("moment", ["written", "moved aside", "in place"])
def test_killed_at_any_moment_the_same_command_goes_through(tmp_path, moment):
    """Also one that may not replace what is there: what it had just put there itself is no obstacle."""
    code = f"""
print("ready", flush=True)
os.chdir(sys.argv[1])
import granvit.files as files
real, count = os.replace, 0
def replace(a, b):
    global count
    count += 1
    if {moment!r} == "moved aside" and count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(a, b)
    if {moment!r} == "in place" and str(b).endswith("out"):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "kill":
    os.replace = replace
(os.mkdir("out"), open("out/mine", "w").close()) if sys.argv[2] == "kill" and {moment!r} == "moved aside" else None
sys.argv[1:] = []
with staged_folder("out", refuse_non_empty if {moment!r} == "in place" else lambda out: None) as folder:
    write_text(folder / "a", "new")
    if {moment!r} == "written" and os.replace is replace:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = other_process(code, tmp_path, "kill")
    assert killed.wait() == -signal.SIGKILL
    again = other_process(code, tmp_path, "again")
    assert again.wait() == 0
    assert names(tmp_path) == ["out", "out/a"]


def test_only_the_very_same_folder_counts_as_made_before(tmp_path):
    """A folder that was touched since belongs to somebody."""
    code = """
print("ready", flush=True)
os.chdir(sys.argv.pop(1))
real = os.replace
def replace(a, b):
    real(a, b)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv.pop(1) == "kill":
    os.replace = replace
with staged_folder("out", refuse_non_empty) as folder:
    open(folder / "a", "w").close()
"""
    assert other_process(code, tmp_path, "kill").wait() == -signal.SIGKILL
    (tmp_path / "out" / "thesis.tex").touch()
    assert other_process(code, tmp_path, "again").wait() == 1
    assert (tmp_path / "out" / "thesis.tex").exists()


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_as_it_was_and_has_the_mode_of_its_neighbours(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "one \udcff")
    assert (tmp_path / "deep" / "a.txt").read_text() == "one \\udcff"
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "deep" / "a.txt") as file:
        file.write_text("two")
        raise RuntimeError
    assert (tmp_path / "deep" / "a.txt").read_text() == "one \\udcff"
    mask = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "deep" / "w.safetensors") as file:
            save_file({"x": torch.zeros(1)}, file)
        with staged_folder(tmp_path / "model") as folder:
            save_file({"x": torch.zeros(1)}, folder / "w.safetensors")
    finally:
        os.umask(mask)
    for file in (tmp_path / "deep" / "w.safetensors", tmp_path / "model" / "w.safetensors"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert names(tmp_path) == ["deep", "deep/a.txt", "deep/w.safetensors", "model", "model/w.safetensors"]


def test_two_that_write_one_file(tmp_path):
    holder = other_process(
        "with atomic_file(sys.argv[1]) as f: f.write_text('1'); print('ready', flush=True); sys.stdin.read()",
        tmp_path / "a",
    )
    with pytest.raises(BusyError, match=f"process {holder.pid}"):
        write_text(tmp_path / "a", "2")
    holder.communicate()
    assert (tmp_path / "a").read_text() == "1"
    write_text(Path("/dev/null"), "a device is written to as it is")


# --- what files state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "damaged: Expecting value"),
        (b"{", "damaged"),
        (b"\xff\xfe{}", "damaged"),
        (b"[" * 100_000, "damaged: it nests too deep"),
        (b"[" * 400 + b"]" * 400, "damaged: it nests too deep"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "damaged"),
    ],
)
def test_what_is_no_json_is_one_sentence(tmp_path, content, problem):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.json: .*{problem}"):
        read_json(tmp_path / "a.json", CheckpointError)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GranvitError, match="pipe: not a regular file"):
        read_json(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(GranvitError, match="large: 5 bytes, at most 4"):
        read_regular(tmp_path / "large", 4)


@pytest.mark.parametrize(
    ("row", "kind", "problem"),
    [
        ([], int, r"a.json: damaged: rows\[3\] is \[\], it should be an object"),
        ({}, int, r"a.json: damaged: rows\[3\].n is missing"),
        ({"n": "1"}, int, r'rows\[3\].n is "1", it should be a whole number'),
        ({"n": True}, int, "n is true"),
        ({"n": 1.0}, int, "n is 1.0"),
        ({"n": -1}, int, "n is -1, it should be a number from 0 up"),
        ({"n": 10**30}, int, "n is 1000"),
        ({"n": 1}, dict, "n is 1, it should be an object"),
    ],
)
def test_a_field_of_another_type_is_named(row, kind, problem):
    with pytest.raises(GranvitError, match=problem):
        checked_field(row, "n", kind, Path("a.json"), "rows[3].")
    assert checked_field({"n": 7}, "n", int, Path("a.json")) == 7


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a\0b", "..\\a", "C:\\a"])
def test_names_that_lead_out(name):
    with pytest.raises(GranvitError):
        child(Path("folder"), name)
    assert child(Path("folder"), "a/b..c") == Path("folder/a/b..c")


def test_a_holder_can_be_read(tmp_path):
    with locked(tmp_path / "out"):
        reported = json.loads((tmp_path / ".out.lock").read_text())
        assert reported["pid"] == os.getpid() and reported["command"]
