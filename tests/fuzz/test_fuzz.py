"""A short slice of the fuzzer, and that it finds what it is there to find. `make fuzz` runs 10,000 cases."""

import time
from pathlib import Path

import pytest
from fuzz import cases
from fuzz.cases import KINDS, Broken, run_case

from granvit.corpus.importers import IMPORTERS
from granvit.regions import RegionImage

NUMBERS = {"checkpoint": 2, "adapter": 2}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_damaged_input_is_accounted_for_and_never_a_traceback(kind, tmp_path):
    for number in range(NUMBERS.get(kind, 6)):
        assert run_case(kind, number, tmp_path / str(number)) in ("accepted", "refused")


def loses_a_region(found):
    if isinstance(found, RegionImage):
        found.regions = found.regions[:-1]
    return found


def fails(found):
    raise KeyError("id")


def waits(found):
    time.sleep(60)


def writes_elsewhere(found):
    Path("stray").write_text("")
    return found


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        (loses_a_region, "regions given: "),
        (fails, "KeyError: 'id'"),
        (waits, "no end"),
        (writes_elsewhere, "outside of OUT"),
    ],
)
def test_a_fault_in_an_importer_is_found(fault, reported, tmp_path, monkeypatch):
    sound = IMPORTERS["coco"]

    def faulty(src, *, source="coco", licence=""):
        yield from map(fault, sound(src))

    monkeypatch.setitem(IMPORTERS, "coco", faulty)
    monkeypatch.setattr(cases, "WAIT_SECONDS", 1)
    monkeypatch.setattr(cases, "damage", lambda folder, random: None)
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    with pytest.raises(Broken, match=reported):
        run_case("coco", 0, tmp_path / "case")
