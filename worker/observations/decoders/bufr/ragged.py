"""Read reports with nested replications, all reports of a template at once, as columns.

In PrepBUFR files almost every report has a layout of its own: levels have optional parts, and stacks of
events. The reports are therefore read in parallel: each step of the template is applied to all of them
before the next, with a bit position for each report. The number of steps depends on the levels of the
longest report, not on the number of reports.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worker.observations.decoders.bufr.block import TEXT_KEYS
from worker.observations.decoders.bufr.embedded import STACK, Loop, Node, TemplateElement
from worker.observations.decoders.bufr.packing import MAX_BITS, gather_bits

__all__ = ["Column", "Padded", "RaggedReports", "names_of", "read_padded", "read_reports"]

_ONCE = 360_004
_MAX_REPETITIONS = 200_000
"""Maximum number of repetitions, enough for a thousand levels with a hundred parts each."""


@dataclass(frozen=True)
class Column:
    """All values of one element of the template.

    Attributes:
        report, level, event: Where each value stands: number of the report, of the level from 0 (0
            without levels) and of the event from 0, the newest; each (V,).
        value: NaN where missing, (V,).
    """

    report: np.ndarray
    level: np.ndarray
    event: np.ndarray
    value: np.ndarray


@dataclass
class RaggedReports:
    """Values read from N reports.

    Attributes:
        columns: Numeric elements by mnemonic; of several of one name the first in the template.
        texts: Texts by mnemonic, each of N, "" where missing.
        broken: Which reports do not fit the template, (N,).
        given: Number of values that are not missing, by mnemonic, of all elements.
    """

    columns: dict[str, Column]
    texts: dict[str, list[str]]
    broken: np.ndarray
    given: dict[str, int]


def names_of(nodes: Sequence[Node]) -> frozenset[str]:
    """Return the mnemonics in a template."""
    found: set[str] = set()
    for node in nodes:
        found |= names_of(node.body) if isinstance(node, Loop) else {node.name}
    return frozenset(found)


@dataclass(frozen=True)
class _ElementRun:
    """Elements that follow each other without a replication between them."""

    elements: tuple[TemplateElement, ...]
    offsets: np.ndarray
    bits: int


@dataclass(frozen=True)
class _Repeat:
    """A replication of steps; `min_bits` bits go into each repetition."""

    kind: int
    width: int
    steps: tuple["_ElementRun | _Repeat", ...]
    min_bits: int


_Step = _ElementRun | _Repeat


def _compiled(nodes: Sequence[Node]) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    waiting: list[TemplateElement] = []

    def end_run() -> None:
        if waiting:
            widths = np.array([element.width for element in waiting])
            offsets = np.cumsum(widths) - widths
            steps.append(_ElementRun(tuple(waiting), offsets, int(widths.sum())))
            waiting.clear()

    for node in nodes:
        if isinstance(node, TemplateElement):
            waiting.append(node)
            continue
        end_run()
        body = _compiled(node.body)
        min_bits = sum(step.bits if isinstance(step, _ElementRun) else step.width for step in body)
        steps.append(_Repeat(node.kind, node.count.width, body, min_bits))
    end_run()
    return tuple(steps)


@dataclass
class _Place:
    """Reading positions in n reports; every array has shape (n,)."""

    report: np.ndarray
    bit: np.ndarray
    level: np.ndarray
    event: np.ndarray

    def at(self, chosen: np.ndarray) -> "_Place":
        return _Place(self.report[chosen], self.bit[chosen], self.level[chosen], self.event[chosen])


class _RaggedReader:
    """Walk through a template for all reports at once."""

    def __init__(self, buffer: np.ndarray, ends: np.ndarray, max_count: int) -> None:
        self.buffer = buffer
        self.ends = ends
        self.max_count = max_count
        self.broken = np.zeros(len(ends), dtype=bool)
        self.repetitions = 0
        self.seen: dict[int, tuple[_ElementRun, list[_Place]]] = {}

    def walk(self, steps: Sequence[_Step], place: _Place, in_levels: bool) -> np.ndarray:
        """Return the bits after the steps, (n,)."""
        for step in steps:
            if isinstance(step, _ElementRun):
                _, places = self.seen.setdefault(id(step), (step, []))
                places.append(_Place(place.report, place.bit, place.level, place.event))
                place.bit = place.bit + step.bits
            else:
                place.bit = self._repeat(step, place, in_levels)
        return place.bit

    def _repeat(self, step: _Repeat, place: _Place, in_levels: bool) -> np.ndarray:
        number = self._counts(step, place)
        bits = place.bit + step.width
        leveled = step.kind not in (STACK, _ONCE) and not in_levels
        for n in range(int(number.max(initial=0))):
            self.repetitions += 1
            if self.repetitions > _MAX_REPETITIONS:
                # Nested empty replications: no real report is that long.
                self.broken[:] = True
                break
            chosen = np.flatnonzero(number > n)
            inner = place.at(chosen)
            inner.bit = bits[chosen]
            if step.kind == STACK:
                inner.event = np.full(len(chosen), n)
            elif leveled:
                inner.level = np.full(len(chosen), n)
            bits[chosen] = self.walk(step.steps, inner, in_levels or leveled)
        return bits

    def _counts(self, step: _Repeat, place: _Place) -> np.ndarray:
        """Return the counts at the places; 0 for reports that cannot hold as many."""
        inside = place.bit + step.width <= self.ends[place.report]
        at = np.where(inside, place.bit, 0)[:, None]
        number = gather_bits(self.buffer, at, np.array([step.width]))[:, 0].astype(np.int64)
        room = self.ends[place.report] - place.bit - step.width
        bad = (
            ~inside
            | self.broken[place.report]
            | (number * step.min_bits > room)
            | (number > self.max_count)
        )
        self.broken[place.report[bad]] = True
        return np.where(bad, 0, number)


def read_reports(
    nodes: Sequence[Node], body: bytes, starts: np.ndarray, ends: np.ndarray, max_count: int
) -> RaggedReports:
    """Return all elements of reports that lie in `body`.

    Arguments:
        nodes: The template.
        body: The packed reports.
        starts: First bit of each report, (N,).
        ends: The bit after each report, (N,).
        max_count: Largest count of a replication.
    """
    buffer = np.frombuffer(body + b"\0" * 8, dtype=np.uint8)
    number = len(starts)
    reader = _RaggedReader(buffer, ends, max_count)
    zero = np.zeros(number, dtype=np.int64)
    place = _Place(np.arange(number), starts.astype(np.int64), zero, zero)
    last = reader.walk(_compiled(nodes), place, in_levels=False)
    reader.broken |= last > ends
    result = RaggedReports({}, {}, reader.broken, {})
    for run, places in reader.seen.values():
        _take(run, places, buffer, reader.broken, result)
    return result


def _take(
    run: _ElementRun,
    places: list[_Place],
    buffer: np.ndarray,
    broken: np.ndarray,
    result: RaggedReports,
) -> None:
    """Read the values of a run at all its places into the columns."""
    report = np.concatenate([place.report for place in places])
    sound = ~broken[report]
    report = report[sound]
    bit = np.concatenate([place.bit for place in places])[sound]
    level = np.concatenate([place.level for place in places])[sound]
    event = np.concatenate([place.event for place in places])[sound]
    for element, offset in zip(run.elements, run.offsets.tolist(), strict=True):
        if element.text:
            if element.name not in result.texts:
                found = _texts(buffer, bit + offset, element.width // 8)
                texts = [""] * len(broken)
                for where, text in zip(report.tolist(), found, strict=True):
                    texts[where] = texts[where] or text
                result.texts[element.name] = texts
            continue
        if element.width > MAX_BITS or not element.width:
            continue
        value = _values(buffer, bit + offset, element)
        present = int(np.count_nonzero(value == value))
        result.given[element.name] = result.given.get(element.name, 0) + present
        result.columns.setdefault(element.name, Column(report, level, event, value))


def _values(buffer: np.ndarray, bit: np.ndarray, element: TemplateElement) -> np.ndarray:
    stored = gather_bits(buffer, bit[:, None], np.array([element.width]))[:, 0]
    number = stored.astype(np.float64) + element.reference
    scale = element.scale
    value = number / 10.0**scale if scale > 0 else number * 10.0**-scale
    missing = element.width > 1 and element.code // 1_000 != 31
    full = np.uint64((1 << element.width) - 1)
    return np.where((stored == full) & missing, np.nan, value)


def _texts(buffer: np.ndarray, bit: np.ndarray, length: int) -> list[str]:
    places = bit[:, None] + 8 * np.arange(length)
    characters = gather_bits(buffer, places, np.full(length, 8)).astype(np.uint8)
    found = []
    for row in characters:
        text = row.tobytes().decode("latin-1").strip(" \0")
        found.append(text if text.isascii() and text.isprintable() else "")
    return found


_FILLING = ("BYTCNT", "BITPAD")
_CELLS = 2_000_000
_USUAL_BITS = 10
"""Approximate bits per element, to estimate the number of elements from the length of a report."""


@dataclass(frozen=True)
class Padded:
    """Reports brought to one layout: parts that a report lacks are missing values.

    Attributes:
        reports: Their numbers, (N,).
        codes: Descriptor of each column, (E,).
        values: NaN where missing and of parts that are not there, 0 of texts, (N, E).
        texts: First text of each descriptor, each of N, "" where missing.
    """

    reports: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    texts: dict[int, list[str]]


class _PaddingReader(_RaggedReader):
    """Walk like `_RaggedReader` and write the values into columns, one for each place of the template."""

    def __init__(
        self, buffer: np.ndarray, ends: np.ndarray, max_count: int, renumbered: Mapping[str, int]
    ) -> None:
        super().__init__(buffer, ends, max_count)
        self.renumbered = renumbered
        self.codes: list[int] = []
        self.columns: list[np.ndarray] = []
        self.texts: dict[int, list[str]] = {}

    def walk(self, steps: Sequence[_Step], place: _Place, in_levels: bool) -> np.ndarray:
        """Return the bits after the steps, (n,)."""
        for step in steps:
            if isinstance(step, _ElementRun):
                self._append(step, place)
                place.bit = place.bit + step.bits
            else:
                place.bit = self._repeat(step, place, in_levels)
        return place.bit

    def _append(self, run: _ElementRun, place: _Place) -> None:
        # A report that runs beyond its end is broken; its bits are read as if they were there.
        inside = np.minimum(place.bit, len(self.buffer) * 8 - 64 - run.bits)
        for element, offset in zip(run.elements, run.offsets.tolist(), strict=True):
            if element.name in _FILLING:
                continue
            code = self.renumbered.get(element.name, element.code)
            column = np.full(len(self.ends), np.nan)
            if element.text:
                column[place.report] = 0.0  # present, but not a number
                self._text(code, element, place.report, inside + offset)
            elif 0 < element.width <= MAX_BITS:
                column[place.report] = _values(self.buffer, inside + offset, element)
            self.codes.append(code)
            self.columns.append(column)

    def _text(
        self, code: int, element: TemplateElement, report: np.ndarray, bit: np.ndarray
    ) -> None:
        if code not in TEXT_KEYS or code in self.texts:
            return
        texts = [""] * len(self.ends)
        found = _texts(self.buffer, bit, element.width // 8)
        for where, text in zip(report.tolist(), found, strict=True):
            texts[where] = text
        self.texts[code] = texts


def read_padded(
    nodes: Sequence[Node],
    body: bytes,
    starts: np.ndarray,
    ends: np.ndarray,
    max_count: int,
    renumbered: Mapping[str, int],
) -> Iterator[Padded]:
    """Yield reports of one template, those of similar length together, without the broken ones.

    Arguments:
        nodes: The template.
        body: The packed reports.
        starts: First bit of each report, (N,).
        ends: The bit after each report, (N,).
        max_count: Largest count of a replication.
        renumbered: Descriptors by mnemonic, instead of those in the table.
    """
    steps = _compiled(nodes)
    longest = max((step.bits for step in _runs(steps)), default=0)
    buffer = np.frombuffer(body + b"\0" * (16 + longest // 8), dtype=np.uint8)
    order = np.argsort(ends - starts, kind="stable")
    while len(order):
        size = np.arange(1, len(order) + 1) * (ends - starts)[order] / _USUAL_BITS
        some = order[: max(1, int(np.searchsorted(size, _CELLS)))]
        order = order[len(some) :]
        reader = _PaddingReader(buffer, ends[some], max_count, renumbered)
        zero = np.zeros(len(some), dtype=np.int64)
        place = _Place(np.arange(len(some)), starts[some].astype(np.int64), zero, zero)
        last = reader.walk(steps, place, in_levels=False)
        sound = ~(reader.broken | (last > ends[some]))
        texts = {
            code: [text for text, good in zip(found, sound, strict=True) if good]
            for code, found in reader.texts.items()
        }
        # No column at all where each report is one replication, and all of them are empty.
        columns = np.stack(reader.columns, axis=1) if reader.columns else np.empty((len(some), 0))
        codes = np.array(reader.codes, dtype=np.int32)
        yield Padded(some[sound], codes, columns[sound], texts)


def _runs(steps: Sequence[_Step]) -> Iterator[_ElementRun]:
    for step in steps:
        if isinstance(step, _ElementRun):
            yield step
        else:
            yield from _runs(step.steps)
