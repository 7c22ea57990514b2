"""How a checkpoint preprocesses images and writes boxes; a file of its own, because recipes name it without torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from granvit.coordinates import get_codec
from granvit.errors import CheckpointError, GranvitError
from granvit.geometry import Fit, Frame, Shape

# The one file of a checkpoint that only this package reads.
SETTINGS_FILE = "granvit.json"

# Of exported weights.
Precision = Literal["float32", "float16", "bfloat16"]

# The side, in canvases, of the largest mosaic.
_MOST_TILES = 16


@dataclass(frozen=True)
class Settings:
    """How this checkpoint preprocesses images and writes boxes.

    Attributes:
        codec: how boxes are written ("decimal", "int1000", "loc", "loc:BINS", "cell:BINS").
        frame: what relative coordinates refer to: the visible "image" or the padded "canvas".
        fit: how the whole image becomes the canvas: "letterbox" (the paper) or "squash".
        tiles: grids of further canvases that show the picture larger, COLUMNSxROWS with commas between ("2x1,1x2,2x2");
            each picture takes the one that suits it. Empty: one canvas alone. It wants `fit` "squash".
    """

    codec: str = "decimal"
    frame: Frame = "image"
    fit: Fit = "letterbox"
    tiles: str = field(default="", metadata={"newer": True, "seldom": True})  # see `granvit.train.identity`, `config`

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The grids that `tiles` names, (columns, rows) each; none where it is empty.

        Raises:
            GranvitError: it is not written so, or `fit` does not go with it.
        """
        if not self.tiles:
            return ()
        found = [re.fullmatch(r"([1-9][0-9]?)x([1-9][0-9]?)", shape.strip()) for shape in self.tiles.split(",")]
        shapes = [(int(each[1]), int(each[2])) for each in found if each]
        if len(shapes) < len(found) or len(set(shapes)) < len(shapes) or max(map(max, shapes)) > _MOST_TILES:
            raise GranvitError(
                f"tiles {self.tiles!r}: expected different grids of up to {_MOST_TILES} canvases a side, COLUMNSxROWS "
                "with commas between, such as 2x1,1x2,2x2"
            )
        if self.fit != "squash":
            raise GranvitError("tiles: their overview is stretched to the canvas, so fit must be 'squash' too")
        return tuple(shapes)

    def to_json(self) -> dict[str, str]:
        """As `granvit.json` has them: without `tiles` where there are none, as before there were any."""
        return {name: value for name, value in asdict(self).items() if value or name != "tiles"}


def read_settings(folder: Path) -> Settings:
    """What a checkpoint's `granvit.json` says.

    Raises:
        CheckpointError: it is missing, unreadable, or holds a setting that does not exist.
    """
    from granvit.loading.checkpoint_files import read_json  # with the libraries of weights and tokenizers

    path = folder / SETTINGS_FILE
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; is this a granvit checkpoint?")
    try:
        content = read_json(path)
        if unknown := content.keys() - {field.name for field in fields(Settings)}:
            raise CheckpointError(f"{path}: unknown setting {sorted(unknown)[0]!r}")
        if odd := [name for name, value in content.items() if not isinstance(value, str)]:
            raise CheckpointError(f"{path}: {odd[0]} is {content[odd[0]]!r}, not a text")
        settings = Settings(**content)
        get_codec(settings.codec)
        _ = settings.shapes  # raises where they are not written as they should be
    except CheckpointError:
        raise
    except GranvitError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if settings.frame not in ("image", "canvas") or settings.fit not in ("letterbox", "squash"):
        raise CheckpointError(f"{path}: unknown frame {settings.frame!r} or fit {settings.fit!r}")
    return settings
