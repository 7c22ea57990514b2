"""`granvit ...`: one program; each command is a typed dataclass whose `run` returns the exit status."""

from granvit.cli.app import main

__all__ = ["main"]
