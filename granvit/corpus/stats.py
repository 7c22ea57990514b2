"""What is in a corpus, source by source: one pass over the records, no pixels, memory that does not grow with it.

Which script a text is in comes from the characters' names in the Unicode database. The language comes from the script
where that decides, else from function words, without a model: a hint for counting a corpus, not a judgement of one
text. Most labels and short lines hold fewer than two function words and stay "und", undetermined.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from granvit import geometry
from granvit.corpus.quantiles import Quantiles
from granvit.regions import Region, RegionImage

NO_LETTERS = "none"
UNDETERMINED = "und"

_BY_SCRIPT = {
    "hangul": "ko",
    "hiragana": "ja",
    "katakana": "ja",
    "greek": "el",
    "hebrew": "he",
    "thai": "th",
    "georgian": "ka",
    "armenian": "hy",
    "tamil": "ta",
    "telugu": "te",
    "bengali": "bn",
    "cjk": "zh",
}
# Frequent words that few of the other languages share.
_FUNCTION_WORDS = {
    "en": "the of and with is are was for from that this has have on at by an in to his her their wearing",
    "de": "der die das und mit ist ein eine einen einem einer auf von dem den nicht zu für im sich auch bei",
    "fr": "le la les et avec est une des du dans sur pour pas qui que au aux ce cette son ses",
    "es": "el los las con es una del por para que en su sus está al como lo un",
    "it": "il lo gli con una di del della nel per che su dei alla sono un",
    "pt": "os as com uma um do da dos das no na em para por que não ao",
    "nl": "de het een en met van is op voor niet dat aan zijn ook naar bij",
    "pl": "na do nie jest to się że od po dla przez",
    "tr": "ve bir bu ile için da de çok ne olarak",
    "id": "dan yang di dengan untuk dari pada ini itu sebuah",
}
_MIN_VOTES = 2
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, lower case: runs of letters, numbers and punctuation left out."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=65_536)
def _script_of_letter(letter: str) -> str:
    """The first word of the character's name, e.g. "latin" of LATIN SMALL LETTER A."""
    # Normalised, for the OHM SIGN is a Greek letter; and KATAKANA-HIRAGANA PROLONGED SOUND MARK is mostly the former.
    return re.split("[ -]", unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "unknown"))[0].lower()


def script(text: str) -> str:
    """The script of most of its letters, as Unicode names it: "latin", "cyrillic", "cjk"; "none" without letters.

    Japanese counts as "hiragana" or "katakana" as soon as it has kana, since its kanji alone would be "cjk".
    """
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else NO_LETTERS
    found = Counter(_script_of_letter(letter) for letter in text if letter.isalpha())
    if not found:
        return NO_LETTERS
    kana = found["hiragana"] + found["katakana"]
    if kana and kana + found["cjk"] > found.total() / 2:
        return "hiragana" if found["hiragana"] >= found["katakana"] else "katakana"
    return max(found, key=lambda name: (found[name], name))


def language(text: str, script_name: str | None = None, found: list[str] | None = None) -> str:
    """An ISO 639-1 code where the script or the function words tell, else "und".

    `script_name` and `found` save a second look where `script(text)` and `words(text)` are known.
    """
    name = script(text) if script_name is None else script_name
    if name in _BY_SCRIPT:
        return _BY_SCRIPT[name]
    if name != "latin":
        return UNDETERMINED
    candidates = [_LANGUAGES_OF[word] for word in (words(text) if found is None else found) if word in _LANGUAGES_OF]
    if len(candidates) < _MIN_VOTES:
        return UNDETERMINED
    (best, votes), *others = Counter(code for codes in candidates for code in codes).most_common(2)
    return UNDETERMINED if votes < _MIN_VOTES or others and others[0][1] == votes else best


class Histogram:
    """Counts of numbers between fixed edges, with their mean and extremes.

    Args:
        edges: ascending; bin i holds edges[i] <= value < edges[i + 1]. What lies outside goes to the first or last bin.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = np.asarray(edges, dtype=float)
        self.counts = np.zeros(len(self.edges) - 1, dtype=np.int64)
        self.sum = 0.0
        self.min, self.max = np.inf, -np.inf
        self._quantiles = Quantiles()  # bins are for pictures of the whole, and some twice as wide as the last

    def add(self, values: ArrayLike) -> None:
        """Count numbers, an array of any shape."""
        array = np.asarray(values, dtype=float).ravel()
        if not array.size:
            return
        bins = np.searchsorted(self.edges, array, side="right") - 1
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))
        self.sum += float(array.sum())
        self._quantiles.add(array)
        self.min, self.max = min(self.min, float(array.min())), max(self.max, float(array.max()))

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of the numbers lie, exact or within 1 % (`Quantiles.at`); None of none."""
        if not self.total:
            return None
        return float(f"{min(max(self._quantiles.at(share), self.min), self.max):.6g}")

    def to_json(self) -> dict[str, Any]:
        """Edges, counts, count, mean, extremes and three quantiles."""
        found = self.total > 0
        return {
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "count": self.total,
            # Six digits, since further ones depend on how the stream was cut into batches.
            "mean": float(f"{self.sum / self.total:.6g}") if found else None,
            "min": self.min if found else None,
            "max": self.max if found else None,
            "p5": self.quantile(0.05),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
        }


class Frequent:
    """How often each text occurs, exact while there are at most `capacity` different ones.

    Beyond that the rarest are forgotten now and then, so `distinct` becomes a lower bound and so do the counts; a
    text that is a noticeable share of all is never lost.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self.capacity = capacity
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.exact = True
        self._forgotten = 0

    def update(self, texts: Iterable[str]) -> None:
        """Count texts."""
        before = self.counts.total()
        self.counts.update(texts)
        self.total += self.counts.total() - before
        if len(self.counts) > 2 * self.capacity:
            self.exact = False
            self._forgotten = max(self._forgotten, len(self.counts))
            self.counts = Counter(dict(self.counts.most_common(self.capacity)))

    @property
    def distinct(self) -> int:
        """How many different texts there are, or at least are where `exact` is False."""
        return max(len(self.counts), self._forgotten)

    def to_json(self, top: int = 20) -> dict[str, Any]:
        """Total, distinct, whether that is exact, and the `top` most frequent with their counts."""
        # Equal counts in the order of the texts: the same report for every order of the records.
        common = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:top]
        return {"total": self.total, "distinct": self.distinct, "exact": self.exact, "top": common}


SIDE_EDGES = (0, 64, 128, 224, 336, 448, 512, 640, 768, 1024, 1536, 2048, 4096, 8192)
ASPECT_EDGES = (0, 1 / 32, 1 / 16, 1 / 8, 1 / 5, 1 / 3, 1 / 2, 3 / 4, 1, 4 / 3, 2, 3, 5, 8, 16, 32, 64)
BOX_SIDE_EDGES = (0, 4, 8, 16, 24, 32, 48, 64, 100, 144, 224, 336, 448, 672, 1024, 2048, 8192)
SHARE_EDGES = (0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
COUNT_EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)
LENGTH_EDGES = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)
WORD_EDGES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64, 128, 512)
SCORE_EDGES = tuple(np.linspace(0, 1, 21).round(2).tolist())
GRID = 10

_BATCH = 4_096
_TITLES = 200


class KindStatistics:
    """The regions of one source and one kind. The histograms are current after `flush`.

    Attributes:
        regions, ignored: how many, and how many of them are marked `ignore`. Ignored regions enter no other figure.
        box_side: square root of the box's area, pixels.
        box_share: the box's area as a share of its image's.
        box_aspect: width / height.
        positions: centres of the boxes on a GRID x GRID raster of the image, [row, column], shape (GRID, GRID).
        characters, word_counts: lengths of the texts.
        scores: of the regions that have one; `unscored` counts the others.
        vocabulary, texts: the most frequent words, and whole texts without regard to case.
        scripts, languages: of the texts, see `granvit.corpus.stats`.
        box_by, text_by: who made them.
    """

    def __init__(self) -> None:
        self.regions = self.ignored = self.unscored = 0
        self.box_side, self.box_share = Histogram(BOX_SIDE_EDGES), Histogram(SHARE_EDGES)
        self.box_aspect = Histogram(ASPECT_EDGES)
        self.positions = np.zeros((GRID, GRID), dtype=np.int64)
        self.characters, self.word_counts = Histogram(LENGTH_EDGES), Histogram(WORD_EDGES)
        self.scores = Histogram(SCORE_EDGES)
        self.vocabulary, self.texts = Frequent(), Frequent()
        self.scripts: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.box_by: Counter[str] = Counter()
        self.text_by: Counter[str] = Counter()
        self._waiting: list[tuple[Region, int, int]] = []

    def add(self, region: Region, width: int, height: int) -> None:
        """Count one region of an image of `width` x `height` pixels."""
        self.regions += 1
        if region.ignore:
            self.ignored += 1
            return
        self._waiting.append((region, width, height))
        if len(self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Enter what waits: boxes and texts are counted in batches, which is several times faster."""
        regions = [region for region, _, _ in self._waiting]
        sizes_n2 = np.array([size for _, *size in self._waiting], dtype=float).reshape(-1, 2)
        self._waiting = []
        self._count_boxes(geometry.as_boxes([region.box for region in regions]), sizes_n2)
        self._count_texts([region.text for region in regions])
        scores = [region.score for region in regions if region.score is not None]
        self.scores.add(scores)
        self.unscored += len(regions) - len(scores)
        self.box_by.update(region.box_by for region in regions)
        self.text_by.update(region.text_by for region in regions)

    def _count_boxes(self, boxes_n4: geometry.Boxes, sizes_n2: geometry.Boxes) -> None:
        widths, heights = geometry.sizes(boxes_n4).T
        areas = geometry.area(boxes_n4)
        self.box_side.add(np.sqrt(areas))
        self.box_share.add(areas / sizes_n2.prod(axis=1))
        self.box_aspect.add(widths / np.maximum(heights, 1e-6))
        cells = np.clip(geometry.centres(boxes_n4) / sizes_n2 * GRID, 0, GRID - 1).astype(int)
        np.add.at(self.positions, (cells[:, 1], cells[:, 0]), 1)

    def _count_texts(self, texts: list[str]) -> None:
        split = [words(text) for text in texts]
        self.characters.add([len(text) for text in texts])
        self.word_counts.add([len(text.split()) for text in texts])
        self.vocabulary.update(word for found in split for word in found)
        self.texts.update(text.casefold()[:_TITLES] for text in texts)
        named = [script(text) for text in texts]
        self.scripts.update(named)
        self.languages.update(language(*known) for known in zip(texts, named, split, strict=True))

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        self.flush()
        histograms = ("box_side", "box_share", "box_aspect", "characters", "word_counts", "scores")
        frequent = ("vocabulary", "texts")
        counters = ("scripts", "languages", "box_by", "text_by")
        return {
            "regions": self.regions,
            "ignored": self.ignored,
            "unscored": self.unscored,
            "positions": self.positions.tolist(),
            **{name: getattr(self, name).to_json() for name in histograms + frequent},
            **{name: dict(getattr(self, name).most_common()) for name in counters},
        }


class SourceStatistics:
    """The images of one source and, by kind, their regions.

    Attributes:
        images, empty, captioned: how many; how many have no region; how many have a global caption.
        without_picture: how many of the images are conversations alone; these have no size and count nowhere else.
        conversations: how many there are.
        turns, conversation_words: of each conversation, histograms.
        splits, licences: images by split and by licence.
        short_side: of the image, pixels.
        aspect: of the image, width / height.
        regions_per_image: a histogram.
        caption_words: length of the global captions.
        kinds: "object" and "text", as far as they occur.
    """

    def __init__(self) -> None:
        self.images = self.empty = self.captioned = self.without_picture = self.conversations = 0
        self.splits: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.short_side, self.aspect = Histogram(SIDE_EDGES), Histogram(ASPECT_EDGES)
        self.regions_per_image, self.caption_words = Histogram(COUNT_EDGES), Histogram(LENGTH_EDGES)
        self.turns, self.conversation_words = Histogram(COUNT_EDGES), Histogram(LENGTH_EDGES)
        self.kinds: dict[str, KindStatistics] = {}
        self._waiting: list[tuple[int, int, int]] = []

    def add(self, record: RegionImage) -> None:
        """Count one image with its regions."""
        self.images += 1
        self.splits[record.split] += 1
        self.licences[record.licence] += 1
        self._add_conversations(record)
        if record.text_only:
            self.without_picture += 1
            return
        self.empty += not record.regions
        if record.caption:
            self.captioned += 1
            self.caption_words.add([len(record.caption.split())])
        self._waiting.append((record.width, record.height, len(record.regions)))
        if len(self._waiting) >= _BATCH:
            self._flush_sizes()
        for region in record.regions:
            if region.kind not in self.kinds:
                self.kinds[region.kind] = KindStatistics()
            self.kinds[region.kind].add(region, record.width, record.height)

    def _add_conversations(self, record: RegionImage) -> None:
        self.conversations += len(record.conversations)
        self.turns.add([len(said) for said in record.conversations])
        self.conversation_words.add([sum(len(turn.text.split()) for turn in said) for said in record.conversations])

    def flush(self) -> None:
        """Enter what waits in the batches."""
        self._flush_sizes()
        for kind in self.kinds.values():
            kind.flush()

    def _flush_sizes(self) -> None:
        widths, heights, counts = np.array(self._waiting, dtype=float).reshape(-1, 3).T
        self._waiting = []
        self.short_side.add(np.minimum(widths, heights))
        self.aspect.add(widths / np.maximum(heights, 1))
        self.regions_per_image.add(counts)

    @property
    def regions(self) -> int:
        """Regions of all kinds, ignored ones included."""
        return sum(kind.regions for kind in self.kinds.values())

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        self.flush()
        return {
            "images": self.images,
            "regions": self.regions,
            "empty": self.empty,
            "captioned": self.captioned,
            "without_picture": self.without_picture,
            "conversations": self.conversations,
            "splits": dict(self.splits.most_common()),
            "licences": dict(self.licences.most_common()),
            **{
                name: getattr(self, name).to_json()
                for name in (
                    "short_side",
                    "aspect",
                    "regions_per_image",
                    "caption_words",
                    "turns",
                    "conversation_words",
                )
            },
            "kinds": {name: self.kinds[name].to_json() for name in sorted(self.kinds)},
        }


class Statistics:
    """Statistics of a stream of records, by source."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceStatistics] = {}

    def add(self, record: RegionImage) -> None:
        """Count one record."""
        if record.source not in self.sources:
            self.sources[record.source] = SourceStatistics()
        self.sources[record.source].add(record)

    @classmethod
    def of(cls, records: Iterable[RegionImage]) -> dict[str, SourceStatistics]:
        """Statistics by source, in the order in which the sources appear.

        Reads each record once and keeps none; `image` is not looked at, so `Corpus.records()` will do. Memory per
        source and kind: at most 100,000 words and 100,000 texts of 200 characters.
        """
        statistics = cls()
        for record in records:
            statistics.add(record)
        for source in statistics.sources.values():
            source.flush()
        return statistics.sources

    def to_json(self) -> dict[str, Any]:
        """Each source's figures under its name."""
        return {name: source.to_json() for name, source in self.sources.items()}
