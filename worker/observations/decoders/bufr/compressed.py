"""Unpack compressed messages of a known layout as arrays.

In a compressed message each element comes for all reports together: a local reference (as many bits
as the element has), the width of the increments (6 bits; characters for texts), and an increment for
each report, none if the width is 0: all reports then have the local reference. All bits set is
missing, in increments, or in a local reference without increments (WMO Manual on Codes, volume I.2,
FM 94, regulation 94.6.3).

The elements are walked one by one, as the place of each depends on the widths before it; the
increments of all that have some are then read at once. How a layout is stored is learnt from
eccodes, and used only after a whole message has given, report by report, what eccodes gives.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from worker.observations.decoders.bufr.block import clean_text
from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.layout import COUNTS, ReportLayout
from worker.observations.decoders.bufr.packing import (
    MAX_BITS,
    TEXT_SCALE,
    Packing,
    gather_bits,
    make_packing,
    storage_of,
)

__all__ = ["CompressedPacking", "CompressedValues", "describe_compressed"]

_INCREMENT_BITS = 6
_INCREMENT_MASK = (1 << _INCREMENT_BITS) - 1
_WORD = 64
_word_at = struct.Struct(">Q").unpack_from
_MAX_REFERENCE_BITS = _WORD - 7 - _INCREMENT_BITS
"""Maximum width of a local reference that is read together with the width of its increments."""
_AT_ONCE = 32_768
"""Values read at a time: a few such arrays fit into the cache of a core."""


class _Differs(Exception):
    """The message does not have this layout, or ends early."""


@dataclass(frozen=True)
class CompressedValues:
    """Location of the values of a message, which are not read yet.

    Attributes:
        body: The data section and eight bytes more.
        subsets: Number of reports, N.
        constant: Values common to all reports, NaN where missing, (E,).
        varying: Elements with increments, (K,).
        places: First bit of the increments of each of them, (K,).
        widths: Bits of one increment, (K,).
        bases, factors: Value = (increment + base) x factor, (K,).
        can_miss: Whether all bits set means missing, (K,).
    """

    body: bytes
    subsets: int
    constant: np.ndarray
    varying: np.ndarray
    places: np.ndarray
    widths: np.ndarray
    bases: np.ndarray
    factors: np.ndarray
    can_miss: np.ndarray

    def fill(self, values: np.ndarray) -> None:
        """Write the values of all reports to an array of shape (N, E), some reports at a time."""
        values[:] = self.constant
        if not self.varying.size:
            return
        buffer = np.frombuffer(self.body, dtype=np.uint8)
        full = (np.uint64(1) << self.widths.astype(np.uint64)) - np.uint64(1)
        step = max(1, _AT_ONCE // self.varying.size)
        for low in range(0, self.subsets, step):
            numbers = np.arange(low, min(low + step, self.subsets))
            found = gather_bits(buffer, self.places + numbers[:, None] * self.widths, self.widths)
            value = (found + self.bases) * self.factors
            np.copyto(value, np.nan, where=(found == full) & self.can_miss)
            values[low : low + step, self.varying] = value


class _Step(NamedTuple):
    """What is read of one element: a local reference of `width` bits, and the width of increments."""

    element: int
    width: int
    right: int
    mask: int
    special: bool


@dataclass(frozen=True)
class CompressedPacking:
    """How the elements of a layout are stored in compressed messages.

    Attributes:
        packing: Scales, references and missing values of the elements.
        widths: Bits of each local reference, 0 for operators, (E,).
        is_text: Whether an element is a text, (E,).
        counts: Expected value of each replication count, by position of the element.
        texts: Positions of identifying texts, by descriptor.
    """

    packing: Packing
    widths: tuple[int, ...]
    is_text: tuple[bool, ...]
    counts: Mapping[int, int]
    texts: Mapping[int, int]

    @cached_property
    def _wanted(self) -> frozenset[int]:
        return frozenset(self.texts.values())

    @cached_property
    def _steps(self) -> tuple[_Step, ...]:
        return tuple(
            _Step(at, width, _WORD - _INCREMENT_BITS - (0 if text else width), (1 << width) - 1,
                  text or at in self.counts)
            for at, (width, text) in enumerate(zip(self.widths, self.is_text, strict=True))
            if width
        )  # fmt: skip

    def read(
        self, body: bytes, subsets: int
    ) -> tuple[CompressedValues, dict[int, list[str]]] | None:
        """Return where the values are, and identifying texts by descriptor.

        Arguments:
            body: The data section.
            subsets: Number of reports, N.

        Returns:
            None if the message does not have this layout; it may have another.
        """
        padded = body + b"\0" * 8
        try:
            references, varying, texts = self._walk(padded, len(body) * 8, subsets)
        except (_Differs, struct.error):
            return None
        pack = self.packing
        numbers = np.array(references, dtype=np.uint64)
        constant = (numbers + pack.references) * pack.factors
        constant[(numbers == self._full) & pack.can_miss] = np.nan
        at, places, widths = np.array(varying, dtype=np.int64).reshape(-1, 3).T
        bases = numbers[at] + pack.references[at]
        found = CompressedValues(
            padded,
            subsets,
            constant,
            at,
            places,
            widths,
            bases,
            pack.factors[at],
            pack.can_miss[at],
        )
        nothing = [""] * subsets
        return found, {code: texts.get(at, nothing) for code, at in self.texts.items()}

    @cached_property
    def _full(self) -> np.ndarray:
        return (np.uint64(1) << self.packing.widths.astype(np.uint64)) - np.uint64(1)

    def _walk(
        self, body: bytes, end: int, subsets: int
    ) -> tuple[list[int], list[tuple[int, int, int]], dict[int, list[str]]]:
        """Return local references; element, first bit and width of increments; and texts.

        Raises:
            _Differs, struct.error: If the message has another layout.
        """
        references, varying = [0] * len(self.widths), list[tuple[int, int, int]]()
        texts: dict[int, list[str]] = {}
        at = 0
        for element, width, right, mask, special in self._steps:
            if special and self.is_text[element]:
                at = self._walk_text(body, at, element, subsets, texts)
                continue
            word = _word_at(body, at >> 3)[0] >> (right - (at & 7))
            at += width + _INCREMENT_BITS
            references[element] = reference = word >> _INCREMENT_BITS & mask
            if increment := word & _INCREMENT_MASK:
                varying.append((element, at, increment))
                at += increment * subsets
            if special and (increment or reference != self.counts[element]):
                raise _Differs
        if at > end or any(increment > MAX_BITS for _, _, increment in varying):
            raise _Differs
        return references, varying, texts

    def _walk_text(
        self, body: bytes, at: int, element: int, subsets: int, texts: dict[int, list[str]]
    ) -> int:
        """Read a text if it identifies a report; return the bit after it."""
        width = self.widths[element]
        start, at = at, at + width
        right = _WORD - _INCREMENT_BITS - (at & 7)
        characters = _word_at(body, at >> 3)[0] >> right & _INCREMENT_MASK
        at += _INCREMENT_BITS
        if element in self._wanted:
            texts[element] = _texts(body, start, width, at, characters, subsets)
        return at + 8 * int(characters) * subsets


def _texts(
    body: bytes, start: int, width: int, at: int, characters: int, subsets: int
) -> list[str]:
    """Return the text of each report: its own, or the common one."""
    if not characters:
        return [_cleaned(_bytes_at(body, start, width // 8))] * subsets
    raw = _bytes_at(body, at, characters * subsets)
    parts = [raw[k : k + characters] for k in range(0, len(raw), characters)]
    known = {part: _cleaned(part) for part in set(parts)}
    return [known[part] for part in parts]


def _bytes_at(body: bytes, at: int, length: int) -> bytes:
    """Return bytes that begin at any bit."""
    low, shift = at >> 3, at & 7
    found = np.frombuffer(body[low : low + length + 1] + b"\0", dtype=np.uint8)[: length + 1]
    if len(found) <= length:
        raise _Differs
    return bytes((found[:-1] << shift) | (found[1:] >> (8 - shift)) if shift else found[:-1])


def _cleaned(raw: bytes) -> str:
    return clean_text(raw.decode("ascii")) if raw.isascii() else ""


def describe_compressed(
    message: bytes,
    header: Header,
    layout: ReportLayout,
    values: np.ndarray,
    texts: Mapping[int, list[str]],
) -> CompressedPacking | None:
    """Return how a layout is stored in compressed messages, None if it cannot be read this way.

    Arguments:
        message: A message of this layout.
        header: Its sections 1 and 3.
        layout: Positions of elements.
        values: By eccodes, (N, E), NaN where missing.
        texts: By eccodes: identifying texts by descriptor.
    """
    storage = storage_of(message, header, layout)
    if storage is None:
        return None
    is_text = storage.scales == TEXT_SCALE
    places = {code: layout.first(code) for code in texts}  # -1 where no replication holds it
    unread = any(at >= 0 and not (is_text[at] and storage.widths[at]) for at in places.values())
    if unread or (storage.widths[~is_text] > _MAX_REFERENCE_BITS).any():
        return None
    packing = make_packing(layout, storage)
    counted = np.flatnonzero(np.isin(layout.all_codes, list(COUNTS)))
    found = CompressedPacking(
        packing,
        tuple(storage.widths.tolist()),
        tuple(is_text.tolist()),
        {int(at): int(values[0, at]) for at in counted},
        places,
    )
    again = found.read(header.data(message), header.subsets)
    if again is None or again[1] != dict(texts):
        return None
    shown = packing.widths > 0
    read = np.empty(values.shape)
    again[0].fill(read)
    same = np.array_equal(read[:, shown], values[:, shown], equal_nan=True)
    return found if same else None
