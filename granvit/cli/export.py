"""`granvit export`: a trained model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional


@dataclass
class Export:
    """Write a trained model in a form that other programs load without granvit, with a model card."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder, or a checkpoint."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write; it must not hold anything yet."""
    format: Literal["llava", "encoder", "gguf", "adapter"] = "llava"
    """llava: a stock LLaVA for transformers and vLLM. encoder: the vision tower alone, for any other stack. gguf: the
    two files that llama.cpp reads. adapter: of a run with LoRA what it trained, for peft; the others merge it."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights."""
    license: str | None = None
    """For the model card: a licence that the hub knows, such as apache-2.0, or "other". Without it the card says that
    none is stated."""
    license_name: str | None = None
    """What another licence is called."""
    license_link: str | None = None
    """Where the text of another licence is, https://..."""
    metrics: Path | None = None
    """A scores.json that `granvit eval` wrote, for the model card; by default what the run noted of this checkpoint in
    its scores.jsonl, or in the demo's metrics.json."""
    push_to_hub: str | None = None
    """Upload the folder to the hub, under NAMESPACE/NAME; new repositories are private."""

    def run(self) -> int:
        from transformers.utils.logging import disable_progress_bar

        from granvit.export.llava import export, push

        disable_progress_bar()
        made = export(
            self.source,
            self.out,
            self.format,
            precision=self.precision,
            licence=self.license,
            licence_name=self.license_name,
            licence_link=self.license_link,
            metrics=self.metrics,
        )
        for path in sorted(made.folder.iterdir()):
            print(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
        for missing in made.left_out:
            print(f"not written: {missing}")
        if self.push_to_hub is not None:
            print(push(made.folder, self.push_to_hub))
        return 0
