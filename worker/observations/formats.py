"""List the file formats of observations and recognise them by their first bytes.

Gateway and workers use the same rules: the gateway recognises an upload once, and its answer
travels with the batch to the decoder. Decoders are named by strings and imported when first used,
so that a file can be recognised without any decoder.

The first format that recognises the bytes wins: those with a signature at the first byte, then text
formats, last BUFR and GRIB, whose messages may follow bulletin headings or padding. Compressed
files, archives, pictures, programs and web pages never count as BUFR or GRIB, whatever they contain.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from model.domain.errors import DecodeError
from model.domain.registry import Registry
from worker.observations.decoders.options import (
    ArchiveOptions,
    BufrOptions,
    DecoderOptions,
    GribOptions,
    IodaOptions,
    OdbOptions,
    TableOptions,
    TextOptions,
)

__all__ = [
    "ARCHIVE",
    "FORMATS",
    "FileFormat",
    "HEAD_BYTES",
    "detect_format",
    "foreign_content",
    "imported",
    "recognise",
]

HEAD_BYTES = 65_536
"""Number of leading bytes examined; headings and padding before a first message are far shorter."""

_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed_archive", "gzip data"),
    (b"bzh", "compressed_archive", "bzip2 data"),
    (b"\xfd7zxz\x00", "compressed_archive", "xz data"),
    (b"\x28\xb5\x2f\xfd", "compressed_archive", "zstd data"),
    (b"pk\x03\x04", "compressed_archive", "zip data"),
    (b"pk\x05\x06", "compressed_archive", "zip data"),
    (b"7z\xbc\xaf", "compressed_archive", "7z data"),
    (b"\x89png", "wrong_format", "a PNG picture"),
    (b"\xff\xd8\xff", "wrong_format", "a JPEG picture"),
    (b"gif8", "wrong_format", "a GIF picture"),
    (b"%pdf", "wrong_format", "a PDF document"),
    (b"\x7felf", "wrong_format", "a program"),
    (b"<!doctype", "wrong_format", "a web page"),
    (b"<html", "wrong_format", "a web page"),
    (b"<?xml", "wrong_format", "an XML document"),
)
"""Signature in lower case, reason and description of content that never holds observations."""

_CREX = b"CREX++"
_ALPHANUMERIC = re.compile(rb"CREX\+\+|\b(ZZYY|JJVV|KKXX|NNXX|TAF|NIL=|CODAR|RRXX|XXAA)\b")
_TEXT_CODES = re.compile(rb"\b(AAXX|BBXX|OOXX|[TUPQ]{2}(AA|BB|CC|DD)|METAR|SPECI)\b")
_MESSAGE = re.compile(rb"\A(?:BUFR|GRIB)|BUFR...[\x00-\x05]|GRIB...[\x01\x02]", re.DOTALL)
"""Start of a message: its mark at the first byte, or anywhere if an edition number follows."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTROL = re.compile(rb"[\x00\x02\x04-\x08\x0b\x0e-\x1d\x1f]")
"""Bytes that do not occur in text; bulletins begin with 01, end with 03 and may contain 1e."""


def _foreign_signature(head: bytes) -> tuple[str, str] | None:
    start = head[:16].lower()
    for signature, reason, description in _FOREIGN:
        if start.startswith(signature):
            return reason, description
    return None


def foreign_content(head: bytes) -> tuple[str, str] | None:
    """Return the reason code and a description of content that no decoder reads, if known."""
    if foreign := _foreign_signature(head):
        return foreign
    if b"BUFR" not in head and b"GRIB" not in head and (code := _ALPHANUMERIC.search(head)):
        return "alphanumeric", f"text code {code.group().decode()}"
    return None


def _starts_with(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _text(head: bytes) -> bytes | None:
    """Return the head without its byte order mark, or None if it is not plain UTF-8 text."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a character was cut at the end of the head
            return None
    if _CONTROL.search(head) or _foreign_signature(head):
        return None
    return head.removeprefix(_BYTE_ORDER_MARK)


def _is_geojson(head: bytes) -> bool:
    text = (_text(head) or b"").lstrip()
    return text.startswith(b"{") and re.search(rb'"Feature(Collection)?"', text) is not None


def _is_csv(head: bytes) -> bool:
    header = (_text(head) or b"").split(b"\n", 1)[0].lower()
    return header[:1] != b"{" and all(word in header for word in (b",", b"lat", b"time"))


_ARCHIVES = (
    b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PK\x05\x06",
)  # fmt: skip


def _is_archive(head: bytes) -> bool:
    return head.startswith(_ARCHIVES) or head[257:262] == b"ustar"


def _is_text(head: bytes) -> bool:
    """Return whether a file holds bulletins of a code that is read, and no message before them."""
    text = _text(head)
    return text is not None and not _MESSAGE.search(head) and _TEXT_CODES.search(text) is not None


def _first_message_is(mark: bytes) -> Callable[[bytes], bool]:
    def recognises(head: bytes) -> bool:
        message = None if _foreign_signature(head) else _MESSAGE.search(head)
        return message is not None and message.group().startswith(mark)

    return recognises


def imported(name: str) -> Any:
    """Return the object called `"package.module:name"`, importing its module."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class FileFormat:
    """A file format of observations.

    Attributes:
        name: Name in the registry, in the API and in the record of a batch.
        description: One line for the user.
        decoder: `"package.module:function"`, so that naming a format imports no heavy library.
        recognises: Whether the first bytes (up to `HEAD_BYTES`) are of this format.
        extensions: Name endings in lower case; they decide only where the first bytes do not.
        suffix: Usual name ending.
        media_type: For HTTP.
        options: Model of the options that a sender may set for this decoder.
    """

    name: str
    description: str
    decoder: str
    recognises: Callable[[bytes], bool]
    extensions: tuple[str, ...] = ()
    suffix: str = ""
    media_type: str = "application/octet-stream"
    options: type[DecoderOptions] = DecoderOptions

    def load(self) -> Callable[..., Any]:
        """Import and return the decoder, a `worker.observations.decoders.base.Decoder`."""
        decoder: Callable[..., Any] = imported(self.decoder)
        return decoder


ARCHIVE = "archive"
_DECODERS = "worker.observations.decoders"
_FORMATS = (
    FileFormat(
        ARCHIVE,
        "gzip, bzip2, xz, zstd, tar or zip of files of the other formats, also one in another",
        f"{_DECODERS}.archive:decode_archive",
        _is_archive,
        (".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".zip"),
        "",
        "application/octet-stream",
        ArchiveOptions,
    ),
    FileFormat(
        "parquet",
        "the observation table, or an earth2studio observation frame, as Parquet",
        f"{_DECODERS}.table:decode_parquet",
        _starts_with(b"PAR1"),
        (".parquet", ".pq"),
        ".parquet",
        "application/vnd.apache.parquet",
        TableOptions,
    ),
    FileFormat(
        "odb2",
        "ECMWF ODB-2 with the usual @hdr and @body columns",
        f"{_DECODERS}.odb:decode_odb",
        _starts_with(b"\xff\xffODA"),
        (".odb", ".odb2"),
        ".odb",
        "application/x-odb",
        OdbOptions,
    ),
    FileFormat(
        "ioda-netcdf",
        "IODA-style NetCDF: MetaData, ObsValue, ObsError, PreQC",
        f"{_DECODERS}.ioda:decode_ioda",
        _starts_with(b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"CDF\x02", b"CDF\x05"),
        (".nc", ".nc4"),
        ".nc",
        "application/netcdf",
        IodaOptions,
    ),
    FileFormat(
        "geojson",
        "GeoJSON points with one or more observed values",
        f"{_DECODERS}.geojson:decode_geojson",
        _is_geojson,
        (".geojson", ".json"),
        ".geojson",
        "application/geo+json",
        TableOptions,
    ),
    FileFormat(
        "csv",
        "the observation table, or an earth2studio observation frame, as CSV with a header",
        f"{_DECODERS}.table:decode_csv",
        _is_csv,
        (".csv",),
        ".csv",
        "text/csv",
        TableOptions,
    ),
    FileFormat(
        "crex",
        "WMO CREX, BUFR in characters",
        f"{_DECODERS}.crex:decode_crex",
        lambda head: _CREX in (_text(head) or b""),
        (".crex",),
        ".crex",
        "text/plain",
    ),
    FileFormat(
        "text",
        "SYNOP, SHIP, TEMP, PILOT and METAR bulletins in text",
        f"{_DECODERS}.text.decode:decode_text",
        _is_text,
        (),
        ".txt",
        "text/plain",
        TextOptions,
    ),
    FileFormat(
        "bufr",
        "WMO BUFR editions 2 to 4, with or without GTS bulletin headings, and NCEP dumps and PrepBUFR "
        "with their embedded tables",
        f"{_DECODERS}.bufr.decode:decode_bufr",
        _first_message_is(b"BUFR"),
        (".bufr", ".bufr4", ".bfr", ".buf", ".bin"),
        ".bufr",
        "application/bufr",
        BufrOptions,
    ),
    FileFormat(
        "grib",
        "WMO GRIB 1 and 2 fields used as observations",
        f"{_DECODERS}.grib:decode_grib",
        _first_message_is(b"GRIB"),
        (".grib", ".grib1", ".grib2", ".grb", ".grb2"),
        ".grib",
        "application/grib",
        GribOptions,
    ),
)
FORMATS: Registry[FileFormat] = Registry(
    "format", "appa.formats", FileFormat, **{f.name: f for f in _FORMATS}
)


def recognise(head: bytes) -> FileFormat:
    """Return the format of a file that begins with `head`.

    Arguments:
        head: The first `HEAD_BYTES` of the file, or all of a shorter one.

    Raises:
        DecodeError: With `reason` in its context: `empty_file`, `compressed_archive`,
            `wrong_format`, `alphanumeric` or `unknown_format`.
    """
    if not head:
        raise DecodeError("Expected observations; got an empty file.", reason="empty_file")
    for entry in FORMATS.values():
        if entry.recognises(head):
            return entry
    unknown = "unknown_format", f"first bytes {head[:8]!r}"
    reason, description = foreign_content(head) or unknown
    raise DecodeError(f"Expected one of {', '.join(FORMATS)}; got {description}.", reason=reason)


def detect_format(path: Path) -> str:
    """Return the name of the format of a file, by content first and name ending second.

    Raises:
        DecodeError: With `reason` in its context when no decoder reads such content.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        return recognise(head).name
    except DecodeError as error:
        if error.context["reason"] == "unknown_format":
            for entry in FORMATS.values():
                if path.name.lower().endswith(entry.extensions):
                    return entry.name
        raise DecodeError(f"'{path.name}': {error.message}", **error.context) from None
