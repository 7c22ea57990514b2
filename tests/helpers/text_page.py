"""A page of three lines of text, drawn, with the boxes of its lines and words."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

LINES = ("Invoice number 20417", "Total amount 88.50 EUR", "Thank you")


def page(scale: int = 1) -> tuple[Image.Image, list[tuple[float, ...]], list[tuple[float, ...]]]:
    """A page with the boxes of its lines, and of the words of the first one."""
    picture = Image.new("RGB", (640 * scale, 340 * scale), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(36 * scale)
    lines, words = [], []
    for number, text in enumerate(LINES):
        corner = (60 * scale, (50 + 90 * number) * scale)
        draw.text(corner, text, fill="black", font=font)
        lines.append(draw.textbbox(corner, text, font=font))
    before = ""
    for word in LINES[0].split():
        corner = (60 * scale + draw.textlength(before, font=font), 50 * scale)
        words.append(draw.textbbox(corner, word, font=font))
        before += word + " "
    return picture, lines, words
