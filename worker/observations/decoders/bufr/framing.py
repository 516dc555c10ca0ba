"""Find BUFR messages in a stream of bytes and read their sections 0, 1 and 3.

No library is used, so that limits are checked before anything is unpacked. Bulletin headings, junk
and wrong lengths are tolerated. Section 0 of editions 2 to 4: `BUFR`, total length (3 bytes), edition
(1 byte); a message ends with `7777` (WMO Manual on Codes, volume I.2, FM 94). Editions 0 and 1 hold
no total length.
"""

import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from model.domain.errors import DecodeError

__all__ = [
    "EDITIONS",
    "HEADING",
    "Frame",
    "Header",
    "NamedHeading",
    "correction_number",
    "descriptor_count",
    "read_header",
    "scan",
]

EDITIONS = (2, 3, 4)
_MIN_BYTES = 8 + 17 + 9 + 4 + 4
_LOOK_BACK = 96

HEADING = r"([A-Z]{4}\d{2}) +([A-Z]{4}) +(\d{6})(?: *([A-Z]{3}))?"
"""The abbreviated heading of a bulletin: what, centre, day and time, BBB group."""
_HEADING = re.compile(HEADING.encode() + rb"[\s\x00]*\Z")
_FILE_NAME = re.compile(
    r"(?<![A-Z0-9])([A-Z]{4}\d{2})[ _.+-]?([A-Z]{4})[ _.+-]?(\d{6})"
    r"(?:[ _.+-]?(CC[A-Z]|AA[A-Z]|RR[A-Z]|COR|AMD|RTD))?(?![A-Z0-9])",
    re.IGNORECASE,
)
"""Heading in a file name: `A_ISMD01EDZW021200CCA_C_EDZW_…`, `ISMD01_EDZW_021200_CCA.bufr`."""


class NamedHeading(NamedTuple):
    """The heading in the name of a file.

    Attributes:
        bulletin: The heading without its BBB group and spaces; "" where the name holds none.
        indicator: The BBB group, or "".
    """

    bulletin: str
    indicator: str

    @classmethod
    def of(cls, file_name: str) -> "NamedHeading":
        """Return the heading in a name, as WMO file names and those of many switches carry it."""
        found = _FILE_NAME.search(file_name)
        if found is None:
            return cls("", "")
        return cls("".join(found.group(1, 2, 3)).upper(), (found.group(4) or "").upper())

    def indicator_of(self, heading: Sequence[str | None] | None) -> str:
        """Return the BBB group of a bulletin: its own, or that of the name if it is the bulletin named.

        Arguments:
            heading: The groups of `HEADING` in the content; None where there is no heading.
        """
        if heading is None:
            return self.indicator
        what, centre, time, indicator = heading
        same = f"{what}{centre}{time}" == self.bulletin
        return indicator or (self.indicator if same else "")


@dataclass(frozen=True, slots=True)
class Frame:
    """One candidate message.

    Attributes:
        offset: First byte of `BUFR` in the file.
        length: Bytes up to and including `7777`, or up to the next candidate when unusable.
        edition: As declared.
        indicator: The BBB group of the bulletin heading before it (`CCA`, `RRA`), or "".
        gap: Bytes between the end of the frame before and this one.
        reason: Why it cannot be a message, a code of `REASONS`; "" if it can.
        detail: The same in words.
    """

    offset: int
    length: int
    edition: int
    indicator: str = ""
    gap: int = 0
    reason: str = ""
    detail: str = ""


def scan(data: bytes | mmap.mmap, file_name: str = "") -> Iterator[Frame]:
    """Yield all candidates in order; after a bad frame the search resumes at the next `BUFR`.

    Arguments:
        data: Bytes or a memory map of the file.
        file_name: WMO file names carry the bulletin heading when the content has none, or the
            BBB group that it lacks.
    """
    named = NamedHeading.of(file_name)
    size, end = len(data), 0
    while (at := data.find(b"BUFR", end)) >= 0:
        before = data[max(end, at - _LOOK_BACK) : at]
        heading = _HEADING.search(before) if before else None
        groups = [(g or b"").decode() for g in heading.groups()] if heading else None
        indicator = named.indicator_of(groups)
        length, edition, reason, detail = _frame_length(data, at, size)
        yield Frame(at, length, edition, indicator, at - end, reason, detail)
        end = at + length


def _frame_length(data: bytes | mmap.mmap, at: int, size: int) -> tuple[int, int, str, str]:
    """Return length, edition, reason and detail of the candidate at `at`."""
    if at + 8 > size:
        return size - at, -1, "truncated", "the file ends within section 0"
    declared = int.from_bytes(data[at + 4 : at + 7], "big")
    edition = data[at + 7]
    found = data.find(b"BUFR", at + 4)
    rest = (found if found >= 0 else size) - at
    if edition in (0, 1):
        closing = data.find(b"7777", at + 8, at + rest)
        length = closing + 4 - at if closing >= 0 else rest
        return length, edition, "unsupported_edition", f"edition {edition}"
    closed = declared >= 12 and data[at + declared - 4 : at + declared] == b"7777"
    if closed and edition not in EDITIONS:
        return declared, edition, "unsupported_edition", f"edition {edition}"
    if closed and declared >= _MIN_BYTES:
        return declared, edition, "", ""
    if at + declared > size and edition in EDITIONS:
        detail = f"{declared} bytes declared, {size - at} left in the file"
        return rest, edition, "truncated", detail
    detail = f"edition {edition}, {declared} bytes declared, no end mark there"
    return rest, edition, "bad_frame", detail


def correction_number(indicator: str, update_sequence: int) -> int:
    """Return the rank of a report among its versions; the higher one replaces the lower.

    Corrections (`CCA`, `CCB`, …) and amendments (`AAA`, …) count by their last letter; the old
    forms `COR` and `AMD` are the first; `RRA` is a delayed first version. The update sequence
    number of section 1 counts as well.
    """
    letter = ord(indicator[2]) - ord("A") + 1 if indicator[:2] in ("CC", "AA") else 0
    letter = 1 if indicator in ("COR", "AMD") else letter
    number = update_sequence if update_sequence < 255 else 0
    return max(letter, number)


@dataclass(frozen=True, slots=True)
class Header:
    """Content of sections 1 and 3 of a message.

    Attributes:
        edition, master_table, centre, subcentre: As in section 1.
        update_sequence: 0 for the original message.
        category: Data category (table A).
        subcategory: International split of the category (edition 4), else 255.
        master_version, local_version: Versions of the tables.
        subsets: Number of reports.
        compressed: Whether values are stored element by element.
        descriptors: Unexpanded descriptors as integers FXXYYY.
        data_at: First byte of the values in section 4.
        data_bytes: Bytes of the values.
        subsets_at: First of the two bytes that hold the number of reports.
    """

    edition: int
    master_table: int
    centre: int
    subcentre: int
    update_sequence: int
    category: int
    subcategory: int
    master_version: int
    local_version: int
    subsets: int
    compressed: bool
    descriptors: tuple[int, ...]
    data_at: int
    data_bytes: int
    subsets_at: int = 0

    def data(self, message: bytes) -> bytes:
        """Return the packed values, the data section without its header."""
        return message[self.data_at : self.data_at + self.data_bytes]

    @property
    def has_local_tables(self) -> bool:
        """Return whether the message names tables of its centre."""
        return self.local_version not in _NO_LOCAL_TABLES

    @property
    def template(self) -> tuple[object, ...]:
        """Key of everything that decides the expansion.

        Without local tables the centre decides nothing, so that all centres share what is known.
        """
        if not self.has_local_tables and not any(map(is_local, self.descriptors)):
            return (self.descriptors, self.master_table, self.master_version)
        return (
            self.descriptors,
            self.edition,
            self.master_table,
            self.master_version,
            self.local_version,
            self.centre,
            self.subcentre,
        )


_NO_LOCAL_TABLES = (0, 255)


def is_local(descriptor: int) -> bool:
    """Return whether a descriptor FXXYYY is of a centre's own tables."""
    return descriptor // 1_000 % 100 >= 48 or descriptor % 1_000 >= 192


def _bad(detail: str) -> DecodeError:
    return DecodeError(
        f"Expected sections that fit into the message; {detail}.", reason="bad_frame"
    )


def _section(message: bytes, at: int, shortest: int, name: str) -> int:
    length = int.from_bytes(message[at : at + 3], "big")
    if length < shortest or at + length > len(message) - 4:
        raise _bad(f"section {name} at byte {at} declares {length} of {len(message)} bytes")
    return length


@lru_cache(maxsize=1024)
def _descriptors(packed: bytes) -> tuple[int, ...]:
    codes = []
    for high, low in zip(packed[::2], packed[1::2], strict=False):
        codes.append((high >> 6) * 100_000 + (high & 63) * 1_000 + low)
    return tuple(codes)


def read_header(message: bytes) -> Header:
    """Return sections 1 and 3 of a framed message of edition 2, 3 or 4.

    Raises:
        DecodeError: With reason `bad_frame` if section lengths contradict the total length.
    """
    edition = message[7]
    at = 8
    length = _section(message, at, 18 if edition == 4 else 17, "1")
    s = message[at : at + length]
    if edition == 4:
        centre, subcentre = s[4] * 256 + s[5], s[6] * 256 + s[7]
        sequence, optional, category = s[8], s[9] & 128, s[10]
        subcategory, master, local = s[11], s[13], s[14]
    else:
        centre, subcentre, sequence, optional = s[5], s[4], s[6], s[7] & 128
        category, subcategory, master, local = s[8], 255, s[10], s[11]
    at += length
    if optional:
        at += _section(message, at, 4, "2")
    length = _section(message, at, 9, "3")
    subsets = int.from_bytes(message[at + 4 : at + 6], "big")
    flags = message[at + 6]
    # A section of even length in editions 2 and 3 is padded with one byte.
    packed = message[at + 7 : at + length]
    codes = _descriptors(packed[: len(packed) // 2 * 2])
    at += length
    data_bytes = _section(message, at, 4, "4")
    if not codes or not subsets:
        raise _bad(f"{subsets} reports and {len(codes)} descriptors declared")
    return Header(
        edition, s[3], centre, subcentre, sequence, category, subcategory, master, local,
        subsets, bool(flags & 64), codes, at + 4, data_bytes - 4, at - length + 4,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def descriptor_count(codes: tuple[int, ...]) -> int:
    """Return descriptors after fixed replications, sequences counted as one: the least there can be.

    Nested fixed replications multiply, so that a few bytes of section 3 could expand to billions of
    elements; this is checked before any library expands them.
    """
    total, at = 0, 0
    while at < len(codes):
        kind, span, times = codes[at] // 100_000, codes[at] // 1_000 % 100, codes[at] % 1_000
        if kind == 1 and times:
            inner = codes[at + 1 : at + 1 + span]
            total += times * descriptor_count(inner)
            at += 1 + span
        else:
            total += 1
            at += 1
    return total
