"""Every recipe by name."""

from collections.abc import Callable

from granvit.nano.recipes import nano, nano_encoder_recipe, nano_language, nano_own, nano_paper, nano_reader
from granvit.nano.small import small, small_encoder_recipe
from granvit.train.recipes.base import Recipe
from granvit.train.recipes.base_size import base
from granvit.train.recipes.finetune import finetune
from granvit.train.recipes.paper import paper, paper_transfer

RECIPES: dict[str, Callable[[], Recipe]] = {
    "nano": nano,
    "nano-paper": nano_paper,
    "nano-own": nano_own,
    "nano-language": nano_language,
    "nano-encoder": nano_encoder_recipe,
    "nano-reader": nano_reader,
    "small-encoder": small_encoder_recipe,
    "small": small,
    "base": base,
    "paper": paper,
    "paper-transfer": paper_transfer,
    "finetune": finetune,
}
