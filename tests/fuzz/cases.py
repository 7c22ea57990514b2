"""One case of the fuzzer: a sound thing, damaged as a number says, given to the program; and what must hold then.

A case is its kind and number: `PYTHONPATH=tests python -m fuzz.run --only coco:17` repeats it. What must hold:

- given = accepted + rejected with a reason; what is accepted is a corpus in which `verify` finds nothing;
- otherwise one message for the user (`GranvitError`, `OSError`), and no corpus; never another exception;
- nothing is written or read outside of what was named, and nothing is left behind beside OUT;
- it ends within `SECONDS` of the processor's time, and does not wait for anything.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from types import FrameType
from xml.etree import ElementTree

from fuzz.damage import SECRET, damage
from fuzz.seeds import SEEDS, picture, put

from granvit.corpus.check import read_quarantine, verify
from granvit.corpus.importers import import_corpus
from granvit.corpus.store import Corpus
from granvit.errors import GranvitError

SECONDS = 20
# Of the clock, which other processes take from: only something that waits reaches it.
WAIT_SECONDS = 60
# One that states a value of the damaged file, of 3,000 characters, and the file.
LONGEST_MESSAGE = 5_000


class Broken(AssertionError):
    """What must hold does not."""


class TooSlow(BaseException):
    """Not an `Exception`, which some reader might take for the data's fault."""


def run_case(kind: str, number: int, folder: Path) -> str:
    """Run a case in an empty folder: "accepted" or "refused".

    Raises:
        Broken: naming the case and what does not hold.
    """
    random = Random(f"{kind}:{number}")
    (folder / "src").mkdir(parents=True)
    put(folder / SECRET, picture((200, 10, 10)))
    if kind in _MODELS:
        _MODELS[kind]()
    try:
        with time_limit():
            return KINDS[kind](folder, random)
    except TooSlow as error:
        raise Broken(f"{kind}:{number}: no end\n{traceback.format_exc()}") from error
    except Broken as error:
        raise Broken(f"{kind}:{number}: {error}") from error
    except Exception as error:
        raise Broken(f"{kind}:{number}: {traceback.format_exc()}") from error


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlow

    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAIT_SECONDS))
    before = [signal.signal(number, stop) for number, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(limits, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _import(name: str) -> Callable[[Path, Random], str]:
    def case(folder: Path, random: Random) -> str:
        seed, src, out = SEEDS[name], folder / "src", folder / "out"
        seed.write(src)
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            damage(src, random)
        if seed.finish:
            seed.finish(src)
            if random.random() < 0.3:
                damage(src, random)
        before = _listing(folder)
        try:
            summary = import_corpus(name, src / seed.src, out, **seed.options)
        except (GranvitError, OSError) as error:
            _require_message(error)
            _require(not (out / "manifest.json").exists(), "a corpus despite an error")
            _require(_listing(folder) == before, f"left behind: {_listing(folder) ^ before}")
            return "refused"
        _require(_listing(folder) == before, f"outside of OUT: {_listing(folder) ^ before}")
        records, refused = list(Corpus(out)), read_quarantine(out / "quarantine.jsonl")
        whole = [r for r in refused if r.whole]
        _same("images", summary.images_seen, len(records) + len(whole))
        written, with_image = sum(len(r.regions) for r in records), sum(r.regions for r in whole)
        _same("regions", summary.regions_seen, written + sum(r.region is not None for r in refused) + with_image)
        said, with_image = sum(len(r.conversations) for r in records), sum(r.conversations for r in whole)
        alone = sum(r.conversation is not None for r in refused)
        _same("conversations", summary.conversations_seen, said + alone + with_image)
        _require(all(r.reason and r.detail for r in refused), f"no reason: {refused}")
        _require(verify(out) == [], f"verify: {verify(out)}")
        secret = (folder / SECRET).read_bytes()
        _require(all(r.image != secret for r in records), "a picture from outside of SRC")
        given = _GIVEN[name](src) if name in _GIVEN else None
        if given is not None:
            _same("regions given", summary.regions_seen, given)
        return "accepted"

    return case


def _listing(folder: Path) -> set[tuple[str, str]]:
    """What is in the case's folder but for OUT: paths, each with what it is or holds."""
    found = set()
    for root, folders, files in os.walk(folder):
        if Path(root) == folder and "out" in folders:
            folders.remove("out")
        for name in files:
            path = Path(root) / name
            regular = path.is_file() and not path.is_symlink()
            found.add((str(path), hashlib.sha256(path.read_bytes()).hexdigest() if regular else "special"))
        found.add((root, "folder"))
    return found


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise Broken(problem)


def _require_message(error: Exception) -> None:
    length = len(str(error))
    _require(0 < length < LONGEST_MESSAGE, f"a message of {length} characters: {str(error)[:300]}")


def _same(what: str, one: int, other: int) -> None:
    _require(one == other, f"{what}: {one} are counted, {other} are there")


def _manifest(folder: Path, random: Random) -> str:
    """A corpus whose files are damaged is refused, or holds what it held."""
    out = folder / "out"
    SEEDS["jsonl"].write(folder / "src")
    import_corpus("jsonl", folder / "src", out)
    sound = list(Corpus(out))
    damage(out, random)
    try:
        _require(list(Corpus(out)) == sound, "other records than were written")
    except (GranvitError, OSError) as error:
        _require_message(error)
        with suppress(GranvitError, OSError):
            _require(bool(verify(out)), "verify finds nothing in a corpus that cannot be read")
        return "refused"
    return "accepted"


@lru_cache(maxsize=1)
def _sound_checkpoint() -> Path:
    from helpers.tiny_model import make_model

    from granvit.predict import GranViT

    folder = Path(tempfile.mkdtemp(prefix="granvit-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_model().save(folder / "checkpoint")
    GranViT.load(folder / "checkpoint")  # the libraries do much when they are first asked
    return folder / "checkpoint"


@lru_cache(maxsize=1)
def _sound_adapter() -> Path:
    from helpers.tiny_lora import train_lora

    from granvit.predict import GranViT

    base = _sound_checkpoint()
    train_lora(base, base.parent / "run", 1)
    GranViT.load(base.parent / "run")
    return base.parent / "run" / "checkpoint"


def _model(sound: Callable[[], Path], folder: Path, random: Random) -> str:
    """A checkpoint, or an adapter beside its base, whose files are damaged is refused in words."""
    from granvit.predict import GranViT

    shutil.copytree(sound(), folder / "checkpoint")
    damage(folder / "checkpoint", random)
    before = _listing(folder)
    try:
        GranViT.load(folder / "checkpoint")
    except (GranvitError, OSError) as error:
        _require_message(error)
        return "refused"
    finally:
        _require(_listing(folder) == before, "loading wrote something")
    return "accepted"


# How many regions a data set states, counted apart from the importers; None where that is unknown.


def _in_tables(*files: str) -> Callable[[Path], int | None]:
    def count(src: Path) -> int | None:
        try:
            found = [file for name in files for file in src.glob(name)]
            return sum(len(json.loads(file.read_bytes(), parse_int=float)["annotations"]) for file in found)
        except (ValueError, OSError, RecursionError):
            return None

    return count


def _in_lines(src: Path) -> int | None:
    total = 0
    for line in (src / "annotations.jsonl").read_bytes().split(b"\n"):
        try:
            row = json.loads(line.decode("utf-8-sig"), parse_int=float)  # of any number of digits
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("regions"), list):
            total += len(row["regions"])
    return total


def _in_xml(src: Path) -> int | None:
    total = 0
    for file in (src / "Annotations").iterdir():
        if file.suffix.lower() == ".xml" and file.is_file():
            try:
                objects = ElementTree.fromstring(file.read_bytes()).findall("object")
            except (ElementTree.ParseError, ValueError, LookupError):
                return None
            total += sum(len(one.findall("bndbox")) or 1 for one in objects)
    return total


_GIVEN: dict[str, Callable[[Path], int | None]] = {
    "coco": _in_tables("annotations/instances_*.json"),
    "lvis": _in_tables("lvis_v1_train.json"),
    "objects365": _in_tables("zhiyuan_objv2_train.json"),
    "jsonl": _in_lines,
    "voc": _in_xml,
}

_MODELS: dict[str, Callable[[], Path]] = {"checkpoint": _sound_checkpoint, "adapter": _sound_adapter}

KINDS: dict[str, Callable[[Path, Random], str]] = {
    **{name: _import(name) for name in SEEDS},
    "manifest": _manifest,
    **{name: partial(_model, sound) for name, sound in _MODELS.items()},
}
