"""`granvit assemble`: the model that a recipe starts from."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from granvit.errors import GranvitError
from granvit.train.recipes.base import Recipe


@dataclass
class Assemble:
    """Write the model that a recipe starts from: what its run is to be compared with."""

    recipe: Recipe
    out: Path | None = None
    """The checkpoint's folder, which must not be there yet; runs/RECIPE-before by default."""

    def run(self) -> int:
        from transformers.utils.logging import disable_progress_bar

        from granvit.train.build import build_model

        out = self.out or Path("runs") / f"{self.recipe.name}-before"
        if out.exists():
            raise GranvitError(f"{out} is there already; name another folder")
        unfinished = out.with_name(out.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        disable_progress_bar()
        build_model(self.recipe).save(unfinished)
        os.replace(unfinished, out)
        print(f"checkpoint: {out}")
        return 0
