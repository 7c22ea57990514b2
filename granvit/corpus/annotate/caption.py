"""Captions of regions and of whole images, by a vision-language model behind an endpoint or loaded here.

Every answer is kept from the moment it arrives: what was paid for once is never asked again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from granvit.coordinates import get_codec
from granvit.corpus.annotate.base import CAPTIONER, MODEL, AnnotateError, Item
from granvit.corpus.annotate.caption_answers import Answer, Refusal, usable_caption
from granvit.corpus.annotate.caption_endpoint import Endpoint, Limits
from granvit.corpus.annotate.caption_requests import (
    Keep,
    Mode,
    PromptConfig,
    Request,
    check_prompt,
    firmer_request,
    global_request,
    hash_of,
    region_request,
)
from granvit.errors import GranvitError
from granvit.loading.run_folder import by_content, checkpoint_id
from granvit.model.settings import Settings
from granvit.regions import Region

# How long a writer waits for the others, seconds; a write takes milliseconds.
_PATIENCE_S = 60
_KEYS_AT_ONCE = 500
# What the column "cut" says of how an answer ended; files of before know the first two.
_ENDS = (("", False), ("", True), ("caption-refused", False), ("caption-tool-call", False))


def default_cache_path() -> Path:
    """One cache for all runs of this user: `$XDG_CACHE_HOME/granvit/captions.sqlite`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "granvit" / "captions.sqlite"


class AnswerCache:
    """Answers by the key of their request, in an SQLite file that any number of processes of one machine may share.

    An answer is in the file when `put` returns; a process killed after that loses nothing. The file must be on a disk
    of the machine, since SQLite's write-ahead log doesn't work on network file systems.

    Raises:
        AnnotateError: the file cannot be opened, is no SQLite file, or cannot be written (a full disk).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Answers are written by the thread that receives them, and read by the one that asks.
            self._file = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
            self._write_ahead()
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers"
                " (key TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, cut INTEGER NOT NULL,"
                " confidence REAL) WITHOUT ROWID"
            )
            self._add_confidence()
        except (sqlite3.Error, OSError) as error:
            raise AnnotateError(f"{path}: cannot be used as the cache of captions: {error}") from error

    def _write_ahead(self) -> None:
        """Switch a new file to a write-ahead log. While another process does the same SQLite gives up at once."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._file.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _add_confidence(self) -> None:
        """A file of before has no such column; of two processes that see so, one adds it."""
        if "confidence" in [column for _, column, *_ in self._file.execute("PRAGMA table_info(answers)")]:
            return
        try:
            self._file.execute("ALTER TABLE answers ADD COLUMN confidence REAL")
        except sqlite3.OperationalError as error:
            if "duplicate column" not in str(error):
                raise

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are known, by key."""
        known: dict[str, Answer] = {}
        try:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                wanted = f"SELECT key, text, cut, confidence FROM answers WHERE key IN ({marks})"
                for key, text, end, confidence in self._file.execute(wanted, some):
                    known[key] = Answer(text, _ENDS[end][1], _ENDS[end][0], confidence)
        except sqlite3.Error as error:
            raise AnnotateError(f"{self.path}: the cache of captions cannot be read: {error}") from error
        return known

    def put(self, key: str, model: str, answer: Answer) -> None:
        """Remember an answer; of two to the same question the first one stays."""
        try:
            end = _ENDS.index((answer.refusal, answer.cut and not answer.refusal))
            row = (key, model, answer.text, end, answer.confidence)
            self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise AnnotateError(f"{self.path}: the cache of captions cannot be written: {error}") from error


WhenDown = Literal["stop", "refuse"]


def _runtime(default: Any) -> Any:
    """A setting that changes how captions are fetched, not what they are."""
    return field(default=default, metadata={"runtime": True})


@dataclass(frozen=True)
class CaptionConfig:
    """Captions of all object regions, and a paragraph about each natural image (the paper, section 3.1).

    An unusable answer (empty, a refusal, an echo of the question, too long, cut off, coordinates, a list) is asked for
    once more, and then refused with its reason.
    """

    model: str = field(metadata=MODEL)
    """The model's name at the endpoint; without an endpoint, a checkpoint on the hub, a folder, or a granvit run."""
    endpoint: str = _runtime("")
    """Base URL of any OpenAI-compatible server, like http://localhost:8000/v1; empty loads the model here."""
    mode: Mode = "auto"
    """Show the crop (the paper), the crop and the whole image (FineViT), or the image with the box in the words.
    trained: a granvit checkpoint that is loaded here is asked the very question of its training, which auto takes for
    it; for any other model auto is crop."""
    prompt: str = ""
    """Other words for regions than the mode's own; {words} and {box} are filled in. Mode box needs {box}, and crop, in
    which the picture is the region, has none."""
    codec: str = ""
    """How {box} is written: decimal, int1000, loc or loc:BINS; empty: as a granvit checkpoint that is loaded here was
    taught, decimal for any other model."""
    max_words: int = 10
    """Longer captions of regions are refused."""
    min_confidence: float = 0.0
    """mode trained: an answer that the model is less sure of, by the mean probability of its tokens, is refused. The
    others keep it as the region's score."""
    whole_image: bool = True
    """Also caption the whole image, where it has no caption yet and is no text image."""
    keep_label: bool = False
    """Keep a region whose caption was refused, with the text it had, instead of dropping it."""
    longest_side: int = 1024
    """Larger pictures are scaled down to this before they are sent, pixels."""
    region_tokens: int = 64
    """Most tokens of a region's answer; a model that thinks aloud needs many more."""
    global_tokens: int = 512
    """Most tokens of the answer about the whole image."""
    cache: str = _runtime("")
    """SQLite file with all answers ever given, on a local disk; empty: one in the user's cache folder."""
    concurrency: int = _runtime(16)
    """Endpoint: requests under way at a time, per worker."""
    timeout_s: float = _runtime(120.0)
    """Endpoint: seconds for one attempt."""
    patience_s: float = _runtime(600.0)
    """Endpoint: seconds over which a request is repeated; silent for so long, the endpoint counts as down."""
    when_down: WhenDown = "stop"
    """Endpoint: when it is down, stop the run, to be resumed with all answers so far; or refuse all that is left."""
    api_key_env: str = _runtime("OPENAI_API_KEY")
    """Endpoint: the environment variable that holds the key."""
    batch_size: int = 8
    """Without an endpoint: questions that go through the model at once."""

    @property
    def name(self) -> str:
        return f"{CAPTIONER}{Path(self.model).name}"

    @property
    def uses_gpu(self) -> bool:
        """Whether the model runs here rather than behind an endpoint."""
        return not self.endpoint

    @property
    def waiting_s(self) -> float:
        """For how long an endpoint may be silent until it counts as down: the last attempt begins when the patience
        ends, and then a plain picture is asked about."""
        return self.patience_s + 2 * self.timeout_s if self.endpoint else 0.0

    def build(self, device: str = "cpu") -> Caption:
        """Open the cache, and reach the endpoint or load the model.

        Raises:
            AnnotateError: the package, the model or the endpoint is not there, or a setting is out of range.
        """
        for name in ("max_words", "region_tokens", "global_tokens", "concurrency", "timeout_s", "patience_s"):
            if getattr(self, name) <= 0:
                raise AnnotateError(f"caption: {name} must be positive, got {getattr(self, name)}")
        if self.longest_side < 28 or self.batch_size < 1:
            raise AnnotateError(
                f"caption: longest_side starts at 28 and batch_size at 1, got {self.longest_side}, {self.batch_size}"
            )
        if self.codec:
            try:
                get_codec(self.codec)
            except GranvitError as error:
                raise AnnotateError(f"caption: {error}") from error
        if not 0 <= self.min_confidence <= 1:
            raise AnnotateError(f"caption: min_confidence is from 0 to 1, got {self.min_confidence}")
        if self.prompt:
            check_prompt(self.prompt, self.mode)
        cache = AnswerCache(Path(self.cache) if self.cache else default_cache_path())
        if self.endpoint:
            self._check_mode(own=False)
            limits = Limits(self.concurrency, self.timeout_s, self.patience_s, self.when_down == "stop")
            return Caption(self, Endpoint(self.endpoint, self.model, self.api_key_env, limits), cache)
        from granvit.corpus.annotate.caption_local import LocalModel, settings_of

        folder, settings = settings_of(self.model)
        if self._check_mode(own=settings is not None):
            from granvit.corpus.annotate.caption_checkpoint import CheckpointModel

            model = CheckpointModel(folder, device, self.batch_size)
            # By its weights: the next run in the same folder is another model.
            return Caption(self, model, cache, settings, f"granvit {checkpoint_id(Path(folder))}")
        return Caption(self, LocalModel(folder, device, self.batch_size), cache, settings)

    def _check_mode(self, own: bool) -> bool:
        """Whether the trained question is asked; `own`: the model is a granvit checkpoint that is loaded here.

        Raises:
            AnnotateError: what is set is for such a checkpoint, and it is none.
        """
        trained = own and not self.prompt and self.mode in ("auto", "trained")
        if self.mode == "trained" and not trained:
            why = "with a prompt of its own" if own else f"{self.model} is none that is loaded here"
            raise AnnotateError(f"caption: mode trained is for a granvit checkpoint in its own words: {why}")
        if self.codec and (trained or (self.mode != "box" and "{box}" not in self.prompt)):
            raise AnnotateError("caption: codec: no box is written out in this mode, so there is none to write so")
        if self.min_confidence and not trained:
            raise AnnotateError(f"caption: min_confidence: {self.model}, asked in this way, states no confidence")
        return trained


class Captioner(Protocol):
    """What answers requests, in their order; calls `keep` with each answer as it comes."""

    def ask(self, requests: Sequence[Request], keep: Keep) -> list[Answer | Refusal]: ...


@dataclass
class _Wanted:
    """A caption that is wanted: of region `region` of an item, or of the whole image (None)."""

    item: Item
    region: int | None
    image_hash: str
    request: Request
    outcome: str | Refusal = ""
    confidence: float | None = None


class Caption:
    """Replaces the texts of object regions by captions, and fills in missing captions of images.

    Attributes:
        counts: "asked" requests, answers "from-cache", and questions "repeated" after an unusable answer.
    """

    def __init__(
        self,
        config: CaptionConfig,
        captioner: Captioner,
        cache: AnswerCache,
        settings: Settings | None = None,
        identity: str = "",
    ) -> None:
        """`settings` are those of a granvit checkpoint, which is asked about a box in the way that it was taught.

        `identity` is that of a checkpoint which is asked its trained questions. Any other model that lies on this disk
        is known by what it holds: the next one in the same folder is asked anew.
        """
        used = settings or Settings(frame="image", fit="squash")
        self.config, self.captioner, self.cache = config, captioner, cache
        self.counts: Counter[str] = Counter()
        self._trained = bool(identity)
        mode: Mode = "trained" if identity else "crop" if config.mode == "auto" else config.mode
        self.prompts = PromptConfig(
            identity or by_content(config.model),
            mode,
            config.prompt,
            config.max_words,
            config.longest_side,
            config.region_tokens,
            config.global_tokens,
            used.codec if identity else config.codec or used.codec,
            used.frame,
            used.fit,
        )

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        wanted = [w for item in items for w in self._wanted(item)]
        self._fill(wanted)
        unusable = [w for w in wanted if isinstance(w.outcome, Refusal) and w.outcome.reason.startswith("caption-")]
        if self._trained:  # on these words and no others
            unusable = []
        for w in unusable:
            w.request = firmer_request(w.request, w.image_hash, self.prompts, whole=w.region is None)
        self.counts["repeated"] += len(unusable)
        self._fill(unusable)
        for item in items:
            self._apply(item, [w for w in wanted if w.item is item])
        return list(items)

    def _wanted(self, item: Item) -> list[_Wanted]:
        image_hash = hash_of(item)
        wanted = []
        for i, region in enumerate(item.record.regions):
            if region.kind == "object" and not region.ignore:
                request = region_request(item, image_hash, i, self.prompts)
                if request is not None:  # a box outside the image is refused with the record, like any other bad box
                    wanted.append(_Wanted(item, i, image_hash, request))
        if self.config.whole_image and item.kind != "text" and item.record.caption is None:
            wanted.append(_Wanted(item, None, image_hash, global_request(item, image_hash, self.prompts)))
        return wanted

    def _fill(self, wanted: list[_Wanted]) -> None:
        """Answer and usable_caption; what the cache knows, or what is asked twice, is asked once."""
        requests = {w.request.key: w.request for w in wanted}
        answers: dict[str, Answer | Refusal] = {**self.cache.get(list(requests))}
        missing = [request for key, request in requests.items() if key not in answers]
        self.counts["from-cache"] += len(answers)
        self.counts["asked"] += len(missing)
        for request, answer in zip(missing, self.captioner.ask(missing, self._keep), strict=True):
            answers[request.key] = answer
        for w in wanted:
            answer = answers[w.request.key]
            longest = None if w.region is None else self.config.max_words
            if isinstance(answer, Answer):
                w.outcome = usable_caption(answer, w.request.prompt, longest, self.config.min_confidence)
                w.confidence = answer.confidence
            else:
                w.outcome = answer

    def _keep(self, request: Request, answer: Answer) -> None:
        self.cache.put(request.key, self.config.model, answer)

    def _apply(self, item: Item, wanted: list[_Wanted]) -> None:
        outcomes = {w.region: w.outcome for w in wanted}
        confidences = {w.region: w.confidence for w in wanted}
        regions: list[Region] = []
        for i, region in enumerate(item.record.regions):
            outcome = outcomes.get(i)
            if isinstance(outcome, str):
                sure = confidences[i]
                score = region.score if sure is None else min(max(sure, 0.0), 1.0)
                regions.append(replace(region, text=outcome, text_by=self.config.name, score=score))
                continue
            if isinstance(outcome, Refusal):
                item.refuse(outcome.reason, outcome.detail, i)
            if outcome is None or self.config.keep_label:
                regions.append(region)
        whole = outcomes.get(None)
        if isinstance(whole, Refusal):
            item.refuse(f"whole-image-{whole.reason}", whole.detail)
        elif whole is not None:
            item.record.caption = whole
        item.record.regions = regions
