"""Where messages begin and end in a stream of bytes: bulletins, junk, lying lengths.

Section 0 of editions 2 to 4: `BUFR`, total length (3 bytes), edition (1 byte); a message ends with
`7777` (WMO Manual on Codes, volume I.2, FM 94). Editions 0 and 1 hold no total length.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["EDITIONS", "Frame", "correction_number", "scan"]

EDITIONS = (2, 3, 4)
_SHORTEST = 8 + 17 + 9 + 4 + 4
_LOOK_BACK = 96

_HEADING = re.compile(rb"([A-Z]{4}\d{2}) ([A-Z]{4}) (\d{6})(?: ([A-Z]{3}))?[\s\x00]*\Z")
_FILE_NAME = re.compile(r"_[A-Z]{4}\d{2}[A-Z]{4}\d{6}([A-Z]{3})_C_")


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


def scan(data: bytes, file_name: str = "") -> Iterator[Frame]:
    """All candidates in order; after a bad frame the search resumes at the next `BUFR`.

    Arguments:
        data: Bytes or a memory map of the file.
        file_name: WMO file names carry the bulletin heading when the content has none.
    """
    named = _FILE_NAME.search(file_name)
    default = named.group(1) if named else ""
    size, end = len(data), 0
    while (at := data.find(b"BUFR", end)) >= 0:
        before = data[max(end, at - _LOOK_BACK) : at]
        heading = _HEADING.search(before) if before else None
        indicator = (heading.group(4) or b"").decode() if heading else default
        length, edition, reason, detail = _measure(data, at, size)
        yield Frame(at, length, edition, indicator, at - end, reason, detail)
        end = at + length


def _measure(data: bytes, at: int, size: int) -> tuple[int, int, str, str]:
    """Length, edition, reason and detail of the candidate at `at`."""
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
    if closed and declared >= _SHORTEST:
        return declared, edition, "", ""
    if at + declared > size and edition in EDITIONS:
        detail = f"{declared} bytes declared, {size - at} left in the file"
        return rest, edition, "truncated", detail
    detail = f"edition {edition}, {declared} bytes declared, no end mark there"
    return rest, edition, "bad_frame", detail


def correction_number(indicator: str, update_sequence: int) -> int:
    """Rank of a report among its versions; the higher one replaces the lower.

    Corrections (`CCA`, `CCB`, …) and amendments (`AAA`, …) count by their last letter; `RRA` is a
    delayed first version. The update sequence number of section 1 counts as well.
    """
    letter = ord(indicator[2]) - ord("A") + 1 if indicator[:2] in ("CC", "AA") else 0
    number = update_sequence if update_sequence < 255 else 0
    return max(letter, number)
