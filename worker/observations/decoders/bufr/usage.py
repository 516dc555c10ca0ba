"""Track which elements of a block were used, and which were given but not used.

A family reads values through `Block`, which records every element here. Values that were never read,
or read and then not used, are counted by element in the report of the file, so that nothing is dropped
silently.
"""

from collections import Counter
from collections.abc import Mapping, Set

import numpy as np

from worker.observations.decoders.bufr.layout import ReportLayout

__all__ = ["ElementUsage", "what_it_holds"]


class ElementUsage:
    """Record of the elements of a block, shape (N, E), that were used.

    Arguments:
        layout: Positions of the elements.
        values: Shape (N, E), NaN where missing.
        texts: Identifying texts by descriptor, "" where missing, each of N.
    """

    def __init__(
        self, layout: ReportLayout, values: np.ndarray, texts: Mapping[int, list[str]]
    ) -> None:
        self._layout = layout
        self._texts = texts
        self._values = values
        self._read = np.zeros(values.shape[1], dtype=bool)
        self._taken: dict[int, np.ndarray] = {}
        self._left = np.zeros(values.shape[1], dtype=np.int64)

    def read(self, positions: np.ndarray | int) -> None:
        """Record that the elements at positions are used in all reports; -1 is none."""
        if isinstance(positions, int):
            if positions >= 0:
                self._read[positions] = True
        else:
            self._read[positions[positions >= 0]] = True

    def take(self, position: int, cells: np.ndarray) -> None:
        """Record that an element is used in the reports where `cells`, shape (N,), is true."""
        if position >= 0:
            before = self._taken.get(position)
            self._taken[position] = cells if before is None else before | cells

    def leave(self, positions: np.ndarray, cells: np.ndarray) -> None:
        """Record that elements that were read are not used after all; once for each cell.

        Arguments:
            positions: Distinct positions, shape (K,); -1 is none.
            cells: Where they are left, shape (N, K).
        """
        if cells.any():
            columns = np.flatnonzero(positions >= 0)
            places, left = positions[columns], cells[:, columns]
            given = self._values[:, places]
            self._left[places] += np.count_nonzero(left & (given == given), axis=0)

    def not_used(self) -> Counter[int]:
        """Return how many values of each element were given and not used, by descriptor.

        Texts that identify no one count whether filled in or blank.
        """
        counts = self._counts()
        if not counts.any():
            return Counter()
        totals = np.bincount(self._layout.groups, counts, len(self._layout.distinct))
        given = np.flatnonzero(totals)
        codes, numbers = self._layout.distinct[given], totals[given].astype(np.int64)
        return Counter(dict(zip(codes.tolist(), numbers.tolist(), strict=True)))

    def _counts(self) -> np.ndarray:
        """Return the number of values given and not used at each position, shape (E,)."""
        counts = np.zeros(self._values.shape[1], dtype=np.int64)
        described = self._layout.data
        unread = np.flatnonzero(described & ~self._read)
        if unread.size:
            given = self._values[:, unread]
            counts[unread] = len(given) - np.count_nonzero(given != given, axis=0)
        for code, texts in self._texts.items():
            if counts[at := self._layout.first(code)]:
                counts[at] = len(texts) - texts.count("")
        for position, taken in self._taken.items():
            if counts[position]:
                given = self._values[:, position]
                counts[position] -= np.count_nonzero(taken & (given == given))
        return counts + np.where(described, self._left, 0)


_OTHER_CONTENT = (
    (frozenset({12_063, 12_163, 12_158, 14_044, 14_045, 14_046}), "radiances"),
    (frozenset({15_037, 15_036}), "bending angles or refractivity of radio occultation"),
    (frozenset({21_062, 21_185, 21_183}), "backscatter without winds"),
    (frozenset({22_021, 22_070, 22_074, 22_080, 22_086, 22_069, 22_011}), "waves alone"),
    (frozenset({22_037, 22_038, 22_120, 22_121}), "tides and water levels"),
    (frozenset({22_043, 22_044, 22_064}), "profiles of the ocean"),
    (frozenset({15_001, 15_002, 15_003, 15_011, 15_020, 15_021, 15_023}), "gases and particles"),
    (frozenset({30_001, 30_002, 30_004, 21_001}), "radar pictures"),
    (frozenset({12_080, 12_081, 10_050, 13_060}), "land and sea surface from satellites"),
    (frozenset({14_001, 14_011, 14_012, 14_017, 14_028}), "radiation"),
    (frozenset({13_023, 13_021, 13_022, 13_011}), "precipitation over other times than an hour"),
    (frozenset({20_058, 20_062, 20_008}), "weather and clouds alone"),
)
"""Content of messages without a known variable, by characteristic elements; the first match counts."""


def what_it_holds(codes: Set[int]) -> str:
    """Return in words what a message of these elements holds, "" if that is not known."""
    return next((words for telling, words in _OTHER_CONTENT if telling & codes), "")
