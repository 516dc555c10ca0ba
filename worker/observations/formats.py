"""List the file formats of observations and recognise them by their first bytes.

The name of a file counts only where its first bytes do not tell. Decoders are named by strings
and imported when first used, so that the gateway can recognise a file without any decoder.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from model.domain.errors import DecodeError
from model.domain.registry import Registry

__all__ = [
    "FORMATS",
    "FileFormat",
    "HEAD",
    "detect_format",
    "foreign_content",
    "is_bufr",
    "is_csv",
    "is_geojson",
    "is_grib",
    "is_netcdf",
    "is_odb2",
    "is_parquet",
    "read_head",
]

HEAD = 65_536
"""First bytes looked at; bulletin headers and padding before a first message are far shorter."""

_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf": "7z",
}
_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
}
_BUFR_MARK = re.compile(rb"BUFR...[\x00-\x05]", re.DOTALL)
_TEXT_CODES = re.compile(
    rb"CREX\+\+|\b(AAXX|BBXX|OOXX|TTAA|TTBB|TTCC|TTDD|PPBB|METAR|SPECI|ZZYY|UUAA)\b"
)


def read_head(path: Path) -> bytes:
    """The first `HEAD` bytes."""
    with path.open("rb") as file:
        return file.read(HEAD)


def is_bufr(head: bytes) -> bool:
    """A `BUFR` mark with an edition anywhere in the head: bulletins have headers before it."""
    found = _BUFR_MARK.search(head)
    grib = head.find(b"GRIB")
    first = found is not None and (grib < 0 or found.start() < grib)
    return first and not foreign_content(head)


def is_grib(head: bytes) -> bool:
    """A `GRIB` mark with an edition number of 1 or 2."""
    at = head.find(b"GRIB")
    return at >= 0 and head[at + 7 : at + 8] in (b"\x01", b"\x02")


def is_parquet(head: bytes) -> bool:
    """Parquet's mark."""
    return head.startswith(b"PAR1")


def is_odb2(head: bytes) -> bool:
    """ODB-2's mark."""
    return head[:5] == b"\xff\xffODA"


def is_netcdf(head: bytes) -> bool:
    """NetCDF 4 (HDF5) or classic NetCDF."""
    return head.startswith((b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"CDF\x02", b"CDF\x05"))


def is_geojson(head: bytes) -> bool:
    """A JSON object that names features."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith(b"{") and re.search(rb'"Feature(Collection)?"', head) is not None


def is_csv(head: bytes) -> bool:
    """A first line with commas and words for time, position and value."""
    line = head.lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0].lower()
    return b"," in line and b"lat" in line and b"time" in line


def foreign_content(head: bytes) -> tuple[str, str] | None:
    """The reason code and the words for content that no decoder reads, if recognised."""
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return "compressed_archive", f"{name} data"
    for magic, name in _OTHERS.items():
        if head[: len(magic)].lower() == magic.lower():
            return "wrong_format", name
    if b"BUFR" not in head and b"GRIB" not in head and (found := _TEXT_CODES.search(head)):
        return "alphanumeric", f"text code {found.group().decode()}"
    return None


@dataclass(frozen=True)
class FileFormat:
    """A format as it appears in the registry; its decoder is imported when first used.

    Attributes:
        name: Name in the registry and in the API.
        description: One line for the user.
        decoder: `"package.module:function"`, so that naming a format imports no heavy library.
        recognises: Whether the first bytes (up to 64 kB) are of this format.
        extensions: Lower-case name endings used when the first bytes do not tell.
        suffix: Usual ending of file names.
        media_type: For HTTP.
    """

    name: str
    description: str
    decoder: str
    recognises: Callable[[bytes], bool]
    extensions: tuple[str, ...] = ()
    suffix: str = ""
    media_type: str = "application/octet-stream"

    def load(self) -> Callable[..., Any]:
        """Import the decoder; see `worker.observations.decoders.base.Decoder`."""
        module, _, function = self.decoder.partition(":")
        decoder: Callable[..., Any] = getattr(import_module(module), function)
        return decoder


_FORMATS = (
    FileFormat(
        "parquet",
        "the observation table, or an earth2studio observation frame, as Parquet",
        "worker.observations.decoders.table:decode_parquet",
        is_parquet,
        (".parquet", ".pq"),
    ),
    FileFormat(
        "odb2",
        "ODB-2 with the usual @hdr and @body columns",
        "worker.observations.decoders.odb:decode_odb",
        is_odb2,
        (".odb", ".odb2"),
    ),
    FileFormat(
        "ioda-netcdf",
        "IODA-style NetCDF: MetaData, ObsValue, ObsError, PreQC",
        "worker.observations.decoders.ioda:decode_ioda",
        is_netcdf,
        (".nc", ".nc4"),
    ),
    FileFormat(
        "geojson",
        "GeoJSON points with one or more observed values",
        "worker.observations.decoders.geojson:decode_geojson",
        is_geojson,
        (".geojson", ".json"),
    ),
    FileFormat(
        "bufr",
        "WMO BUFR editions 2 to 4, bulletins included",
        "worker.observations.decoders.bufr.decode:decode_bufr",
        is_bufr,
        (".bufr", ".bufr4", ".bfr", ".buf", ".bin"),
    ),
    FileFormat(
        "grib",
        "GRIB 1 and 2 fields used as observations",
        "worker.observations.decoders.grib:decode_grib",
        is_grib,
        (".grib", ".grib1", ".grib2", ".grb", ".grb2"),
    ),
    FileFormat(
        "csv",
        "the observation table, or an earth2studio observation frame, as CSV",
        "worker.observations.decoders.table:decode_csv",
        is_csv,
        (".csv",),
    ),
)
FORMATS: Registry[FileFormat] = Registry(
    "format", "appa.formats", FileFormat, **{f.name: f for f in _FORMATS}
)


def detect_format(path: Path) -> str:
    """Name of the format of the file, by content first and name ending second.

    Raises:
        DecodeError: With `reason` in its context when no decoder reads such content.
    """
    head = read_head(path)
    if not head:
        raise DecodeError(
            f"Expected observations in '{path.name}'; got an empty file.", reason="empty_file"
        )
    for name, entry in FORMATS.items():
        if entry.recognises(head):
            return name
    if foreign := foreign_content(head):
        reason, detail = foreign
        raise DecodeError(
            f"Expected one of {', '.join(FORMATS)} in '{path.name}'; got {detail}.", reason=reason
        )
    for name, entry in FORMATS.items():
        if path.name.lower().endswith(entry.extensions):
            return name
    raise DecodeError(
        f"Expected one of {', '.join(FORMATS)} in '{path.name}'; its first bytes "
        f"{head[:8]!r} and its name belong to none of them.",
        reason="unknown_format",
    )
