"""What the corpus commands share."""

from __future__ import annotations

import sys


def fail(message: str) -> int:
    """Tell what went wrong, in one line; the exit status of a command that could do nothing."""
    print(f"granvit: {message}", file=sys.stderr)
    return 1
