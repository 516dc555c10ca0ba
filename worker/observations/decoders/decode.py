"""Decode a file of any known format, in this process or in limited child processes.

Untrusted files are decoded only in child processes: one by one, in parts, or many in a row. A message
that crashes its child is rejected with the reason. A child that is killed from outside says nothing
about the file: it is restarted, alone, after a pause; only if children with much memory are killed
repeatedly at the same message is the message rejected for it.
"""

import json
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from model.domain.errors import DecodeError
from model.domain.observations import empty_table
from worker.observations.columns import concat_tables, set_column
from worker.observations.decoders.base import DecodeContext, Decoded, Decoder, DecodeReport
from worker.observations.formats import ARCHIVE, FORMATS, detect_format
from worker.sandbox import (
    Interrupted,
    Limits,
    is_our_fault,
    memory_share,
    per_file_limits,
    run_limited,
    scratch_prefix,
    unicode_json,
)

__all__ = [
    "EXPANSION",
    "FileToDecode",
    "decode_file",
    "decode_in_one_child",
    "decode_limited",
    "decode_many_limited",
    "distinct_profiles",
]


def decode_file(
    path: str | Path, format: str | None = None, context: DecodeContext | None = None
) -> Decoded:
    """Decode one file in this process.

    A file that cannot be used as a whole gives an empty table and a report with the reason, so that
    every file has a counted outcome. Use `decode_limited` for untrusted files: it runs this function
    in a limited child process.

    Arguments:
        path: The file.
        format: Name of a format; None recognises it.
        context: Batch, arrival and limits.
    """
    path = Path(path)
    context = context or DecodeContext()
    report = DecodeReport(format=format or "", size=path.stat().st_size)
    try:
        report.format = format or detect_format(path)
        entry = FORMATS[report.format]
        entry.options.of(context.options)
        decode: Decoder = entry.load()
        return decode(path, context)
    except DecodeError as error:
        if is_our_fault(error):
            raise
        report.reject(error.context.get("reason", "undecodable"), 0, report.size, error.message)
        return Decoded(empty_table(), report)


_RESTARTS = 5
_DEATHS = 3
"""Number of children killed at the same message after which the message counts as the cause."""
_INTERRUPTIONS = 6
_FIRST_PAUSE = 0.5  # seconds
_alone = threading.Lock()
_FILES_PER_CHILD = 200
_BYTES_HELD_PER_BYTE = 8
EXPANSION = 4
"""Typical compression ratio of an archive, to estimate memory; one file is unpacked at a time."""


def decode_limited(
    path: str | Path,
    format: str | None = None,
    context: DecodeContext | None = None,
    limits: Limits | None = None,
    processes: int = 1,
) -> Decoded:
    """Decode a file in a limited child process; the content of the file never raises an error.

    If a BUFR message crashes the child, it is rejected with the reason and the file is decoded again
    without it, a few times.

    Arguments:
        path: The file.
        format: Name of a format; None recognises it.
        context: Batch, arrival and limits for messages.
        limits: Limits of each child.
        processes: Children that share the messages of a large BUFR file.

    Raises:
        Interrupted: If children were killed from outside repeatedly, or timed out on a busy machine;
            the file may be decoded later.
        StorageError: If a child met a full disk or a failing device.
        OSError: If no child can be started, for example because the disk is full.
    """
    path = Path(path).resolve()
    context = context or DecodeContext()
    try:
        format = format or detect_format(path)
    except DecodeError as error:
        return _rejected_file(path, None, error.context["reason"], error.message)
    if processes <= 1 or format != "bufr":
        return _decode_in_child(path, format, context, limits)
    parts = [replace(context, byte_range=span) for span in _spans(path, processes)]
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(lambda part: _decode_in_child(path, format, part, limits), parts))
    report = DecodeReport(format="bufr")
    for part in found:
        report.merge(part.report)
    report.size = path.stat().st_size
    report.bytes_between += report.size - sum(part.report.size for part in found)
    return Decoded(concat_tables(distinct_profiles([part.table for part in found])), report)


def distinct_profiles(tables: list[pa.Table]) -> list[pa.Table]:
    """Return the tables with profile numbers made unique across tables."""
    shifted, first = [], 0
    for table in tables:
        numbers = pc.add(table["profile_id"], first)
        shifted.append(set_column(table, "profile_id", numbers))
        first = 1 + max(first - 1, pc.max(numbers).as_py() or 0)
    return shifted


def _spans(path: Path, parts: int) -> list[tuple[int, int]]:
    """Return byte ranges of about equal size; a message belongs to the range it begins in."""
    size = path.stat().st_size
    edges = [size * n // parts for n in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _decode_in_child(
    path: Path, format: str | None, context: DecodeContext, limits: Limits | None
) -> Decoded:
    limits = _with_room(limits or Limits(), path, EXPANSION if format == ARCHIVE else 1)
    skip: dict[int, str] = {}
    deaths: Counter[int] = Counter()
    with TemporaryDirectory(prefix=scratch_prefix("mark"), dir=limits.temp_dir) as folder:
        mark = Path(folder) / "mark"
        while len(skip) < _RESTARTS:
            mark.write_bytes(struct.pack("<q", -1))
            arguments = (str(path), format, replace(context, skip=skip), str(mark))
            try:
                with _alone if deaths else nullcontext():
                    table, report = run_limited(
                        _decode,
                        *arguments,
                        limits=limits,
                        reads=_read_for(path, context),
                        writes=[mark],
                    )
                return Decoded(table, DecodeReport.model_validate(report))
            except Interrupted as error:
                at = _marked(mark)
                deaths[at] += 1
                reason, message = error.context["reason"], error.message
                if deaths[at] < _DEATHS or not error.context["large"]:
                    _pause_after(error, deaths)
                    continue
            except DecodeError as error:
                at = _marked(mark)
                reason, message = error.context.get("reason", "crashed"), error.message
            if at < 0 or at in skip or reason == "timeout":
                break
            skip[at] = reason
    return _rejected_file(path, format, reason, message)


def _marked(mark: Path) -> int:
    """Return the offset of the message that the child was decoding, -1 if it had not started one."""
    (at,) = struct.unpack("<q", mark.read_bytes()[:8])
    return int(at)


def _pause_after(error: Interrupted, deaths: Counter[int]) -> None:
    """Wait before the next child, with back-off; raise `error` after too many.

    If the machine is too busy to decode in time, a pause of seconds does not help: the caller
    retries later.
    """
    count = deaths.total()
    if count >= _INTERRUPTIONS or max(deaths.values()) >= _DEATHS or not error.context["again"]:
        raise error
    time.sleep(_FIRST_PAUSE * 2 ** (count - 1))


def _with_room(limits: Limits, path: Path, expansion: int = 1) -> Limits:
    """Raise the memory limit for a large file, whose bytes are mapped and whose rows are held.

    It never exceeds the process's share of the machine.
    """
    held = _BYTES_HELD_PER_BYTE * expansion * path.stat().st_size
    return replace(limits, address_space=min(limits.address_space + held, memory_share()))


def _rejected_file(path: Path, format: str | None, reason: str, message: str) -> Decoded:
    report = DecodeReport(format=format or "", size=path.stat().st_size)
    report.reject(reason, 0, report.size, message)
    return Decoded(empty_table(), report)


def _decode(
    path: str, format: str | None, context: DecodeContext, mark: str
) -> tuple[pa.Table, dict[str, Any]]:
    """Decode in the child and record the offset of the current message for the parent."""
    place = os.open(mark, os.O_WRONLY)

    def record(offset: int) -> None:
        os.pwrite(place, struct.pack("<q", offset), 0)

    decoded = decode_file(path, format, replace(context, mark=record))
    return decoded.table, decoded.report.model_dump(mode="json")


@dataclass(frozen=True)
class FileToDecode:
    """A file, its format (None recognises it) and its context."""

    path: Path
    format: str | None
    context: DecodeContext


def decode_many_limited(
    paths: Sequence[str | Path],
    context: DecodeContext | None = None,
    limits: Limits | None = None,
) -> Iterator[tuple[Path, Decoded]]:
    """Yield each file with its rows and report, several files per child; limits hold for each file."""
    context = context or DecodeContext()
    files = [FileToDecode(Path(path).resolve(), None, context) for path in paths]
    while files:
        some, files = files[:_FILES_PER_CHILD], files[_FILES_PER_CHILD:]
        found = decode_in_one_child(some, limits)
        yield from zip((file.path for file in some), found, strict=False)
        if rest := some[len(found) :]:
            # The child died on this file; a separate child finds the message.
            yield rest[0].path, decode_limited(rest[0].path, None, context, limits)
            files = rest[1:] + files


def decode_in_one_child(
    files: Sequence[FileToDecode],
    limits: Limits | None = None,
    together_seconds: float | None = None,
) -> list[Decoded]:
    """Decode files one after the other in one child; return the results up to a crash.

    After a crash the file that follows the last one returned is the one that caused it.

    Arguments:
        files: What to decode.
        limits: Limits of the child; those of time hold for each file.
        together_seconds: Wall-clock time for all files; None for the sum of their limits.

    Raises:
        StorageError: If the child met a full disk or a failing device.
        OSError: If no child can be started, for example because the disk is full.
    """
    limits = limits or Limits()
    with TemporaryDirectory(prefix=scratch_prefix("many"), dir=limits.temp_dir) as folder:
        results = Path(folder) / "results"
        results.touch()
        seconds = together_seconds or limits.wall_seconds * (len(files) + 1)
        broad = replace(limits, wall_seconds=seconds)
        broad = _with_room(broad, max((file.path for file in files), key=_size))
        plain = [(str(file.path), file.format, file.context) for file in files]
        with suppress(DecodeError):
            run_limited(
                _decode_each,
                plain,
                str(results),
                limits,
                limits=broad,
                reads=[read for file in files for read in _read_for(file.path, file.context)],
                writes=[results],
            )
        return list(_complete_results(results))


def _read_for(path: Path, context: DecodeContext) -> list[str | Path]:
    """Return the files that decoding an upload reads: the upload, and the list of stations if any."""
    return [path, context.stations] if context.stations else [path]


def _size(path: Path) -> int:
    return path.stat().st_size


_FRAME = struct.Struct("<QQ")


def _decode_each(
    files: Sequence[tuple[str, str | None, DecodeContext]], results: str, limits: Limits
) -> None:
    """Decode in the child and append each result at once, so that those before a crash are kept."""
    with open(results, "ab", buffering=0) as sink:
        for path, format, context in files:
            per_file_limits(limits)
            decoded = decode_file(path, format, context)
            report = json.dumps(decoded.report.model_dump(mode="json")).encode()
            rows = pa.BufferOutputStream()
            with pa.ipc.new_stream(rows, decoded.table.schema) as writer:
                writer.write_table(decoded.table)
            content = rows.getvalue()
            whole = memoryview(_FRAME.pack(len(report), len(content)) + report + bytes(content))
            while whole:
                whole = whole[sink.write(whole) :]


def _complete_results(results: Path) -> Iterator[Decoded]:
    """Yield the results in the file that a child wrote, up to one that it could not finish."""
    data = results.read_bytes()
    at = 0
    while at + _FRAME.size <= len(data):
        report, rows = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if at + report + rows > len(data):
            return
        about = DecodeReport.model_validate(unicode_json(data[at : at + report]))
        content = pa.py_buffer(data).slice(at + report, rows)
        yield Decoded(pa.ipc.open_stream(content).read_all(), about)
        at += report + rows
