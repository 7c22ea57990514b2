"""What a study takes of a corpus: its pictures with their regions and captions, and no conversations.

Of all arms one alone, whose encoder learns in stage 2, asks conversations where it finds some: it would have other data
than the arms that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Subset
from granvit.regions import RegionImage


class _WithoutConversations(Subset):
    """Records as they are but for their conversations."""

    def __getitem__(self, index: int) -> RegionImage:
        return replace(super().__getitem__(index), conversations=[])

    def __iter__(self) -> Iterator[RegionImage]:
        return (replace(record, conversations=[]) for record in super().__iter__())


def pictures_of(part: Subset) -> Subset:
    """The records of a part that have an image, without their conversations.

    Raises:
        CorpusError: there is none.
    """
    if not part.corpus.manifest.get("conversations"):
        return part
    absent = part.corpus.without_image()
    found = _WithoutConversations(part.corpus, [index for index in part.indices if index not in absent])
    if not len(found):
        raise CorpusError(f"{part.corpus.path}: of what is to be trained or measured on no record has an image")
    return found
