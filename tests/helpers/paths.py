"""Where the repository lies, what its child processes import, and real pictures where they are beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
# Before a script: runs it where granvit cannot be imported.
WITHOUT_GRANVIT = ("-I", str(ROOT / "tests" / "helpers" / "without_granvit.py"))
REAL_DATA = (ROOT / "../shared/data").resolve()
NO_REAL_DATA = "no real images: ../shared/data"


def real_data(*names: str) -> list[Path]:
    """The folders of these names that hold real images; the test is skipped, and counted at the end, without them."""
    folders = [REAL_DATA / name for name in names]
    for folder in folders:
        if not folder.is_dir():
            pytest.skip(f"{NO_REAL_DATA}/{folder.name}")
    return folders
