"""What lmms-eval finds under the entry point `lmms_eval.models`: the name of the model, and where its class is.

lmms-eval loads this at every start, whichever model it runs, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of `--model granvit`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("granvit", chat_class_path="granvit.evaluate.lmms.LmmsGranViT")
