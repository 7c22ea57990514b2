"""Asking a vision-language model that is loaded here, through `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption_answers import Answer, Refusal
from granvit.corpus.annotate.caption_requests import Keep, Request, ask_in_batches
from granvit.errors import CheckpointError
from granvit.loading.chat_template import check_template
from granvit.loading.models import LoadError, load, load_model
from granvit.loading.run_folder import checkpoint_of
from granvit.model.dialog import OWN_TEMPLATES
from granvit.model.settings import SETTINGS_FILE, Settings, read_settings


def settings_of(model: str) -> tuple[str, Settings | None]:
    """The folder that holds the model, where `model` may be a run, and how a granvit checkpoint writes boxes.

    Raises:
        AnnotateError: its settings cannot be read.
    """
    folder = checkpoint_of(model)
    if not (folder / SETTINGS_FILE).exists():
        return model, None
    try:
        return str(folder), read_settings(folder)
    except CheckpointError as error:
        raise AnnotateError(str(error)) from error


class LocalModel:
    """Any image-text-to-text checkpoint by its name on the hub or its folder.

    Raises:
        AnnotateError: it is not there, is of another kind, or its processor cannot run here.
    """

    def __init__(self, model: str, device: str, batch_size: int) -> None:
        self.batch_size = batch_size
        try:
            # bfloat16, as most are published, is slow on a CPU.
            dtype = torch.float32 if device == "cpu" else "auto"
            network = load_model(AutoModelForImageTextToText, model, dtype=dtype)
            self.processor: Any = load(AutoProcessor, model)
        except LoadError as error:
            raise AnnotateError(
                f"{model}: cannot be loaded as an image-text-to-text model: {error.within(model)}"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise AnnotateError(f"{model}: its processor has no chat template, so it can't be asked")
        if getattr(self.processor, "tokenizer", None) is None:
            raise AnnotateError(f"{model}: its processor has no tokenizer, so it can't be asked")
        if self.processor.chat_template not in OWN_TEMPLATES:
            check_template(self.processor.chat_template, self.processor.tokenizer.special_tokens_map, model)
        self.network: Any = network.to(device).eval()
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        ends = self.network.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or [tokenizer.eos_token_id])

    def ask(self, requests: Sequence[Request], keep: Keep) -> list[Answer | Refusal]:
        """The answers to all requests, in their order; `keep` is called with each one as its batch is done."""
        # Alike in what they show and how long the answer may be, so that a batch has little padding.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].max_tokens, requests[i].crop is None))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return ask_in_batches(requests, batches, self._answers, keep)

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests of one limit of tokens."""
        conversations = []
        for request in requests:
            content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in request.images()]
            content.append({"type": "text", "text": request.prompt})
            conversations.append([{"role": "user", "content": content}])
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.network.device, self.network.dtype)
        with torch.inference_mode():
            ids = self.network.generate(**inputs, max_new_tokens=requests[0].max_tokens, do_sample=False)
        said = ids[:, inputs["input_ids"].shape[1] :].tolist()
        rows = [self._until_end(row) for row in said]
        # With its control tokens, which separate a thought from an answer; `usable_caption` takes both off.
        texts = self.processor.batch_decode(rows, skip_special_tokens=False)
        cut = [not self._ends & set(row) for row in said]
        return [Answer(text.strip(), over) for text, over in zip(texts, cut, strict=True)]

    def _until_end(self, row: list[int]) -> list[int]:
        return next((row[:i] for i, token in enumerate(row) if token in self._ends), row)
