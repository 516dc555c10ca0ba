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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from worker.observations.decoders.bufr.block import clean_text
from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.layout import COUNTS, ReportLayout
from worker.observations.decoders.bufr.packing import (
    TEXT_SCALE,
    WIDEST,
    Packing,
    gather_bits,
    make_packing,
    storage_of,
)

__all__ = ["CompressedPacking", "describe_compressed"]

_INCREMENT_BITS = 6


class _Differs(Exception):
    """The message does not have this layout, or ends early."""


@dataclass(frozen=True)
class CompressedPacking:
    """How the elements of a layout are stored in compressed messages.

    Attributes:
        packing: Scales, references and missing values of the elements.
        widths: Bits of each local reference, 0 for operators, (E,).
        is_text: Whether an element is a text, (E,).
        counts: What each replication count must be, by the place of the element.
        texts: Places of identifying texts, by descriptor.
    """

    packing: Packing
    widths: tuple[int, ...]
    is_text: tuple[bool, ...]
    counts: Mapping[int, int]
    texts: Mapping[int, int]

    @cached_property
    def _wanted(self) -> frozenset[int]:
        return frozenset(self.texts.values())

    def read(self, body: bytes, subsets: int) -> tuple[np.ndarray, dict[int, list[str]]] | None:
        """Return values, (N, E), NaN where missing, and identifying texts by descriptor.

        Arguments:
            body: The data section.
            subsets: Number of reports, N.

        Returns:
            None if the message does not have this layout; it may have another.
        """
        try:
            references, places, widths, texts = self._walk(body, subsets)
        except _Differs:
            return None
        pack = self.packing
        number = np.array(references, dtype=np.float64)
        constant = (number + pack.references) * pack.factors
        full = (np.uint64(1) << pack.widths.astype(np.uint64)) - np.uint64(1)
        missing = (np.array(references, dtype=np.uint64) == full) & pack.can_miss
        constant[missing] = np.nan
        values = np.repeat(constant[None], subsets, axis=0)
        varying = np.array(list(places), dtype=np.int64)
        if varying.size:
            values[:, varying] = self._increments(body, subsets, varying, number, places, widths)
        nothing = [""] * subsets
        return values, {code: texts.get(at, nothing) for code, at in self.texts.items()}

    def _increments(
        self,
        body: bytes,
        subsets: int,
        varying: np.ndarray,
        number: np.ndarray,
        places: Mapping[int, int],
        widths: Mapping[int, int],
    ) -> np.ndarray:
        """Return the values of the elements with increments, (N, K)."""
        width = np.array([widths[at] for at in varying.tolist()], dtype=np.int64)
        first = np.array([places[at] for at in varying.tolist()], dtype=np.int64)
        buffer = np.frombuffer(body + b"\0" * 8, dtype=np.uint8)
        bits = first + np.arange(subsets)[:, None] * width
        found = gather_bits(buffer, bits, width)
        pack = self.packing
        value = found.astype(np.float64) + number[varying] + pack.references[varying]
        value *= pack.factors[varying]
        full = (np.uint64(1) << width.astype(np.uint64)) - np.uint64(1)
        value[(found == full) & pack.can_miss[varying]] = np.nan
        return np.asarray(value)

    def _walk(
        self, body: bytes, subsets: int
    ) -> tuple[list[int], dict[int, int], dict[int, int], dict[int, list[str]]]:
        """Return local references, first bits and widths of increments, and texts."""
        references, places, widths = [0] * len(self.widths), dict[int, int](), dict[int, int]()
        texts: dict[int, list[str]] = {}
        at, end = 0, len(body) * 8
        for element, width in enumerate(self.widths):
            if not width:
                continue
            text = self.is_text[element]
            start = at
            if text:
                at += width
            # Nine bytes hold a reference of 56 bits and the six after it, wherever they begin.
            high = int.from_bytes(body[at >> 3 : (at >> 3) + 9].ljust(9, b"\0"), "big")
            have = 0 if text else width
            word = (high >> (72 - (at & 7) - have - _INCREMENT_BITS)) & (
                (1 << (have + _INCREMENT_BITS)) - 1
            )
            increment = word & 63
            at += have + _INCREMENT_BITS
            if text:
                if element in self._wanted:
                    texts[element] = _texts(body, start, width, at, increment, subsets)
                at += 8 * increment * subsets
            else:
                references[element] = word >> _INCREMENT_BITS
                if increment:
                    if increment > WIDEST:
                        raise _Differs
                    places[element], widths[element] = at, increment
                    at += increment * subsets
                expected = self.counts.get(element)
                if expected is not None and (increment or references[element] != expected):
                    raise _Differs
            if at > end:
                raise _Differs
        return references, places, widths, texts


def _texts(
    body: bytes, start: int, width: int, at: int, characters: int, subsets: int
) -> list[str]:
    """Return the text of each report: its own, or that of all."""
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
    storage = storage_of(message, layout)
    if storage is None:
        return None
    is_text = storage.scales == TEXT_SCALE
    places = {code: layout.first(code) for code in texts}  # -1 where no replication holds it
    unread = any(at >= 0 and not (is_text[at] and storage.widths[at]) for at in places.values())
    if unread or (storage.widths[~is_text] > WIDEST).any():
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
    same = np.array_equal(again[0][:, shown], values[:, shown], equal_nan=True)
    return found if same else None
