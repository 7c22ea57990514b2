"""How many images of each source: caps and mixing weights. Which ones is decided by a hash, the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.layout import CorpusError


def mix(
    source: NDArray[np.int32],
    draw: NDArray[np.float64],
    names: list[str],
    caps: Mapping[str, int],
    weights: Mapping[str, float],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images caps, and which the weights, leave out: two masks, shape (N,).

    Of each source the images with the lowest draws stay. The weights keep as many as possible in their proportion; no
    image is repeated. With weights, each source that is left must have one.

    Args:
        source: indices into `names`, shape (N,).
        draw: a number in [0, 1) for each image.

    Raises:
        CorpusError: a source has no weight.
    """
    over_cap = np.zeros(len(source), dtype=bool)
    over_weight = np.zeros(len(source), dtype=bool)
    chosen: dict[str, NDArray[np.int64]] = {}
    for index, name in enumerate(names):
        mine = np.flatnonzero(source == index)
        mine = mine[np.argsort(draw[mine], kind="stable")]
        cap = caps.get(name, len(mine))
        over_cap[mine[cap:]] = True
        if len(mine[:cap]):
            chosen[name] = mine[:cap]
    if weights:
        if missing := sorted(set(chosen) - set(weights)):
            raise CorpusError(f"no weight for the source {missing[0]!r}; 0 leaves it out")
        # The source that is scarcest for its weight sets the size of all.
        whole = min((len(mine) / weights[name] for name, mine in chosen.items() if weights[name] > 0), default=0.0)
        for name, mine in chosen.items():
            over_weight[mine[int(whole * weights[name] + 1e-6) :]] = True
    return over_cap, over_weight
