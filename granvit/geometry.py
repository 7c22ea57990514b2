"""Boxes, and the one type that moves image and boxes together.

Every box in the project is ``(x1, y1, x2, y2)``: float pixels of the EXIF-upright image, origin at the
top-left corner, right and bottom edges exclusive. A `View` says which rectangle of the image the model sees
and how it becomes the model's square canvas, a `TiledView` how several. No other module does box arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from granvit.errors import GranvitError

Boxes = NDArray[np.float64]
Frame = Literal["image", "canvas"]
Fit = Literal["letterbox", "squash"]
# Columns and rows of a grid of canvases.
Shape = tuple[int, int]
# Pixels of a padded picture that is made whole (200 MB).
_LARGEST_SQUARE = 1 << 26


def as_boxes(boxes: ArrayLike) -> Boxes:
    """Boxes as an array of shape (N, 4); a single box gives N = 1.

    Raises:
        ValueError: the input does not hold four numbers per box.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim not in (1, 2) or array.shape[-1] != 4:
        raise GranvitError(f"boxes must have shape (N, 4) or (4,), got {array.shape}")
    return array.reshape(-1, 4)


def area(boxes: ArrayLike) -> NDArray[np.float64]:
    """Areas in square pixels, shape (N,); an inverted box has area 0."""
    return sizes(boxes).prod(axis=1)


def sizes(boxes: ArrayLike) -> Boxes:
    """Widths and heights in pixels, shape (N, 2); an inverted side is 0."""
    b = as_boxes(boxes)
    return np.clip(b[:, 2:] - b[:, :2], 0, None)


def centres(boxes: ArrayLike) -> Boxes:
    """Centres (x, y) in pixels, shape (N, 2)."""
    b = as_boxes(boxes)
    return (b[:, :2] + b[:, 2:]) / 2


def clip(boxes: ArrayLike, width: float, height: float) -> Boxes:
    """Boxes cut to the image, shape (N, 4). `width` and `height` in pixels."""
    return np.clip(as_boxes(boxes), 0, [width, height, width, height])


def clip_box(box: Sequence[float], width: float, height: float) -> tuple[float, float, float, float]:
    """`clip` of a single box of finite numbers, some ten times as fast."""
    x1, y1, x2, y2 = box
    return (
        float(min(max(x1, 0), width)),
        float(min(max(y1, 0), height)),
        float(min(max(x2, 0), width)),
        float(min(max(y2, 0), height)),
    )


def whole_pixels(box: ArrayLike, width: int, height: int) -> tuple[int, int, int, int]:
    """The smallest rectangle of whole pixels of an image that holds a box; empty where the box lies outside."""
    x1, y1, x2, y2 = clip(box, width, height)[0]
    return int(np.floor(x1)), int(np.floor(y1)), int(np.ceil(x2)), int(np.ceil(y2))


def intersection(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Pairwise intersection areas in square pixels, shape (len(a), len(b))."""
    a_n4, b_m4 = as_boxes(a), as_boxes(b)
    low = np.maximum(a_n4[:, None, :2], b_m4[None, :, :2])
    high = np.minimum(a_n4[:, None, 2:], b_m4[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1)


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Pairwise intersection over union in [0, 1], shape (len(a), len(b)); 0 where both areas are 0."""
    overlap = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def paired_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each box of `a` with that of its index in `b`, shape (N,); 0 where both are empty."""
    a_n4, b_n4 = as_boxes(a), as_boxes(b)
    corners_n4 = np.concatenate([np.maximum(a_n4[:, :2], b_n4[:, :2]), np.minimum(a_n4[:, 2:], b_n4[:, 2:])], axis=1)
    overlap = area(corners_n4)
    union = area(a_n4) + area(b_n4) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def hull(points: ArrayLike) -> tuple[float, float, float, float]:
    """The box around points of shape (N, 2), or around a flat polygon x, y, x, y, ..."""
    points_n2 = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    (left, top), (right, bottom) = points_n2.min(0).tolist(), points_n2.max(0).tolist()
    return left, top, right, bottom


def part_of_line(quad: ArrayLike, start: float, end: float) -> NDArray[np.float64]:
    """The part of a line of text from `start` to `end`, as shares of its length, cut to the line; shape (4, 2).

    `quad` holds the line's corners from the top left clockwise, shape (4, 2). A line half as high again as wide is
    taken to be written downwards, as PP-OCR does.
    """
    corners = np.asarray(quad, dtype=np.float64)
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    vertical = max(sides[1], sides[3]) >= 1.5 * max(sides[0], sides[2])
    if vertical:
        corners = np.roll(corners, -1, axis=0)  # from the top right: the line's own top left when it is laid down
    top_left, top_right, bottom_right, bottom_left = corners
    low, high = np.clip([start, end], 0, 1)
    part = np.stack(
        [
            top_left + low * (top_right - top_left),
            top_left + high * (top_right - top_left),
            bottom_left + high * (bottom_right - bottom_left),
            bottom_left + low * (bottom_right - bottom_left),
        ]
    )
    return np.roll(part, 1, axis=0) if vertical else part


def rotated_back(points: ArrayLike, turns: int, width: float, height: float) -> NDArray[np.float64]:
    """Points of a picture that was turned, where they lie on it as it was, shape (N, 2).

    Args:
        turns: quarters by which it was turned counterclockwise, 0 to 3.
        width, height: of the turned picture, pixels.
    """
    x, y = np.asarray(points, dtype=np.float64).T
    back = {0: (x, y), 1: (height - y, x), 2: (width - x, height - y), 3: (y, width - x)}
    return np.stack(back[turns], axis=1)


def cells(columns: int, side: float, rows: int | None = None) -> Boxes:
    """The squares of `side` pixels of a grid, row by row, shape (rows * columns, 4); by default `rows` = `columns`."""
    y, x = np.divmod(np.arange(columns * (columns if rows is None else rows)), columns)
    return np.stack([x, y, x + 1, y + 1], axis=1) * float(side)


def free_box(
    box: ArrayLike, width: float, height: float, avoid: ArrayLike, rng: np.random.Generator
) -> tuple[float, float, float, float] | None:
    """A box of the same size at a random place where it overlaps none of `avoid`, or None after 20 tries."""
    side_2 = sizes(box)[0]
    for _ in range(20):
        corner_2 = rng.random(2) * (np.array([width, height]) - side_2)
        x1, y1, x2, y2 = np.concatenate([corner_2, corner_2 + side_2]).tolist()
        if not intersection((x1, y1, x2, y2), avoid).any():
            return x1, y1, x2, y2
    return None


def covered_share(boxes: ArrayLike, width: float, height: float) -> float:
    """The share of an image that lies in at least one of the boxes, in [0, 1]. `width` and `height` in pixels."""
    boxes_n4 = clip(boxes, width, height)
    boxes_n4 = boxes_n4[area(boxes_n4) > 0]
    xs, ys = np.unique(boxes_n4[:, ::2]), np.unique(boxes_n4[:, 1::2])
    covered = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), dtype=bool)
    for x1, y1, x2, y2 in boxes_n4:
        covered[slice(*np.searchsorted(ys, (y1, y2))), slice(*np.searchsorted(xs, (x1, x2)))] = True
    return float(np.diff(ys) @ covered @ np.diff(xs)) / (width * height)


@dataclass(frozen=True)
class View:
    """How a rectangle of an image becomes the model's canvas.

    The rectangle `source` is cut out, padded by `padding` (left, top) to `padded` (width, height), and resized
    to `canvas` (width, height). All but `canvas` are in whole image pixels, so that the picture is exactly
    what the stock `LlavaImageProcessor` (letterbox) or `SiglipImageProcessor` (squash) would make of it.
    """

    source: tuple[int, int, int, int]
    padding: tuple[int, int]
    padded: tuple[int, int]
    canvas: tuple[int, int]

    def shows_all(self, width: int, height: int) -> bool:
        """Whether the whole of an image of `width` x `height` pixels is seen."""
        return self.source == (0, 0, width, height)

    @classmethod
    def letterbox(cls, size: tuple[int, int], canvas: int) -> View:
        """The whole image, padded to a centred square. `size` is (width, height) in pixels."""
        return cls.window((0, 0, *size), canvas)

    @classmethod
    def squash(cls, size: tuple[int, int], canvas: int) -> View:
        """The whole image, stretched to the square canvas; the aspect ratio is not kept."""
        width, height = size
        return cls((0, 0, width, height), (0, 0), (width, height), (canvas, canvas))

    @classmethod
    def window(cls, source: tuple[int, int, int, int], canvas: int) -> View:
        """A part of the image, letterboxed: for small text and tiny objects.

        `source` is (x1, y1, x2, y2) in whole image pixels.

        Raises:
            ValueError: the window is empty.
        """
        x1, y1, x2, y2 = source
        width, height = x2 - x1, y2 - y1
        if width <= 0 or height <= 0:
            raise GranvitError(f"window {source} is empty")
        side = max(width, height)
        return cls(source, ((side - width) // 2, (side - height) // 2), (side, side), (canvas, canvas))

    @classmethod
    def window_around(
        cls,
        box: ArrayLike,
        size: tuple[int, int],
        side: int,
        canvas: int,
        offset: ArrayLike = (0.0, 0.0),
        shapes: Sequence[Shape] = (),
    ) -> View:
        """A window of at most `side` x `side` pixels around a box, inside an image of `size` (width, height).

        `offset` moves the box away from the window's centre, as (x, y) shares of the window's side. Tiled in one of
        `shapes`, where there are any.
        """
        limits = np.minimum(side, size)
        centre = as_boxes(box)[0].reshape(2, 2).mean(0) + np.asarray(offset) * limits
        corner = np.clip(np.round(centre - limits / 2), 0, np.asarray(size) - limits).astype(int)
        x1, y1, x2, y2 = (int(v) for v in (*corner, *(corner + limits)))
        source = (x1, y1, x2, y2)
        return TiledView.of(source, shapes, canvas) if shapes else cls.window(source, canvas)

    @classmethod
    def crop(cls, source: tuple[int, int, int, int], canvas: int) -> View:
        """A part of the image, stretched to the square canvas; `source` is xyxy in whole image pixels."""
        x1, y1, x2, y2 = source
        return cls(source, (0, 0), (x2 - x1, y2 - y1), (canvas, canvas))

    @classmethod
    def fit(cls, how: Fit, size: tuple[int, int], canvas: int, shapes: Sequence[Shape] = ()) -> View:
        """The whole image by the named way: "letterbox" or "squash"; tiled in one of `shapes`, where there are any."""
        if shapes:
            return TiledView.of((0, 0, *size), shapes, canvas)
        return cls.letterbox(size, canvas) if how == "letterbox" else cls.squash(size, canvas)

    @property
    def count(self) -> int:
        """How many canvases show it."""
        return 1

    @property
    def _scale(self) -> Boxes:
        return np.tile(np.divide(self.canvas, self.padded), 2)

    @property
    def _shift(self) -> Boxes:
        return np.tile(np.subtract(self.padding, self.source[:2]), 2)

    def to_canvas(self, boxes: ArrayLike) -> Boxes:
        """Image pixels -> canvas pixels, shape (N, 4). Not clipped."""
        return (as_boxes(boxes) + self._shift) * self._scale

    def to_image(self, boxes: ArrayLike) -> Boxes:
        """Canvas pixels -> image pixels, shape (N, 4). Not clipped."""
        return as_boxes(boxes) / self._scale - self._shift

    def to_features(self, boxes: ArrayLike) -> Boxes:
        """Image pixels -> pixels of the picture whose features a region is taken from, here the canvas; not clipped."""
        return self.to_canvas(boxes)

    def _frame(self, frame: Frame) -> tuple[Boxes, Boxes]:
        """Origin and size of the reference rectangle, in image pixels."""
        x1, y1, x2, y2 = self.source
        if frame == "image":
            return np.array([x1, y1, x1, y1], float), np.array([x2 - x1, y2 - y1] * 2, float)
        return -self._shift.astype(float), np.tile(np.asarray(self.padded, float), 2)

    def to_relative(self, boxes: ArrayLike, frame: Frame) -> Boxes:
        """Image pixels -> [0, 1] of the visible image ("image") or of the padded canvas ("canvas"), clipped to it."""
        origin, size = self._frame(frame)
        return np.clip((as_boxes(boxes) - origin) / size, 0, 1)

    def from_relative(self, boxes: ArrayLike, frame: Frame) -> Boxes:
        """[0, 1] of the chosen frame -> image pixels, shape (N, 4), cut to the visible rectangle."""
        origin, size = self._frame(frame)
        x1, y1, x2, y2 = self.source
        return np.clip(as_boxes(boxes) * size + origin, [x1, y1, x1, y1], [x2, y2, x2, y2])

    def visible(self, boxes: ArrayLike) -> NDArray[np.float64]:
        """The share of each box's area that lies in the source rectangle, in [0, 1], shape (N,)."""
        total = area(boxes)
        inside = intersection(boxes, self.source)[:, 0]
        return np.divide(inside, total, out=np.zeros_like(total), where=total > 0)

    def clip(self, boxes: ArrayLike) -> Boxes:
        """Image pixels cut to the source rectangle, shape (N, 4)."""
        x1, y1, x2, y2 = self.source
        return np.clip(as_boxes(boxes), [x1, y1, x1, y1], [x2, y2, x2, y2])

    def apply(self, image: Image.Image, fill: tuple[int, int, int] = (127, 127, 127)) -> Image.Image:
        """The canvas as an RGB picture. `image` is EXIF-upright RGB; padding takes the colour `fill` (0-255).

        Raises:
            ValueError: the source rectangle does not lie in the image.
        """
        x1, y1, x2, y2 = self.source
        if x1 < 0 or y1 < 0 or x2 > image.width or y2 > image.height:
            raise GranvitError(f"view {self.source} does not fit an image of {image.width}x{image.height} pixels")
        if self.source != (0, 0, *image.size):
            image = image.crop(self.source)
        if self.padded != image.size:
            if math.prod(self.padded) > _LARGEST_SQUARE:
                return self._strip(image, fill)
            square = Image.new("RGB", self.padded, fill)
            square.paste(image, self.padding)
            image = square
        return image if image.size == self.canvas else image.resize(self.canvas, Image.Resampling.BICUBIC)

    def _strip(self, image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
        """The same canvas, pixel for pixel, without the padded square: that of a strip can be larger than memory.

        Pillow resizes rows first, then columns, so that a few at a time can be padded and resized.
        """
        (width, height), (left, top), (columns, rows) = self.padded, self.padding, self.canvas
        narrow = Image.new("RGB", (columns, image.height))
        step = max(1, _LARGEST_SQUARE // width)
        for y in range(0, image.height, step):
            some = image.crop((0, y, image.width, min(y + step, image.height)))
            padded = Image.new("RGB", (width, some.height), fill)
            padded.paste(some, (left, 0))
            narrow.paste(padded.resize((columns, some.height), Image.Resampling.BICUBIC), (0, y))
        canvas = Image.new("RGB", self.canvas)
        step = max(1, _LARGEST_SQUARE // height)
        for x in range(0, columns, step):
            some = narrow.crop((x, 0, min(x + step, columns), image.height))
            padded = Image.new("RGB", (some.width, height), fill)
            padded.paste(some, (0, top))
            canvas.paste(padded.resize((some.width, rows), Image.Resampling.BICUBIC), (x, 0))
        return canvas

    def canvases(self, image: Image.Image, fill: tuple[int, int, int] = (127, 127, 127)) -> NDArray[np.uint8]:
        """All that the model sees, (`count`, H, W, 3); arguments and errors as of `apply`."""
        return np.asarray(self.apply(image, fill))[None]


@dataclass(frozen=True)
class TiledView(View):
    """A rectangle of an image twice: stretched to one canvas, the overview, and larger, over a grid of canvases.

    This is how LLaVA-NeXT shows pictures, pixel for pixel. As a `View` it is the overview; the *mosaic* of the tiles
    side by side holds the rectangle in its own proportions, centred on black. Of the mosaic the language model sees the
    patches that hold more than padding, row by row.
    """

    grid: Shape = (1, 1)

    @classmethod
    def of(cls, source: tuple[int, int, int, int], shapes: Sequence[Shape], canvas: int) -> TiledView:
        """The rectangle in the grid, out of `shapes`, that shows most of its pixels and wastes the fewest.

        Args:
            source: xyxy in whole image pixels.
            shapes: at least one; of two that are as good the first.
        """
        x1, y1, x2, y2 = source
        width, height = x2 - x1, y2 - y1

        def worth(shape: Shape) -> tuple[int, int]:
            mosaic = shape[0] * canvas, shape[1] * canvas
            scale = min(mosaic[0] / width, mosaic[1] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - mosaic[0] * mosaic[1]

        return cls(source, (0, 0), (width, height), (canvas, canvas), max(shapes, key=worth))

    @property
    def count(self) -> int:
        return 1 + self.grid[0] * self.grid[1]

    @property
    def mosaic(self) -> tuple[int, int]:
        """Width and height of the tiles side by side, pixels."""
        return self.grid[0] * self.canvas[0], self.grid[1] * self.canvas[1]

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the picture on the mosaic, pixels."""
        (width, height), (most_x, most_y) = self.padded, self.mosaic
        scale_x, scale_y = most_x / width, most_y / height
        if scale_x < scale_y:
            return most_x, min(math.ceil(height * scale_x), most_y)
        return min(math.ceil(width * scale_y), most_x), most_y

    @property
    def _corner(self) -> tuple[int, int]:
        """Where the picture begins on the mosaic, pixels."""
        return (self.mosaic[0] - self.resized[0]) // 2, (self.mosaic[1] - self.resized[1]) // 2

    @property
    def finer(self) -> bool:
        """Whether a region is larger on the mosaic than on the overview; so are then all of the picture."""
        return math.prod(self.resized) > math.prod(self.canvas)

    def to_mosaic(self, boxes: ArrayLike) -> Boxes:
        """Image pixels -> pixels of the mosaic, shape (N, 4). Not clipped."""
        scale = np.tile(np.divide(self.resized, self.padded), 2)
        return (as_boxes(boxes) + self._shift) * scale + np.tile(self._corner, 2)

    def to_features(self, boxes: ArrayLike) -> Boxes:
        """Image pixels -> pixels of the mosaic or of the overview: of which shows the region larger. Not clipped."""
        return self.to_mosaic(boxes) if self.finer else self.to_canvas(boxes)

    def unpadded(self, per_side: int) -> tuple[int, int, int, int]:
        """Which cells of the mosaic are shown, xyxy; a canvas has `per_side` x `per_side`.

        As LLaVA-NeXT counts them: in whole cells, as many on either side of the picture.
        """
        (width, height), (columns, rows) = self.padded, (self.grid[0] * per_side, self.grid[1] * per_side)
        if width / height > columns / rows:
            padding = (rows - int(round(height * (columns / width), 7))) // 2
            return 0, padding, columns, rows - padding
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        return padding, 0, columns - padding, rows

    def tokens(self, per_side: int) -> int:
        """How many tokens show it: the overview's cells, and the mosaic's rows with a token that ends each."""
        left, top, right, bottom = self.unpadded(per_side)
        return per_side**2 + (bottom - top) * (right - left + 1)

    def shares(self, per_side: int) -> NDArray[np.float64]:
        """Which of the overview's cells show what each token shows, as shares; (`tokens`, per_side * per_side).

        A canvas has `per_side` x `per_side` cells. Rows sum to 1, but those of tokens that end a row, and of cells of
        nothing but padding, to 0.
        """
        side = self.canvas[0] / per_side
        overview = cells(per_side, side)
        left, top, right, bottom = self.unpadded(per_side)
        of_mosaic = cells(self.grid[0] * per_side, side, self.grid[1] * per_side)
        scale = np.tile(np.divide(self.canvas, self.resized), 2)
        seen = intersection((of_mosaic - np.tile(self._corner, 2)) * scale, overview)
        total = seen.sum(1, keepdims=True)
        seen = np.divide(seen, total, out=np.zeros_like(seen), where=total > 0)
        shown = seen.reshape(self.grid[1] * per_side, self.grid[0] * per_side, -1)[top:bottom, left:right]
        lines = np.pad(shown, ((0, 0), (0, 1), (0, 0))).reshape(-1, len(overview))
        return np.concatenate([np.eye(len(overview)), lines])

    def canvases(self, image: Image.Image, fill: tuple[int, int, int] = (127, 127, 127)) -> NDArray[np.uint8]:
        """The overview and the tiles, row by row, (`count`, H, W, 3); nothing takes the colour `fill`."""
        overview = np.asarray(self.apply(image))
        picture = image if self.source == (0, 0, *image.size) else image.crop(self.source)
        mosaic = Image.new("RGB", self.mosaic)
        mosaic.paste(picture.resize(self.resized, Image.Resampling.BICUBIC), self._corner)
        (columns, rows), (width, height) = self.grid, self.canvas
        tiles = np.asarray(mosaic).reshape(rows, height, columns, width, 3).swapaxes(1, 2)
        return np.concatenate([overview[None], tiles.reshape(-1, height, width, 3)])

    def drawn(self, canvases: NDArray[np.uint8]) -> Image.Image:
        """Of `canvases` those that `to_features` tells of, as one picture: the mosaic, or the overview."""
        if not self.finer:
            return Image.fromarray(canvases[0])
        (columns, rows), (width, height) = self.grid, self.canvas
        tiles = canvases[1:].reshape(rows, columns, height, width, 3).swapaxes(1, 2)
        return Image.fromarray(tiles.reshape(rows * height, columns * width, 3))
