"""What transformers 4.57 looks for in the files of a checkpoint, and transformers 5 writes under other names.

Without it 4.57 refuses a tokenizer's class, finds no image processor, and takes its default for the base of rotary
positions, whatever the model was trained with: other answers, without a word. transformers 5 reads both names alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from granvit.files import write_text
from granvit.loading.checkpoint_files import read_json
from granvit.model.region_model import RegionModel

# The oldest version that reads what `for_older` leaves; the card says so.
OLDEST = "4.57"


def for_older(model: RegionModel, folder: Path) -> None:
    """Add to an exported LLaVA's folder what transformers 4.57 reads."""
    name_rope(folder)
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # By default that class gave types of tokens too, which no model here takes.
        tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    for name in ("backend", "is_local", "local_files_only"):  # of this machine
        tokenizer.pop(name, None)
    _write(folder / "tokenizer_config.json", tokenizer)
    model.processor.image_processor.save_pretrained(folder)
    images = read_json(folder / "preprocessor_config.json")
    _write(folder / "preprocessor_config.json", {**images, "processor_class": type(model.processor).__name__})


def name_rope(folder: Path) -> None:
    """Write `rope_parameters` of a model and its parts under the two names of before too."""
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        _name_rope(part)
    _write(folder / "config.json", config)


def _name_rope(config: dict[str, Any]) -> None:
    stated = config.get("rope_parameters")
    if isinstance(stated, dict) and "rope_theta" in stated:
        scaling = {name: value for name, value in stated.items() if name != "rope_theta"}
        config["rope_theta"] = stated["rope_theta"]
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
