"""A checkpoint as a model of lmms-eval: `lmms-eval --model granvit --model_args pretrained=RUN --tasks ...`.

Only lmms-eval imports this file, by way of the entry point in `lmms_entry.py`.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from granvit.errors import GranvitError
from granvit.geometry import View
from granvit.images import open_picture
from granvit.predict import GranViT, ImageQuestions

# What lmms-eval's own models take where a task names no limit.
_LONGEST = 1024
_ASKS_FOR_BOXES = re.compile(r"bounding box|bbox", re.IGNORECASE)
# What a question says that wants boxes otherwise than as [x1, y1, x2, y2] from 0 to 1.
_OTHER_COORDINATES = re.compile(r"\bpixels?\b|\bjson\b|\b1000\b|bbox_2d", re.IGNORECASE)


@dataclass
class Conversation:
    """What a request asks: messages as chat templates take them, and their pictures in order."""

    messages: list[dict[str, Any]]
    pictures: list[Image.Image]

    @property
    def text(self) -> str:
        """All that is said in it."""
        return "\n".join(part["text"] for message in self.messages for part in message["content"] if "text" in part)

    @property
    def question(self) -> str | None:
        """The text, where one picture and then one text are all there is; None for any other conversation."""
        parts = self.messages[0]["content"]
        simple = len(self.messages) == 1 and [part["type"] for part in parts] == ["image", "text"]
        return parts[1]["text"] if simple else None


class BoxTally:
    """Which tasks ask for boxes, and whether any answer to them is one: so that a score of 0 can be explained."""

    def __init__(self) -> None:
        self._asked: dict[str, int] = defaultdict(int)
        self._boxes: dict[str, int] = defaultdict(int)
        self._otherwise: set[str] = set()

    def add(self, task: str, question: str, is_box: bool) -> None:
        if not _ASKS_FOR_BOXES.search(question):
            return
        self._asked[task] += 1
        self._boxes[task] += is_box
        if _OTHER_COORDINATES.search(question):
            self._otherwise.add(task)

    def warn(self) -> None:
        """One warning for each task that was answered without a single box, or asks for boxes in other coordinates."""
        for task, asked in self._asked.items():
            if not self._boxes[task]:
                warnings.warn(
                    f"task {task}: none of {asked} answers is a box in the checkpoint's codec; its score says nothing: "
                    "the checkpoint was not trained to locate, or not asked in words it learned (docs/lmms-eval.md)",
                    stacklevel=3,
                )
            elif task in self._otherwise:
                warnings.warn(
                    f"task {task} asks for boxes in pixels, thousandths or JSON; granvit's are shares of the image, "
                    "from 0 to 1, as lists: its score says little (docs/lmms-eval.md)",
                    stacklevel=3,
                )


class LmmsGranViT(lmms):
    """Answers lmms-eval's `generate_until` requests greedily, in batches, and the same in any batch (in float32).

    Pictures become canvases by the checkpoint's own `View`. Questions about one picture that stand next to each other
    share one look at it.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "float32",
        boxes: Literal["relative", "verbatim"] = "relative",
        max_batch_size: int | None = None,
    ):
        """The names are those of lmms-eval's `--model_args` and options.

        Args:
            pretrained: a checkpoint, an exported LLaVA or a run folder.
            batch_size: questions answered at once.
            device: "cuda", "cpu"...; with several processes each takes the one of its rank.
            dtype: of the weights.
            boxes: "relative": an answer that is a box in the checkpoint's codec is handed on as [x1, y1, x2, y2], 0 to
                1 of the image, which is how lmms-eval's refcoco_bbox_rec tasks read boxes. "verbatim": as it was said.
            max_batch_size: not used; lmms-eval hands it to every model.

        Raises:
            CheckpointError: no granvit checkpoint, or a damaged one.
            ValueError: an argument has a value that does not exist.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise GranvitError(f"--batch_size {batch_size}: a number of questions is needed, of at least 1")
        if boxes not in ("relative", "verbatim"):
            raise GranvitError(f"boxes={boxes}: 'relative' or 'verbatim'")
        if dtype not in ("float32", "float16", "bfloat16"):
            raise GranvitError(f"dtype={dtype}: 'float32', 'float16' or 'bfloat16'")
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        alone = self._world_size == 1
        self.device = torch.device(device) if device and alone else self.accelerator.device
        self.batch_size = int(batch_size)
        self.boxes = boxes
        self.granvit = GranViT.load(pretrained, self.device, getattr(torch, dtype))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer for each request, in their order.

        Raises:
            ValueError: a task asks for what is not done here: sampling, beams, video or sound.
        """
        alike = defaultdict(list)
        for n, request in enumerate(requests):
            alike[_limits(request)].append(n)
        answers = [""] * len(requests)
        boxes = BoxTally()
        with tqdm(total=len(requests), desc="granvit", disable=self.rank != 0) as bar:
            for (longest, stops), numbers in alike.items():
                for start in range(0, len(numbers), self.batch_size):
                    some = numbers[start : start + self.batch_size]
                    conversations = [self._conversation(requests[n]) for n in some]
                    said = self._answer(conversations, longest)
                    for n, conversation, (text, is_box) in zip(some, conversations, said, strict=True):
                        answers[n] = _cut(text, stops)
                        boxes.add(requests[n].args[4], conversation.text, is_box)
                        context, _, options = requests[n].args[:3]
                        self.cache_hook.add_partial("generate_until", (context, options), answers[n])
                    bar.update(len(some))
        boxes.warn()
        return answers

    # lmms-eval's base class declares the next two abstract, but to a model of messages (`is_simple = False`) it only
    # sends `generate_until`: `ConfigurableMessagesTask.construct_requests` of 0.7.3 stops at any task of another
    # `output_type`. So there is no request that these could answer; called by hand they say so.

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused, see above.

        Raises:
            ValueError: always.
        """
        raise GranvitError(
            "tasks of output_type loglikelihood or multiple_choice: lmms-eval gives a model of messages none of them"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused, see above.

        Raises:
            ValueError: always.
        """
        raise GranvitError("tasks of several rounds: lmms-eval gives a model of messages none of them")

    def _conversation(self, request: Instance) -> Conversation:
        """The messages that the task makes of the request's document."""
        _, messages_of, _, number, task, split = request.args
        found = Conversation([], [])
        for message in messages_of(self.task_dict[task][split][number]):
            parts: list[dict[str, Any]] = []
            for part in message["content"]:
                if part["type"] == "image":
                    found.pictures.append(open_picture(part["url"]))
                    parts.append({"type": "image"})
                elif part["type"] == "text":
                    # A placeholder that a task carries in its text; where the picture stands the template says.
                    text = part["text"].replace(self.granvit.model.processor.image_token, "")
                    parts.append({"type": "text", "text": text})
                else:
                    raise GranvitError(f"task {task}: granvit is asked about pictures and text, not {part['type']}")
            found.messages.append({"role": message["role"], "content": parts})
        return found

    def _answer(self, conversations: Sequence[Conversation], longest: int) -> list[tuple[str, bool]]:
        """Each answer, and whether it is a box; questions about one picture go together, any other conversation alone.

        A question that is longer than the model can read is answered by nothing.
        """
        asks: list[ImageQuestions] = []
        places: list[tuple[int, int] | None] = []
        for conversation in conversations:
            question = conversation.question
            if question is None or not self._can_read(question):
                places.append(None)
                continue
            (picture,) = conversation.pictures
            if not asks or asks[-1].image != picture:
                asks.append(ImageQuestions(picture, self.granvit.model.view(picture.size), []))
            asks[-1].questions.append(question)
            places.append((len(asks) - 1, len(asks[-1].questions) - 1))
        said = self.granvit.answer(asks, longest)
        return [
            (self._converse(conversation, longest) if conversation.question is None else "", False)
            if place is None
            else self._in_asked_coordinates(said[place[0]][place[1]], asks[place[0]].view)
            for conversation, place in zip(conversations, places, strict=True)
        ]

    def _can_read(self, question: str) -> bool:
        try:
            self.granvit.tokens_of(question)
        except GranvitError as error:
            warnings.warn(f"a question is left without an answer: {error}", stacklevel=2)
            return False
        return True

    def _in_asked_coordinates(self, answer: str, view: View) -> tuple[str, bool]:
        """The answer as lmms-eval is to read it, and whether it is a box."""
        settings = self.granvit.model.settings
        box = self.granvit.to_pixels(answer, view)
        as_said = self.boxes == "verbatim" or (settings.codec, settings.frame) == ("decimal", "image")
        if box is None or as_said:
            return answer, box is not None
        # Six digits: no score may hang on their rounding.
        return "[" + ", ".join(f"{value:.6f}" for value in view.to_relative(box, "image")[0]) + "]", True

    @torch.inference_mode()
    def _converse(self, conversation: Conversation, longest: int) -> str:
        """The answer to several turns, a system message, no picture or several, by stock generation.

        The model was trained on one picture and one question; what it says here is what the stock route says.
        """
        model, dialog = self.granvit.model, self.granvit.model.dialog
        views = [model.view(picture.size) for picture in conversation.pictures]
        ids = dialog.converse(conversation.messages, [model.tokens_of(view) for view in views])
        tokens = torch.tensor([ids], device=model.device)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if conversation.pictures:
            shown = [model.show(p, view) for p, view in zip(conversation.pictures, views, strict=True)]
            pixels = model.normalise(torch.cat(shown).to(model.device)).to(model.llava.dtype)
            inputs["pixel_values"] = pixels
            if model.settings.tiles:
                # As the stock processor gives them: of all images as many canvases, the rest of them empty.
                each = pixels.split([view.count for view in views])
                inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(list(each), batch_first=True)
                inputs["image_sizes"] = torch.tensor([[p.height, p.width] for p in conversation.pictures])
        out = model.llava.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=dialog.end_token,
            pad_token_id=dialog.pad_token,
        )
        return dialog.decode(out[0, len(ids) :].tolist())


def _limits(request: Instance) -> tuple[int, tuple[str, ...]]:
    """How long an answer may be, in tokens, and the texts that end it.

    Raises:
        ValueError: the task samples or searches with beams.
    """
    options, task = request.args[2], request.args[4]
    if (options.get("temperature") or 0) > 0 and options.get("do_sample", True) or (options.get("num_beams") or 1) > 1:
        raise GranvitError(f"task {task}: granvit answers greedily; add --gen_kwargs temperature=0,num_beams=1")
    stops = options.get("until") or []
    return int(options.get("max_new_tokens") or _LONGEST), (stops,) if isinstance(stops, str) else tuple(stops)


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]
