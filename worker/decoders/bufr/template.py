"""A template: its expanded descriptors, and the layouts of the reports met so far.

eccodes gives all values of a message as one array (`numericValues`) and the descriptors of the
template with sequences and fixed replications expanded (`expandedDescriptors`). The counts of the
delayed replications are among the values, so the position of every element of a report follows;
reports with the same counts share one `Layout`, and whole blocks of reports are then handled as
matrices (report, element).
"""

from collections.abc import Callable

import numpy as np

from model.domain.errors import DecodeError
from worker.decoders.base import MessageLimits
from worker.decoders.bufr.bits import read_bits
from worker.decoders.bufr.layout import ASSOCIATED, COUNTS, Layout
from worker.decoders.bufr.packing import Storage, make_packing

__all__ = ["Template"]

_KEPT_LAYOUTS = 512
_UNKNOWN = -1
_TRIALS = 3


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


class _NotPacked(Exception):
    """The bits cannot be read without eccodes (yet)."""


class Template:
    """Expanded descriptors of a template and the layouts met so far.

    Arguments:
        expanded: Descriptors with sequences and fixed replications expanded.

    Attributes:
        raw: The same, definitions of reference values included.
        codes: Elements that occur.
        seen: Parts unpacked by eccodes so far.
    """

    def __init__(self, expanded: tuple[int, ...]) -> None:
        self.raw = expanded
        self.expanded = expanded = _without_definitions(expanded)
        self.codes = frozenset(c for c in expanded if c < 100_000)
        self.seen = 0
        self._failures = 0 if self.raw == expanded else _TRIALS
        self._storage = Storage(*(np.full(len(expanded), _UNKNOWN) for _ in range(3)))
        self._next_count: dict[tuple[int, ...], int] = {}
        self._count_bits: dict[tuple[int, ...], tuple[int, int]] = {}
        self._layouts: dict[tuple[int, ...], Layout] = {}

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
        return self._expand(lambda slots: _count(values, len(slots) - 1, limits), limits)

    def packed_layout(self, body: bytes, start: int, limits: MessageLimits) -> Layout | None:
        """Layout of the report at bit `start`, with its packing; None if that is not known."""
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
            # Whatever is wrong with the counts, eccodes' way names it.
            return None
        return layout if self._pack(layout) else None

    def wants(self, layout: Layout) -> bool:
        """Whether the storage of the layout's elements is worth learning."""
        self.seen += 1
        known = self._storage.widths[layout.slots] != _UNKNOWN
        return self.seen > 1 and self._failures < _TRIALS and not known.all()

    def learn(self, layout: Layout, storage: Storage | None) -> None:
        """Keeps how the elements of a layout are stored; None counts as a failure to find out."""
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
            # One place stored in two ways: nothing learnt here can be relied upon.
            self._failures = _TRIALS
            self._storage.widths[:] = _UNKNOWN

    def _pack(self, layout: Layout) -> bool:
        """Gives the layout its packing if all its elements are known."""
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

    def _expand(self, read: Callable[[list[int]], int], limits: MessageLimits) -> Layout:
        """The layout whose counts `read` gives, when asked with the slots up to each of them."""
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

    def _keep(self, slots: np.ndarray, counts: tuple[int, ...]) -> Layout:
        if counts in self._layouts:
            return self._layouts[counts]
        layout = Layout(np.array(self.expanded, dtype=np.int32)[slots], slots)
        layout.counts = counts
        if len(self._layouts) >= _KEPT_LAYOUTS:
            self._layouts.clear()
        self._layouts[counts] = layout
        return layout


class _BitCounts:
    """Reads the counts of a report from its bits, while the widths before them are known."""

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
