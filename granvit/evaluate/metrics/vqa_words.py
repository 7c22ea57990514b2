"""The normalisation of answers that the VQA challenges agreed on, as the EvalAI server applies it."""

from __future__ import annotations

import re

_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d),+(?=\d)")

# Written without the apostrophe, or without one of two, these become what they stand for.
_SHORT = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
_TWICE_SHORT = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
""".split()


def _without_one(word: str) -> list[str]:
    return [word[: m.start()] + word[m.end() :] for m in re.finditer("'", word)]


_CONTRACTIONS = (
    {word.replace("'", ""): word for word in _SHORT}
    | {shorter: word for word in _TWICE_SHORT for shorter in _without_one(word)}
    | {shorter: "'ow's'at" for shorter in _without_one("'ow's'at")}
    | {"somebody'd": "somebodyd"}  # so it is on the server
)


def plain_answer(text: str) -> str:
    """An answer in lower case, without punctuation and articles, numbers up to ten as digits, apostrophes restored."""
    text = re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip()
    text = re.sub(r"[\n\t]", " ", text).strip()
    joined = _THOUSANDS.search(text)
    plain = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_blank or joined else " ")
    plain = _FULL_STOP.sub("", plain)
    words = [_NUMBERS.get(word, word) for word in plain.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
