"""Server processes for the tests of captions, and pictures whose captions are known."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from helpers.chat_server import MODEL, PALETTE, colour_of
from helpers.served import Process
from PIL import Image

from granvit.corpus.annotate.base import Item
from granvit.regions import Region, RegionImage

CHAT_SERVER = Path(__file__).parent / "chat_server.py"


class ChatServer(Process):
    """`chat_server.py` and its log."""

    def __init__(self, folder: Path):
        self.log = folder / "log.jsonl"
        self.log.touch()
        super().__init__(lambda port: [sys.executable, str(CHAT_SERVER), str(port), str(self.log)], "/", folder / "out")

    def events(self, kind: str, who: str) -> list[dict]:
        """The lines of its log: "asked" or "answered"."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [row for row in rows if (row["event"], row["who"]) == (kind, who)]


@dataclass(frozen=True)
class Service:
    """One way in which a server behaves, towards one who asks."""

    server: ChatServer
    behaviour: str = "plain"
    who: str = "me"

    @property
    def url(self) -> str:
        return f"{self.server.address}/{self.behaviour}/{self.who}/v1"

    def events(self, kind: str) -> list[dict]:
        return self.server.events(kind, self.who)


def painted(name: str, boxes: int, seed: int = 0, size: tuple[int, int] = (300, 200)) -> Item:
    """A grey picture with coloured rectangles of different sizes, side by side, and a region on each.

    A little noise makes every rectangle unlike any other.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    pixels = np.full((size[1], size[0], 3), PALETTE["grey"], np.uint8)
    regions = []
    for i in range(boxes):
        x, y = 5 + i * (size[0] - 10) // boxes, int(rng.integers(5, 20))
        width, height = min(60, (size[0] - 10) // boxes - 1), int(rng.integers(60, 180))
        pixels[y : y + height, x : x + width] = PALETTE[("red", "green", "blue")[i % 3]]
        regions.append(
            Region((x, y, x + width, y + height), "thing", score=0.9, box_by="detector:d", text_by="detector:d")
        )
    noise = rng.integers(-9, 10, pixels.shape)
    picture = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Item(RegionImage(name, file.getvalue(), *size, regions), picture)


def expected(item: Item) -> list[str]:
    """What the server says of each region."""
    captions = []
    for region in item.record.regions:
        x1, y1, x2, y2 = (int(v) for v in region.box)
        scale = max(1.0, 56 / min(x2 - x1, y2 - y1))
        part = item.picture.crop((x1, y1, x2, y2))
        captions.append(f"{colour_of(part)} part {round((x2 - x1) * scale)}x{round((y2 - y1) * scale)}")
    return captions


__all__ = ["MODEL", "ChatServer", "Process", "Service", "expected", "painted"]
