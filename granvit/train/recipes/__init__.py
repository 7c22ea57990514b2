"""Every recipe by name."""

from collections.abc import Callable

from granvit.train.recipes.base import Recipe
from granvit.train.recipes.nano import nano, nano_language_warmup, nano_paper

RECIPES: dict[str, Callable[[], Recipe]] = {
    "nano": nano,
    "nano-paper": nano_paper,
    "nano-language": nano_language_warmup,
}
