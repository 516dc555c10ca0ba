"""Expand templates into descriptors, read replication counts and keep the layouts of reports.

eccodes gives all values of a message as one array (`numericValues`) and the descriptors of the
template with sequences and fixed replications expanded (`expandedDescriptors`). The counts of the
delayed replications are among the values, so the position of every element of a report follows;
reports with the same counts share one `ReportLayout`, and whole blocks of reports are then
handled as matrices (report, element).

The first count of a large message is read bit by bit before the library unpacks it: unpacking takes
some kilobytes per value, and a legal sonde message of 1.4 MB with 65 535 levels needs 3.5 GB and many
seconds. Operators that change widths are ignored there, so a count that cannot fit is disregarded.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from model.domain.errors import DecodeError
from worker.observations.decoders.base import MessageLimits
from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.layout import ASSOCIATED, COUNTS, Padding, ReportLayout
from worker.observations.decoders.bufr.packing import Storage, make_packing, read_bits

__all__ = ["NO_WIDTH", "Template", "check_first_count"]

_KEPT_LAYOUTS = 512
_PADDED_SIZE = 30_000
"""Size of a report above which its layout is not padded, because values dominate the cost."""
_UNKNOWN = -1
_TRIALS = 3


def _has_value(code: int) -> bool:
    """Return whether an expanded descriptor has a place among the values."""
    if code < 100_000 or code == ASSOCIATED:
        return True
    operator = code // 1_000
    return operator == 205 or operator >= 222 and operator < 240


def _without_definitions(expanded: tuple[int, ...]) -> tuple[int, ...]:
    """Return the descriptors without those that only define new reference values (operator 2 03 YYY)."""
    if not any(203_000 < code < 203_255 for code in expanded):
        return expanded
    kept, defining = [], False
    for code in expanded:
        defining = 203_000 < code < 203_255 or (defining and code != 203_255)
        if not defining:
            kept.append(code)
    return tuple(kept)


class _NotPacked(Exception):
    """The bits cannot be read without eccodes (yet)."""


class Template:
    """Expanded descriptors of a template and the layouts of its reports seen so far.

    Arguments:
        expanded: Descriptors with sequences and fixed replications expanded.
        storage: How each of them is stored, where that is known from the start.

    Attributes:
        raw: The same, definitions of reference values included.
        codes: Elements that occur.
        seen, seen_compressed: Parts unpacked by eccodes so far.
    """

    def __init__(self, expanded: tuple[int, ...], storage: Storage | None = None) -> None:
        self.raw = expanded
        self.expanded = expanded = _without_definitions(expanded)
        self.codes = frozenset(c for c in expanded if c < 100_000)
        self.seen = 0 if storage is None else 1
        self.seen_compressed = 0
        self._compressed_failures = 0
        self._failures = 0 if self.raw == expanded else _TRIALS
        self._storage = storage or Storage(*(np.full(len(expanded), _UNKNOWN) for _ in range(3)))
        self._next_count: dict[tuple[int, ...], int] = {}
        self._count_bits: dict[tuple[int, ...], tuple[int, int]] = {}
        self._layouts: dict[tuple[int, ...], ReportLayout] = {}

    def layout(self, values: np.ndarray, limits: MessageLimits) -> ReportLayout:
        """Return the layout of the report whose values begin at `values[0]`.

        Raises:
            DecodeError: `too_large` beyond the limits, `undecodable` if a count is missing.
        """
        counts: tuple[int, ...] = ()
        while (at := self._next_count.get(counts, -1)) >= 0:
            counts = (*counts, _count(values, at, limits))
        if counts in self._layouts:
            return self._layouts[counts]
        return self._expand(lambda slots: _count(values, len(slots) - 1, limits), limits)

    def padded(self, layout: ReportLayout, limits: MessageLimits) -> Padding | None:
        """Return the mapping of a layout to one with more repetitions; None if there is none.

        Reports that differ only in their number of levels can then be handled together, with missing
        values for absent levels. Counts are rounded up to a power of two; 0 and 1 are unchanged.
        """
        counts = tuple(_rounded(count) for count in layout.counts)
        if counts == layout.counts:
            return Padding(layout, np.arange(layout.size))
        if not self._even or layout.size > _PADDED_SIZE:
            return None
        if layout.padding is None:
            wide = self._layouts.get(counts)
            if wide is None:
                left = iter(counts)
                try:
                    wide = self._expand(lambda slots: next(left), limits)
                except DecodeError:
                    return None
            layout.padding = Padding(wide, _positions(layout.slots, wide.slots))
        return layout.padding

    @cached_property
    def _even(self) -> bool:
        """Return whether no replication is nested, so that all repetitions have the same elements."""
        return not any(
            code in (31_011, 31_012) or not COUNTS.isdisjoint(self.expanded[at + 1 : at + 1 + span])
            for at, code in enumerate(self.expanded)
            if code in COUNTS and (span := (self.expanded[at - 1] - 100_000) // 1_000)
        )

    def walk(self, read: Callable[[list[int]], int], limits: MessageLimits) -> ReportLayout:
        """Return the layout whose counts `read` returns when called with the slots up to each of them."""
        return self._expand(read, limits)

    def packed_layout(self, body: bytes, start: int, limits: MessageLimits) -> ReportLayout | None:
        """Return the layout of the report at bit `start`, with its packing; None if that is not known."""
        counts: tuple[int, ...] = ()
        while place := self._count_bits.get(counts):
            counts = (*counts, read_bits(body, start + place[0], place[1]))
        layout = self._layouts.get(counts)
        if layout is not None and layout.packing is not None:
            return layout
        if not self.seen or self._failures >= _TRIALS:
            return None
        try:
            layout = self._expand(_BitCounts(self._storage.widths, body, start, limits), limits)
        except (_NotPacked, DecodeError):
            # Let eccodes report what is wrong with the counts.
            return None
        return layout if self._pack(layout) else None

    def wants(self, layout: ReportLayout) -> bool:
        """Return whether the storage of the layout's elements is worth learning."""
        self.seen += 1
        known = self._storage.widths[layout.slots] != _UNKNOWN
        return self.seen > 1 and self._failures < _TRIALS and not known.all()

    def compressed_layouts(self) -> Iterator[ReportLayout]:
        """Yield the layouts whose compressed messages can be read without eccodes, newest first."""
        for layout in reversed(self._layouts.values()):
            if layout.compressed is not None:
                yield layout

    def wants_compressed(self) -> bool:
        """Return whether to learn the storage of compressed messages: from the second one on."""
        self.seen_compressed += 1
        return self.seen_compressed > 1 and self._compressed_failures < _TRIALS

    def learn_compressed(self, layout: ReportLayout, found: Any) -> None:
        """Record how compressed messages of a layout are stored; None counts as a failure."""
        layout.compressed = found
        self._compressed_failures += found is None

    def learn(self, layout: ReportLayout, storage: Storage | None) -> None:
        """Record how the elements of a layout are stored; None counts as a failure."""
        if storage is None:
            self._failures += 1
            return
        agreed = True
        for mine, given in zip(self._storage, storage, strict=True):
            known = self._storage.widths[layout.slots] != _UNKNOWN
            agreed &= np.array_equal(mine[layout.slots][known], given[known])
        for mine, given in zip(self._storage, storage, strict=True):
            mine[layout.slots] = given
            agreed &= np.array_equal(mine[layout.slots], given)
        if not agreed:
            # One slot stored in two ways: the recorded storage is unreliable.
            self._failures = _TRIALS
            self._storage.widths[:] = _UNKNOWN

    def _pack(self, layout: ReportLayout) -> bool:
        """Give the layout its packing if all its elements are known."""
        storage = Storage(*(part[layout.slots] for part in self._storage))
        if (storage.widths == _UNKNOWN).any():
            return False
        layout.packing = make_packing(layout, storage)
        for length in range(len(layout.counts)):
            prefix = layout.counts[:length]
            at = self._next_count.get(prefix, -1)
            if at >= 0:
                place = int(layout.packing.offsets[at]), int(layout.packing.widths[at])
                self._count_bits[prefix] = place
        return True

    def _expand(self, read: Callable[[list[int]], int], limits: MessageLimits) -> ReportLayout:
        """Return the layout whose counts `read` returns when called with the slots up to each of them."""
        slots: list[int] = []
        counts: list[int] = []
        valued = [_has_value(code) for code in self.expanded]

        def walk(low: int, high: int) -> None:
            at = low
            while at < high:
                code = self.expanded[at]
                if at + 1 < high and self.expanded[at + 1] in COUNTS and code >= 100_000:
                    # eccodes counts the expanded span: 1 31 000 may appear as 231000.
                    span = (code - 100_000) // 1_000
                    slots.append(at + 1)
                    times = read(slots)
                    self._next_count[tuple(counts)] = len(slots) - 1
                    counts.append(times)
                    if self.expanded[at + 1] in (31_011, 31_012):
                        times = min(times, 1)
                    repeat(at + 2, at + 2 + span, times)
                    at += 2 + span
                else:
                    if valued[at]:
                        slots.append(at)
                    at += 1
                if len(slots) > limits.values:
                    raise _too_large(f"more than {limits.values} values in a report")

        def repeat(low: int, high: int, times: int) -> None:
            if COUNTS.isdisjoint(self.expanded[low:high]):
                slots.extend([n for n in range(low, min(high, len(valued))) if valued[n]] * times)
            else:
                for _ in range(times):
                    walk(low, high)

        walk(0, len(self.expanded))
        return self._keep(np.array(slots, dtype=np.int64), tuple(counts))

    def _keep(self, slots: np.ndarray, counts: tuple[int, ...]) -> ReportLayout:
        if counts in self._layouts:
            return self._layouts[counts]
        layout = ReportLayout(np.array(self.expanded, dtype=np.int32)[slots], slots)
        layout.counts = counts
        if len(self._layouts) >= _KEPT_LAYOUTS:
            self._layouts.clear()
        self._layouts[counts] = layout
        return layout


def _rounded(count: int) -> int:
    return count if count < 2 else 1 << (count - 1).bit_length()


def _positions(slots: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """Return the position in `wide` of each element of `slots`, matching n-th occurrences of a slot."""
    few, many = (np.argsort(part.astype(np.int32), kind="stable") for part in (slots, wide))
    mine, theirs = slots[few], wide[many]
    which = np.arange(len(mine)) - np.searchsorted(mine, mine)
    found = np.empty(len(slots), dtype=np.int64)
    found[few] = many[np.searchsorted(theirs, mine) + which]
    return found


class _BitCounts:
    """Read the counts of a report from its bits, while the widths before them are known."""

    def __init__(self, widths: np.ndarray, body: bytes, start: int, limits: MessageLimits) -> None:
        self.widths, self.body, self.at, self.limits = widths, body, start, limits
        self.done = 0

    def __call__(self, slots: list[int]) -> int:
        new = self.widths[slots[self.done :]]
        if (new == _UNKNOWN).any():
            raise _NotPacked
        self.done = len(slots)
        self.at += int(new.sum())
        number = read_bits(self.body, self.at - int(new[-1]), int(new[-1]))
        if self.at > len(self.body) * 8 or number > self.limits.replications:
            raise _NotPacked
        return number


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


NO_WIDTH = 0
"""Placeholder for the width of an operator."""
_INCREMENT_WIDTH = 6
_TEXT_WIDTH = 64


class _BitReader:
    """Read unsigned numbers of given widths in bits from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def skip(self, count: int) -> None:
        self.at += count

    def read(self, count: int) -> int | None:
        """Return the next number, or None beyond the end."""
        low, high = self.at // 8, -(-(self.at + count) // 8)
        if high > len(self.data):
            return None
        number = int.from_bytes(self.data[low:high], "big") >> (high * 8 - self.at - count)
        self.at += count
        return number & ((1 << count) - 1)


def check_first_count(
    expanded: tuple[int, ...],
    widths: tuple[int, ...],
    message: bytes,
    header: Header,
    limits: MessageLimits,
) -> None:
    """Reject a message whose first delayed replication is beyond the limits.

    Arguments:
        expanded: Expanded descriptors.
        widths: Original width in bits of each.
        message: All bytes.
        header: Sections 1 and 3.
        limits: Bounds.

    Raises:
        DecodeError: With reason `too_large`.
    """
    if ASSOCIATED in expanded or len(widths) != len(expanded):
        return
    bits = _BitReader(header.data(message))
    at = _to_first_count(bits, expanded, widths, header)
    count = None if at is None else bits.read(widths[at])
    if at is None or count is None:
        return
    span = (expanded[at - 1] - 100_000) // 1_000
    inner = [w for w in widths[at + 1 : at + 1 + span] if w != NO_WIDTH]
    _judge(count, inner, len(bits.data) * 8 - bits.at, header, limits)


def _to_first_count(
    bits: _BitReader, expanded: tuple[int, ...], widths: tuple[int, ...], header: Header
) -> int | None:
    """Move to the first count; return its place among the descriptors, or None if there is none."""
    for at, (code, width) in enumerate(zip(expanded, widths, strict=True)):
        if code in COUNTS:
            return at
        if width != NO_WIDTH and not _skip_element(bits, width, header):
            return None
    return None


def _skip_element(bits: _BitReader, width: int, header: Header) -> bool:
    bits.skip(width)
    if header.compressed:
        increment = bits.read(_INCREMENT_WIDTH)
        if increment is None:
            return False
        # Texts (long elements) give their increments in bytes.
        bits.skip(increment * header.subsets * (8 if width >= _TEXT_WIDTH else 1))
    return True


def _judge(count: int, inner: list[int], left: int, header: Header, limits: MessageLimits) -> None:
    extra = _INCREMENT_WIDTH if header.compressed else 0
    if count * (sum(inner) + extra * len(inner)) > left:
        return
    reports = header.subsets if header.compressed else 1
    if count > limits.replications or count * len(inner) * reports > limits.values:
        raise DecodeError(
            f"Expected a message within the limits; got a replication of {count} in {reports} "
            f"reports, at most {limits.replications} and {limits.values} values allowed.",
            reason="too_large",
        )
