"""Hold reports of equal layout, from one or many messages, as one matrix.

Of texts only those that identify the station or platform are read. Every element read is recorded in
the block's `usage`: values that were never read, or read and then not used, are counted by element in
the report of the file, so that nothing is dropped silently.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.layout import ReportLayout

__all__ = ["Block", "ElementUsage", "LAST_USED_MARK", "TEXT_KEYS", "clean_text"]

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


LAST_USED_MARK = 3
"""Quality marks of NCEP: 0 keep, 1 good, 2 not checked, 3 suspect; from 4 on not used."""


def clean_text(text: str) -> str:
    """Return the text without padding; empty if it holds anything but printable ASCII."""
    text = text.strip(" \x00")
    return text if text.isprintable() and text.isascii() else ""


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

    @cached_property
    def usage(self) -> ElementUsage:
        """Which elements were read so far."""
        return ElementUsage(self.layout, self.values, self.texts)

    def text(self, code: int) -> list[str] | None:
        """Return an identifying text of each report, or None if the layout lacks it."""
        found = self.texts.get(code)
        if found is not None:
            self.usage.read(self.layout.first(code))
        return found

    def at(self, position: int) -> np.ndarray:
        """Return values at a position, shape (N,); NaN for position -1."""
        if position < 0:
            return np.full(len(self), np.nan)
        self.usage.read(position)
        return self.values[:, position]

    def at_each(self, positions: np.ndarray) -> np.ndarray:
        """Return values at positions, shape (N, K); NaN where a position is -1."""
        if not len(positions):
            return np.empty((len(self), 0))
        absent = positions < 0
        if absent.all():
            return np.full((len(self), len(positions)), np.nan)
        self.usage.read(positions)
        found = self.values[:, positions]
        if absent.any():
            found[:, absent] = np.nan
        return found

    def first(self, *codes: int) -> np.ndarray:
        """Return the first occurrence of each element in order of preference, later ones where missing."""
        places = [at for code in codes if (at := self.layout.first(code)) >= 0]
        if not places:
            return np.full(len(self), np.nan)
        result = self.at(places[0])
        for at in places[1:]:
            missing = np.isnan(result)
            self.usage.take(at, missing)
            if missing.any():
                result = np.where(missing, self.values[:, at], result)
        return result

    def either(self, *choices: np.ndarray) -> np.ndarray:
        """Return values at the first of several choices of positions that is given, shape (N, K).

        Arguments:
            choices: Positions in order of preference, each (K,), -1 where there is none.
        """
        result = self.at_each(choices[0])
        for positions in choices[1:]:
            if (positions < 0).all():
                continue
            missing = np.isnan(result)
            for column in np.flatnonzero((positions >= 0) & missing.any(axis=0)).tolist():
                at, needed = int(positions[column]), missing[:, column]
                self.usage.take(at, needed)
                result[needed, column] = self.values[needed, at]
        return result

    def effective(self, position: int, *codes: int) -> np.ndarray:
        """Return the value of the coordinate or significance in effect at a position; NaN if none."""
        return self.at(self.layout.before(position, *codes) if position >= 0 else -1)

    def suspect(self, positions: np.ndarray) -> np.ndarray:
        """Return whether the associated field of each position flags its value as bad, shape (N, K).

        The meaning of the field is in 0 31 021, see `_BAD_FLAGS`. Quality marks of NCEP count likewise.
        """
        if self.layout.marks:
            return self._marked_bad(positions)
        if not self.layout.associated.size:
            return np.zeros((len(self), len(positions)), dtype=bool)
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

    def _marked_bad(self, positions: np.ndarray) -> np.ndarray:
        """Return whether the mark before each position says that the value was not used, (N, K)."""
        places = np.where(positions >= 0, self.layout.marked[positions], -1)
        with np.errstate(invalid="ignore"):
            return np.asarray(self.at_each(places) > LAST_USED_MARK)
