"""The real llama.cpp with pictures: the package @fugood/llama.node, which brings it built.

`npm install @fugood/llama.node` in a folder outside the repository, which GRANVIT_LLAMA_NODE then names (or NODE_PATH
its `node_modules`); `node` is looked for on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_CHILD = Path(__file__).parents[1] / "export" / "llama_child.cjs"


@cache
def _environment() -> dict[str, str] | None:
    """What node needs to find the package; None where there is no node or no package."""
    folder = os.environ.get("GRANVIT_LLAMA_NODE")
    paths = [str(Path(folder) / "node_modules")] if folder else []
    found = {**os.environ, "NODE_PATH": os.pathsep.join([*paths, os.environ.get("NODE_PATH", "")])}
    if shutil.which("node") is None:
        return None
    tried = subprocess.run(["node", "-e", "require('@fugood/llama.node')"], env=found, capture_output=True)
    return found if tried.returncode == 0 else None


def need_llama_cpp() -> None:
    """The test is skipped where llama.cpp is not there."""
    if _environment() is None:
        pytest.skip("no llama.cpp: npm install @fugood/llama.node, and GRANVIT_LLAMA_NODE for its folder")


def ask_llama_cpp(
    model: Path,
    mmproj: Path | None,
    asks: Sequence[tuple[str, Path | None]] = (),
    tokens: int = 32,
    texts: Sequence[str] = (),
) -> tuple[list[str], list[list[int]]]:
    """Greedy answers to prompts, each with its picture where `<__media__>` stands in it, and the tokens of texts."""
    given: dict[str, Any] = {"model": str(model), "mmproj": str(mmproj or ""), "tokens": tokens, "texts": list(texts)}
    given["asks"] = [{"prompt": prompt, "picture": str(picture or "")} for prompt, picture in asks]
    ran = subprocess.run(
        ["node", str(_CHILD)], input=json.dumps(given), env=_environment(), capture_output=True, text=True, timeout=3600
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout.strip().splitlines()[-1])
    return said["answers"], said["ids"]
