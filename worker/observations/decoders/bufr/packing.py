"""Unpack the bits of uncompressed reports, for many reports of one layout at once.

eccodes provides width, scale and reference value of every element of a layout, with operators applied.
The bits of all later reports of the layout are then read as arrays. A packing is used only after it has
reproduced exactly the values that eccodes gives for a first report.

A value is (number + reference) x 10^-scale; all bits set is missing, except in counts, bitmaps,
associated fields and elements of one bit (WMO Manual on Codes, volume I.2, FM 94).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import eccodes
import numpy as np

from worker.observations.decoders.bufr.block import TEXT_KEYS, clean_text
from worker.observations.decoders.bufr.elements import Element, TableVersion, elements_of
from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.layout import ASSOCIATED, COUNTS, ReportLayout

__all__ = [
    "Packing",
    "Storage",
    "TEXT_SCALE",
    "MAX_BITS",
    "describe_storage",
    "gather_bits",
    "make_packing",
    "read_bits",
    "storage_of",
]


def gather_bits(buffer: np.ndarray, places: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return many unsigned numbers read from a buffer at once.

    Arguments:
        buffer: Bytes, with eight more at the end than any number needs, (B,).
        places: First bits, (N, K).
        widths: Bits of each column, at most 56; 0 gives 0, (K,).

    Returns:
        uint64, (N, K).
    """
    windows = np.ndarray(len(buffer) - 7, ">u8", buffer, strides=(1,))
    word = windows[places >> 3].astype(np.uint64)
    inside = (places & 7).astype(np.uint64)
    width = widths.astype(np.uint64)
    # A shift by 64 is undefined; columns without bits are masked to zero anyway.
    right = np.minimum(np.uint64(64) - width - inside, np.uint64(63))
    mask = (np.uint64(1) << width) - np.uint64(1)
    return np.asarray((word >> right) & mask)


def read_bits(body: bytes, at: int, width: int) -> int:
    """Return one unsigned number of `width` bits at bit `at`; all ones beyond the end."""
    high = -(-(at + width) // 8)
    if high > len(body):
        return (1 << width) - 1
    number = int.from_bytes(body[at // 8 : high], "big") >> (high * 8 - at - width)
    return number & ((1 << width) - 1)


MAX_BITS = 56
"""Maximum width in bits of what is read as one number."""

_FIRST_TRAILER = 222_000
_DESCRIBED = frozenset({222_000, 236_000, 237_000})
"""Operators without data of their own whose elements keep their original widths."""
_SIGNIFICANCE, _SIGNIFICANCE_WIDTH = 31_021, 6
_NEVER_MISSING = (*COUNTS, 31_031, ASSOCIATED)
_FACTORS = np.array([1.0 / 10.0**s if s > 0 else 10.0**-s for s in range(-60, 61)])
"""Powers of ten by decimal scale, from -60 on."""
TEXT_SCALE = 127
"""Placeholder for the scale of a text."""


@dataclass(frozen=True)
class Packing:
    """Where and how the elements of a layout are stored.

    Attributes:
        offsets: First bit of each element from the start of the report, (E,).
        widths: Bits of each element, 0 for operators and texts, (E,).
        factors, references: Value = (number + reference) x factor, (E,).
        can_miss: Whether all bits set means missing, (E,).
        texts: Offset and number of characters of identifying texts, by descriptor.
        bits: Length of a report.
    """

    offsets: np.ndarray
    widths: np.ndarray
    factors: np.ndarray
    references: np.ndarray
    can_miss: np.ndarray
    texts: Mapping[int, tuple[int, int]]
    bits: int

    def values(self, bodies: Sequence[bytes], owner: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return values of reports, shape (N, E), NaN where missing.

        Arguments:
            bodies: Data sections, M.
            owner: Number of the section that holds each report, (N,).
            starts: First bit of each report in its section, (N,).
        """
        buffer, first = _joined(bodies, owner, starts)
        number = gather_bits(buffer, first[:, None] + self.offsets, self.widths)
        value = (number.astype(np.float64) + self.references) * self.factors
        full = (np.uint64(1) << self.widths.astype(np.uint64)) - np.uint64(1)
        value[(number == full) & self.can_miss] = np.nan
        return np.asarray(value)

    def text(
        self, code: int, bodies: Sequence[bytes], owner: np.ndarray, starts: np.ndarray
    ) -> list[str]:
        """Return an identifying text of each report; "" where missing."""
        offset, length = self.texts[code]
        buffer, first = _joined(bodies, owner, starts)
        places = first[:, None] + offset + 8 * np.arange(length)
        characters = gather_bits(buffer, places, np.full(length, 8)).astype(np.uint8)
        found = [row.tobytes() for row in characters]
        return [clean_text(raw.decode("ascii")) if raw.isascii() else "" for raw in found]


def _joined(
    bodies: Sequence[bytes], owner: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return all bytes in one array, and the first bit of each report in it."""
    lengths = np.array([len(body) for body in bodies])
    begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    buffer = np.frombuffer(b"".join(bodies) + b"\0" * 8, dtype=np.uint8)
    return buffer, begin[owner] * 8 + starts


class Storage(NamedTuple):
    """How elements are stored: bits, decimal scale and reference value, each (E,)."""

    widths: np.ndarray
    scales: np.ndarray
    references: np.ndarray


def make_packing(layout: ReportLayout, storage: Storage) -> Packing:
    """Return the packing of a layout from how its elements are stored."""
    widths = storage.widths
    offsets = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
    texts = {
        code: (int(offsets[at]), int(widths[at]) // 8)
        for code in TEXT_KEYS
        if (at := layout.first(code)) >= 0
    }
    text = storage.scales == TEXT_SCALE
    numeric = np.where(text | (widths > MAX_BITS), 0, widths).astype(np.int64)
    always = np.isin(layout.all_codes, _NEVER_MISSING)
    return Packing(
        offsets,
        numeric,
        _FACTORS[np.clip(storage.scales, -60, 60) + 60],
        storage.references.astype(np.float64),
        ~always & (numeric > 1),
        texts,
        int(widths.sum()),
    )


def describe_storage(
    message: bytes, header: Header, layout: ReportLayout, expected: np.ndarray
) -> Storage | None:
    """Return how the elements of a layout are stored, or None if it cannot be read this way.

    Arguments:
        message: A message whose first report has the layout.
        header: Its sections 1 and 3.
        layout: Positions of elements.
        expected: Values of the first report by eccodes, (E,), NaN where missing.
    """
    storage = storage_of(message, header, layout)
    if storage is None:
        return None
    packing = make_packing(layout, storage)
    return storage if _confirmed(packing, header.data(message), expected) else None


def _confirmed(packing: Packing, body: bytes, expected: np.ndarray) -> bool:
    """Return whether the packing gives the expected numbers, to the last bit."""
    if packing.bits > len(body) * 8:
        return False
    only = np.zeros(1, dtype=np.int64)
    found = packing.values([body], only, only)[0]
    shown = packing.widths > 0
    return bool(np.array_equal(found[shown], expected[shown], equal_nan=True))


def storage_of(message: bytes, header: Header, layout: ReportLayout) -> Storage | None:
    """Return width, scale and reference of each element of the first report, None if not known.

    Only the first report is read, which is possible because the reports of an uncompressed message are
    consecutive: eccodes needs some kilobytes for the attributes of each element.
    """
    if not header.compressed:
        at = header.subsets_at
        message = message[:at] + b"\0\1" + message[at + 2 :]
    handle = eccodes.codes_new_from_message(message)
    try:
        return _stored(handle, header, layout)
    except eccodes.CodesInternalError:
        return None
    finally:
        eccodes.codes_release(handle)


def _stored(handle: int, header: Header, layout: ReportLayout) -> Storage | None:
    trailer = layout.all_codes[len(layout.codes) :]
    operators = trailer[trailer >= 100_000]
    foreign = (layout.codes >= 100_000) & (layout.codes != ASSOCIATED)
    if foreign.any() or not _DESCRIBED.issuperset(operators.tolist()):
        return None
    eccodes.codes_set(handle, "unpack", 1)
    found = _in_order(_elements(handle, len(layout.codes)), layout.codes.tolist())
    if found is None:
        return None
    original = elements_of(trailer.tolist(), TableVersion.of(header))
    for code in trailer.tolist():
        if code not in original and code < _FIRST_TRAILER:
            return None
        found.append(_storage(original[code]) if code in original else (0, 0, 0))
    return Storage(*np.array(found, dtype=np.int64).T)


def _elements(handle: int, limit: int) -> list[list[int]]:
    """Return code, width, scale, reference and bits of the associated field of elements, as eccodes
    lists them: associated fields and their significance are no elements of their own there.
    """
    found: list[list[int]] = []
    names = ("code", "width", "scale", "reference")
    iterator = eccodes.codes_bufr_keys_iterator_new(handle)
    try:
        while len(found) <= limit and eccodes.codes_bufr_keys_iterator_next(iterator):
            key = eccodes.codes_bufr_keys_iterator_get_name(iterator)
            if not key.startswith("#"):
                continue
            if "->" not in key:
                entry = [eccodes.codes_get_long(handle, f"{key}->{n}") for n in names] + [0]
                if eccodes.codes_get_string(handle, f"{key}->units") == "CCITT IA5":
                    entry[2] = TEXT_SCALE
                found.append(entry)
            elif key.endswith("->associatedField") and found:
                found[-1][4] = eccodes.codes_get_long(handle, f"{key}->width")
    finally:
        eccodes.codes_bufr_keys_iterator_delete(iterator)
    return found


def _in_order(elements: list[list[int]], codes: list[int]) -> list[tuple[int, int, int]] | None:
    """Return width, scale and reference along `codes`, or None if the elements do not follow them."""
    found: list[tuple[int, int, int]] = []
    at = 0
    for code in codes:
        following = elements[at] if at < len(elements) else [0, 0, 0, 0, 0]
        if code == ASSOCIATED:
            found.append((following[4], 0, 0))
        elif code == _SIGNIFICANCE and following[0] != code:
            found.append((_SIGNIFICANCE_WIDTH, 0, 0))
        elif following[0] == code:
            found.append((following[1], following[2], following[3]))
            at += 1
        else:
            return None
    return found


def _storage(element: Element) -> tuple[int, int, int]:
    """Return width, scale and reference of an element as its table has them."""
    return element.width, TEXT_SCALE if element.is_text else element.scale, element.reference
