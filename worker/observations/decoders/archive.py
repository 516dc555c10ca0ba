"""Decode compressed files and archives, also nested: gzip, bzip2, xz, zstd, tar and zip.

Each file inside is recognised by its content and decoded like an upload of its own; its name, which
may carry the heading of a bulletin, goes with it, and its rows and reasons are counted under that
name. Names are labels only: files are unpacked one at a time into the private folder of the
limited process.

The output is limited, whatever the headers say, against decompression bombs: total bytes, ratio to the
size of the upload, number of files, depth of nesting, and values (as many for all files together as for
a single file).
"""

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

import pyarrow as pa

from model.domain.errors import DecodeError
from worker.observations.columns import concat_tables
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport, FileBudget
from worker.observations.decoders.decode import EXPANSION, decode_file, distinct_profiles
from worker.observations.decoders.options import ArchiveOptions
from worker.observations.formats import ARCHIVE, HEAD_BYTES, detect_format
from worker.sandbox import is_our_fault, scratch_prefix

__all__ = ["MAX_BYTES", "MAX_FILES", "decode_archive"]

MAX_BYTES = 4_000_000_000
MAX_RATIO = 200
"""Maximum compression ratio; fields of zeros reach a hundred."""
ALWAYS_ALLOWED_BYTES = 100_000_000
"""Bytes allowed from any file, however small."""
MAX_FILES = 20_000
MAX_DEPTH = 3
"""Maximum depth: a `.zip` of `.tar.gz` has three layers."""
_BLOCK = 1 << 20
_MEMBER = 40
"""Bits of the offset in the mark of the current message; the higher bits hold the file number."""
_LISTED = 1_000
_NAME = 200
_UNREADABLE = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    NotImplementedError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""Exceptions of the libraries for damaged, truncated or encrypted files."""


@dataclass
class _Budget:
    """Remaining output allowed for an upload."""

    left: int
    files: int = 0

    def take(self, size: int) -> None:
        """Count bytes that came out.

        Raises:
            DecodeError: With reason `too_large`.
        """
        self.left -= size
        if self.left < 0:
            raise DecodeError(
                "Expected an archive whose content is in proportion to its size: at most "
                f"{MAX_RATIO} times, {MAX_BYTES / 1e9:.0f} GB in all; more came out.",
                reason="too_large",
            )

    def next_file(self) -> int:
        """Count one more file and return its number."""
        self.files += 1
        if self.files > MAX_FILES:
            raise DecodeError(
                f"Expected at most {MAX_FILES} files in an archive; got more. Split it.",
                reason="too_large",
            )
        return self.files


def decode_archive(path: Path, context: DecodeContext) -> Decoded:
    """Return the rows of all files in an archive, file after file, up to the limits."""
    options = ArchiveOptions.of(context.options)
    size = path.stat().st_size
    budget = _Budget(min(MAX_BYTES, max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * size)))
    context = replace(context, archive=FileBudget(size, EXPANSION))
    report = DecodeReport(format=ARCHIVE, size=size)
    tables: list[pa.Table] = []
    with TemporaryDirectory(prefix=scratch_prefix("archive")) as folder:
        name = context.file_name or path.name
        try:
            for label, member in _files(path, name, Path(folder), budget, report, 1):
                decoded = _decode_member(member, label, budget.files, context, options)
                _add(report, decoded.report, label)
                if len(decoded.table):
                    tables.append(decoded.table)
        except DecodeError as error:
            if is_our_fault(error):
                raise
            # Files before the bomb are kept, like messages before a broken one.
            report.reject(error.context["reason"], 0, size, error.message)
    report.size = size
    if not budget.files and not report.rejected:
        report.reject("empty_file", detail="no file in the archive")
    return Decoded(concat_tables(distinct_profiles(tables)), report)


def _decode_member(
    member: Path, label: str, number: int, context: DecodeContext, options: ArchiveOptions
) -> Decoded:
    """Decode one file; marks and messages to skip carry its number above their offset."""
    base, ours = number << _MEMBER, {}
    for at, reason in context.skip.items():
        if at >> _MEMBER == number:
            ours[at - base] = reason
    context.mark(base)
    try:
        format = detect_format(member)
    except DecodeError as error:
        words = error.message.partition("': ")[2] or error.message
        return _refused(member, error.context.get("reason", "unknown_format"), words)
    if 0 in ours and format != "bufr":
        return _refused(member, ours[0], "ended the decoding process")
    inner = replace(
        context,
        file_name=PurePosixPath(label).name,
        options=options.of_format(format),
        skip=ours,
        mark=lambda offset: context.mark(base + offset),
    )
    return decode_file(member, format, inner)


def _refused(member: Path, reason: str, message: str) -> Decoded:
    report = DecodeReport(size=member.stat().st_size)
    report.reject(reason, 0, report.size, message)
    return Decoded(concat_tables([]), report)


def _add(report: DecodeReport, of_member: DecodeReport, label: str) -> None:
    """Add the counts of a file to those of the archive, under its name."""
    named = [
        q.model_copy(update={"detail": f"{label}: {q.detail}"[:300]}) for q in of_member.quarantined
    ]
    report.merge(of_member.model_copy(update={"format": ARCHIVE, "quarantined": named}))
    report.notes[f"files_{of_member.format or 'unknown'}"] += 1
    if label in report.members or len(report.members) < _LISTED:
        report.members[label] += of_member.rows


def _files(
    path: Path, name: str, folder: Path, budget: _Budget, report: DecodeReport, depth: int
) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each file that is no archive; a path is valid until the next file."""
    with path.open("rb") as file:
        kind = _kind(file.read(HEAD_BYTES))
    if not kind:
        raise DecodeError(
            f"Expected gzip, bzip2, xz, zstd, tar or zip data; '{_label(name)}' begins with none of "
            "their marks.",
            reason="wrong_format",
        )
    if depth > MAX_DEPTH:
        raise DecodeError(f"{name}: more than {MAX_DEPTH} layers", reason="compressed_archive")
    members = {"tar": _tar, "zip": _zip}.get(kind, _single)
    try:
        for inner, stream in members(path, name, kind):
            label = _label(inner)
            place = folder / f"{depth}{_suffix(label)}"
            _unpack(stream, place, budget)
            with place.open("rb") as file:
                nested = _kind(file.read(HEAD_BYTES))
            if nested:
                yield from _files(place, label, folder, budget, report, depth + 1)
            else:
                budget.next_file()
                yield label, place
            place.unlink()
    except DecodeError:
        raise
    except _UNREADABLE as error:
        if is_our_fault(error):  # disk full: the file may be good
            raise
        what = f"{_label(name)}: {kind} data damaged, cut off or encrypted ({error})"
        report.reject("undecodable", 0, path.stat().st_size, what)


def _kind(head: bytes) -> str:
    """Return the compression or archive format of a file, "" if it is none."""
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    return "tar" if head[257:262] == b"ustar" else ""


_SIGNATURES = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)

_Members = Iterator[tuple[str, IO[bytes]]]


def _single(path: Path, name: str, kind: str) -> _Members:
    """Yield the one file that is compressed in another; its name without the ending."""
    with _opened(path, kind) as stream:
        yield name.removesuffix(PurePosixPath(name).suffix) or name, stream


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    if kind == "zstd":
        with pa.input_stream(str(path), compression="zstd") as stream:
            yield stream
        return
    opens: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    with opens[kind](path, "rb") as stream:
        yield stream


def _tar(path: Path, name: str, kind: str) -> _Members:
    with tarfile.open(path, "r:") as archive:
        for entry in archive:
            stream = archive.extractfile(entry) if entry.isreg() else None
            if stream is not None:
                yield entry.name, stream


def _zip(path: Path, name: str, kind: str) -> _Members:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                with archive.open(entry) as stream:
                    yield entry.filename, stream


def _unpack(stream: IO[bytes], place: Path, budget: _Budget) -> None:
    """Decompress a stream to a file of the private folder, within the budget."""
    with place.open("wb") as out:
        while block := stream.read(_BLOCK):
            budget.take(len(block))
            out.write(block)


def _label(name: str) -> str:
    """Return a name of a file as a label: without control characters and not too long."""
    return "".join(letter for letter in name if letter.isprintable())[-_NAME:] or "unnamed"


def _suffix(name: str) -> str:
    """Return the ending of a name, by which some formats are recognised; "" for an odd one."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix[1:].isalnum() and suffix.isascii() and len(suffix) < 10 else ""
