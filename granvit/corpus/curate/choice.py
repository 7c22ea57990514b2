"""Which images stay of those that passed the filters: sources left out, copies, caps and weights, in this order.

Sources at 0 go first, so that none of their records stands for a copy of another source. Caps and weights come last:
they count what copies have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.curate.balance import mix
from granvit.corpus.curate.filters import PassedImages
from granvit.corpus.curate.report import CAP, EXACT, NEAR, WEIGHT


class Choice:
    """Which images stay, found step by step. Entries are places among those that passed.

    Args:
        passed: the images.
        caps, weights: see `Curation`.

    Attributes:
        left: whether each one stays, as far as is known.
    """

    def __init__(self, passed: PassedImages, caps: Mapping[str, int], weights: Mapping[str, float]) -> None:
        self._passed, self._caps, self._weights = passed, caps, weights
        self.left: NDArray[np.bool_] = np.ones(len(passed), dtype=bool)
        self._reasons: dict[int, str] = {}  # of those that go by themselves
        self._for: dict[int, int] = {}  # of a copy that goes, the one it goes for, which may itself go for another
        self._file: dict[int, int] = {}  # of files that are there several times, one entry that names them

    def leave_out(self) -> None:
        """Drop all of the sources whose cap or weight is 0, what is held out too."""
        for reason, given in ((CAP, self._caps), (WEIGHT, self._weights)):
            nothing = [index for index, name in enumerate(self._passed.sources) if given.get(name) == 0]
            self._drop(np.flatnonzero(self.left & np.isin(self._passed.source, nothing)), reason)

    def thin_copies(self, group: Sequence[int], same_file: bool) -> None:
        """Keep the best one of a group of copies, of those of them that are left."""
        members = [entry for entry in group if self.left[entry]]
        if len(members) < 2:
            return
        kept = self._passed.best(members)
        for entry in members:
            if same_file:
                self._file[entry] = kept
            if entry != kept:
                self.left[entry] = False
                self._for[entry] = kept
                if same_file and self._passed.same_size(kept, entry):
                    self._passed.join(kept, entry)

    def thin_sources(self) -> None:
        """Drop what is over caps and weights.

        They are about what is trained on: what is held out is there to measure it, whatever its mixture.

        Raises:
            CorpusError: there are weights, and a source that is left has none.
        """
        over = self._open()[self._mix(self._caps, {})[0]]
        self._drop(over, CAP)
        self._stand_in(over)
        self._drop(self._open()[self._mix({}, self._weights)[1]], WEIGHT)

    def outcome(self) -> tuple[dict[int, str], dict[int, list[int]]]:
        """Why rows of the corpus go, and the rows of copies whose content is taken over, by that of the one that stays.

        A copy's reason is what it is of the one that stays; where that goes too, its reason.
        """
        rows = self._passed.rows.tolist()
        reasons = {rows[entry]: reason for entry, reason in self._reasons.items()}
        taken_over: dict[int, list[int]] = {}
        for copy in sorted(self._for):
            kept = self._stays_for(copy)
            if kept in self._reasons:
                reasons[rows[copy]] = self._reasons[kept]
            elif not self._same_file(copy, kept):
                reasons[rows[copy]] = NEAR
            else:
                reasons[rows[copy]] = EXACT
                if self._passed.same_size(kept, copy):
                    taken_over.setdefault(rows[kept], []).append(rows[copy])
        return reasons, taken_over

    def _drop(self, entries: NDArray[np.int64], reason: str) -> None:
        self.left[entries] = False
        self._reasons.update((entry, reason) for entry in entries.tolist())

    def _open(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.left & ~self._passed.held_out)

    def _mix(
        self, caps: Mapping[str, int], weights: Mapping[str, float]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        open_n = self._open()
        return mix(self._passed.source[open_n], self._passed.draw[open_n], self._passed.sources, caps, weights)

    def _stays_for(self, entry: int) -> int:
        while entry in self._for:
            entry = self._for[entry]
        return entry

    def _same_file(self, first: int, second: int) -> bool:
        return self._file.get(first, first) == self._file.get(second, second)

    def _stand_in(self, gone: Iterable[int]) -> None:
        """In the place of each image that a cap took, let the best of its copies stay whose source has room.

        What it says of other sources would go with it otherwise, though those have no cap.
        """
        copies: dict[int, list[int]] = {int(entry): [] for entry in gone}
        for copy in sorted(self._for):
            if (kept := self._stays_for(copy)) in copies:
                copies[kept].append(copy)
        source = self._passed.source.tolist()
        used = np.bincount(self._passed.source[self._open()], minlength=len(self._passed.sources)).tolist()
        room = [self._caps.get(name, len(source)) - n for name, n in zip(self._passed.sources, used, strict=True)]
        for kept, waiting in copies.items():
            fitting = [copy for copy in waiting if room[source[copy]] > 0]
            if not fitting:
                continue
            best = self._passed.best(fitting)
            room[source[best]] -= 1
            # Those of a source without room are over its cap as the one that they went for is.
            self._for.update(dict.fromkeys(waiting, kept) | dict.fromkeys(fitting, best))
            del self._for[best]
            self.left[best] = True
