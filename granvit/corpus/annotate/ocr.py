"""Reading text: PP-OCR finds the lines of a picture and transcribes them, as in the paper's text part (section 3).

The weights of PP-OCRv6-small come with the `rapidocr` package and run on a CPU. Other PP-OCR checkpoints run through
`transformers` (`granvit.corpus.annotate.ocr_networks`), inside the same chain of cutting, scaling and decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from granvit import geometry
from granvit.corpus.annotate.base import AnnotateError, Annotator, Item, each_or_why
from granvit.corpus.annotate.ocr_boxes import Quad
from granvit.corpus.annotate.ocr_reading import Line, Reader, Reading
from granvit.corpus.importers.text_lines import outlined
from granvit.regions import Region

# A picture that can be read, pixels.
_PLAIN = (256, 256)

Level = Literal["line", "word", "both"]


@dataclass(frozen=True)
class OcrConfig:
    """Text lines or words with their boxes, by PP-OCR.

    Boxes are float pixels of the upright image. Text that is tilted or turned also gets its four corners as polygon,
    clockwise from the top left one of the text: the first side is its upper edge.
    """

    level: Level = "line"
    """What becomes a region: lines, the words of the lines, or both."""
    max_side: int = 960
    """Longer pictures are scaled down to this side, in pixels, to find lines; they are never scaled up. Long strips
    are looked at in parts, and so are pages whose print would become too small."""
    any_way_up: bool = True
    """Also read pages and lines that are turned by 90, 180 or 270 degrees."""
    box_score: float = 0.5
    """Lines that the detector is less sure of, 0 to 1, are not seen."""
    text_score: float = 0.5
    """Lines that the recognizer is less sure of, 0 to 1, are refused."""
    lines_at_once: int = 6
    """Lines recognized together."""
    detector: str = ""
    """A PP-OCRv5/v6 detection checkpoint for transformers (name or folder); empty: the one of rapidocr."""
    recognizer: str = ""
    """A PP-OCRv5/v6 recognition checkpoint for transformers (name or folder); empty: the one of rapidocr."""

    @property
    def name(self) -> str:
        """The annotator's name, as written into the regions."""
        shipped = "PP-OCRv6-small"
        if not (self.detector or self.recognizer):
            return f"rapidocr:{shipped}"
        models = [name.rstrip("/").rpartition("/")[2] or shipped for name in (self.detector, self.recognizer)]
        return f"ppocr:{'+'.join(models)}"

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU would be of use: for a network of transformers, or where onnxruntime is built for it."""
        return bool(self.detector or self.recognizer) or _onnxruntime_has_cuda()

    def build(self, device: str = "cpu") -> Annotator:
        """Load the models.

        Raises:
            AnnotateError: rapidocr is not installed, or a checkpoint cannot be loaded.
        """
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise AnnotateError(f"OCR needs two packages: pip install rapidocr onnxruntime ({error})") from error
        engine: Any = RapidOCR(params=self._engine_settings(device))
        if self.detector or self.recognizer:
            from granvit.corpus.annotate.ocr_networks import NetworkDetector, NetworkRecognizer

            if self.detector:
                engine.text_det = NetworkDetector(self.detector, device, self.max_side, self.box_score)
            if self.recognizer:
                engine.text_rec = NetworkRecognizer(self.recognizer, device, self.lines_at_once)
        _load(engine)
        return OcrAnnotator(self, engine)

    def _engine_settings(self, device: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "Global.log_level": "critical",  # a picture without text is no news
            "Global.use_cls": False,
            "Global.return_word_box": self.level != "line",
            "Det.limit_type": "max",
            "Det.limit_side_len": self.max_side,
            "Det.box_thresh": self.box_score,
            "Rec.rec_batch_num": self.lines_at_once,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if device.startswith("cuda"):
            settings["EngineConfig.onnxruntime.use_cuda"] = _onnxruntime_has_cuda()
            settings["EngineConfig.onnxruntime.cuda_ep_cfg.device_id"] = int(device.partition(":")[2] or 0)
        return settings


def _load(engine: Any) -> None:
    """RapidOCR loads each model when it first needs it: let that be now, where an error is one of installation."""
    blank_hw3 = np.full((64, 64, 3), 255, np.uint8)
    engine.run_ocr_steps(blank_hw3, {})
    engine.recognize_txt([blank_hw3])


def _onnxruntime_has_cuda() -> bool:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return False  # `build` tells what is missing
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


class OcrAnnotator:
    """Replaces the regions of each item by the text that is read in its picture."""

    def __init__(self, config: OcrConfig, engine: Any) -> None:
        self._config = config
        self._reader = Reader(engine, config.max_side, config.any_way_up)

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        for item in items:
            self._annotate(item)
        return list(items)

    def _read(self, pictures: Sequence[Image.Image]) -> list[Reading]:
        return [self._reader.read(picture) for picture in pictures]

    def _annotate(self, item: Item) -> None:
        item.record.regions = []
        (reading,) = each_or_why(self._read, [item.picture], Image.new("RGB", _PLAIN, "white"))
        if isinstance(reading, Exception):
            item.refuse("ocr-failed", f"{type(reading).__name__}: {reading}")
            return
        if reading.turned:
            item.changes[f"page-turned-{reading.turned}"] += 1
        for number, line in enumerate(reading.lines):
            if not line.text.strip():
                item.refuse("unread-text", f"box {_corners(line.quad)}", number)
            elif line.score < self._config.text_score:
                item.refuse("low-text-score", f"{line.score:.2f}: {line.text[:80]}", number)
            else:
                item.record.regions += self._regions(line)

    def _regions(self, line: Line) -> list[Region]:
        whole = [self._region(line.quad, line.text, line.score)] if self._config.level != "word" else []
        return whole + [self._region(*word) for word in line.words]

    def _region(self, quad: Quad, text: str, score: float) -> Region:
        name = self._config.name
        region = outlined(quad.ravel().tolist(), text)
        if region.polygon is None and quad[0].tolist() != list(region.box[:2]):
            region = replace(region, polygon=quad.ravel().tolist())  # which way the text runs
        return replace(region, score=min(max(score, 0.0), 1.0), box_by=name, text_by=name)


def _corners(quad: Quad) -> list[int]:
    return [round(v) for v in geometry.hull(quad)]
