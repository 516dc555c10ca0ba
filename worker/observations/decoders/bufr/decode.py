"""Decode a BUFR file: find messages, unpack them, group them by layout, decode them by family."""

import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from model.domain.errors import DecodeError
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport
from worker.observations.decoders.bufr.block import TEXT_KEYS, Block
from worker.observations.decoders.bufr.dump import DumpUnpacker, PrepCollection, is_ragged
from worker.observations.decoders.bufr.elements import element_names
from worker.observations.decoders.bufr.embedded import EmbeddedTables, holds_tables, is_empty
from worker.observations.decoders.bufr.families import (
    BUFR_FAMILIES,
    ReportFamily,
    family_of,
    unsupported,
)
from worker.observations.decoders.bufr.framing import (
    Frame,
    Header,
    correction_number,
    read_header,
    scan,
)
from worker.observations.decoders.bufr.identity import station_alias
from worker.observations.decoders.bufr.layout import ReportLayout
from worker.observations.decoders.bufr.message import MessagePart, Unpacker
from worker.observations.decoders.bufr.packing import Packing
from worker.observations.decoders.bufr.prepbufr import is_prepbufr, read_prepbufr
from worker.observations.decoders.bufr.ragged import names_of
from worker.observations.decoders.bufr.reports import Collector, Reports, has_position
from worker.observations.decoders.bufr.template import Template
from worker.observations.decoders.options import BufrOptions
from worker.observations.formats import HEAD_BYTES, foreign_content

__all__ = [
    "BUFR_FAMILIES",
    "ReportFamily",
    "decode_bufr",
    "decode_bytes",
    "family_of",
    "unsupported",
]


_TABLE_DESCRIPTORS = (103_000, 31_001, 1)
"""First descriptors of messages that hold tables of NCEP."""
_FILLING = (63_000, 63_255)
"""Length and padding of reports in NCEP files."""
_SECTIONS = 64
"""Number of leading bytes of a message that contain its category and number of reports."""
_HELD_VALUES = 1_000_000
"""Maximum number of values collected in groups before they are decoded; bounds memory."""


@dataclass
class _PartGroup:
    """Parts of one family and layout, from one or many messages.

    Attributes:
        layout: Layout of the block they become; the parts' own, or one with more levels.
    """

    header: Header
    family: str
    layout: ReportLayout
    parts: list[MessagePart] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)


def decode_bufr(path: Path, context: DecodeContext) -> Decoded:
    """Return all observations of a BUFR file.

    Raises:
        DecodeError: If the file holds no message at all; with the reason.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise DecodeError("Expected BUFR messages; got an empty file.", reason="empty_file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return decode_bytes(data, context, context.file_name or path.name)


def decode_bytes(data: bytes | mmap.mmap, context: DecodeContext, file_name: str = "") -> Decoded:
    """Return all observations of the messages in `data`."""
    decoder = _FileDecoder(context, len(data))
    for frame in selected_frames(decoder.without_tables(scan(data, file_name), data), context):
        decoder.add_message(frame, data)
    if not decoder.report.messages and not decoder.report.notes and context.byte_range is None:
        reason, detail = foreign_content(data[:HEAD_BYTES]) or ("no_messages", "no BUFR mark")
        raise DecodeError(f"Expected BUFR messages; got {detail}.", reason=reason)
    return decoder.finish()


def selected_frames(frames: Iterator[Frame], context: DecodeContext) -> Iterator[Frame]:
    """Yield frames that begin inside the byte range asked for, and are not to be skipped."""
    low, high = context.byte_range or (0, float("inf"))
    for frame in frames:
        if frame.offset >= high:
            return
        if frame.offset >= low:
            if reason := context.skip.get(frame.offset):
                yield replace(frame, reason=reason, detail="ended the decoding process")
            else:
                yield frame


class _FileDecoder:
    """One pass over the messages of a file."""

    def __init__(self, context: DecodeContext, size: int) -> None:
        self.context = context
        self.report = DecodeReport(format="bufr", size=size, bytes_between=size)
        self.unpacker = Unpacker(context.limits)
        self.collector = Collector()
        self.groups: dict[tuple[object, ...], _PartGroup] = {}
        self.not_used: Counter[int] = Counter()
        self.version = 0
        self.held = 0
        self.budget = context.budget(size)
        self.ordinal = 0
        self.mark = context.mark
        self.options = BufrOptions.of(context.options)
        self.tables = EmbeddedTables()
        self.dumps = DumpUnpacker(context.limits)
        self.waiting: dict[tuple[str, tuple[int, ...]], PrepCollection] = {}

    def without_tables(self, frames: Iterator[Frame], data: bytes | mmap.mmap) -> Iterator[Frame]:
        """Yield frames of reports; read the others, which define the tables of the file.

        Table messages are not counted, and apply to all parts of a file.
        """
        low, high = self.context.byte_range or (0, float("inf"))
        for frame in frames:
            head = data[frame.offset : frame.offset + _SECTIONS]
            special = not frame.reason and (holds_tables(head) or (self.tables and is_empty(head)))
            if not special:
                self.tables.complete = True
                yield frame
            elif kind := self._read_tables(data[frame.offset : frame.offset + frame.length]):
                if low <= frame.offset < high:
                    self.report.bytes_between -= frame.length
                    self.report.notes[kind] += 1
            else:
                yield frame

    def _read_tables(self, message: bytes) -> str:
        """Read a message without reports; return its kind, "" if it is none of those of NCEP."""
        if is_empty(message):
            return "empty_messages" if self.tables else ""
        try:
            header = read_header(message)
            if header.descriptors[:3] != _TABLE_DESCRIPTORS:
                return ""
            if self.tables.complete:
                self.flush()
            self.tables.add(message, header)
        except DecodeError:
            return ""
        return "table_messages"

    def add_message(self, frame: Frame, data: bytes | mmap.mmap) -> None:
        """Unpack one message into its group, or set it aside."""
        self.report.messages += 1
        self.report.bytes_between -= frame.length
        self.mark(frame.offset)
        try:
            if frame.reason:
                raise DecodeError(frame.detail, reason=frame.reason)
            if frame.length > self.context.limits.message_bytes:
                raise DecodeError(f"{frame.length} bytes", reason="too_large")
            self._unpack(frame, bytes(data[frame.offset : frame.offset + frame.length]))
        except DecodeError as error:
            reason = error.context.get("reason", "undecodable")
            self.report.reject(reason, frame.offset, frame.length, error.message)
        if self.held > _HELD_VALUES:
            self.flush()

    def _unpack(self, frame: Frame, message: bytes) -> None:
        self.budget.take()
        header = read_header(message)
        if self.tables.knows(header):
            self._unpack_by_tables(frame, message, header)
            return
        template = self.unpacker.template(message, header)
        family = family_of(header.category, template.codes)
        if family is None:
            raise unsupported(header, template.codes)
        parts = self.unpacker.unpack(message, header)
        self._group(frame, header, family, parts, template)

    def _unpack_by_tables(self, frame: Frame, message: bytes, header: Header) -> None:
        """Unpack a message by the tables of the file."""
        nodes = self.tables.tree(header.descriptors)
        if is_prepbufr(names_of(nodes)) and not header.compressed:
            self._wait("", frame, message, header)
            return
        template = self.dumps.template_of(nodes, header.category)
        family = family_of(header.category, template.codes)
        if family is None:
            raise unsupported(header, template.codes, f"NCEP's '{self.tables.kind(header)}'")
        if is_ragged(nodes) and not header.compressed:
            self._wait(family, frame, message, header)
        else:
            self._group(frame, header, family, self.dumps.unpack_by(message, header, nodes))

    def _wait(self, family: str, frame: Frame, message: bytes, header: Header) -> None:
        """Collect a message, to decode all messages of its template together; no family means PrepBUFR."""
        key = family, header.descriptors
        collection = self.waiting.get(key) or PrepCollection(self.tables, header)
        collection.add(message, header, frame, self.ordinal)
        self.waiting[key] = collection
        self.ordinal += header.subsets
        self.held += header.data_bytes

    def _group(
        self,
        frame: Frame,
        header: Header,
        family: str,
        parts: Iterable[MessagePart],
        template: Template | None = None,
    ) -> None:
        """Add the parts of a message to a group of their layout, or of one with more levels."""
        update = correction_number(frame.indicator, header.update_sequence)
        padded = template if BUFR_FAMILIES[family].by_level else None
        for part in parts:
            self.budget.take(part.layout.size * len(part.numbers))
            padding = padded.padded(part.layout, self.context.limits) if padded else None
            layout = padding.layout if padding else part.layout
            key = (family, id(layout), header.category, header.subcategory)
            group = self.groups.setdefault(key, _PartGroup(header, family, layout))
            group.parts.append(part)
            group.frames.append(frame)
            group.updates.append(update)
            group.firsts.append(self.ordinal)
            self.held += layout.size * len(part.numbers)
        self.ordinal += header.subsets

    def flush(self) -> None:
        """Decode all groups and count the messages that gave rows."""
        with_rows: set[Frame] = set()
        for (family, _), collection in self.waiting.items():
            if family:
                self._group_padded(family, collection)
            else:
                with_rows |= self._decode_prepbufr(collection)
        self.waiting.clear()
        for group in self.groups.values():
            rows = self._decode(group)
            start = 0
            for part, frame in zip(group.parts, group.frames, strict=True):
                if rows[start : start + len(part.numbers)].any():
                    with_rows.add(frame)
                start += len(part.numbers)
        self.report.decoded += len(with_rows)
        self.report.bytes_decoded += sum(frame.length for frame in with_rows)
        self.groups.clear()
        self.held = 0

    def _group_padded(self, family: str, collection: PrepCollection) -> None:
        """Group the reports of a dump after padding them to few layouts; reject broken ones."""
        left = set(range(len(collection.frames)))
        for number, padded in enumerate(collection.padded(self.context.limits.replications)):
            places = padded.reports.tolist()
            left -= set(places)
            if places:
                parts = collection.part_of(padded)
                self.groups[family, id(collection), number] = _PartGroup(
                    collection.header,
                    family,
                    parts[0].layout,
                    parts,
                    [collection.frames[place] for place in places],
                    [collection.updates[place] for place in places],
                    [collection.ordinals[p] - collection.numbers[p] for p in places],
                )
        for place in sorted(left):
            frame, number = collection.frames[place], collection.numbers[place]
            self.report.reject("undecodable", frame.offset, frame.length, family, number)

    def _decode(self, group: _PartGroup) -> np.ndarray:
        block = _stack(group)
        sizes = [len(part.numbers) for part in group.parts]
        ordinal = np.concatenate(
            [first + part.numbers for first, part in zip(group.firsts, group.parts, strict=True)]
        )
        offset = np.repeat([frame.offset for frame in group.frames], sizes)
        update = np.repeat(group.updates, sizes)
        reports = BUFR_FAMILIES[group.family].decode(block)
        reports.station_alias = reports.station_alias or station_alias(block)
        rows = self.collector.add(reports, ordinal, offset, update)
        self.report.reports += len(block)
        self.not_used += block.usage.not_used()
        self.version = max(self.version, block.header.master_version)
        self._reject_reports(reports, rows, group, sizes)
        return rows

    def _decode_prepbufr(self, collection: PrepCollection) -> set[Frame]:
        """Decode PrepBUFR reports; return the frames that gave rows."""
        found = read_prepbufr(
            collection.packed,
            original=self.options.event == "original",
            errors=self.options.file_errors,
            max_count=self.context.limits.replications,
        )
        frames, ordinals = collection.frames, np.array(collection.ordinals)
        offsets = np.array([frame.offset for frame in frames])
        with_rows = set()
        self.report.reports += len(frames)
        self.report.notes.update(+found.notes)
        for reports, places in found.networks:
            update = np.zeros(len(places), dtype=np.int64)
            rows = self.collector.add(reports, ordinals[places], offsets[places], update)
            for place, count in zip(places.tolist(), rows.tolist(), strict=True):
                frame = frames[place]
                if count:
                    with_rows.add(frame)
                else:
                    number = collection.numbers[place]
                    kind = f"{collection.packed.kind} {reports.report_type}"
                    self.report.reject("no_values", frame.offset, frame.length, kind, number)
        for place, why in found.refused:
            reason = "unsupported_template" if why else "undecodable"
            frame, number = frames[place], collection.numbers[place]
            self.report.reject(reason, frame.offset, frame.length, why, number)
        for name, count in found.not_used.items():
            self.report.not_used[f"{collection.packed.kind} {name}"] += count
        return with_rows

    def _reject_reports(
        self, reports: Reports, rows: np.ndarray, group: _PartGroup, sizes: list[int]
    ) -> None:
        """Count the reports without a row, each with its reason."""
        empty = np.flatnonzero(rows == 0)
        if not empty.size:
            return
        owner = np.repeat(np.arange(len(sizes)), sizes)
        numbers = np.concatenate([part.numbers for part in group.parts])
        no_position = ~has_position(reports)
        for index in empty:
            reason = "no_values"
            if np.isnat(reports.time[index]):
                reason = "no_time"
            elif no_position[index]:
                reason = "no_position"
            frame = group.frames[owner[index]]
            detail = group.family
            if reason == "no_values" and (words := BUFR_FAMILIES[group.family].empty):
                detail = f"{detail}: {words}"
            self.report.reject(reason, frame.offset, frame.length, detail, int(numbers[index]))

    def finish(self) -> Decoded:
        """Decode the remaining groups and return the table with the report."""
        self.flush()
        table = self.collector.table(self.context)
        names = element_names(self.not_used.keys(), self.version)
        for code, count in sorted(self.not_used.items()):
            if code in _FILLING:
                continue
            self.report.not_used[f"{code:06d} {names.get(code, '')}".rstrip()] += count
        self.report.values_set_aside += self.collector.set_aside
        self.report.count_rows(table)
        return Decoded(table, self.report)


def _stack(group: _PartGroup) -> Block:
    """Return all reports of a group as one block, in the order of its parts."""
    parts, layout = group.parts, group.layout
    if any(part.layout is not layout for part in parts):
        return _stack_padded(group)
    if len(parts) == 1 and parts[0].values is not None:
        return Block(group.header, layout, parts[0].values, parts[0].texts)
    sizes = np.array([len(part.numbers) for part in parts])
    row = np.repeat(np.arange(len(parts)), sizes)
    values = np.empty((len(row), layout.size))
    texts = {code: [""] * len(row) for code in TEXT_KEYS if layout.has(code)}
    begin = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    packed = []
    for n, part in enumerate(parts):
        if part.values is not None:
            values[begin[n] : begin[n + 1]] = part.values
        elif part.compressed is not None:
            part.compressed.fill(values[begin[n] : begin[n + 1]])
        else:
            packed.append(n)
        for code, found in part.texts.items():
            texts[code][begin[n] : begin[n + 1]] = found
    if packed:
        _fill(layout.packing, [parts[n] for n in packed], np.isin(row, packed), values, texts)
    return Block(group.header, layout, values, texts)


def _stack_padded(group: _PartGroup) -> Block:
    """Return all reports of a group in its layout; values of levels that a report lacks are missing."""
    by_layout: dict[int, list[int]] = {}
    for n, part in enumerate(group.parts):
        by_layout.setdefault(id(part.layout), []).append(n)
    sizes = np.array([len(part.numbers) for part in group.parts])
    row = np.repeat(np.arange(len(sizes)), sizes)
    values = np.full((len(row), group.layout.size), np.nan)
    texts = {code: [""] * len(row) for code in TEXT_KEYS if group.layout.has(code)}
    for members in by_layout.values():
        parts = [group.parts[n] for n in members]
        own = parts[0].layout
        block = _stack(_PartGroup(group.header, group.family, own, parts))
        rows = np.flatnonzero(np.isin(row, members))
        positions = np.arange(own.size) if own.padding is None else own.padding.positions
        values[rows[:, None], positions] = block.values
        for code, found in block.texts.items():
            for place, text in zip(rows.tolist(), found, strict=True):
                texts[code][place] = text
    return Block(group.header, group.layout, values, texts)


def _fill(
    packing: Packing,
    parts: list[MessagePart],
    rows: np.ndarray,
    values: np.ndarray,
    texts: dict[int, list[str]],
) -> None:
    """Unpack packed parts, all at once, into their rows of a block."""
    bodies = [part.body for part in parts]
    owner = np.repeat(np.arange(len(parts)), [len(part.numbers) for part in parts])
    starts = np.concatenate([part.starts for part in parts])
    values[rows] = packing.values(bodies, owner, starts)
    places = np.flatnonzero(rows)
    for code in packing.texts:
        for place, text in zip(places, packing.text(code, bodies, owner, starts), strict=True):
            texts[code][place] = text
