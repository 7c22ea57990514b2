"""The natural style: read again word by word, everything said is true of the boxes and fits one object alone."""

import re

import numpy as np
import pytest

from granvit.corpus.store import Corpus
from granvit.corpus.synthetic.scenes import COLORS, SHAPES, layout
from granvit.corpus.synthetic.synthesize import LazySynthetic, make, synthesize
from granvit.corpus.synthetic.wordings import (
    HUES,
    INTROS,
    NOUNS,
    PATTERNS,
    RELATIONS,
    SIZES,
    STYLES,
    SUPERLATIVES,
    is_kept_color,
    is_kept_relation,
    lay_out,
)
from granvit.train.build import embedded_corpora
from granvit.train.recipes.base import EmbeddedCorpus

SIZE, COUNT = 160, 250
ATTRIBUTES = {"size": SIZES, "color": HUES, "pattern": PATTERNS, "shape": NOUNS}
DRAWN = {style: [lay_out(6, i, SIZE, 0.0, style=style) for i in range(COUNT)] for style in STYLES[1:]}
NUMBERS = {word: n for n, word in enumerate("zero one two three four five six".split())}


def phrases(words, which=(0, 1)):
    """(words of a phrase, what it means), the longest first."""
    found = [(p.split(), what) for what, both in words.items() for n in which for p in both[n]]
    return sorted(found, key=lambda pair: -len(pair[0]))


def take(tokens, words):
    """What of `words` is said in the tokens, and the tokens without it; (None, tokens) where nothing is."""
    for phrase, what in phrases(words):
        for at in range(len(tokens) - len(phrase) + 1):
            if tokens[at : at + len(phrase)] == phrase:
                return what, (tokens[:at], tokens[at + len(phrase) :])
    return None, (tokens, [])


def attributes(tokens):
    """What is said of one thing; no word is left over."""
    said = {}
    for name in ("shape", "size", "color", "pattern"):
        what, (before, after) = take(tokens, ATTRIBUTES[name])
        if what is not None:
            said[name], tokens = what, before + after
    assert set(tokens) <= {"a", "an", "the"}, tokens
    assert "shape" in said
    return said


def fitting(said, things):
    return [t for t in things if all(getattr(t, name) == value for name, value in said.items())]


def centre(thing):
    return np.array([thing.box[0] + thing.box[2], thing.box[1] + thing.box[3]]) / 2


def side(thing, relation, other):
    """Whether its centre is on that side of the other's."""
    (x, y), (a, b) = centre(thing), centre(other)
    return {"left": x < a, "right": x > a, "above": y < b, "below": y > b}[relation]


def meant(text, things):
    """The things that a reference fits, by the loosest reading of its relation; and the relation's two shapes."""
    tokens = text.split()
    relation, (before, after) = take(tokens, RELATIONS)
    if relation is not None:
        subject, anchors = fitting(attributes(before), things), fitting(attributes(after), things)
        assert len(anchors) == 1, text
        subject = [t for t in subject if t is not anchors[0]]
        pair = (subject[0].shape, anchors[0].shape)
        if relation == "closest":
            assert len(subject) > 1, text
            return [min(subject, key=lambda t: float(np.hypot(*(centre(t) - centre(anchors[0])))))], pair
        return [t for t in subject if side(t, relation, anchors[0])], pair
    way, (before, after) = take(tokens, SUPERLATIVES)
    if way is not None:
        rivals = fitting(attributes(before + after), things)
        assert len(rivals) > 1, text
        edge, sign = {"left": (0, 1), "right": (2, -1), "above": (1, 1), "below": (3, -1)}[way]
        return [min(rivals, key=lambda t: sign * t.box[edge])], None
    return fitting(attributes(tokens), things), None


def boxed(drawn):
    """(things, region, the thing in the region's box)."""
    for what in drawn:
        for region in what.record.regions:
            yield what.things, region, next(t for t in what.things if t.box == region.box)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", DRAWN)
def test_every_reference_fits_the_thing_in_its_box_and_no_other(style):
    for things, region, thing in boxed(DRAWN[style]):
        assert meant(region.text, things)[0] == [thing], (region.text, things)
        assert len(region.text.split()) <= 10


@pytest.mark.parametrize("style", DRAWN)
def test_every_sentence_about_the_picture_is_true(style):
    related = counted = 0
    for what in DRAWN[style]:
        intro, *others = re.split(r"\.\s*", what.record.caption.lower())[:-1]
        count, listed = intro.split(": ")[0].split()[-2:], re.split(r", | and ", intro.split(": ")[1])
        assert NUMBERS[count[0]] == len(what.things) == len(listed)
        for said in listed:
            thing, where = re.split(r" (?=(?:at|in) the )", said)
            assert [t for t in fitting(attributes(thing.split()), what.things) if place(t) == where], (said, what)
        for sentence in others:
            if found := re.fullmatch(r"(\w+) of them are (.+)", sentence):
                name, value = next((n, w) for n in ATTRIBUTES if (w := take(found[2].split(), ATTRIBUTES[n])[0]))
                assert sum(getattr(t, name) == value for t in what.things) == NUMBERS[found[1]], sentence
                counted += 1
                continue
            subject, rest = sentence.split(" is ")
            relation, (_, anchor) = take(rest.split(), RELATIONS)
            one, other = fitting(attributes(subject.split()), what.things), fitting(attributes(anchor), what.things)
            assert len(one) == len(other) == 1 and side(one[0], relation, other[0]), sentence
            related += 1
    assert related > COUNT / 3 and counted > COUNT / 3


def place(thing):
    row, column = (int(v / SIZE * 3) for v in centre(thing)[::-1])
    words = [w for w in (("top", "", "bottom")[row], ("left", "", "right")[column]) if w]
    return f"at the {' '.join(words)}" if words else "in the center"


def test_people_say_one_thing_in_many_ways():
    texts = [region.text for _, region, _ in boxed(DRAWN["natural"])]
    relations = [take(text.split(), RELATIONS)[0] for text in texts]
    assert set(relations) == {None, *RELATIONS} and 0.1 < np.mean([r is not None for r in relations]) < 0.5
    assert {take(text.split(), SUPERLATIVES)[0] for text in texts} == {None, *SUPERLATIVES}
    assert len(set(texts)) > 0.7 * len(texts)
    red_circles = {t for _, r, thing in boxed(DRAWN["natural"]) if thing.shape == "circle" for t in [r.text]}
    assert {"circle", "disc"} <= {word for text in red_circles for word in text.split()}
    lengths = [len(what.record.caption.split()) for what in DRAWN["natural"]]
    assert np.mean(lengths) > 25 and max(lengths) < 100


# --- what is kept apart ----------------------------------------------------------------------------------------------


def said_in(style):
    return [f" {text.lower()} ".replace(".", " ").replace(",", " ") for text in everything(style)]


def everything(style):
    return [t for what in DRAWN[style] for t in (what.record.caption, *(r.text for r in what.record.regions))]


KEPT = [p for words in (*ATTRIBUTES.values(), RELATIONS, SUPERLATIVES) for _, others in words.values() for p in others]
KEPT += [intro.format("").strip().lower() for intro in INTROS[1]]


@pytest.mark.parametrize("style", ["natural", "natural-combinations"])
def test_words_kept_for_later_are_never_said_before(style):
    for text in said_in(style):
        assert not [phrase for phrase in KEPT if f" {phrase} " in text], text


def test_all_of_them_are_said_where_they_are_wanted():
    texts = said_in("natural-wordings")
    assert not [phrase for phrase in KEPT if not any(f" {phrase} " in text for text in texts)]
    kept_nouns = [phrase for _, others in NOUNS.values() for phrase in others]
    for text in texts:
        assert any(f" {phrase} " in text for phrase in kept_nouns), text


def test_combinations_kept_for_later_are_neither_shown_nor_said_before():
    for style in ("natural", "natural-wordings", "natural-combinations"):
        later = style == "natural-combinations"
        for things, region, thing in boxed(DRAWN[style]):
            assert is_kept_color(thing.color, thing.shape) == later
            pair = meant(region.text, things)[1]
            assert pair is None or is_kept_relation(*pair) == later, region.text
            assert not later or pair or "color" in attributes_of(region.text), region.text


def attributes_of(text):
    tokens = text.split()
    way, (before, after) = take(tokens, SUPERLATIVES)
    return attributes(before + after if way else tokens)


def test_something_of_every_shape_and_color_is_kept_and_most_is_not():
    kept = {(c, s) for c in COLORS for s in SHAPES if is_kept_color(c, s)}
    assert len(kept) == 12 and {c for c, _ in kept} == set(COLORS) and {s for _, s in kept} == set(SHAPES)
    pairs = {(a, b) for a in SHAPES for b in SHAPES if is_kept_relation(a, b)}
    assert len(pairs) == 20 and {a for a, _ in pairs} == {b for _, b in pairs} == set(SHAPES)


# --- as a corpus -----------------------------------------------------------------------------------------------------


def test_the_plain_style_is_what_it_was(tmp_path):
    for index in range(30):
        assert lay_out(3, index, SIZE, 0.3) == layout(3, index, SIZE, 0.3)
    made = synthesize(tmp_path / "plain", 3, 1, 64, workers=1, progress=False)
    assert "style" not in made.manifest["meta"]["embedded"]


def test_a_corpus_in_a_style(tmp_path):
    made = synthesize(tmp_path / "it", 4, 1, 64, 0.3, workers=1, progress=False, style="natural")
    assert made.manifest["meta"]["embedded"]["style"] == "natural"
    assert [r.regions for r in made] == [make(i, 1, 64, 0.3, style="natural").regions for i in range(4)]
    lazy = LazySynthetic(4, 1, 64, 0.3, style="natural")
    assert [lazy[i].caption for i in range(4)] == [r.caption for r in made]
    assert [r.regions for r in made] != [make(i, 1, 64, 0.3).regions for i in range(4)]
    assert make(0, 1, 64, 0.0, style="natural").image == make(0, 1, 64, 0.0, style="natural").image


def test_a_recipes_embedded_corpus_of_each_style_has_a_folder_of_its_own(tmp_path):
    corpus = EmbeddedCorpus(train=2, val=1, size=64, style="natural")
    train, val = embedded_corpora(corpus, tmp_path)
    plain, _ = embedded_corpora(EmbeddedCorpus(train=2, val=1, size=64), tmp_path)
    assert train.path.name == plain.path.name + "-natural" and isinstance(val, Corpus)
    assert val[0].caption == lay_out(corpus.seed + 1_000_000, 0, 64, corpus.documents, style="natural").record.caption


def test_one_thing_alone_and_many_things():
    alone = lay_out(1, 2, SIZE, 0.0, (1, 1), "natural")
    assert re.match(r"There is one shape|The picture shows one|This is a drawing of one", alone.record.caption)
    many = lay_out(1, 2, 640, 0.0, (14, 14), "natural")
    assert len(many.things) == 9 and "nine shapes" in many.record.caption
