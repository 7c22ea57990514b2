"""Whether an answer about a box is about that box: reading the picture is not reading the box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from granvit.evaluate.items import Item
from granvit.texts import one_spaced


def box_specificity(items: Sequence[Item], images: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Two tables (images, 2) of sums and counts, of answers about the boxes of pictures with several.

    The first counts pairs of boxes of one picture whose true texts differ, and among them those that got different
    answers. The second counts the answers about boxes that stand beside another text, and among them those that are the
    text of another region of the picture and not the box's own. Case and runs of blanks do not count.

    Args:
        items: answered questions about boxes. images: the pictures, in the tables' order.
    """
    place = {name: n for n, name in enumerate(images)}
    distinct, swapped = np.zeros((len(images), 2)), np.zeros((len(images), 2))
    of_image: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        of_image[item.id].append(item)
    for name, asked in of_image.items():
        row = place[name]
        truths = [{_plain(text) for text in item.truth} for item in asked]
        said = [_plain(item.said) for item in asked]
        for (a, true_a), (b, true_b) in combinations(zip(said, truths, strict=True), 2):
            if not true_a & true_b:
                distinct[row] += (a != b, 1)
        everything = set().union(*truths)
        for answer, own in zip(said, truths, strict=True):
            if everything - own:
                swapped[row] += (answer in everything - own, 1)
    return distinct, swapped


def _plain(text: str) -> str:
    return one_spaced(text.casefold())
