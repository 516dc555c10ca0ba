"""Describe the layout of a report: the position of each element.

A layout is the descriptors of a report with delayed replications spelled out.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ASSOCIATED", "COUNTS", "Padding", "ReportLayout"]

ASSOCIATED = 999_999
"""Descriptor under which eccodes lists an associated field (operator 2 04 YYY)."""

COUNTS = frozenset({31_000, 31_001, 31_002, 31_011, 31_012})
"""Elements that count a delayed replication."""


_DESCRIBING = (*COUNTS, ASSOCIATED, 31_021, 31_031)
"""Elements that describe others: counts, associated fields, their significance, bitmaps."""

_STATISTICS = (223_255, 224_255, 225_255, 232_255)
"""Operators that mark a value: substituted, statistical, difference, replaced."""


class Padding(NamedTuple):
    """Mapping of a layout to one with more repetitions.

    Attributes:
        layout: The layout with more repetitions.
        positions: Position in it of each element, shape (E,).
    """

    layout: "ReportLayout"
    positions: np.ndarray


class ReportLayout:
    """Positions of elements in one report.

    Attributes:
        codes: Descriptor FXXYYY of each element up to the first quality-information operator,
            shape (E,).
        all_codes: The same for the whole report, shape (E + trailer,).
        counts: Counts of the delayed replications that define it.
        slots: Index of each element in the expanded descriptors of the template, like all_codes.
        packing: How its values are stored, once known (`packing.Packing`), else None.
        compressed: The same for compressed messages (`compressed.CompressedPacking`).
        padding: Its mapping to a layout with more levels, once computed.
        marks: Elements by the descriptor of the quality mark that precedes them, in files whose
            tables have such marks (`dump.MARKS`).
    """

    def __init__(self, all_codes: np.ndarray, slots: np.ndarray | None = None) -> None:
        trailer = np.flatnonzero((all_codes >= 222_000) & (all_codes < 237_000))
        self.all_codes = all_codes
        self.codes = all_codes[: trailer[0]] if trailer.size else all_codes
        self.slots = np.arange(len(all_codes)) if slots is None else slots
        self.counts: tuple[int, ...] = ()
        self.packing: Any = None
        self.compressed: Any = None
        self.padding: Padding | None = None
        self.marks: Mapping[int, tuple[int, ...]] = {}
        self._where: dict[int, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Return the number of values in one report."""
        return len(self.all_codes)

    def where(self, code: int) -> np.ndarray:
        """Return positions of all occurrences of an element, ascending."""
        if code not in self._where:
            low, high = self._sorted.searchsorted((code, code + 1))
            self._where[code] = self._order[low:high]
        return self._where[code]

    @cached_property
    def _order(self) -> np.ndarray:
        """Return the positions by element, ascending for each of them."""
        return np.argsort(self.codes, kind="stable")

    @cached_property
    def _sorted(self) -> np.ndarray:
        found: np.ndarray = self.codes[self._order]
        return found

    def first(self, *codes: int) -> int:
        """Return the position of the first occurrence of the first of the elements that occurs, or -1."""
        for code in codes:
            found = self.where(code)
            if found.size:
                return int(found[0])
        return -1

    def has(self, *codes: int) -> bool:
        """Return whether any of the elements occurs."""
        return self.first(*codes) >= 0

    def before(self, position: int, *codes: int) -> int:
        """Return the position of the last occurrence of any of the elements before `position`, or -1.

        Coordinates and significances hold until redefined, so this is the one in effect.
        """
        last = -1
        for code in codes:
            found = self.where(code)
            at = int(found.searchsorted(position)) - 1
            if at >= 0:
                last = max(last, int(found[at]))
        return last

    def after_each(self, anchors: np.ndarray, *codes: int) -> np.ndarray:
        """Return the position of the first of the elements between each anchor and the next, or -1.

        Arguments:
            anchors: Ascending positions, shape (K,).
            codes: Elements in order of preference.
        """
        result = np.full(len(anchors), -1)
        present = [found for code in reversed(codes) if (found := self.where(code)).size]
        if not present or not len(anchors):
            return result
        ends = np.empty(len(anchors), dtype=np.int64)
        ends[:-1], ends[-1] = anchors[1:], len(self.codes)
        for found in present:
            index = found.searchsorted(anchors)
            nearest = found[np.minimum(index, found.size - 1)]
            result = np.where((index < found.size) & (nearest < ends), nearest, result)
        return result

    def before_each(self, anchors: np.ndarray, *codes: int) -> np.ndarray:
        """Return the position of the last of the elements between each anchor and the one before, or -1."""
        result = np.full(len(anchors), -1)
        present = [found for code in reversed(codes) if (found := self.where(code)).size]
        if not present or not len(anchors):
            return result
        starts = np.empty(len(anchors), dtype=np.int64)
        starts[0], starts[1:] = -1, anchors[:-1]
        for found in present:
            index = found.searchsorted(anchors) - 1
            nearest = found[np.maximum(index, 0)]
            result = np.where((index >= 0) & (nearest > starts), nearest, result)
        return result

    @cached_property
    def distinct(self) -> np.ndarray:
        """Return the descriptors that occur anywhere in the report, ascending."""
        return np.unique(self.all_codes)

    @cached_property
    def groups(self) -> np.ndarray:
        """Number of each element's descriptor in `distinct`, shape (E + trailer,)."""
        return np.searchsorted(self.distinct, self.all_codes)

    @cached_property
    def data(self) -> np.ndarray:
        """Return whether each element is a value of its own, shape (E + trailer,).

        Counts, bitmaps and associated fields describe other elements; operators have no value.
        """
        operators = (self.all_codes >= 100_000) & ~np.isin(self.all_codes, _STATISTICS)
        return ~operators & ~np.isin(self.all_codes, _DESCRIBING)

    @cached_property
    def marked(self) -> np.ndarray:
        """Position of the quality mark of each element, or -1, shape (E,)."""
        result = np.full(len(self.codes), -1)
        for mark, codes in self.marks.items():
            places = self.where(mark)
            for code in codes if places.size else ():
                found = self.where(code)
                before = places.searchsorted(found) - 1
                result[found] = np.where(before >= 0, places[np.maximum(before, 0)], -1)
        return result

    @cached_property
    def associated(self) -> np.ndarray:
        """Position of the associated field of each element, or -1, shape (E,)."""
        result = np.full(len(self.codes), -1)
        fields = self.where(ASSOCIATED)
        fields = fields[fields + 1 < len(self.codes)]
        result[fields + 1] = fields
        return result
