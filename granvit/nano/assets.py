"""The shipped parts, and the files in which from-scratch parts keep what no stock checkpoint holds."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"
LANGUAGE = ASSETS / "nano-language"
ENCODERS = {"nano": ASSETS / "nano-encoder", "nano-reader": ASSETS / "nano-reader"}
# What a warmed-up language model was shown as each patch's place: "places", (patches, hidden).
PLACES = "places.safetensors"
# The head of an encoder's warm-up: which word is in which patch.
WORDS = "words.safetensors"
