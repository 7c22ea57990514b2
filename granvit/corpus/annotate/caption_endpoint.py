"""Asking an OpenAI-compatible endpoint: many questions at a time, patiently, but never without end."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

from PIL import Image

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption_answers import Answer, Refusal, Unfinished, answer_of
from granvit.corpus.annotate.caption_requests import SHORTEST_SIDE, Keep, Request

_MODELS_TIMEOUT_S = 30
_JPEG_QUALITY = 95
_LONGEST_BACKOFF_S = 20.0
_LONGEST_DETAIL = 500
# What is at fault is the request: the picture in it, or how it is asked.
_FAULTY_REQUEST = (400, 403, 406, 409, 411, 412, 413, 414, 415, 422, 451)
# What no request of this run will get past: no access, nothing left to spend, no such model, no such path.
_CLOSED = (401, 402, 404, 405, 407, 410, 501)
_SPENT = re.compile(r"insufficient_quota|billing|exceeded your current quota|credit", re.IGNORECASE)
# So many faulty requests before any good one are no accident of single pictures.
_FAULTY_IN_A_ROW = 20


@dataclass(frozen=True)
class Limits:
    """How long to wait and how much to ask at once.

    Attributes:
        concurrency: requests under way at a time.
        timeout_s: seconds for one attempt, from the connection to the last byte of the answer.
        patience_s: seconds of failing attempts, and of the pauses between them, after which a request gets one last
            attempt and is given up; and after which an endpoint that has answered nothing all that time is down.
        stop_when_down: whether an endpoint that is down ends everything, or only refuses what it is asked.
    """

    concurrency: int
    timeout_s: float
    patience_s: float
    stop_when_down: bool


class _Failed(Exception):
    """An attempt that brought no answer."""

    def __init__(self, reason: str, detail: str, status: int = 0, pause_s: float = 0.0, complaint: str = "") -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail[:_LONGEST_DETAIL])
        self.complaint = detail + complaint
        self.status, self.pause_s = status, pause_s


@dataclass(frozen=True)
class _Parameters:
    """The request parameters that a server accepts: some refuse a parameter that others need.

    Attributes:
        limit: the name of the limit of tokens.
        temperature: whether it may be set.
    """

    limit: str = "max_tokens"
    temperature: bool = True

    def of(self, request: Request) -> dict[str, Any]:
        return {self.limit: request.max_tokens, **({"temperature": 0.0} if self.temperature else {})}

    def without_what(self, complaint: str) -> _Parameters | None:
        """Other parameters, where the server complains of one of these; None where there is nothing to change."""
        if self.limit == "max_tokens" and re.search(r"\bmax_tokens\b", complaint):
            return replace(self, limit="max_completion_tokens")
        return replace(self, temperature=False) if self.temperature and "temperature" in complaint else None


class Endpoint:
    """An OpenAI-compatible server, asked from a thread with an event loop of its own.

    Attributes:
        failures: failed attempts by reason, those included that succeeded when repeated.
        down: why the endpoint is asked no more, once it is given up.

    Raises:
        AnnotateError: the `openai` package is missing, nothing answers, the key is refused, or what answers speaks
            another protocol.
    """

    def __init__(self, url: str, model: str, key_variable: str, limits: Limits) -> None:
        try:
            import openai
        except ImportError as error:
            raise AnnotateError("captions from an endpoint need the openai package: pip install openai") from error
        self.url, self.model, self.limits = url, model, limits
        self.failures: Counter[str] = Counter()
        self.down: Refusal | None = None
        self._last_answer = float("-inf")
        self._parameters = _Parameters()
        self._asking_plainly = asyncio.Lock()
        # When a request of so many tokens and pictures was last answered, a plain one included.
        self._proven: dict[tuple[int, int], float] = {}
        self._faulty = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"captions {url}", daemon=True).start()
        # Repeating is done here, where its time is limited; a server without access control takes any key.
        key = os.environ.get(key_variable) or "none"
        self._client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=limits.timeout_s)
        self._run(self._check_models(key_variable))

    def ask(self, requests: Sequence[Request], keep: Keep) -> list[Answer | Refusal]:
        """The answers to all requests, in their order; `keep` is called with each one the moment it arrives.

        Raises:
            AnnotateError: the endpoint is down and that is to end the run.
        """
        answers = self._run(self._ask_all(requests, keep))
        if self.down and self.limits.stop_when_down:
            counted = ", ".join(f"{n} x {reason}" for reason, n in self.failures.most_common())
            last = " ".join(self.down.detail.split())
            raise AnnotateError(
                f"{self.url}: model {self.model!r} does not answer ({counted}; the last: {last}); "
                "all answers so far are kept, start the run again to go on from there"
            )
        return answers

    def _run(self, work: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # also when interrupted from the keyboard: nothing more is to be sent, or paid for
            future.cancel()
            raise

    async def _check_models(self, key_variable: str) -> None:
        """One look at the list of models: a mistyped address shows at once, not after hours of detecting boxes."""
        import openai

        try:
            async with asyncio.timeout(min(_MODELS_TIMEOUT_S, self.limits.timeout_s)):
                listed = await self._client.get("/models", cast_to=object)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise AnnotateError(f"{self.url} refuses the key; put a valid one into ${key_variable}") from error
        except (openai.APIConnectionError, TimeoutError) as error:
            raise AnnotateError(
                f"nothing answers at {self.url}; start the server first, for instance: vllm serve {self.model}"
            ) from error
        except (openai.OpenAIError, ValueError):
            return  # not every server lists its models, and some list others than they serve
        if isinstance(listed, str):
            raise AnnotateError(f"{self.url} answers with a web page; does the address lack its /v1?")

    async def _ask_all(self, requests: Sequence[Request], keep: Keep) -> list[Answer | Refusal]:
        slots = asyncio.Semaphore(self.limits.concurrency)

        async def one(request: Request) -> Answer | Refusal:
            async with slots:
                answer = await self._ask(request)
            if isinstance(answer, Answer):
                keep(request, answer)
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(request)) for request in requests]
        except ExceptionGroup as errors:  # a cache that cannot be written has ended all of them
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, request: Request) -> Answer | Refusal:
        """Attempts until there is an answer, until there can be none, or until the patience is over."""
        started = time.monotonic()
        urls = await asyncio.to_thread(lambda: [_data_url(image) for image in request.images()])
        for attempt in itertools.count():
            if self.down:
                return self.down
            failed = await self._attempt(request, urls)
            if isinstance(failed, Answer):
                return failed
            self.failures[failed.refusal.reason] += 1
            left = started + self.limits.patience_s - time.monotonic()
            final = await self._is_final(failed, request, len(urls), started, left)
            if final or self.down:
                return self.down or failed.refusal
            backoff = min(0.5 * 2 ** min(attempt, 10), _LONGEST_BACKOFF_S) * random.uniform(0.75, 1.0)
            await asyncio.sleep(min(max(backoff, failed.pause_s), left))
        raise AssertionError("unreachable")

    async def _is_final(self, failed: _Failed, request: Request, pictures: int, started: float, left: float) -> bool:
        """Whether asking again is of no use. Sets `down` where it is of no use for any other picture either: then the
        fault is not the picture's, which is not to be blamed for it."""
        never_answered = self._last_answer == float("-inf")
        if failed.status in _FAULTY_REQUEST:
            self._faulty += 1
            plain = await self._answers_plainly(request, pictures, started)
            if plain is False or (never_answered and self._faulty >= _FAULTY_IN_A_ROW):
                self.down = failed.refusal
            if plain is not None:
                return True
        closed = failed.status in _CLOSED or (failed.status == 429 and bool(_SPENT.search(failed.complaint)))
        # Later it may be a proxy that stands in for a server being restarted.
        if (closed and never_answered) or (closed and failed.status == 429):
            self.down = failed.refusal
        if left > 0:
            return False
        if closed or failed.status == 429 or not await self._answers_plainly(request, pictures, started):
            self.down = failed.refusal
        return True

    async def _answers_plainly(self, request: Request, pictures: int, started: float) -> bool | None:
        """Whether a plain small picture is answered where this one's request was found fault with, the words and the
        limit being the same; None where that is not to be found out now.

        What was answered since `started` need not be asked.
        """
        kind = (request.max_tokens, pictures)
        async with self._asking_plainly:
            if self._proven.get(kind, float("-inf")) >= started:
                return True
            if self.down:
                return False
            grey = _data_url(Image.new("RGB", (2 * SHORTEST_SIDE, 2 * SHORTEST_SIDE), (128, 128, 128)))
            said = await self._attempt(request, [grey] * pictures, of_picture=False)
            if isinstance(said, Answer):
                return True
            return False if said.status in (*_FAULTY_REQUEST, *_CLOSED) else None

    async def _attempt(self, request: Request, urls: list[str], of_picture: bool = True) -> Answer | _Failed:
        """One answer, or why there is none; a parameter that the server refuses is asked for in another way at once."""
        parameters: _Parameters | None = self._parameters
        while parameters is not None:
            try:
                async with asyncio.timeout(self.limits.timeout_s):
                    answer = await self._send(request, urls, parameters)
            except TimeoutError:
                return _Failed("endpoint-timeout", f"no answer within {self.limits.timeout_s:g} s")
            except _Failed as error:
                failed = error
                complains = error.status in (400, 422)
                parameters = parameters.without_what(error.complaint) if complains else None
                continue
            self._proven[request.max_tokens, len(urls)] = time.monotonic()
            if of_picture:
                self._last_answer = time.monotonic()
            if parameters != self._parameters:
                self._adopt(parameters)
            return answer
        return failed

    def _adopt(self, parameters: _Parameters) -> None:
        if self._parameters.temperature and not parameters.temperature:
            warning = "refuses a temperature: its answers are drawn, and another run may get others"
            print(f"granvit: {self.url} {warning}", file=sys.stderr)
        self._parameters = parameters

    async def _send(self, request: Request, urls: list[str], parameters: _Parameters) -> Answer:
        import openai
        from openai.types.chat import ChatCompletion

        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.append({"type": "text", "text": request.prompt})
        messages: Any = [{"role": "user", "content": content}]
        try:
            reply = await self._client.chat.completions.create(
                model=self.model, messages=messages, **parameters.of(request)
            )
        except openai.APITimeoutError as error:
            raise TimeoutError from error
        except openai.APIConnectionError as error:
            raise _Failed("endpoint-unreachable", repr(error.__cause__ or error)) from error
        except openai.APIStatusError as error:
            status = error.status_code
            pause = _retry_after(error.response.headers.get("retry-after"))
            # The message may not say which parameter is meant, or that a quota is used up: other fields do.
            raise _Failed(f"endpoint-http-{status}", str(error), status, pause, f" {error.body}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise _Failed("endpoint-not-openai", str(error)) from error
        # An endpoint that is none, or a proxy before it, answers with a web page or with other JSON.
        if not isinstance(reply, ChatCompletion) or not isinstance(reply.choices, list) or not reply.choices:
            raise _Failed("endpoint-not-openai", str(reply))
        try:
            return answer_of(reply.choices[0])
        except Unfinished as error:
            raise _Failed("endpoint-aborted", str(error)) from error


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _retry_after(header: str | None) -> float:
    """Seconds to wait, as a server asks for in the Retry-After header: a number of them, or a date; 0 without it."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
