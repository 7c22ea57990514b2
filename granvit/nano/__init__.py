"""All that presets from random weights need, and nothing else does: the core never imports it.

The paper takes a pretrained encoder and a pretrained language model. Where there is none, as on two CPU cores in
minutes, both are made here: small models, a tokenizer, a warm-up for each, and a projector fitted to what they know.
"""

from granvit.nano import config  # noqa: F401  (its stages can be read from a saved recipe)
from granvit.train.recipes.base import NAMED_PARTS

NAMED_PARTS.update(dict.fromkeys(("nano", "nano-reader", "nano-untrained", "small-untrained"), "granvit.nano.models"))
