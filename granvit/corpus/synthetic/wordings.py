"""The drawn scenes, spoken of as people speak: many wordings of an object, relations, places, counts.

The plain style has one sentence for each object. Here an object goes by several names, by as many of its attributes as
it takes to tell it from the others, or by where it stands from another one ("the star left of the red ring"), and the
picture by a few sentences. Whatever is said is true of the boxes, and fits one object alone.

Three parts of it are kept apart: "natural" is to be trained on; "natural-wordings" says the same in words that
"natural" never has, "natural-combinations" in its words about colours of shapes, and relations between shapes, that it
never shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from granvit.corpus.synthetic.scenes import COLORS, OBJECTS, SHAPES, Layout, Thing, layout
from granvit.regions import Region

Style = Literal["plain", "natural", "natural-wordings", "natural-combinations"]
STYLES: tuple[Style, ...] = get_args(Style)

# Of each attribute the words of "natural", and those kept for "natural-wordings".
Words = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
NOUNS: Words = {
    "circle": (("circle", "disc"), ("round spot",)),
    "square": (("square", "box"), ("block",)),
    "triangle": (("triangle", "three-sided shape"), ("three-cornered shape",)),
    "diamond": (("diamond", "rhombus"), ("lozenge",)),
    "star": (("star", "five-pointed star"), ("pentagram",)),
    "cross": (("cross", "cross shape"), ("plus sign",)),
    "ring": (("ring", "hoop"), ("donut",)),
    "heart": (("heart", "heart shape"), ("love heart",)),
    "hexagon": (("hexagon", "six-sided shape"), ("honeycomb cell",)),
    "arrow": (("arrow", "arrow pointing right"), ("right-pointing arrow",)),
}
HUES: Words = {
    "red": (("red", "bright red"), ("crimson",)),
    "green": (("green", "forest green"), ("leaf-green",)),
    "blue": (("blue", "royal blue"), ("cobalt",)),
    "yellow": (("yellow", "bright yellow"), ("lemon-colored",)),
    "orange": (("orange", "bright orange"), ("tangerine",)),
    "purple": (("purple", "violet"), ("grape-colored",)),
    "pink": (("pink", "light pink"), ("rose-colored",)),
    "brown": (("brown", "chocolate brown"), ("coffee-colored",)),
    "black": (("black", "jet black"), ("ink-colored",)),
    "white": (("white", "snow white"), ("chalk-colored",)),
    "cyan": (("cyan", "turquoise"), ("aqua",)),
    "gray": (("gray", "grey"), ("ash-colored",)),
}
PATTERNS: Words = {
    "plain": (("plain", "solid"), ("unpatterned",)),
    "striped": (("striped", "stripy"), ("banded",)),
    "dotted": (("dotted", "spotted"), ("polka-dot",)),
    "checkered": (("checkered", "checked"), ("chessboard-like",)),
}
SIZES: Words = {
    "small": (("small", "little"), ("smallish",)),
    "medium": (("medium", "medium-sized"), ("middling",)),
    "large": (("large", "big"), ("sizeable",)),
}
# How a relation is said: "the star RELATION the ring".
RELATIONS: Words = {
    "left": (("left of", "to the left of"), ("on the left-hand side of",)),
    "right": (("right of", "to the right of"), ("on the right-hand side of",)),
    "above": (("above", "over"), ("higher up than",)),
    "below": (("below", "under"), ("lower down than",)),
    "closest": (("closest to", "nearest to"), ("least far from",)),
}
SUPERLATIVES: Words = {
    "left": (("leftmost",), ("farthest left",)),
    "right": (("rightmost",), ("farthest right",)),
    "above": (("topmost", "highest"), ("uppermost",)),
    "below": (("bottommost", "lowest"), ("undermost",)),
}
INTROS: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("The picture shows {}", "There are {}", "This is a drawing of {}"),
    ("One can see {}", "Here we have {}"),
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ATTRIBUTES: dict[str, Words] = {"size": SIZES, "color": HUES, "pattern": PATTERNS}
# How much nearer than the next one the closest must be.
_CLEARLY = 0.8


def lay_out(
    seed: int, index: int, size: int, documents: float, objects: tuple[int, int] = OBJECTS, style: Style = "plain"
) -> Layout:
    """Picture number `index` of the corpus `seed` as `layout` makes it, its scenes spoken of in this style.

    Where things stand is the same in every style; colours differ where a style keeps a combination for another.
    """
    what = layout(seed, index, size, documents, objects)
    if style == "plain" or not what.things:
        return what
    return _spoken(what, np.random.default_rng((seed, index, 4)), style)


def is_kept_color(color: str, shape: str) -> bool:
    """Whether a shape in this colour is shown in "natural-combinations" alone: a tenth of all, some of every shape."""
    return (3 * list(COLORS).index(color) + SHAPES.index(shape)) % 10 == 0


def is_kept_relation(shape: str, other: str) -> bool:
    """Whether relations of a shape to another are said in "natural-combinations" alone: a fifth of all pairs."""
    return (SHAPES.index(shape) + 2 * SHAPES.index(other)) % 5 == 0


@dataclass(frozen=True)
class _Speaker:
    """Chooses words."""

    rng: np.random.Generator
    style: Style

    def one_of(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def word(self, words: Words, what: str, kept: bool = False) -> str:
        """A word for an attribute; with `kept` one of those kept for "natural-wordings", in that style."""
        trained, others = words[what]
        if self.style != "natural-wordings":
            return self.one_of(trained)
        return self.one_of(others if kept else trained + others)

    def named(self, thing: Thing, said: Sequence[str], article: str = "", before: str = "") -> str:
        """A thing by some of its attributes: "the small red star"; `before` stands in front of them."""
        words = [before] if before else []
        words += [self.word(_ATTRIBUTES[a], getattr(thing, a)) for a in ("size", "color", "pattern") if a in said]
        words.append(self.word(NOUNS, thing.shape, kept=True))
        if article == "a":
            article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words] if article else words)


def _spoken(what: Layout, rng: np.random.Generator, style: Style) -> Layout:
    speaker = _Speaker(rng, style)
    things = _recolored(what.things, rng, style)
    regions = [
        Region(thing.box, text, "object", box_by="synthetic", text_by="synthetic")
        for thing in things
        if (text := _reference(speaker, thing, things)) is not None
    ]
    record = replace(what.record, regions=regions, caption=_caption(speaker, things, what.record.width))
    return Layout(record, things=things)


def _recolored(things: Sequence[Thing], rng: np.random.Generator, style: Style) -> list[Thing]:
    """The things in colours that this style may show; one that no colour tells from the others is left out."""
    made: list[Thing] = []
    for thing in things:
        wanted = style == "natural-combinations"
        allowed = [c for c in COLORS if is_kept_color(c, thing.shape) == wanted]
        if thing.color not in allowed:
            thing = replace(thing, color=str(rng.choice(allowed)))
        names = {other.caption for other in made}
        free = [c for c in allowed if replace(thing, color=c).caption not in names]
        if free:
            made.append(thing if thing.color in free else replace(thing, color=free[0]))
    return made


# --- one thing -------------------------------------------------------------------------------------------------------


def _reference(speaker: _Speaker, thing: Thing, things: Sequence[Thing]) -> str | None:
    """Words that fit this thing and no other of the picture; at most ten, as the question wants."""
    chance = speaker.rng.random()
    text = None
    if chance < 0.35:
        text = _by_relation(speaker, thing, things)
    elif chance < 0.5:
        text = _by_superlative(speaker, thing, things)
    if text is None or len(text.split()) > 10:
        text = speaker.named(thing, _telling(speaker, thing, things), speaker.one_of(("", "a", "the")))
    return text


def _telling(speaker: _Speaker, thing: Thing, things: Sequence[Thing]) -> list[str]:
    """Attributes that tell a thing from all others, beside its shape: some at random, and as many more as it takes."""
    order = [str(a) for a in speaker.rng.permutation(list(_ATTRIBUTES))]
    said = [a for a in order if speaker.rng.random() < (0.8 if a == "color" else 0.35)]
    if speaker.style == "natural-combinations" and "color" not in said:
        said.append("color")
    for attribute in order:
        if len(_alike(thing, said, things)) == 1:
            break
        said = [*said, *([attribute] if attribute not in said else [])]
    return said


def _alike(thing: Thing, said: Sequence[str], things: Sequence[Thing]) -> list[Thing]:
    """The things that the words fit as well, itself included."""
    return [t for t in things if all(getattr(t, a) == getattr(thing, a) for a in (*said, "shape"))]


def _by_relation(speaker: _Speaker, thing: Thing, things: Sequence[Thing]) -> str | None:
    """ "the star left of the red ring": true of this thing, and of nothing else that the first words fit."""
    others = [things[i] for i in speaker.rng.permutation(len(things)) if things[i] is not thing]
    for other in others:
        if is_kept_relation(thing.shape, other.shape) != (speaker.style == "natural-combinations"):
            continue
        said = ["color"] if speaker.rng.random() < 0.4 else []
        rivals = [t for t in _alike(thing, said, things) if t is not thing and t is not other]
        for relation in (str(r) for r in speaker.rng.permutation(list(RELATIONS))):
            if not _stands(thing, relation, other, rivals):
                continue
            anchor = speaker.named(other, _telling(speaker, other, things), "the")
            subject = speaker.named(thing, said, speaker.one_of(("the", "")))
            return f"{subject} {speaker.word(RELATIONS, relation)} {anchor}"
    return None


def _stands(thing: Thing, relation: str, other: Thing, rivals: Sequence[Thing]) -> bool:
    """Whether a thing clearly stands so from another, and none of its rivals does, however loosely."""
    if relation == "closest":
        return bool(rivals) and all(_distance(thing, other) < _CLEARLY * _distance(t, other) for t in rivals)
    return _beside(thing, relation, other) and not any(_beyond(t, relation, other) for t in rivals)


def _beside(thing: Thing, relation: str, other: Thing) -> bool:
    """On that side of the other's box with its whole box, and more to that side than to any other."""
    (x, y), (a, b) = _centre(thing), _centre(other)
    if relation in ("left", "right"):
        apart = thing.box[2] <= other.box[0] if relation == "left" else thing.box[0] >= other.box[2]
        return apart and abs(x - a) > abs(y - b)
    apart = thing.box[3] <= other.box[1] if relation == "above" else thing.box[1] >= other.box[3]
    return apart and abs(y - b) > abs(x - a)


def _beyond(thing: Thing, relation: str, other: Thing) -> bool:
    """With its centre on that side of the other's."""
    (x, y), (a, b) = _centre(thing), _centre(other)
    return {"left": x < a, "right": x > a, "above": y < b, "below": y > b}[relation]


def _centre(thing: Thing) -> tuple[float, float]:
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def _distance(thing: Thing, other: Thing) -> float:
    (x, y), (a, b) = _centre(thing), _centre(other)
    return float(np.hypot(x - a, y - b))


def _by_superlative(speaker: _Speaker, thing: Thing, things: Sequence[Thing]) -> str | None:
    """ "the leftmost star", where there are several and this one clearly is."""
    said = ["color"] if speaker.rng.random() < 0.3 or speaker.style == "natural-combinations" else []
    rivals = [t for t in _alike(thing, said, things) if t is not thing]
    clearly = 0.25 * (thing.box[2] - thing.box[0])
    for way in (str(w) for w in speaker.rng.permutation(list(SUPERLATIVES))):
        side, sign = {"left": (0, 1), "right": (2, -1), "above": (1, 1), "below": (3, -1)}[way]
        if rivals and all(sign * (t.box[side] - thing.box[side]) > clearly for t in rivals):
            return speaker.named(thing, said, "the", speaker.word(SUPERLATIVES, way))
    return None


# --- the whole picture -----------------------------------------------------------------------------------------------


def _caption(speaker: _Speaker, things: Sequence[Thing], size: int) -> str:
    """A few sentences: how many things, each with its place, one relation, one count."""
    intro = speaker.one_of(INTROS[1] if speaker.style == "natural-wordings" else INTROS[0])
    intro = intro.replace("There are", "There is") if len(things) == 1 else intro
    many = "one shape" if len(things) == 1 else f"{_number(len(things))} shapes"
    ordered = sorted(things, key=lambda t: (_third(_centre(t)[1], size), _centre(t)[0]))
    said = [f"{speaker.named(t, _telling(speaker, t, things)[:2], 'a')} {_place(t, size)}" for t in ordered]
    listed = said[0] if len(said) == 1 else ", ".join(said[:-1]) + f" and {said[-1]}"
    sentences = [f"{intro.format(many)}: {listed}", *_related(speaker, things), *_counted(speaker, things)]
    return ". ".join(s[0].upper() + s[1:] for s in sentences) + "."


def _related(speaker: _Speaker, things: Sequence[Thing]) -> list[str]:
    """ "The red star is left of the blue ring": one that holds, if one does."""
    for i in (int(i) for i in speaker.rng.permutation(len(things))):
        for other in things:
            allowed = is_kept_relation(things[i].shape, other.shape) == (speaker.style == "natural-combinations")
            found = [r for r in RELATIONS if r != "closest" and allowed and _beside(things[i], r, other)]
            if found:
                subject, anchor = (speaker.named(t, _telling(speaker, t, things), "the") for t in (things[i], other))
                return [f"{subject} is {speaker.word(RELATIONS, speaker.one_of(found))} {anchor}"]
    return []


def _counted(speaker: _Speaker, things: Sequence[Thing]) -> list[str]:
    """ "Two of them are striped": of one attribute that several things share and not all of them."""
    shared = [
        (attribute, value)
        for attribute in _ATTRIBUTES
        for value in dict.fromkeys(getattr(t, attribute) for t in things)
        if 2 <= sum(getattr(t, attribute) == value for t in things) < len(things)
    ]
    if not shared:
        return []
    attribute, value = shared[int(speaker.rng.integers(len(shared)))]
    count = sum(getattr(t, attribute) == value for t in things)
    return [f"{_number(count)} of them are {speaker.word(_ATTRIBUTES[attribute], value)}"]


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _third(value: float, size: int) -> int:
    return int(value / size * 3)


def _place(thing: Thing, size: int) -> str:
    x, y = _centre(thing)
    row, column = ("top", "middle", "bottom")[_third(y, size)], ("left", "center", "right")[_third(x, size)]
    if (row, column) == ("middle", "center"):
        return "in the center"
    words = {"middle": column, "center": row}
    return f"at the {words.get(row) or words.get(column) or f'{row} {column}'}"
