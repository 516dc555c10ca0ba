"""The order of values in a report: descriptors with delayed replications spelled out."""

from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["ASSOCIATED", "COUNTS", "Layout"]

ASSOCIATED = 999_999
"""Descriptor under which eccodes lists an associated field (operator 2 04 YYY)."""

COUNTS = frozenset({31_000, 31_001, 31_002, 31_011, 31_012})
"""Elements that count a delayed replication."""


class Layout:
    """Positions of elements in one report.

    Attributes:
        codes: Descriptor FXXYYY of each element up to the first quality-information operator,
            shape (E,).
        all_codes: The same for the whole report, shape (E + trailer,).
        counts: The delayed replications that make it.
        slots: Place of each element in the expanded descriptors of the template, like all_codes.
        packing: How its values are stored, once learnt (`packing.Packing`), else None.
    """

    def __init__(self, all_codes: np.ndarray, slots: np.ndarray | None = None) -> None:
        trailer = np.flatnonzero((all_codes >= 222_000) & (all_codes < 237_000))
        self.all_codes = all_codes
        self.codes = all_codes[: trailer[0]] if trailer.size else all_codes
        self.slots = np.arange(len(all_codes)) if slots is None else slots
        self.counts: tuple[int, ...] = ()
        self.packing: Any = None
        self._where: dict[int, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Values of a report."""
        return len(self.all_codes)

    def where(self, code: int) -> np.ndarray:
        """Positions of all occurrences of an element, ascending."""
        if code not in self._where:
            self._where[code] = np.flatnonzero(self.codes == code)
        return self._where[code]

    def first(self, *codes: int) -> int:
        """Position of the first occurrence of the first of the elements that occurs, or -1."""
        for code in codes:
            found = self.where(code)
            if found.size:
                return int(found[0])
        return -1

    def has(self, *codes: int) -> bool:
        """Whether any of the elements occurs."""
        return self.first(*codes) >= 0

    def before(self, position: int, *codes: int) -> int:
        """Position of the last occurrence of any of the elements before `position`, or -1.

        Coordinates and significances hold until redefined, so this is the one in effect.
        """
        last = -1
        for code in codes:
            found = self.where(code)
            at = int(np.searchsorted(found, position)) - 1
            if at >= 0:
                last = max(last, int(found[at]))
        return last

    def after_each(self, anchors: np.ndarray, *codes: int) -> np.ndarray:
        """Position of the first of the elements between each anchor and the next, or -1.

        Arguments:
            anchors: Ascending positions, shape (K,).
            codes: Elements in order of preference.
        """
        result = np.full(len(anchors), -1)
        ends = np.append(anchors[1:], len(self.codes))
        for code in reversed(codes):
            found = np.append(self.where(code), len(self.codes))
            nearest = found[np.searchsorted(found, anchors)]
            result = np.where(nearest < ends, nearest, result)
        return result

    def before_each(self, anchors: np.ndarray, *codes: int) -> np.ndarray:
        """Position of the last of the elements between each anchor and the one before, or -1."""
        result = np.full(len(anchors), -1)
        starts = np.append(-1, anchors[:-1])
        for code in reversed(codes):
            found = np.append(-1, self.where(code))
            nearest = found[np.searchsorted(found, anchors) - 1]
            result = np.where(nearest > starts, nearest, result)
        return result

    @cached_property
    def associated(self) -> np.ndarray:
        """Position of the associated field of each element, or -1, shape (E,)."""
        result = np.full(len(self.codes), -1)
        fields = self.where(ASSOCIATED)
        fields = fields[fields + 1 < len(self.codes)]
        result[fields + 1] = fields
        return result
