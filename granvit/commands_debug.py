"""`granvit debug ...`: finding out what went wrong in a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

if TYPE_CHECKING:
    from granvit.train.replay import Replay as Result


@dataclass
class Replay:
    """Take a step again that ended in a loss or gradient that is not finite, and find where.

    Exits with 0 where it happened again, with 1 where it did not.
    """

    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The `nonfinite` folder that the run left."""
    corpus: tuple[str, ...] = ()
    """Where the run's corpora are now, in the run's order; where they were by default."""
    device: Literal["auto", "cpu"] = "auto"

    def run(self) -> int:
        from transformers.utils.logging import disable_progress_bar

        from granvit.train.replay import replay

        disable_progress_bar()
        result = replay(self.folder, self.corpus, self.device)
        print("\n".join(report(result)))
        return 0 if result.reproduced else 1


def report(result: Result) -> list[str]:
    """A replay as lines of text; the last one is the verdict."""
    lines = [f"step {result.step}{'in the run':>22}{'now':>14}"]
    lines += [f"  {name:12}{before:>18}{result.now[name]:>14.6g}" for name, before in result.before.items()]
    found = [
        *[("weight not finite before the step", weight) for weight in result.weights],
        ("first output not finite", result.watch.output),
        ("first gradient not finite, counted from the loss", result.watch.gradient),
        ("first parameter with such a gradient", result.watch.parameter),
    ]
    lines += [f"{what}: {where}" for what, where in found if where is not None]
    lines += [
        f"sample {id!r} alone: loss {loss:.6g}, gradient norm {norm:.6g}"
        for id, loss, norm in result.samples
        if id in result.offending
    ]
    alone = f"{len(result.offending)} of {len({id for id, *_ in result.samples})} samples do it alone"
    if result.reproduced:
        return [*lines, f"reproduced: step {result.step} is not finite again; {alone}"]
    return [*lines, f"not reproduced: step {result.step} is finite here; {alone}"]
