"""The account of a curation: what became of each source, why, and what a person should hear of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

WITH_IMAGE = "with-image"
EXACT, NEAR = "exact-duplicate", "near-duplicate"
CAP, WEIGHT = "cap", "weight"

# What to do where a rule takes more than it should.
_PRESETS_HINT = "the paper's limits are for large photographs, others are --preset photos and --preset documents"
_HINTS = {
    "short-side": f"{_PRESETS_HINT}, or --filters.object-image.min-short-side PIXELS",
    "image-aspect": f"{_PRESETS_HINT}, or --filters.object-image.max-aspect RATIO",
    "box-area": f"{_PRESETS_HINT}, or --filters.object-box.min-area PIXELS",
    "box-aspect": f"{_PRESETS_HINT}, or --filters.object-box.max-aspect RATIO",
    "box-side": f"{_PRESETS_HINT}, or --filters.text-box.min-side PIXELS",
    "near-duplicate": "pages of one layout look alike, see --similarity and --no-near-duplicates",
    "no-regions": "a region that is left is needed, see what took the regions, or --filters.min-regions 0",
    "repeated-text": "see --repeats.max-share",
}

# What is said of an image, which goes with it or is taken over.
_SAID = ("regions", "captions", "conversations")
_Counted = Literal["images", "regions"]
_COUNTED: tuple[_Counted, ...] = ("images", "regions")


@dataclass
class SourceReport:
    """What became of one source. ``images_in == images_out + sum(images_dropped)``, and the same for regions, of which
    those that went with their image are counted as "with-image". Captions and conversations go with their image alone.
    What a copy's record takes over stays this source's: `regions_out` may be in records of another one. "cap" and
    "weight" take with an image all its copies, of whatever source."""

    images_in: int = 0
    images_out: int = 0
    regions_in: int = 0
    regions_out: int = 0
    captions_in: int = 0
    captions_out: int = 0
    conversations_in: int = 0
    conversations_out: int = 0
    images_dropped: Counter[str] = field(default_factory=Counter)
    regions_dropped: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)


@dataclass
class CurationReport:
    """The account of a curation.

    Attributes:
        sources: by name.
        repeated: texts that were thinned out: source, kind, text, how often it occurred.
        groups: how many sets of copies there were, by reason.
        joined: the "regions", "captions" and "conversations" that files took over from copies.
        stood_for: the "captions" of such copies that another caption stands for.
        with_copies: the "regions", "captions" and "conversations" that went with near duplicates of pictures that stay.
        other_size: those that went with copies of files that stay, the same byte by byte, but of another stated size.
        splits_in, splits_out: images by split.
        without_fingerprint: images that could not be compared with others, by reason.
    """

    sources: dict[str, SourceReport] = field(default_factory=dict)
    repeated: list[dict[str, Any]] = field(default_factory=list)
    groups: Counter[str] = field(default_factory=Counter)
    joined: Counter[str] = field(default_factory=Counter)
    stood_for: Counter[str] = field(default_factory=Counter)
    with_copies: Counter[str] = field(default_factory=Counter)
    other_size: Counter[str] = field(default_factory=Counter)
    splits_in: Counter[str] = field(default_factory=Counter)
    splits_out: Counter[str] = field(default_factory=Counter)
    without_fingerprint: Counter[str] = field(default_factory=Counter)

    def of(self, source: str) -> SourceReport:
        """The report of a source, made when it is first asked for."""
        return self.sources.setdefault(source, SourceReport())

    def total(self, name: str) -> int:
        """The sum of a number over the sources."""
        return sum(getattr(report, name) for report in self.sources.values())

    def reasons(self, what: _Counted) -> str:
        """The drops of all sources in one line, the most frequent reason first."""
        found: Counter[str] = Counter()
        for report in self.sources.values():
            found.update(getattr(report, f"{what}_dropped"))
        return ", ".join(f"{reason} {count}" for reason, count in found.most_common())

    def losses(self) -> list[str]:
        """What a person should hear of: more than half of the images or regions gone, with the rule that took most,
        more than a tenth of what is said of images gone with near duplicates, a held-out split of which nothing is
        left."""
        lines = []
        for what in _COUNTED:
            given, left = self.total(f"{what}_in"), self.total(f"{what}_out")
            found: Counter[str] = Counter()
            for report in self.sources.values():
                found.update(getattr(report, f"{what}_dropped"))
            gone = found.pop(WITH_IMAGE, 0)  # an image's loss is counted as that
            if found and 2 * left < given - gone:
                (rule, count), *_ = found.most_common()
                hint = _HINTS.get(rule, "")
                lines.append(
                    f"more than half of the {what} are dropped ({found.total()} of {given - gone}), most of them "
                    f"({count}) by {rule}" + (f": {hint}" if hint else "")
                )
        for name in _SAID:
            given, gone = self.total(f"{name}_in"), self.with_copies[name]
            if 10 * gone > given:
                lines.append(
                    f"{gone} of {given} {name} went with near duplicates of pictures that stay: what is said of copies "
                    "is taken over from the very same file alone, see --no-near-duplicates and --similarity"
                )
        for name in ("val", "test"):
            if self.splits_in[name] and not self.splits_out[name]:
                lines.append(f'no image of the split "{name}" is left, of {self.splits_in[name]}')
        return lines

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        # Field by field: `asdict` turns a Counter into something else.
        sources = {name: {k: _plain(v) for k, v in vars(report).items()} for name, report in self.sources.items()}
        return {"sources": sources, **{k: _plain(v) for k, v in vars(self).items() if k != "sources"}}

    def __str__(self) -> str:
        lines = []
        for what in _COUNTED:
            lines.append(f"{what:<8} {self.total(f'{what}_out')} of {self.total(f'{what}_in')} kept")
            if dropped := self.reasons(what):
                lines.append(f"  dropped: {dropped}")
        if said := self.total("conversations_in"):
            lines.append(f"conversations {self.total('conversations_out')} of {said} kept")
        if told := self.total("captions_in"):
            lines.append(f"captions {self.total('captions_out')} of {told} kept")
        for how, counts in (
            ("taken over from copies", self.joined),
            ("of copies, that another stands for", self.stood_for),
            ("gone with near duplicates", self.with_copies),
            ("gone with copies of another stated size", self.other_size),
        ):
            if counted := ", ".join(f"{name} {counts[name]}" for name in _SAID if counts[name]):
                lines.append(f"{how}: {counted}")
        lines += [
            f"  {name}: {s.images_out} of {s.images_in} images, {s.regions_out} of {s.regions_in} regions"
            for name, s in sorted(self.sources.items())
        ]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return dict(value.most_common()) if isinstance(value, Counter) else value
