"""Account for the elements of a block: those used, and those given but left aside.

A family reads values through `Block`, which notes every element here. What was given and never
read, or read and then left, is counted by element in the report of the file, so that nothing
vanishes uncounted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import eccodes
import numpy as np

from worker.observations.decoders.bufr.layout import ReportLayout

__all__ = ["Usage", "element_names"]


class Usage:
    """Which elements of a block, shape (N, E), were used.

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
        """Note that the elements at positions are used in all reports; -1 is none."""
        if isinstance(positions, int):
            if positions >= 0:
                self._read[positions] = True
        else:
            self._read[positions[positions >= 0]] = True

    def take(self, position: int, cells: np.ndarray) -> None:
        """Note that an element is used in some reports, where `cells`, shape (N,), is true."""
        if position >= 0:
            before = self._taken.get(position)
            self._taken[position] = cells if before is None else before | cells

    def leave(self, positions: np.ndarray, cells: np.ndarray) -> None:
        """Note that elements that were read are not used after all; once for each cell.

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


_LOCAL_CLASS, _LOCAL_ELEMENT, _LAST_ELEMENT = 48, 192, 64_000
_known_names: dict[int, str] = {}


def element_names(codes: Iterable[int], version: int) -> dict[int, str]:
    """Return the names of elements of the WMO tables; local elements and operators have none.

    They are asked for once in a process, from a message without data: eccodes unpacks a message
    with data to give them.

    Arguments:
        codes: Descriptors.
        version: Of the master table.
    """
    wanted = {code for code in codes if not _is_local(code)}
    unknown = sorted(wanted - _known_names.keys())
    if unknown:
        _known_names.update(dict.fromkeys(unknown, ""))
        handle = eccodes.codes_bufr_new_from_samples("BUFR4")
        try:
            eccodes.codes_set(handle, "masterTablesVersionNumber", version)
            eccodes.codes_set_array(handle, "unexpandedDescriptors", unknown)
            found = eccodes.codes_get_string_array(handle, "expandedAbbreviations")
            _known_names.update(zip(unknown, found, strict=True))
        except (eccodes.CodesInternalError, ValueError):
            # An element that this version of the table lacks: the numbers must do.
            pass
        finally:
            eccodes.codes_release(handle)
    return {code: _known_names[code] for code in wanted}


def _is_local(code: int) -> bool:
    return code >= _LAST_ELEMENT or code // 1_000 >= _LOCAL_CLASS or code % 1_000 >= _LOCAL_ELEMENT
