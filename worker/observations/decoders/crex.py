"""Decode CREX, the character form of BUFR (WMO Manual on Codes, volume I.2, FM 95).

Descriptors are those of BUFR with letters for their kinds (`B12001` is 0 12 001, `D` a sequence, `R` a
replication), values are decimal numbers separated by blanks, `/` where missing. The report families of
BUFR therefore decode them. Scales are those of BUFR, temperatures are in degrees Celsius. Elements in
no table are skipped, which CREX allows because values are separated by blanks.

With `E` after the descriptors each value begins with a check digit, the last digit of its number in
the report (1 to 9, then 0); a wrong digit invalidates the message.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import eccodes
import numpy as np

from model.domain.errors import DecodeError
from model.domain.physics import ZERO_CELSIUS
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport
from worker.observations.decoders.bufr.block import Block, clean_text
from worker.observations.decoders.bufr.elements import TableVersion, element_names, elements_of
from worker.observations.decoders.bufr.families import BUFR_FAMILIES, family_of, unsupported
from worker.observations.decoders.bufr.framing import (
    HEADING,
    Header,
    NamedHeading,
    correction_number,
)
from worker.observations.decoders.bufr.identity import station_alias
from worker.observations.decoders.bufr.reports import Collector
from worker.observations.decoders.bufr.template import Template

__all__ = ["decode_crex"]

_MESSAGE = re.compile(r"CREX\+\+(.*?)((?<=\+\+)\s*7777(?!\d)|(?=CREX\+\+)|\Z)", re.DOTALL)
"""The end mark follows the `++` of the last section, because 7777 may also occur as a value."""
_HEADING = re.compile(HEADING + r"\s*\Z")
_DESCRIPTOR = re.compile(r"([BCDR])(\d{2})(\d{3})")
_KINDS = {"B": 0, "R": 1, "C": 2, "D": 3}
_VERSION = 36
_LOCAL = 192
"""Element numbers from here on are local, and CREX does not identify local tables."""
_LOOK_BACK = 64
_TEMPERATURES = (12, 22)
"""Classes of elements in K that CREX gives in degrees Celsius: of the air, of the sea."""


@dataclass(frozen=True)
class _Element:
    """Encoding of an element: decimal scale, units of BUFR, number of characters of a text."""

    scale: int
    units: str
    characters: int


def decode_crex(path: Path, context: DecodeContext) -> Decoded:
    """Return the values of all messages; those that cannot be read are rejected and counted."""
    text = path.read_bytes().decode("latin-1")
    report = DecodeReport(format="crex", size=len(text), bytes_between=len(text))
    collector, not_used = Collector(), Counter[int]()
    named = NamedHeading.of(context.file_name or path.name)
    ordinal = 0
    for found in _MESSAGE.finditer(text):
        report.messages += 1
        offset, length = found.start(), found.end() - found.start()
        report.bytes_between -= length
        heading = _HEADING.search(text[max(0, offset - _LOOK_BACK) : offset])
        indicator = named.indicator_of(heading.groups() if heading else None)
        update = correction_number(indicator, 0)
        try:
            if not found.group(2):
                raise DecodeError("Expected 7777 at the end of the message.", reason="truncated")
            rows, before = 0, report.reports
            for number, block in enumerate(_blocks(found.group(1), context)):
                report.reports += 1
                gave = _collect(block, collector, ordinal, offset, update)
                not_used += block.usage.not_used()
                ordinal += 1
                rows += gave
                if not gave:
                    report.reject("no_values", offset, length, "", number)
            if report.reports == before:
                raise DecodeError("Expected reports after the descriptors.", reason="no_values")
        except DecodeError as error:
            reason = error.context.get("reason", "undecodable")
            report.reject(reason, offset, length, error.message)
            continue
        if rows:
            report.decoded += 1
            report.bytes_decoded += length
    if not report.messages:
        report.reject("no_messages", 0, len(text), "no CREX++")
    names = element_names(not_used.keys(), _VERSION)
    for code, count in sorted(not_used.items()):
        report.not_used[f"{code:06d} {names.get(code, '')}".rstrip()] += count
    report.values_set_aside += collector.set_aside
    table = collector.table(context)
    report.count_rows(table)
    return Decoded(table, report)


def _collect(block: Block, collector: Collector, ordinal: int, offset: int, update: int) -> int:
    """Add the rows of a report; return their number."""
    codes = frozenset(block.layout.all_codes.tolist())
    family = family_of(block.header.category, codes)
    if family is None:
        raise unsupported(block.header, codes)
    reports = BUFR_FAMILIES[family].decode(block)
    reports.station_alias = reports.station_alias or station_alias(block)
    places = (np.array([value]) for value in (ordinal, offset, update))
    return int(collector.add(reports, *places)[0])


def _blocks(content: str, context: DecodeContext) -> Iterator[Block]:
    """Yield the reports of a message, each as a block."""
    head, _, body = content.partition("++")
    category = re.search(r"\bA(\d{3})", head)
    codes = tuple(
        _KINDS[kind] * 100_000 + int(x) * 1_000 + int(y) for kind, x, y in _DESCRIPTOR.findall(head)
    )
    if not category or not codes:
        raise DecodeError("Expected a category and descriptors; got none.", reason="bad_frame")
    if any(code // 100_000 == 2 for code in codes):
        raise DecodeError("Expected no operators (C) in CREX.", reason="unsupported_template")
    template = Template(_expanded(codes))
    header = Header(0, 0, 0, 0, 0, int(category.group(1)), 255, _VERSION, 0, 1, False, codes, 0, 0)
    checked = re.search(r"\bE\s*$", head) is not None
    reader = _CrexReader(body.partition("++")[0], template, checked)
    while reader.left():
        yield reader.block(header, context)


class _CrexReader:
    """Read the values of reports one after another; `+` separates reports."""

    def __init__(self, body: str, template: Template, checked: bool) -> None:
        self.body, self.template, self.checked = body.replace("\r", " "), template, checked
        self.at, self.digit = 0, 1
        self.values: list[float] = []
        self.texts: dict[int, list[str]] = {}

    def left(self) -> bool:
        """Return whether anything but blanks and `+` follows."""
        while self.at < len(self.body) and self.body[self.at] in " \n+":
            self.at += 1
        return self.at < len(self.body)

    def block(self, header: Header, context: DecodeContext) -> Block:
        """Read the next report into a block of one row."""
        self.values, self.texts, self.digit = [], {}, 1
        layout = self.template.walk(
            lambda slots: self._count(slots, context.limits.replications), context.limits
        )
        self._read_to(layout.slots)
        end = self.body.find("+", self.at)
        rest = self.body[self.at : end if end >= 0 else None].split()
        if rest:
            raise DecodeError(
                f"Expected {layout.size} values in a report; {len(rest)} more follow.",
                reason="undecodable",
            )
        return Block(header, layout, np.array([self.values]), self.texts)

    def _count(self, slots: Sequence[int], limit: int) -> int:
        self._read_to(np.asarray(slots))
        number = self.values[-1]
        if not 0 <= number <= limit:
            raise DecodeError(
                f"Expected a count up to {limit}; got {number:g}.", reason="too_large"
            )
        return int(number)

    def _read_to(self, slots: np.ndarray) -> None:
        for slot in slots[len(self.values) :].tolist():
            code = self.template.expanded[slot]
            self.values.append(self._value(code, _element(code)))

    def _value(self, code: int, element: _Element) -> float:
        while self.at < len(self.body) and self.body[self.at] in " \n":
            self.at += 1
        if self.checked:
            self._check()
        if element.characters:
            raw = self.body[self.at : self.at + element.characters].partition("+")[0]
            self.at += len(raw)
            text = raw.replace("\n", " ")
            self.texts.setdefault(code, ["" if set(text) <= {"/", " "} else clean_text(text)])
            return 0.0
        start = self.at
        while self.at < len(self.body) and self.body[self.at] not in " \n+":
            self.at += 1
        word = self.body[start : self.at]
        if not word:
            raise DecodeError("Expected more values in a report.", reason="undecodable")
        return _number(word, code, element)

    def _check(self) -> None:
        given = self.body[self.at : self.at + 1]
        if given != str(self.digit):
            raise DecodeError(
                f"Expected the check digit {self.digit}; got '{given}'.", reason="undecodable"
            )
        self.digit = (self.digit + 1) % 10
        self.at += 1


def _number(word: str, code: int, element: _Element) -> float:
    """Return the value in the units of BUFR, NaN where missing or, of an unknown element, no number."""
    if "/" in word:
        return float("nan")
    try:
        value = int(word) / 10.0**element.scale
    except ValueError:
        if element.units:
            raise DecodeError(
                f"Expected a number for {code:06d}; got '{word[:20]}'.", reason="undecodable"
            ) from None
        return float("nan")
    celsius = element.units == "K" and code // 1_000 in _TEMPERATURES
    return value + ZERO_CELSIUS if celsius else value


def _expanded(codes: tuple[int, ...]) -> tuple[int, ...]:
    """Return descriptors with sequences and fixed replications expanded, as eccodes lists them."""
    found: list[int] = []
    at = 0
    while at < len(codes):
        code = codes[at]
        if code // 100_000 == 1:
            span, times = code // 1_000 % 100, code % 1_000
            body = _expanded(codes[at + 1 : at + 1 + span])
            if times:
                found += body * times
            else:
                # In CREX the count of a delayed replication has no descriptor.
                found += [100_000 + 1_000 * len(body), 31_001, *body]
            at += span
        elif code // 100_000 == 3:
            found += _sequence(code)
        else:
            found.append(code)
        at += 1
        if len(found) > 100_000:
            raise DecodeError("Expected a shorter template.", reason="too_large")
    return tuple(found)


@lru_cache(maxsize=256)
def _sequence(code: int) -> tuple[int, ...]:
    handle = eccodes.codes_bufr_new_from_samples("BUFR4")
    try:
        eccodes.codes_set(handle, "masterTablesVersionNumber", _VERSION)
        eccodes.codes_set_array(handle, "unexpandedDescriptors", [code])
        expanded = eccodes.codes_get_long_array(handle, "expandedDescriptors")
        return tuple(int(element) for element in expanded)
    except eccodes.CodesInternalError as error:
        raise DecodeError(
            f"Expected sequences of WMO tables; got D{code % 100_000:05d}: {error}.",
            reason="needs_local_tables",
        ) from error
    finally:
        eccodes.codes_release(handle)


@lru_cache(maxsize=2_048)
def _element(code: int) -> _Element:
    """Return how an element is encoded; one in no table is a number without units."""
    if code % 1_000 >= _LOCAL:
        return _Element(0, "", 0)
    found = elements_of((code,), TableVersion(_VERSION)).get(code)
    if found is None:
        return _Element(0, "", 0)
    return _Element(found.scale, found.units, found.width // 8 if found.is_text else 0)
