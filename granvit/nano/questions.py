"""How the warm-up of a from-scratch language model asks for a place.

It learns to look things up, but in words and in an order of coordinates of its own: Caption2Bbox is new to it in stage
2, as it is to the paper's pretrained model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from granvit.coordinates import Box, Codec
from granvit.questions import Coded, Exchange, parse_box

WHERE = "Where in the image is this: "


def where_exchange(box: ArrayLike, text: str, codec: Codec) -> Exchange:
    """The warm-up's way to ask for a region, answered as y1, x1, y2, x2 (PaliGemma's order).

    `box` is relative (x1, y1, x2, y2) in [0, 1].
    """
    return Exchange("caption2bbox", WHERE + text, Coded(codec.encode(np.asarray(box)[[1, 0, 3, 2]])))


def parse_where(answer: str, codec: Codec) -> Box | None:
    """The relative box (x1, y1, x2, y2) of an answer to `where_exchange`, or None."""
    box = parse_box(answer, codec)
    return None if box is None else (box[1], box[0], box[3], box[2])
