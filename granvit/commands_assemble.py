"""`granvit assemble`: the model that a recipe starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from granvit.files import refuse_filled, staged_folder
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
        disable_progress_bar()
        with staged_folder(out, refuse_filled) as folder:
            build_model(self.recipe).save(folder)
        print(f"checkpoint: {out}")
        return 0
