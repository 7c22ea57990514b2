"""What the plan tells and what torch's tracker counts, of every case; as one line of JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from trackers import Case, planned, stepped, tracked  # noqa: E402

# Few blocks: the operations of a step, not their sizes, are what takes time.
CASES = {
    "stage 1": Case("nano", 1, 1, blocks=1),
    "stage 2": Case("nano", 2, 1, blocks=1),
    "stage 1 of 8": Case("nano", 1, 8, blocks=2),
    "stage 2 of 32, recomputed and accumulated": Case("paper", 2, 32, recomputed=True, accumulate=2, blocks=2),
    "stage 2 of 8 by ddp, accumulated": Case("nano", 2, 8, accumulate=2, parallel="ddp", blocks=1),
}

if __name__ == "__main__":
    told = {
        name: [planned(case), tracked(case), stepped(case) if case.ranks == 1 else None] for name, case in CASES.items()
    }
    print(json.dumps(told))
