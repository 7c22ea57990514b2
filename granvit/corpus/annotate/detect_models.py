"""The two families of detectors in `transformers`, called alike: pictures in, boxes in pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
)

from granvit.corpus.annotate.base import AnnotateError
from granvit.geometry import Boxes
from granvit.loading.models import LoadError, load, load_model

# Their text encoder reads all labels as one sentence; the others read each label for itself.
_READS_A_SENTENCE = ("grounding-dino", "mm-grounding-dino")
_READS_LABELS = ("owlvit", "owlv2")


@dataclass
class Found:
    """What a detector sees in one picture: boxes (N, 4) in pixels, scores (N,) in [0, 1], class names (N)."""

    boxes: Boxes
    scores: NDArray[np.float64]
    labels: list[str]


class Detector(Protocol):
    """A loaded detector; `None` for a picture on which its arithmetic failed."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Found | None]: ...


def load_detector(model: str, labels: Sequence[str], threshold: float, device: str, dtype: str) -> Detector:
    """A detector by the name of its checkpoint on the hub, or its folder.

    Raises:
        AnnotateError: it is not there, is no detector, its image processor cannot run here, or `labels` don't fit it.
    """
    try:
        kind = load(AutoConfig, model).model_type
        zero_shot = kind in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES
        if not zero_shot and kind not in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
            raise AnnotateError(f"{model}: its model type {kind!r} is no object detector that transformers knows")
        auto = AutoModelForZeroShotObjectDetection if zero_shot else AutoModelForObjectDetection
        network = load_model(auto, model, dtype=getattr(torch, dtype)).to(device)
        processor = load(AutoProcessor if zero_shot else AutoImageProcessor, model)
    except LoadError as error:
        raise AnnotateError(f"{model}: cannot be loaded as a detector: {error.within(model)}") from error
    if not zero_shot:
        return ClosedSet(network, processor, _checked_classes(model, network, labels), threshold)
    if not labels or not all(label.strip(" .") for label in labels):
        raise AnnotateError(f"{model} is a zero-shot detector: labels must say what to look for, got {tuple(labels)}")
    if kind in _READS_A_SENTENCE:
        return Grounded(network, processor, labels, threshold)
    if kind in _READS_LABELS:
        return OpenVocabulary(network, processor, labels, threshold)
    raise AnnotateError(f"{model}: zero-shot detectors of type {kind!r} are not supported; use Grounding DINO or OWLv2")


def _checked_classes(model: str, network: Any, labels: Sequence[str]) -> dict[int, str]:
    """Class names by index, those to keep."""
    names: dict[int, str] = network.config.id2label
    unknown = sorted(set(labels) - set(names.values()))
    if unknown:
        raise AnnotateError(
            f"{model} has no class {unknown[0]!r}; among its {len(names)} are {list(names.values())[:5]}"
        )
    return {i: name for i, name in names.items() if not labels or name in labels}


class _Base:
    """Runs the network; how scores become classes is up to the family."""

    def __init__(self, network: Any, processor: Any, threshold: float):
        self.network, self.processor, self.threshold = network, processor, threshold

    def _run(self, inputs: Any) -> Any:
        inputs = inputs.to(self.network.device, self.network.dtype)
        with torch.inference_mode():
            outputs = self.network(**inputs)
        # In half precision the sigmoid of the post-processing would round scores, and boxes to 1/8 of a percent.
        outputs.logits, outputs.pred_boxes = outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()
        return outputs

    def _found(
        self, outputs: Any, pictures: Sequence[Image.Image], names: dict[int, str], image_processor: Any
    ) -> list[Found | None]:
        """`names` maps the index of a logit to a class; a box of any other index is left out: not asked for."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        rows = image_processor.post_process_object_detection(outputs, self.threshold, sizes)
        # A token that is masked out has a logit of minus infinity; only NaN is an accident.
        broken = outputs.logits.isnan().flatten(1).any(1) | ~outputs.pred_boxes.isfinite().flatten(1).all(1)
        found: list[Found | None] = []
        for row, bad in zip(rows, broken.tolist(), strict=True):
            mine = [i for i, label in enumerate(row["labels"].tolist()) if label in names]
            labels = [names[int(row["labels"][i])] for i in mine]
            boxes, scores = row["boxes"].double().numpy()[mine], row["scores"].double().numpy()[mine]
            found.append(None if bad else Found(boxes.reshape(-1, 4), scores, labels))
        return found


class ClosedSet(_Base):
    """A detector of the classes it was trained on."""

    def __init__(self, network: Any, processor: Any, names: dict[int, str], threshold: float):
        super().__init__(network, processor, threshold)
        self.names = names

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Found | None]:
        outputs = self._run(self.processor(images=list(pictures), return_tensors="pt"))
        return self._found(outputs, pictures, self.names, self.processor)


class OpenVocabulary(_Base):
    """OWL-ViT and OWLv2: each label is a query of its own."""

    def __init__(self, network: Any, processor: Any, labels: Sequence[str], threshold: float):
        super().__init__(network, processor, threshold)
        self.labels = list(labels)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Found | None]:
        texts = [self.labels] * len(pictures)
        # Longer than the 16 tokens of its text encoder would fail inside the network.
        inputs = self.processor(text=texts, images=list(pictures), return_tensors="pt", truncation=True)
        names = dict(enumerate(self.labels))
        return self._found(self._run(inputs), pictures, names, self.processor.image_processor)


class Grounded(_Base):
    """Grounding DINO and its kin: the labels are one sentence, "a cat. a dog.", and scores are per token of it.

    A box belongs to the label that holds its best token. More labels than the text encoder can read go through in
    several passes.
    """

    def __init__(self, network: Any, processor: Any, labels: Sequence[str], threshold: float):
        super().__init__(network, processor, threshold)
        self.passes = self._sentences([label.strip(" .").lower() for label in labels])

    def _sentences(self, labels: list[str]) -> list[tuple[str, dict[int, str]]]:
        """Sentences that the text encoder can read whole, each with the label of each of its tokens."""
        longest = self.network.config.max_text_len
        sentences: list[tuple[str, dict[int, str]]] = []
        group: list[str] = []
        for label in labels:
            if self._tokens([label]) > longest:
                raise AnnotateError(f"label {label!r} is longer than the detector's {longest} text tokens")
            if group and self._tokens([*group, label]) > longest:
                sentences.append(self._sentence(group))
                group = []
            group.append(label)
        return [*sentences, self._sentence(group)]

    def _tokens(self, labels: list[str]) -> int:
        return len(self.processor.tokenizer(". ".join(labels) + ".")["input_ids"])

    def _sentence(self, labels: list[str]) -> tuple[str, dict[int, str]]:
        text, starts = "", []
        for label in labels:
            starts.append(len(text))
            text += label + ". "
        spans = self.processor.tokenizer(text.strip(), return_offsets_mapping=True)["offset_mapping"]
        names = {}
        for token, (start, end) in enumerate(spans):
            for label, first in zip(labels, starts, strict=True):
                if first <= start < end <= first + len(label):
                    names[token] = label
        return text.strip(), names

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Found | None]:
        merged: list[Found | None] = [Found(np.zeros((0, 4)), np.zeros(0), []) for _ in pictures]
        for text, names in self.passes:
            inputs = self.processor(text=[text] * len(pictures), images=list(pictures), return_tensors="pt")
            outputs = self._run(inputs)
            # Full stops and the sentence's own first and last token name nothing, however well they match.
            nameless = torch.tensor([i not in names for i in range(outputs.logits.shape[-1])])
            outputs.logits = outputs.logits.masked_fill(nameless, float("-inf"))
            found = self._found(outputs, pictures, names, self.processor.image_processor)
            merged = [_joined(a, b) for a, b in zip(merged, found, strict=True)]
        return merged


def _joined(a: Found | None, b: Found | None) -> Found | None:
    if a is None or b is None:
        return None
    return Found(np.concatenate([a.boxes, b.boxes]), np.concatenate([a.scores, b.scores]), a.labels + b.labels)
