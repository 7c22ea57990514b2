"""PP-OCRv5 and v6 checkpoints of `transformers` in the places of RapidOCR's own two networks.

Only the networks differ: scaling, cutting, sorting and decoding are RapidOCR's. (The image processors of
`transformers` for these models would need torchvision.)
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rapidocr.ch_ppocr_det.main import TextDetector
from rapidocr.ch_ppocr_det.utils import DBPostProcess
from rapidocr.ch_ppocr_rec.main import TextRecognizer
from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode
from rapidocr.utils.typings import LangRec
from transformers import AutoModelForObjectDetection, AutoModelForTextRecognition

from granvit.corpus.annotate.base import AnnotateError
from granvit.loading.models import LoadError, image_settings, load_model


class _Session:
    """A network called with pixels of shape (N, 3, H, W); gives its map (N, 1, H, W) or probabilities (N, T, chars)."""

    def __init__(self, auto_class: Any, name: str, device: str) -> None:
        self._model = load_model(auto_class, name, dtype=torch.float32).to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        output = self._model(pixel_values=torch.from_numpy(pixels).to(self._device))
        return output.last_hidden_state.float().cpu().numpy()


def _load(auto_class: Any, name: str, family: str, device: str) -> tuple[_Session, dict[str, Any]]:
    """The network and the settings of its image processor."""
    try:
        session = _Session(auto_class, name, device)
        return session, image_settings(name)
    except LoadError as error:
        raise AnnotateError(f"{name}: no PP-OCR {family} checkpoint can be loaded: {error.within(name)}") from error


class NetworkDetector(TextDetector):
    """Finds lines as RapidOCR's detector does, with a network of `transformers`.

    Args:
        max_side: longer pictures are scaled down to this side, in pixels.
        box_score: lines below are not seen.

    Raises:
        AnnotateError: `name` is no detection checkpoint.
    """

    def __init__(self, name: str, device: str, max_side: int, box_score: float) -> None:
        # The parent's own `__init__` would load an ONNX file.
        self.session, settings = _load(AutoModelForObjectDetection, name, "detection", device)
        self.limit_side_len, self.limit_type = max_side, "max"
        # Stated for red, green, blue; the picture comes as blue, green, red.
        self.mean, self.std = settings["image_mean"][::-1], settings["image_std"][::-1]
        self.preprocess_op = None
        # The thresholds that `transformers` uses for these models.
        self.postprocess_op = DBPostProcess(thresh=0.3, box_thresh=box_score, unclip_ratio=1.5)


class NetworkRecognizer(TextRecognizer):
    """Reads cut-out lines as RapidOCR's recognizer does, with a network of `transformers`.

    Raises:
        AnnotateError: `name` is no recognition checkpoint, or one whose characters do not fit its network.
    """

    def __init__(self, name: str, device: str, lines_at_once: int) -> None:
        # The parent's own `__init__` would load an ONNX file.
        self.session, settings = _load(AutoModelForTextRecognition, name, "recognition", device)
        characters = list(settings.get("character_list") or [])
        classes = self.session._model.config.head_out_channels
        if len(characters) != classes:
            raise AnnotateError(f"{name}: {len(characters)} characters for a network of {classes}")
        if {*settings["image_mean"], *settings["image_std"]} != {0.5}:
            raise AnnotateError(f"{name}: image_mean and image_std are to be 0.5")
        self.postprocess_op = CTCLabelDecode(character=characters[1:-1])
        self.postprocess_op.character = characters  # "blank" first, as stored
        self.rec_batch_num = lines_at_once
        self.rec_image_shape = [3, settings["size"]["height"], settings["size"]["width"]]
        # What the parent asks its settings for: whether texts run from right to left.
        self.cfg: Any = SimpleNamespace(lang_type=LangRec.CH, font_path=None)
