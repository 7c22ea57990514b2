"""The fuzzer from the command line: many cases, in processes of bounded memory.

PYTHONPATH=tests python -m fuzz.run --cases 10000                   of all kinds, by turns
PYTHONPATH=tests python -m fuzz.run --cases 500 --kinds coco voc    of some
PYTHONPATH=tests python -m fuzz.run --only coco:17                  one again
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzz.cases import KINDS, WAIT_SECONDS, Broken, run_case

CHUNK = 1000
# A case needs a few MB; the libraries that a process loads, with the models of checkpoints, less than one GB.
MEMORY = 3 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--only", help="KIND:NUMBER")
    parser.add_argument("--chunk", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, _, number = options.only.partition(":")
        print(run_one(kind, int(number)))
        return 0
    if options.chunk:
        return run_chunk(options.kinds, *options.chunk)
    return run_all(options.kinds, options.start, options.cases)


def run_one(kind: str, number: int) -> str:
    with tempfile.TemporaryDirectory(prefix="granvit-fuzz-") as folder:
        return run_case(kind, number, Path(folder))


def run_chunk(kinds: list[str], first: int, last: int) -> int:
    """The cases `first` to `last` of all kinds by turns: a line of JSON before each and after."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for index in range(first, last):
        kind, number = kinds[index % len(kinds)], index // len(kinds)
        print(json.dumps({"at": index, "case": f"{kind}:{number}"}), flush=True)
        # A library that waits is not woken by a signal; this thread ends the process, and says where it was.
        faulthandler.dump_traceback_later(2 * WAIT_SECONDS, exit=True)
        try:
            print(json.dumps({"outcome": run_one(kind, number)}), flush=True)
        except Broken as error:
            print(json.dumps({"broken": str(error)}), flush=True)
    return 0


def run_all(kinds: list[str], start: int, cases: int) -> int:
    outcomes: Counter[str] = Counter()
    broken: list[str] = []
    index, end = start * len(kinds), start * len(kinds) + cases
    while index < end:
        last = min(index + CHUNK, end)
        command = [sys.executable, "-m", "fuzz.run", "--kinds", *kinds, "--chunk", str(index), str(last)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        reported = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
        outcomes.update(row["outcome"] for row in reported if "outcome" in row)
        broken += [row["broken"] for row in reported if "broken" in row]
        if child.returncode:
            cases_begun = [row for row in reported if "case" in row]
            index = cases_begun[-1]["at"] + 1 if cases_begun else last
            where = cases_begun[-1]["case"] if cases_begun else f"cases from {index}"
            broken.append(f"{where}: the process ended with {child.returncode}\n{child.stderr[-2000:]}")
        else:
            index = last
        for problem in broken[outcomes["broken"] :]:
            print(f"BROKEN {problem}\n", flush=True)
        outcomes["broken"] = len(broken)
        print(f"{index - start * len(kinds)} of {cases}: {dict(outcomes)}", file=sys.stderr, flush=True)
    print(f"{cases} cases: {outcomes['accepted']} accepted, {outcomes['refused']} refused, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
