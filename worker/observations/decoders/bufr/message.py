"""Unpack messages into matrices of values with eccodes, within limits."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import ClassVar

import eccodes
import numpy as np

from model.domain.errors import DecodeError
from worker.observations.decoders.base import MessageLimits
from worker.observations.decoders.bufr.block import TEXT_KEYS, clean_text
from worker.observations.decoders.bufr.compressed import CompressedValues, describe_compressed
from worker.observations.decoders.bufr.elements import TableVersion, elements_of
from worker.observations.decoders.bufr.framing import Header, descriptor_count, is_local
from worker.observations.decoders.bufr.layout import ReportLayout
from worker.observations.decoders.bufr.packing import describe_storage
from worker.observations.decoders.bufr.template import NO_WIDTH, Template, check_first_count

__all__ = ["MessagePart", "Unpacker"]

_MISSING = -1e99
_KEPT_TEMPLATES = 512
_LEARNT_SIZE = 3_000
"""Maximum size of a report whose storage is looked up, because eccodes is slow at it."""
_LARGE = 65_536
"""Size of the data above which the first replication count is checked before unpacking."""


@dataclass(frozen=True, slots=True)
class MessagePart:
    """Reports of one message that share a layout, unpacked or still packed.

    Attributes:
        layout: Positions of elements.
        numbers: Numbers of the reports within the message, from 0, shape (reports,).
        values: Shape (reports, layout.size), NaN where missing, without meaning for texts; None
            while packed.
        texts: Identifying texts, by descriptor, one per report.
        body: Bytes of section 4 of a packed message.
        starts: First bit of each packed report.
        compressed: Where the values of a packed compressed message are.
    """

    layout: ReportLayout
    numbers: np.ndarray
    values: np.ndarray | None = None
    texts: dict[int, list[str]] = field(default_factory=dict)
    body: bytes = b""
    starts: np.ndarray | None = None
    compressed: CompressedValues | None = None


class Unpacker:
    """Unpack messages within limits; all instances of a process share their expanded templates."""

    _templates: ClassVar[dict[tuple[object, ...], Template | DecodeError]] = {}

    def __init__(self, limits: MessageLimits) -> None:
        self.limits = limits

    def template(self, message: bytes, header: Header) -> Template:
        """Return the expanded template of a message, without unpacking its data.

        Raises:
            DecodeError: `needs_local_tables`, `too_large` or `undecodable`.
        """
        elements = descriptor_count(header.descriptors)
        if elements * (header.subsets if header.compressed else 1) > self.limits.values:
            raise DecodeError(
                f"Expected at most {self.limits.values} values; the template asks for {elements} in "
                f"each of {header.subsets} reports.",
                reason="too_large",
            )
        key = header.template
        found = self._templates.get(key)
        if found is None:
            if len(self._templates) >= _KEPT_TEMPLATES:
                self._templates.clear()
            found = self._templates[key] = _expand(message, header)
        if isinstance(found, DecodeError):
            raise found
        return found

    def unpack(self, message: bytes, header: Header) -> Iterator[MessagePart]:
        """Yield values of all reports, grouped by layout.

        Raises:
            DecodeError: With a reason.
        """
        template = self.template(message, header)
        if not header.compressed and (packed := self._packed(message, header, template)):
            yield from packed
            return
        if header.compressed and (part := self._compressed(message, header, template)):
            yield part
            return
        handle = eccodes.codes_new_from_message(message)
        try:
            if header.data_bytes > _LARGE:
                widths = _widths(template, header)
                check_first_count(template.raw, widths, message, header, self.limits)
            values = self._values(handle, header)
            values[values < _MISSING] = np.nan
            wanted = template.codes & TEXT_KEYS.keys()
            if header.compressed:
                layout = template.layout(values, self.limits)
                part = _rectangular(handle, layout, values, header.subsets, wanted)
                _note_compressed(message, header, template, part)
                yield part
            else:
                for part in self._ragged(handle, template, values, header.subsets, wanted):
                    _note(message, header, template, part)
                    yield part
        finally:
            eccodes.codes_release(handle)

    def _packed(
        self, message: bytes, header: Header, template: Template
    ) -> list[MessagePart] | None:
        """Return the reports still packed if all their layouts and packings are known, else None."""
        body = header.data(message)
        found: dict[int, tuple[ReportLayout, list[int], list[int]]] = {}
        at, size = 0, 0
        for number in range(header.subsets):
            layout = template.packed_layout(body, at, self.limits)
            if layout is None:
                return None
            _, numbers, starts = found.setdefault(id(layout), (layout, [], []))
            numbers.append(number)
            starts.append(at)
            at += layout.packing.bits
            size += layout.size
            if at > len(body) * 8 or size > self.limits.values:
                return None
        return [
            MessagePart(layout, np.array(numbers), body=body, starts=np.array(starts))
            for layout, numbers, starts in found.values()
        ]

    def _compressed(self, message: bytes, header: Header, template: Template) -> MessagePart | None:
        """Return the reports of a compressed message if the storage of its layout is known."""
        body = header.data(message)
        for layout in template.compressed_layouts():
            if layout.size * header.subsets > self.limits.values:
                continue
            found = layout.compressed.read(body, header.subsets)
            if found is not None:
                values, texts = found
                return MessagePart(
                    layout, np.arange(header.subsets), texts=texts, compressed=values
                )
        return None

    def _values(self, handle: int, header: Header) -> np.ndarray:
        try:
            # Attributes such as units and scale of each element are not needed.
            eccodes.codes_set(handle, "skipExtraKeyAttributes", 1)
            count = eccodes.codes_get_size(handle, "numericValues")
            if count > self.limits.values:
                raise DecodeError(
                    f"Expected at most {self.limits.values} values; got {count}.",
                    reason="too_large",
                )
            return np.asarray(eccodes.codes_get_double_array(handle, "numericValues"))
        except eccodes.CodesInternalError as error:
            local = any(map(is_local, header.descriptors))
            raise DecodeError(
                f"Expected data that fit the descriptors; {error}.",
                reason="needs_local_tables" if local else "undecodable",
            ) from error

    def _ragged(
        self, handle: int, template: Template, values: np.ndarray, subsets: int, wanted: Set[int]
    ) -> Iterator[MessagePart]:
        groups: dict[int, tuple[ReportLayout, list[int], list[int]]] = {}
        start = 0
        for number in range(subsets):
            layout = template.layout(values[start:], self.limits)
            _, starts, numbers = groups.setdefault(id(layout), (layout, [], []))
            starts.append(start)
            numbers.append(number)
            start += layout.size
        if start != len(values):
            raise _mismatch(start, len(values))
        # Reading the string pool is slow; with one report each text has its own key.
        pool = _texts(handle, "stringValues") if wanted and subsets > 1 else []
        for layout, starts, numbers in groups.values():
            if len(starts) == 1:
                part = values[starts[0] : starts[0] + layout.size][None]
            else:
                part = values[np.array(starts)[:, None] + np.arange(layout.size)]
            texts = {
                code: [_from_pool(pool, reference) for reference in part[:, at]]
                if subsets > 1
                else [_text(handle, "#1#" + TEXT_KEYS[code])]
                for code in wanted
                if (at := layout.first(code)) >= 0
            }
            yield MessagePart(layout, np.array(numbers), part, texts)


def _expand(message: bytes, header: Header) -> Template | DecodeError:
    handle = eccodes.codes_new_from_message(message)
    try:
        expanded = eccodes.codes_get_long_array(handle, "expandedDescriptors")
        return Template(tuple(int(code) for code in expanded))
    except (eccodes.CodesInternalError, UnicodeDecodeError) as error:
        local = dict.fromkeys(code for code in header.descriptors if is_local(code))
        named = [f"{code:06d}" for code in local]
        what = f"local descriptors {', '.join(named[:8])}" if named else f"unknown ones ({error})"
        return DecodeError(
            f"Expected descriptors of WMO tables (version {header.master_version}); got {what} of "
            f"centre {header.centre}, local version {header.local_version}, and no tables in the file.",
            reason="needs_local_tables",
        )
    finally:
        eccodes.codes_release(handle)


def _note(message: bytes, header: Header, template: Template, part: MessagePart) -> None:
    """Learn how the elements of a template are stored, from its second message on."""
    layout = part.layout
    if part.values is None or part.numbers[0] != 0 or layout.size > _LEARNT_SIZE:
        return
    if template.wants(layout):
        template.learn(layout, describe_storage(message, header, layout, part.values[0]))


def _note_compressed(message: bytes, header: Header, template: Template, part: MessagePart) -> None:
    """Learn how compressed messages of a layout are stored."""
    layout = part.layout
    if part.values is None or layout.compressed is not None or layout.size > _LEARNT_SIZE:
        return
    if template.wants_compressed():
        found = describe_compressed(message, header, layout, part.values, part.texts)
        template.learn_compressed(layout, found)


def _rectangular(
    handle: int, layout: ReportLayout, values: np.ndarray, subsets: int, wanted: Set[int]
) -> MessagePart:
    if layout.size * subsets != len(values):
        raise _mismatch(layout.size * subsets, len(values))
    texts = {}
    for code in wanted:
        # A text that is the same in all reports comes as one.
        found = _texts(handle, "#1#" + TEXT_KEYS[code]) or [""]
        texts[code] = found * subsets if len(found) == 1 else found
    return MessagePart(layout, np.arange(subsets), values.reshape(subsets, layout.size), texts)


def _widths(template: Template, header: Header) -> tuple[int, ...]:
    """Return the bits of each descriptor by the tables; of none if an element is in no table."""
    wanted = {code for code in template.raw if code < 100_000}
    found = elements_of(wanted, TableVersion.of(header))
    if len(found) < len(wanted):
        return ()
    return tuple(found[code].width if code in found else NO_WIDTH for code in template.raw)


def _from_pool(pool: list[str], reference: float) -> str:
    """Return the text that a value of `numericValues` refers to: 1000 x (index + 1) + length."""
    if not reference >= 1_000:
        return ""
    index = int(reference) // 1_000 - 1
    return pool[index] if index < len(pool) else ""


def _mismatch(expected: int, got: int) -> DecodeError:
    return DecodeError(
        f"Expected {expected} values from the descriptors; the data section has {got}.",
        reason="undecodable",
    )


def _texts(handle: int, key: str) -> list[str]:
    """Return texts of a key without padding; none if they cannot be read."""
    try:
        texts = eccodes.codes_get_string_array(handle, key)
    except (eccodes.CodesInternalError, UnicodeDecodeError):
        return []
    return [clean_text(text) for text in texts]


def _text(handle: int, key: str) -> str:
    try:
        return clean_text(eccodes.codes_get_string(handle, key))
    except (eccodes.CodesInternalError, UnicodeDecodeError):
        return ""
