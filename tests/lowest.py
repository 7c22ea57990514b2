"""Prints pip constraints that hold every dependency at its lower bound: `make test-lowest` tries them.

    python tests/lowest.py app > constraints-lowest.txt

Of the extras those that are named count beside the dependencies of all. What the lower bound of one needs of another is
pip's to find out: where it refuses, a bound is wrong.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_BOUND = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9][0-9.]*)")


def lowest(project: dict, extras: list[str]) -> list[str]:
    """`NAME==LOWEST` of every dependency, in order.

    Raises:
        ValueError: one has no lower bound.
    """
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    found = {}
    for one in wanted:
        bound = _BOUND.match(one)
        if bound is None:
            raise ValueError(f"{one} has no lower bound")
        found[bound[1]] = f"{bound[1]}=={bound[2]}"
    return list(found.values())


if __name__ == "__main__":
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    print("\n".join(lowest(tomllib.loads(pyproject.read_text())["project"], sys.argv[1:])))
