"""The order of values in a report: descriptors with delayed replications spelled out.

eccodes gives all values of a message as one array (`numericValues`) and the descriptors of the
template with sequences and fixed replications expanded (`expandedDescriptors`). The counts of the
delayed replications are among the values, so the position of every element of a report follows;
reports with the same counts share one `Layout`, and whole blocks of reports are then handled as
matrices (report, element).
"""

from functools import cached_property
from typing import Any

import numpy as np

from model.domain.errors import DecodeError
from worker.decoders.base import MessageLimits
from worker.decoders.bufr.bits import read_bits

__all__ = ["ASSOCIATED", "COUNTS", "Layout", "Template"]

ASSOCIATED = 999_999
"""Descriptor under which eccodes lists an associated field (operator 2 04 YYY)."""

COUNTS = frozenset({31_000, 31_001, 31_002, 31_011, 31_012})
"""Elements that count a delayed replication."""
_KEPT_LAYOUTS = 4_096


def _has_value(code: int) -> bool:
    """Whether an expanded descriptor has a place among the values."""
    if code < 100_000 or code == ASSOCIATED:
        return True
    operator = code // 1_000
    return operator == 205 or operator >= 222 and operator < 240


def _without_definitions(expanded: tuple[int, ...]) -> tuple[int, ...]:
    """The descriptors without those that only define new reference values (operator 2 03 YYY)."""
    if not any(203_000 < code < 203_255 for code in expanded):
        return expanded
    kept, defining = [], False
    for code in expanded:
        defining = 203_000 < code < 203_255 or (defining and code != 203_255)
        if not defining:
            kept.append(code)
    return tuple(kept)


class Layout:
    """Positions of elements in one report.

    Attributes:
        codes: Descriptor FXXYYY of each element up to the first quality-information operator,
            shape (E,).
        all_codes: The same for the whole report, shape (E + trailer,).
        counts: The delayed replications that make it.
        seen: How often it was unpacked.
        packing: How its values are stored, once learnt (`packing.Packing`), else None.
    """

    def __init__(self, all_codes: np.ndarray) -> None:
        trailer = np.flatnonzero((all_codes >= 222_000) & (all_codes < 237_000))
        self.all_codes = all_codes
        self.codes = all_codes[: trailer[0]] if trailer.size else all_codes
        self.counts: tuple[int, ...] = ()
        self.seen = 0
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


class Template:
    """Expanded descriptors of a template and the layouts met so far.

    Arguments:
        expanded: Descriptors with sequences and fixed replications expanded.
    """

    def __init__(self, expanded: tuple[int, ...]) -> None:
        self.raw = expanded
        self.expanded = expanded = _without_definitions(expanded)
        self.codes = frozenset(c for c in expanded if c < 100_000)
        self._next_count: dict[tuple[int, ...], int] = {}
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._count_bits: dict[tuple[int, ...], tuple[int, int]] = {}

    def layout(self, values: np.ndarray, limits: MessageLimits) -> Layout:
        """Layout of the report whose values begin at `values[0]`.

        Raises:
            DecodeError: `too_large` beyond the limits, `undecodable` if a count is missing.
        """
        counts: tuple[int, ...] = ()
        while (at := self._next_count.get(counts, -1)) >= 0:
            counts = (*counts, _count(values, at, limits))
        if counts in self._layouts:
            return self._layouts[counts]
        return self._expand(values, limits)

    def _expand(self, values: np.ndarray, limits: MessageLimits) -> Layout:
        out: list[int] = []
        counts: list[int] = []

        def read() -> int:
            number = _count(values, len(out) - 1, limits)
            self._next_count[tuple(counts)] = len(out) - 1
            counts.append(number)
            return number

        def walk(low: int, high: int) -> None:
            at = low
            while at < high:
                code = self.expanded[at]
                if at + 1 < high and self.expanded[at + 1] in COUNTS and code >= 100_000:
                    # eccodes counts the expanded span: 1 31 000 may appear as 231000.
                    span = (code - 100_000) // 1_000
                    out.append(self.expanded[at + 1])
                    times = read()
                    if self.expanded[at + 1] in (31_011, 31_012):
                        times = min(times, 1)
                    inner = self.expanded[at + 2 : at + 2 + span]
                    if COUNTS.isdisjoint(inner):
                        out.extend([c for c in inner if _has_value(c)] * times)
                    else:
                        for _ in range(times):
                            walk(at + 2, at + 2 + span)
                    at += 2 + span
                else:
                    if _has_value(code):
                        out.append(code)
                    at += 1
                if len(out) > limits.values:
                    raise _too_large(f"more than {limits.values} values in a report")

        walk(0, len(self.expanded))
        if len(self._layouts) >= _KEPT_LAYOUTS:
            self._layouts.clear()
            self._next_count.clear()
            self._count_bits.clear()
            return Layout(np.array(out, dtype=np.int32))
        layout = Layout(np.array(out, dtype=np.int32))
        layout.counts = tuple(counts)
        self._layouts[layout.counts] = layout
        return layout

    def learn(self, layout: Layout, packing: Any) -> None:
        """Keeps the packing of a layout, and from it the place of each count before its end."""
        layout.packing = packing
        for length in range(len(layout.counts)):
            prefix = layout.counts[:length]
            at = self._next_count.get(prefix, -1)
            if at >= 0:
                place = int(packing.offsets[at]), int(packing.widths[at])
                self._count_bits[prefix] = place

    def packed_layout(self, body: bytes, start: int) -> Layout | None:
        """Layout of the report at bit `start` if it and its packing are known, else None."""
        counts: tuple[int, ...] = ()
        while place := self._count_bits.get(counts):
            counts = (*counts, read_bits(body, start + place[0], place[1]))
        layout = self._layouts.get(counts)
        return layout if layout is not None and layout.packing is not None else None


def _too_large(what: str) -> DecodeError:
    return DecodeError(f"Expected a message within the limits; got {what}.", reason="too_large")


def _count(values: np.ndarray, at: int, limits: MessageLimits) -> int:
    if at >= len(values):
        raise DecodeError("Expected more values than the data section holds.", reason="undecodable")
    number = values[at]
    if not 0 <= number <= 1e9:
        raise DecodeError("Expected a replication count; it is missing.", reason="undecodable")
    if number > limits.replications:
        raise _too_large(f"a replication of {int(number)}, at most {limits.replications} allowed")
    return int(number)
