"""Write BUFR files as NCEP does: messages that hold the tables, then reports encoded by them.

An independent encoder after "DX BUFR Tables" (NCEPLIBS-bufr) and the WMO Manual on Codes; sequences
are written as there: `{LEVELS}` count of 8 bits, `[EVENT]` stack, `<PART>` optional.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.domain.errors import InvalidInput

__all__ = ["NcepTables", "fortran_records"]

_KINDS = {"{": 360_002, "[": 360_003, "<": 360_004, "(": 360_001}
_COUNTS = {"{": 8, "[": 8, "<": 1, "(": 16}
_BASE = """
BYTCNT  063000 0 0 16 BYTES
BITPAD  063255 0 0 1 NONE
DRF1BIT 031000 0 0 1 NUMERIC
DRF8BIT 031001 0 0 8 NUMERIC
DRF16BT 031002 0 0 16 NUMERIC
"""


class _BitWriter:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.size = 0

    def put(self, number: int, width: int) -> None:
        if not 0 <= number < 1 << width:
            raise InvalidInput(f"Expected a number that fits into {width} bits; got {number}.")
        self.text.append(format(number, f"0{width}b"))
        self.size += width

    def chars(self, text: str, length: int) -> None:
        for letter in text.ljust(length)[:length].encode("ascii"):
            self.put(letter, 8)

    def bytes(self) -> bytes:
        joined = "".join(self.text)
        joined += "0" * (-len(joined) % 8)
        return bytes(int(joined[n : n + 8], 2) for n in range(0, len(joined), 8))


@dataclass
class NcepTables:
    """Definitions of elements and sequences, and the encoder that follows them.

    Attributes:
        elements: Lines of mnemonic, descriptor, scale, reference, bits and units.
        sequences: Members by mnemonic, written as in a DX table.
        numbers: Descriptors of sequences.
    """

    elements: str
    sequences: Mapping[str, str]
    numbers: Mapping[str, int]

    def __post_init__(self) -> None:
        self.table = {}
        for line in (_BASE + self.elements).split("\n"):
            if not line.strip():
                continue
            name, code, scale, reference, width, units = line.split(maxsplit=5)
            self.table[name] = (int(code), int(scale), int(reference), int(width), units)

    def definitions(self, when: Sequence[int]) -> bytes:
        """Return the BUFR message with the tables A, B and D that the other messages need."""
        bits = _BitWriter()
        kinds = [name for name in self.numbers if name.isupper() and self._is_kind(name)]
        bits.put(len(kinds), 8)
        for name in kinds:
            bits.chars(f"{self.numbers[name] % 1000:03d}", 3)
            bits.chars(name, 32)
            bits.chars("", 32)
        bits.put(len(self.table), 8)
        for name, (code, scale, reference, width, units) in self.table.items():
            bits.chars(f"{code:06d}{name}", 6 + 64)
            bits.chars(units, 24)
            bits.chars(("-" if scale < 0 else "+") + f"{abs(scale):<3d}", 4)
            bits.chars(("-" if reference < 0 else "+") + f"{abs(reference):<10d}", 11)
            bits.chars(f"{width:<3d}", 3)
        replications = {360_001: 31_002, 360_002: 31_001, 360_003: 31_001, 360_004: 31_000}
        bits.put(len(replications) + len(self.sequences), 8)
        for code, count in replications.items():
            self._sequence(bits, code, f"DRP{code % 10}", [101_000, count])
        for name, members in self.sequences.items():
            self._sequence(bits, self.numbers[name], name, self._codes(members))
        head = (103_000, 31_001, 1, 2, 3, 101_000, 31_001, 300_004)
        tail = (105_000, 31_001, 300_003, 205_064, 101_000, 31_001, 30)
        return _message(11, (*head, *tail), 1, bits.bytes(), when)

    def _is_kind(self, name: str) -> bool:
        inner = any(name in members for members in self.sequences.values())
        return not inner and self.sequences[name] != "SID"

    def _sequence(self, bits: _BitWriter, code: int, name: str, codes: Sequence[int]) -> None:
        bits.chars(f"{code:06d}{name}", 6 + 64)
        bits.put(len(codes), 8)
        for member in codes:
            bits.chars(f"{member:06d}", 6)

    def _codes(self, members: str) -> list[int]:
        found = []
        for member in members.split():
            if member[0] in _KINDS:
                found += [_KINDS[member[0]], self.numbers[member[1:-1]]]
            elif member.isdigit():
                found.append(int(member))
            else:
                found.append(self.numbers.get(member) or self.table[member][0])
        return found

    def message(
        self, kind: str, reports: Sequence[Mapping[str, Any]], when: Sequence[int], category: int
    ) -> bytes:
        """Return a message of reports, each with its length before it and padding after it.

        Arguments:
            kind: Mnemonic of the sequence.
            reports: Values by mnemonic: numbers in the units of the table, texts, lists for
                repeated sequences, and dicts for optional ones that are present.
            when: Year, month, day and hour.
            category: Data category.
        """
        body = b"".join(self._report(kind, report) for report in reports)
        codes = (63_000, self.numbers[kind], 102_000, 31_001, 206_001, 63_255)
        return _message(category, codes, len(reports), body, when)

    def compressed(
        self, kind: str, reports: Sequence[Mapping[str, Any]], when: Sequence[int], category: int
    ) -> bytes:
        """Return a compressed message of reports, none of which holds parts that are repeated."""
        bits = _BitWriter()
        self._columns(bits, self.sequences[kind], reports)
        return _message(
            category, (self.numbers[kind],), len(reports), bits.bytes(), when, flags=192
        )

    def _columns(
        self, bits: _BitWriter, members: str, reports: Sequence[Mapping[str, Any]]
    ) -> None:
        for member in members.split():
            if member[0] in _KINDS:
                bits.put(1, _COUNTS[member[0]])
                bits.put(0, 6)
                self._columns(bits, self.sequences[member[1:-1]], reports)
            elif member in self.sequences:
                self._columns(bits, self.sequences[member], reports)
            else:
                self._column(bits, member, [report.get(member) for report in reports])

    def _column(self, bits: _BitWriter, name: str, values: list[Any]) -> None:
        _, scale, reference, width, units = self.table[name]
        if units.startswith("CCITT"):
            bits.put(0, width)
            bits.put(width // 8, 6)
            for value in values:
                bits.chars(value or "", width // 8)
            return
        numbers = [None if v is None else round(v * 10.0**scale) - reference for v in values]
        given = [number for number in numbers if number is not None]
        base = min(given, default=(1 << width) - 1)
        size = 0
        if given and (max(given) > base or len(given) < len(numbers)):
            size = (max(given) - base + 1).bit_length()
        bits.put(base, width)
        bits.put(size, 6)
        for number in numbers if size else []:
            bits.put((1 << size) - 1 if number is None else number - base, size)

    def _report(self, kind: str, report: Mapping[str, Any]) -> bytes:
        bits = _BitWriter()
        self._put(bits, self.sequences[kind], report, 0)
        padding = -(bits.size + 24) % 8
        length = (bits.size + 24 + padding) // 8
        bits.put(padding, 8)
        bits.put(0, padding) if padding else None
        return length.to_bytes(2, "big") + bits.bytes()

    def _put(self, bits: _BitWriter, members: str, values: Mapping[str, Any], factor: int) -> None:
        for member in members.split():
            if member.isdigit():
                factor = int(member) % 1_000 if member.startswith("207") else factor
            elif member[0] in _KINDS:
                name = member[1:-1]
                found = values.get(name, [])
                items = found if isinstance(found, list) else [found]
                bits.put(len(items), _COUNTS[member[0]])
                for item in items:
                    self._put(bits, self.sequences[name], item, factor)
            elif member in self.sequences:
                self._put(bits, self.sequences[member], values.get(member, values), factor)
            else:
                self._value(bits, member, values.get(member), factor)

    def _value(self, bits: _BitWriter, name: str, value: Any, factor: int) -> None:
        _, scale, reference, width, units = self.table[name]
        if units.startswith("CCITT"):
            bits.chars(value or "", width // 8)
            return
        if factor:
            scale, reference = scale + factor, reference * 10**factor
            width += (10 * factor + 2) // 3
        full = (1 << width) - 1
        bits.put(full if value is None else round(value * 10.0**scale) - reference, width)


def _message(
    category: int,
    codes: Sequence[int],
    reports: int,
    body: bytes,
    when: Sequence[int],
    flags: int = 128,
) -> bytes:
    """Return a message of edition 3, as NCEP writes it."""
    year, month, day, hour = when
    date = bytes([(year - 1) % 100 + 1, month, day, hour, 0, (year - 1) // 100 + 1])
    section_1 = b"\0\0\x12" + bytes([0, 3, 7, 0, 0, category, 0, 13, 0]) + date
    packed = b"".join(
        ((code // 100_000 << 14) + (code // 1_000 % 100 << 8) + code % 1_000).to_bytes(2, "big")
        for code in codes
    )
    section_3 = (8 + len(packed)).to_bytes(3, "big") + b"\0"
    section_3 += reports.to_bytes(2, "big") + bytes([flags]) + packed + b"\0"
    body += b"\0" * (len(body) % 2)
    section_4 = (4 + len(body)).to_bytes(3, "big") + b"\0" + body
    content = section_1 + section_3 + section_4 + b"7777"
    return b"BUFR" + (8 + len(content)).to_bytes(3, "big") + b"\x03" + content


def fortran_records(messages: Sequence[bytes]) -> bytes:
    """Return messages as unformatted records: a length before and after each."""
    return b"".join(len(m).to_bytes(4, "big") + m + len(m).to_bytes(4, "big") for m in messages)
