"""Public benchmarks read from local files. A new one is a function under `@benchmark`, in a file named below."""

from granvit.evaluate.benchmarks import (  # noqa: F401  (importing registers them)
    choices,
    documents,
    packs,
    refcoco,
)
from granvit.evaluate.benchmarks.base import BENCHMARKS, benchmark, open_benchmark

__all__ = ["BENCHMARKS", "benchmark", "open_benchmark"]
