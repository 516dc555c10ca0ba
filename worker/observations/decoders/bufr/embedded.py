"""Read the tables that NCEP files carry in their own messages, and expand templates with them.

Dumps and PrepBUFR files begin with messages of category 11 that define every element and sequence
of the file (DX tables, see NCEPLIBS-bufr, "DX BUFR Tables"): entries of table A, B and D as
texts. eccodes reads no such tables. Widths, scales and references of all elements follow from
them, so the bits of a report can be read without any library.

Elements are identified here by mnemonics of up to eight characters (`TOB`), because local numbers
differ from file to file. A nested sequence is preceded by the kind of its replication: 3 60 001 (count
of 16 bits), 3 60 002 (8 bits), 3 60 003 (stack of events, 8 bits), 3 60 004 (present or not, 1 bit).
New tables after data replace the old ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.domain.errors import DecodeError
from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.layout import ASSOCIATED, COUNTS
from worker.observations.decoders.bufr.packing import TEXT_SCALE, Storage

__all__ = ["EmbeddedTables", "TemplateElement", "Loop", "STACK", "flat", "holds_tables", "is_empty"]

TABLE_CATEGORY = 11
STACK = 360_003
_REPLICATIONS = {360_001: 31_002, 360_002: 31_001, 360_003: 31_001, 360_004: 31_000}
"""Count element by the sequence that stands for it."""
_MAX_STEPS = 100_000
_MAX_DEPTH = 32
_MAX_WIDTH, _MAX_SCALE = 2_048, 60


@dataclass(frozen=True, slots=True)
class TemplateElement:
    """An element of an expanded template, which describes one value of a report.

    Attributes:
        code: Descriptor FXXYYY, or `ASSOCIATED`.
        name: Mnemonic, "" where the tables name none.
        width: Bits.
        scale: Decimal scale.
        reference: Added to the stored number.
        text: Whether it is characters.
        units: As in the table.
    """

    code: int
    name: str
    width: int
    scale: int = 0
    reference: int = 0
    text: bool = False
    units: str = ""


@dataclass(frozen=True)
class Loop:
    """Elements that are repeated as often as a count before them says.

    Attributes:
        kind: 360001 to 360004, see the module; 0 for a replication of another form.
        count: The element that counts.
        body: What is repeated.
    """

    kind: int
    count: TemplateElement
    body: tuple["Node", ...]


Node = TemplateElement | Loop


def holds_tables(message: bytes) -> bool:
    """Return whether a framed message defines tables (data category 11)."""
    return len(message) > 20 and message[18 if message[7] == 4 else 16] == TABLE_CATEGORY


def is_empty(message: bytes) -> bool:
    """Return whether a framed message has no reports; NCEP uses such messages as markers."""
    if len(message) < 20:
        return False
    edition_4 = message[7] == 4
    at = 8 + int.from_bytes(message[8:11], "big")
    if message[17 if edition_4 else 15] & 128:
        at += int.from_bytes(message[at : at + 3], "big")
    return message[at + 4 : at + 6] == b"\0\0"


class _Texts:
    """Read counts and texts of fixed length one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def count(self) -> int:
        """Return a count of one byte."""
        return self._next(1)[0]

    def text(self, length: int) -> str:
        """Read `length` characters and return them without spaces and zeros at the ends."""
        return self._next(length).decode("latin-1").strip(" \0")

    def number(self, length: int) -> int:
        """Return a number written in characters, 0 where blank."""
        text = self.text(length)
        try:
            return int(text or 0)
        except ValueError:
            raise _bad(f"'{text}' instead of a number") from None

    def code(self) -> int:
        """Return a descriptor of six characters."""
        return self.number(6)

    def _next(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            raise _bad("the message ends within an entry")
        self.at += length
        return self.data[self.at - length : self.at]


def _bad(detail: str) -> DecodeError:
    return DecodeError(f"Expected tables of elements; {detail}.", reason="undecodable")


@dataclass
class EmbeddedTables:
    """Elements and sequences defined in a file so far.

    Attributes:
        elements: By descriptor.
        sequences: Members by descriptor.
        names: Mnemonics of sequences and of kinds of messages, by descriptor.
        complete: Whether data followed; later tables start a new set.
    """

    elements: dict[int, TemplateElement] = field(default_factory=dict)
    sequences: dict[int, tuple[int, ...]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    complete: bool = False
    _trees: dict[tuple[int, ...], tuple[Node, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.elements)

    def add(self, message: bytes, header: Header) -> None:
        """Add the entries of a message of tables.

        Raises:
            DecodeError: If the message holds anything else.
        """
        if self.complete:
            self.elements, self.sequences, self.names = {}, {}, {}
        self.complete = False
        self._trees = {}
        texts = _Texts(header.data(message))
        for _ in range(texts.count()):
            texts.text(3 + 32 + 32)
        for _ in range(texts.count()):
            self._add_element(texts)
        for _ in range(texts.count()):
            code, name = texts.code(), texts.text(64)
            self.sequences[code] = tuple(texts.code() for _ in range(texts.count()))
            self.names[code] = name[:8].strip()

    def _add_element(self, texts: _Texts) -> None:
        code, name, units = texts.code(), texts.text(64), texts.text(24)
        signs = [-1 if texts.text(1) == "-" else 1, texts.number(3)]
        scale = signs[0] * signs[1]
        negative = texts.text(1) == "-"
        reference = texts.number(10)
        width = texts.number(3)
        if not 0 <= width <= _MAX_WIDTH or abs(scale) > _MAX_SCALE:
            raise _bad(f"{code:06d} has {width} bits and scale {scale}")
        self.elements[code] = TemplateElement(
            code,
            name[:8].strip(),
            width,
            scale,
            -reference if negative else reference,
            units.upper().startswith("CCITT"),
            units,
        )

    def code_of(self, name: str, default: int) -> int:
        """Return the last three digits of the sequence called `name`: the code of a program."""
        return next((code % 1_000 for code, n in self.names.items() if n == name), default)

    def knows(self, header: Header) -> bool:
        """Return whether all descriptors of a message are defined here."""
        return bool(self) and all(
            code in self.elements or code in self.sequences or 100_000 <= code < 300_000
            or code in COUNTS
            for code in header.descriptors
        )  # fmt: skip

    def kind(self, header: Header) -> str:
        """Return the mnemonic of the kind of a message, such as `ADPUPA`; "" if it has none."""
        return next((self.names[code] for code in header.descriptors if code in self.names), "")

    def tree(self, descriptors: tuple[int, ...]) -> tuple[Node, ...]:
        """Return the expanded template.

        Raises:
            DecodeError: `needs_local_tables` for what is not defined, `too_large`, or
                `unsupported_template` for operators not known here.
        """
        self.complete = True
        if descriptors not in self._trees:
            self._trees[descriptors] = _Expansion(self).nodes(descriptors)
        return self._trees[descriptors]


class _Expansion:
    """Expands sequences, replications and operators; operators hold across sequences."""

    def __init__(self, tables: EmbeddedTables) -> None:
        self.tables = tables
        self.steps = 0
        self.wider, self.scaled, self.local, self.factor, self.characters = 0, 0, 0, 0, 0
        self.associated: list[int] = []

    def nodes(self, codes: Sequence[int]) -> tuple[Node, ...]:
        """Expand descriptors (FXXYYY) into elements and loops."""
        return tuple(self._walk(list(codes)))

    def _walk(self, codes: list[int], depth: int = 0) -> Iterator[Node]:
        if depth > _MAX_DEPTH:
            raise DecodeError("Expected sequences that end; got a circle.", reason="undecodable")
        at = 0
        while at < len(codes):
            self.steps += 1
            if self.steps > _MAX_STEPS:
                raise DecodeError(
                    f"Expected a template of at most {_MAX_STEPS} steps.", reason="too_large"
                )
            code = codes[at]
            if code in _REPLICATIONS:
                count = self._element(_REPLICATIONS[code])
                body = tuple(self._walk(codes[at + 1 : at + 2], depth + 1))
                yield Loop(code, count, body)
                at += 2
            elif code // 100_000 == 1:
                span, times = code // 1_000 % 100, code % 1_000
                first = at + 1 + (not times)
                body_codes = codes[first : first + span]
                if first > len(codes) or not body_codes:
                    raise _bad(f"{code:06d} repeats nothing")
                if times:
                    for _ in range(times):
                        yield from self._walk(body_codes, depth + 1)
                else:
                    count = self._element(codes[at + 1])
                    yield Loop(0, count, tuple(self._walk(body_codes, depth + 1)))
                at = first + span
            else:
                yield from self._single(code, depth)
                at += 1

    def _single(self, code: int, depth: int) -> Iterator[Node]:
        kind = code // 100_000
        if kind == 2:
            yield from self._operator(code // 1_000, code % 1_000)
        elif kind == 3:
            if code not in self.tables.sequences:
                raise _unknown(code)
            yield from self._walk(list(self.tables.sequences[code]), depth + 1)
        else:
            if self.associated and code // 1_000 != 31:
                yield TemplateElement(ASSOCIATED, "", sum(self.associated))
            yield self._element(code)

    def _operator(self, operator: int, value: int) -> Iterator[Node]:
        if operator == 201:
            self.wider = value - 128 if value else 0
        elif operator == 202:
            self.scaled = value - 128 if value else 0
        elif operator == 204:
            self.associated = [*self.associated, value] if value else self.associated[:-1]
        elif operator == 205:
            yield TemplateElement(205_000 + value, "", value * 8, text=True)
        elif operator == 206:
            self.local = value
        elif operator == 207:
            self.factor = value
        elif operator == 208:
            self.characters = value
        else:
            raise DecodeError(
                f"Expected operators 2 01 to 2 08 in an NCEP file; got {operator}{value:03d}.",
                reason="unsupported_template",
            )

    def _element(self, code: int) -> TemplateElement:
        found = self.tables.elements.get(code)
        local, self.local = self.local, 0
        if local:
            return TemplateElement(code, found.name if found else "", local)
        if found is None:
            raise _unknown(code)
        if found.text:
            width = self.characters * 8 or found.width
            return TemplateElement(code, found.name, width, text=True)
        if code // 1_000 == 31 or "TABLE" in found.units.upper():
            return found
        # Operator 2 07 YYY: scale + Y, width + (10 Y + 2) / 3, reference x 10^Y.
        more = self.wider + (10 * self.factor + 2) // 3 * bool(self.factor)
        return TemplateElement(
            code, found.name, found.width + more, found.scale + self.scaled + self.factor,
            found.reference * 10**self.factor, False, found.units,
        )  # fmt: skip


def _unknown(code: int) -> DecodeError:
    return DecodeError(
        f"Expected descriptors of the tables in the file; {code:06d} is not defined there.",
        reason="needs_local_tables",
    )


def flat(
    nodes: Sequence[Node], renumbered: Mapping[str, int] | None = None
) -> tuple[tuple[int, ...], Storage]:
    """Return a template as eccodes lists it, `expandedDescriptors`, and how its elements are stored.

    Arguments:
        nodes: The template.
        renumbered: Descriptors by mnemonic, instead of those in the table.
    """
    numbers = renumbered or {}
    codes: list[int] = []
    stored: list[tuple[int, int, int]] = []

    def put(code: int, width: int = 0, scale: int = 0, reference: int = 0) -> None:
        codes.append(code)
        stored.append((width, scale, reference))

    def walk(part: Sequence[Node]) -> None:
        for node in part:
            if isinstance(node, Loop):
                place = len(codes)
                put(0)
                put(node.count.code, node.count.width)
                walk(node.body)
                codes[place] = 100_000 + 1_000 * (len(codes) - place - 2)
            else:
                code = numbers.get(node.name, node.code)
                put(code, node.width, TEXT_SCALE if node.text else node.scale, node.reference)

    walk(nodes)
    return tuple(codes), Storage(*np.array(stored, dtype=np.int64).reshape(-1, 3).T)
