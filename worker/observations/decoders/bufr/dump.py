"""Unpack messages by the tables of their file: NCEP dumps for the report families, PrepBUFR whole.

The elements of a dump have the numbers of the WMO tables where those have one, so that the families
of reports decode them; identifiers and a few others have local numbers and are renumbered by their
mnemonics. Messages that are compressed are read element by element.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from model.domain.errors import DecodeError
from worker.observations.decoders.base import MessageLimits
from worker.observations.decoders.bufr.block import TEXT_KEYS, clean_text
from worker.observations.decoders.bufr.embedded import (
    EmbeddedTables,
    Loop,
    Node,
    TemplateElement,
    flat,
)
from worker.observations.decoders.bufr.framing import Frame, Header, correction_number
from worker.observations.decoders.bufr.identity import compose_time
from worker.observations.decoders.bufr.layout import COUNTS, ReportLayout
from worker.observations.decoders.bufr.message import MessagePart, Unpacker
from worker.observations.decoders.bufr.packing import (
    MAX_BITS,
    TEXT_SCALE,
    Storage,
    gather_bits,
    make_packing,
    read_bits,
)
from worker.observations.decoders.bufr.prepbufr import Packed
from worker.observations.decoders.bufr.ragged import Padded, read_padded
from worker.observations.decoders.bufr.template import Template

__all__ = ["DumpUnpacker", "PrepCollection", "is_ragged", "message_time"]

_STATION, _CALL_SIGN = 1_018, 1_011
_RENUMBERED = {"SHPC8": _CALL_SIGN, "ACRN": 1_008, "ACID": 1_006, "RSML": _CALL_SIGN}
"""Identifiers with local numbers, by mnemonic."""
_MARKED = {
    "QMPR": (7_004, 10_004, 10_051),
    "QMAT": (12_101, 12_001),
    "QMDD": (12_103, 12_003, 13_003),
    "QMWN": (11_001, 11_002),
    "QMGP": (10_008, 10_003, 10_009),
    "QMST": (22_042, 22_043, 22_049),
}
"""Elements that follow a quality mark (Office Note 29), by its mnemonic."""
_IDENTIFIER = "RPID"
_MOVING = (1, 4)
"""Categories in which the identifier of a report is a call sign."""
_BUOY_NUMBER = 1_005
_INCREMENT_WIDTH = 6
_WHOLE = 65_530
"""Length in bytes above which a report does not contain its length."""


class DumpUnpacker(Unpacker):
    """Unpack messages by embedded tables, within limits."""

    def __init__(self, limits: MessageLimits) -> None:
        super().__init__(limits)
        self._trees: dict[int, tuple[tuple[Node, ...], Template, Storage]] = {}

    def template_of(self, nodes: tuple[Node, ...], category: int) -> Template:
        """Return the template of nodes, with the storage of all its elements known."""
        return self._known(nodes, category)[1]

    def unpack_by(
        self, message: bytes, header: Header, nodes: tuple[Node, ...]
    ) -> Sequence[MessagePart]:
        """Return the reports of a message, grouped by layout.

        Raises:
            DecodeError: With a reason.
        """
        _, template, storage = self._known(nodes, header.category)
        if header.compressed:
            part = _Compressed(header, template, storage, self.limits).part(message)
            part.layout.marks = _marks(nodes)
            return [part]
        parts = self._packed(message, header, template)
        for part in parts or ():
            part.layout.marks = _marks(nodes)
        if parts is None:
            raise DecodeError(
                "Expected data that fit the tables in the file.", reason="undecodable"
            )
        return parts

    def _known(
        self, nodes: tuple[Node, ...], category: int
    ) -> tuple[tuple[Node, ...], Template, Storage]:
        key = id(nodes)
        if key not in self._trees:
            codes, storage = flat(nodes, _renumbering(nodes, category))
            self._trees[key] = nodes, Template(codes, storage), storage
        return self._trees[key]


def _renumbering(nodes: tuple[Node, ...], category: int) -> dict[str, int]:
    """Return the numbers of elements by mnemonic that differ from those in the table."""
    codes = set(flat(nodes)[0])
    moving = category in _MOVING and _BUOY_NUMBER not in codes
    return {**_RENUMBERED, _IDENTIFIER: _CALL_SIGN if moving else _STATION}


def _marks(nodes: Sequence[Node]) -> dict[int, tuple[int, ...]]:
    """Return the elements that follow a quality mark, by the descriptor of the mark."""
    found: dict[int, tuple[int, ...]] = {}
    for node in nodes:
        if isinstance(node, Loop):
            found |= _marks(node.body)
        elif node.name in _MARKED:
            found[node.code] = _MARKED[node.name]
    return found


class _Compressed:
    """Reads a compressed message: for each element a reference value and increments of all reports."""

    def __init__(
        self, header: Header, template: Template, storage: Storage, limits: MessageLimits
    ) -> None:
        self.header, self.template, self.storage, self.limits = header, template, storage, limits
        self.body, self.buffer, self.at = b"", np.empty(0, np.uint8), 0
        self.numbers: list[np.ndarray] = []
        self.texts: dict[int, list[str]] = {}

    def part(self, message: bytes) -> MessagePart:
        """Return the layout, values (N, E) and texts of all N reports of a message."""
        self.body = self.header.data(message)
        self.buffer = np.frombuffer(self.body + b"\0" * 16, dtype=np.uint8)
        layout = self.template.walk(self._count, self.limits)
        self._read_to(layout.slots)
        stored = np.stack(self.numbers, axis=1)
        packing = make_packing(layout, Storage(*(part[layout.slots] for part in self.storage)))
        values = (stored + packing.references) * packing.factors
        values[np.isnan(stored)] = np.nan
        reports = np.arange(self.header.subsets)
        return MessagePart(layout, reports, values, self.texts)

    def _count(self, slots: Sequence[int]) -> int:
        """Read all elements up to a count and return it; it is the same in all reports."""
        self._read_to(np.asarray(slots))
        counts = self.numbers[-1]
        if not (counts == counts[0]).all():
            raise DecodeError(
                "Expected the same count of a replication in all reports of a compressed message.",
                reason="undecodable",
            )
        if not 0 <= counts[0] <= self.limits.replications:
            raise DecodeError(f"a replication of {counts[0]:.0f}", reason="too_large")
        return int(counts[0])

    def _read_to(self, slots: np.ndarray) -> None:
        """Read the elements of slots that are not read yet."""
        reports = self.header.subsets
        if len(slots) * reports > self.limits.values:
            raise DecodeError(f"Expected at most {self.limits.values} values.", reason="too_large")
        for slot in slots[len(self.numbers) :].tolist():
            width = int(self.storage.widths[slot])
            if self.storage.scales[slot] == TEXT_SCALE:
                self._text(self.template.expanded[slot], width)
            else:
                self.numbers.append(self._number(width, self.template.expanded[slot]))
            if self.at > len(self.body) * 8:
                raise DecodeError(
                    "Expected more bits than the data section holds.", reason="undecodable"
                )

    def _increments(self, width: int) -> np.ndarray:
        places = self.at + width * np.arange(self.header.subsets)
        if places[-1] + width > len(self.body) * 8:
            raise DecodeError(
                "Expected more bits than the data section holds.", reason="undecodable"
            )
        self.at += width * self.header.subsets
        return gather_bits(self.buffer, places[:, None], np.array([width]))[:, 0]

    def _number(self, width: int, code: int) -> np.ndarray:
        """Return the stored numbers of an element, NaN where missing, (N,)."""
        reports = self.header.subsets
        reference = read_bits(self.body, self.at, width) if width else 0
        self.at += width
        if not width:
            return np.full(reports, np.nan)
        bits = read_bits(self.body, self.at, _INCREMENT_WIDTH)
        self.at += _INCREMENT_WIDTH
        can_miss = width > 1 and code not in COUNTS and code // 1_000 != 31
        if not bits or bits > MAX_BITS:
            self.at += bits * reports
            missing = can_miss and reference == (1 << width) - 1
            return np.full(reports, np.nan if missing else float(reference))
        increments = self._increments(bits)
        number = increments.astype(np.float64) + reference
        return np.where(increments == np.uint64((1 << bits) - 1), np.nan, number)

    def _text(self, code: int, width: int) -> None:
        reports, length = self.header.subsets, width // 8
        base = self._characters(length)
        size = read_bits(self.body, self.at, _INCREMENT_WIDTH)
        self.at += _INCREMENT_WIDTH
        found = [self._characters(size) for _ in range(reports)] if size else [base] * reports
        if code in TEXT_KEYS and code not in self.texts:
            self.texts[code] = [
                clean_text(raw.decode("ascii")) if raw.isascii() else "" for raw in found
            ]
        self.numbers.append(np.zeros(reports))

    def _characters(self, length: int) -> bytes:
        raw = bytes(read_bits(self.body, self.at + 8 * n, 8) for n in range(length))
        self.at += 8 * length
        return raw


def message_time(message: bytes) -> np.datetime64:
    """Return the time in section 1: that of the cycle in PrepBUFR files."""
    s = message[8:]
    if message[7] == 4:
        parts = [s[15] * 256 + s[16], s[17], s[18], s[19], s[20]]
    else:
        # NCEP writes the century into the byte after the date: 21 for 2001 to 2100.
        century, year = s[17], s[12]
        full = (century - 1) * 100 + year if 20 <= century <= 22 else year % 100
        full += (1_900 if full > 69 else 2_000) if full < 100 else 0
        parts = [full, s[13], s[14], s[15], s[16]]
    columns = [np.array([float(part)]) for part in (*parts, 0)]
    return np.datetime64(compose_time(*columns)[0])


class PrepCollection:
    """Messages of one template, waiting to be decoded together.

    Attributes:
        header: Header of the first message.
        packed: Their reports.
        frames: Frame of each report.
        numbers: Number of each report in its message.
        updates: Correction number of each report.
        ordinals: Place of each report in the file.
    """

    def __init__(self, tables: EmbeddedTables, header: Header) -> None:
        nodes = tables.tree(header.descriptors)
        self.header = header
        self.packed = Packed(tables.kind(header), nodes, tables.code_of("VIRTMP", 8))
        self.frames: list[Frame] = []
        self.numbers: list[int] = []
        self.updates: list[int] = []
        self.ordinals: list[int] = []

    def add(self, message: bytes, header: Header, frame: Frame, ordinal: int) -> None:
        """Add the reports of a message.

        Raises:
            DecodeError: If their lengths do not fit the message.
        """
        body = header.data(message)
        starts, ends = _report_bounds(body, header.subsets)
        packed, section = self.packed, len(self.packed.bodies)
        packed.bodies.append(body)
        packed.starts += starts
        packed.ends += ends
        packed.section += [section] * header.subsets
        packed.cycles += [message_time(message)] * header.subsets
        self.frames += [frame] * header.subsets
        self.numbers += range(header.subsets)
        update = correction_number(frame.indicator, header.update_sequence)
        self.updates += [update] * header.subsets
        self.ordinals += range(ordinal, ordinal + header.subsets)

    def padded(self, max_count: int) -> Iterator[Padded]:
        """Yield the reports of a dump, those of similar length in one layout."""
        packed = self.packed
        renumbered = _renumbering(packed.nodes, self.header.category)
        return read_padded(packed.nodes, *packed.joined(), max_count, renumbered)

    def part_of(self, padded: Padded) -> list[MessagePart]:
        """Return each of the reports as a part of its message."""
        layout = ReportLayout(padded.codes)
        layout.marks = _marks(self.packed.nodes)
        return [
            MessagePart(
                layout,
                np.array([self.numbers[report]]),
                padded.values[n : n + 1],
                {code: texts[n : n + 1] for code, texts in padded.texts.items()},
            )
            for n, report in enumerate(padded.reports.tolist())
        ]


def is_ragged(nodes: Sequence[Node]) -> bool:
    """Return whether reports of a template differ in layout and contain their length."""
    first = nodes[0] if nodes else None
    sized = isinstance(first, TemplateElement) and first.name == "BYTCNT"
    return sized and any(isinstance(node, Loop) and node.kind for node in nodes)


def _report_bounds(body: bytes, reports: int) -> tuple[list[int], list[int]]:
    """Return first bits and ends of reports that begin with their length in bytes (0 63 000)."""
    starts, ends, at = [], [], 0
    for _ in range(reports):
        length = int.from_bytes(body[at : at + 2], "big")
        if length > _WHOLE and reports == 1:
            length = len(body)
        if length < 2 or at + length > len(body):
            raise DecodeError(
                f"Expected {reports} reports in {len(body)} bytes; one at byte {at} has {length}.",
                reason="undecodable",
            )
        starts.append(at * 8)
        ends.append((at + length) * 8)
        at += length
    return starts, ends
