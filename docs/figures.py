"""Makes the pictures of the README out of a run: `python docs/figures.py runs/demo`.

docs/figures/in-and-out.webp shows what goes into a run and what comes out of it, docs/figures/report.webp the top of
its report as a browser shows it (it needs Chromium and the package playwright).
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from itertools import count
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from granvit.corpus.synthetic.synthesize import make
from granvit.draw import colors_for, draw_boxes
from granvit.predict import GranViT
from granvit.regions import RegionImage

FIGURES = Path(__file__).parent / "figures"
_SIDE, _GAP, _TEXT = 320, 24, 26
_SEED = 1_000_001  # of the demo's held-out pictures


def in_and_out(run: Path, picture: int) -> Image.Image:
    """Left a picture with its regions, as they are learned from; right what the trained model says of another one."""
    model = GranViT.load(run)
    learned, asked = (_scene(picture, seed) for seed in (1, _SEED))
    regions = learned.regions[:4]
    given = _drawn(learned.image or b"", [r.box for r in regions], [str(n) for n in range(1, len(regions) + 1)])
    boxes = [r.box for r in asked.regions[:2]]
    said = model.describe(asked.image or b"", boxes)
    phrases = [r.text for r in asked.regions[2:4]]
    found = model.locate(asked.image or b"", phrases)
    there = [(f"“{phrase}”", box) for phrase, box in zip(phrases, found, strict=True) if box is not None]
    answered = _drawn(asked.image or b"", [*boxes, *(b for _, b in there)], [*"AB", *"CD"[: len(there)]], first=4)
    lines = [
        ("what goes in: pictures, boxes, texts", [f"{n}  {r.text}" for n, r in enumerate(regions, start=1)]),
        (
            "what comes out, on a picture it never saw",
            [f"{name}  box → {text}" for name, text in zip("AB", said, strict=True)]
            + [f"{name}  {phrase} → box" for name, (phrase, _) in zip("CD", there, strict=False)],
        ),
    ]
    return _beside([given, answered], lines)


def _scene(first: int, seed: int) -> RegionImage:
    """The first scene from there on that has four objects to speak of."""
    scenes = (make(index, seed=seed, size=160, documents=0.0) for index in count(first))
    return next(scene for scene in scenes if len(scene.regions) >= 4)


def _drawn(image: bytes, boxes: list, names: list[str], first: int = 0) -> Image.Image:
    colors = colors_for(first + len(boxes))[first:]
    picture = Image.open(io.BytesIO(image)).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    scaled = [[2 * side for side in box] for box in boxes]
    return draw_boxes(picture, scaled, names, colors)


def _beside(pictures: list[Image.Image], lines: list[tuple[str, list[str]]]) -> Image.Image:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = (ImageFont.truetype(str(fonts / f"DejaVuSans{kind}.ttf"), 15) for kind in ("", "-Bold"))
    width = 2 * (_SIDE + 100) + 3 * _GAP
    rows = max(len(texts) for _, texts in lines)
    sheet = Image.new("RGB", (width, _SIDE + (rows + 2) * _TEXT + 2 * _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, (title, texts)) in enumerate(zip(pictures, lines, strict=True)):
        x = _GAP + number * (_SIDE + 100 + _GAP)
        pen.text((x, _GAP), title, fill="#111827", font=bold)
        sheet.paste(picture, (x, _GAP + _TEXT))
        for row, text in enumerate(texts):
            pen.text((x, 2 * _GAP + _TEXT + _SIDE + row * _TEXT - 10), text, fill="#111827", font=plain)
    return sheet


def report_picture(run: Path) -> Image.Image:
    """The top of the run's report, as a browser shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 1180})
        page.goto((run / "report.html").resolve().as_uri())
        shot = page.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.thumbnail((900, 900))
    return picture


def main() -> int:
    run, picture = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4
    FIGURES.mkdir(exist_ok=True)
    in_and_out(run, picture).save(FIGURES / "in-and-out.webp", quality=82)
    report_picture(run).save(FIGURES / "report.webp", quality=78)
    recipe = json.loads((run / "recipe.json").read_text())
    steps = [stage["loop"]["steps"] for stage in recipe["stages"]]
    print(f"{FIGURES}: of {run}, recipe {recipe['name']}, {steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
