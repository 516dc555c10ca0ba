"""Hold reports of equal layout, from one or many messages, as one matrix.

A layout is the order of values in a report: its descriptors with delayed replications spelled
out. Of texts only those that identify who reports are ever read.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from worker.observations.decoders.bufr.framing import Header

__all__ = ["ASSOCIATED", "Block", "COUNTS", "ReportLayout", "TEXT_KEYS", "clean_text"]

ASSOCIATED = 999_999
"""Descriptor under which eccodes lists an associated field (operator 2 04 YYY)."""

COUNTS = frozenset({31_000, 31_001, 31_002, 31_011, 31_012})
"""Elements that count a delayed replication."""


class ReportLayout:
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
        """Return the number of values in one report."""
        return len(self.all_codes)

    def where(self, code: int) -> np.ndarray:
        """Return positions of all occurrences of an element, ascending."""
        if code not in self._where:
            self._where[code] = np.flatnonzero(self.codes == code)
        return self._where[code]

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
            at = int(np.searchsorted(found, position)) - 1
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
        ends = np.append(anchors[1:], len(self.codes))
        for code in reversed(codes):
            found = np.append(self.where(code), len(self.codes))
            nearest = found[np.searchsorted(found, anchors)]
            result = np.where(nearest < ends, nearest, result)
        return result

    def before_each(self, anchors: np.ndarray, *codes: int) -> np.ndarray:
        """Return the position of the last of the elements between each anchor and the one before, or -1."""
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


TEXT_KEYS = {
    1_006: "aircraftFlightNumber",
    1_008: "aircraftRegistrationNumberOrOtherIdentification",
    1_011: "shipOrMobileLandStationIdentifier",
    1_015: "stationOrSiteName",
    1_018: "shortStationName",
    1_019: "longStationName",
    1_102: "nationalStationIdentifier",
    1_110: "aircraftTailNumber",
    1_128: "wigosLocalIdentifierCharacter",
}
"""Names by descriptor."""


_BAD_FLAGS = {1: (1,), 2: (2,), 6: (3, 4), 8: (1,)}
"""Bad values of an associated field by its meaning (0 31 021): 1 one bit, 1 is suspect; 2 two bits,
2 is highly suspect; 6 four bits (GTSPP), 3 and 4 are bad; 8 two bits, 1 is suspect."""


def clean_text(text: str) -> str:
    """Return the text without padding; empty if it holds anything but printable ASCII."""
    text = text.strip(" \x00")
    return text if text.isprintable() and text.isascii() else ""


@dataclass(frozen=True)
class Block:
    """Reports that share a layout.

    Attributes:
        header: Sections 1 and 3 of the first message (template and category are those of all).
        layout: Positions of the elements.
        values: Shape (N, layout.size), NaN where missing.
        texts: Identifying texts by descriptor, each of N.
    """

    header: Header
    layout: ReportLayout
    values: np.ndarray
    texts: dict[int, list[str]]

    def __len__(self) -> int:
        return len(self.values)

    def at(self, position: int) -> np.ndarray:
        """Return values at a position, shape (N,); NaN for position -1."""
        if position < 0:
            return np.full(len(self), np.nan)
        return self.values[:, position]

    def at_each(self, positions: np.ndarray) -> np.ndarray:
        """Return values at positions, shape (N, K); NaN where a position is -1."""
        if not len(positions):
            return np.empty((len(self), 0))
        found = self.values[:, positions]
        if (positions < 0).any():
            found[:, positions < 0] = np.nan
        return found

    def first(self, *codes: int) -> np.ndarray:
        """Return the first occurrence of each element in order of preference, later ones where missing."""
        result = np.full(len(self), np.nan)
        for code in codes:
            at = self.layout.first(code)
            if at >= 0:
                result = np.where(np.isnan(result), self.values[:, at], result)
        return result

    def effective(self, position: int, *codes: int) -> np.ndarray:
        """Return the value of the coordinate or significance in effect at a position; NaN if none."""
        return self.at(self.layout.before(position, *codes) if position >= 0 else -1)

    def suspect(self, positions: np.ndarray) -> np.ndarray:
        """Return whether the associated field of each position calls its value bad, shape (N, K).

        The meaning of the field is in 0 31 021, see `_BAD_FLAGS`.
        """
        fields = np.where(positions >= 0, self.layout.associated[positions], -1)
        if (fields < 0).all():
            return np.zeros((len(self), len(positions)), dtype=bool)
        meaning = self.first(31_021)[:, None]
        given = self.at_each(fields)
        bad: np.ndarray = np.any(
            [(meaning == code) & np.isin(given, worst) for code, worst in _BAD_FLAGS.items()],
            axis=0,
        )
        return bad
