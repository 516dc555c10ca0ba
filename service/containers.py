"""Which format a file claims to be, from its first bytes; its name and media type are not asked.

The gateway never opens a file beyond this: decoding happens in a limited child process of a worker.
"""

from dataclasses import dataclass

HEAD_BYTES = 64 * 1024
"""Bytes looked at: bulletins may put headers before the first message."""


@dataclass(frozen=True)
class Container:
    """An accepted file format."""

    name: str
    suffix: str
    media_type: str
    meaning: str


CONTAINERS: dict[str, Container] = {
    c.name: c
    for c in (
        Container("bufr", ".bufr", "application/bufr", "WMO BUFR, with or without GTS headers"),
        Container("grib", ".grib", "application/grib", "WMO GRIB 1 or 2"),
        Container("ioda-netcdf", ".nc", "application/netcdf", "NetCDF 3 or 4, IODA groups"),
        Container("parquet", ".parquet", "application/vnd.apache.parquet", "observation table"),
        Container("odb2", ".odb", "application/x-odb", "ECMWF ODB-2"),
        Container("geojson", ".geojson", "application/geo+json", "GeoJSON points"),
        Container("csv", ".csv", "text/csv", "observation table or report table with a header"),
    )
}

PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"BUFR", "bufr"),
    (b"GRIB", "grib"),
    (b"\x89HDF\r\n\x1a\n", "ioda-netcdf"),
    (b"CDF\x01", "ioda-netcdf"),
    (b"CDF\x02", "ioda-netcdf"),
    (b"CDF\x05", "ioda-netcdf"),
    (b"PAR1", "parquet"),
    (b"\xff\xffODA", "odb2"),
)
FOREIGN: tuple[bytes, ...] = (
    b"PK\x03\x04",  # zip
    b"\x1f\x8b",  # gzip
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",  # zstd
    b"\x89PNG",
    b"\xff\xd8\xff",  # jpeg
    b"%PDF",
    b"\x7fELF",
)
"""Well-known formats that are never observations, even if `BUFR` stands somewhere in them."""

_CONTROL = bytes(b for b in range(32) if b not in b"\t\n\r\f\x01\x03\x1e")


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a character was cut at the end of the head
            return False
    return not any(b in _CONTROL for b in head)


def _text_container(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return "geojson" if b'"Feature' in text else None
    header = text.split(b"\n", 1)[0].lower()
    return "csv" if all(word in header for word in (b",", b"lat", b"time")) else None


def sniff(head: bytes) -> Container | None:
    """The container that starts with `head` (up to `HEAD_BYTES` bytes), or None."""
    for prefix, name in PREFIXES:
        if head.startswith(prefix):
            return CONTAINERS[name]
    if head.startswith(FOREIGN):
        return None
    if _is_text(head):
        text = _text_container(head)
        return CONTAINERS[text] if text else None
    places = {name: head.find(mark) for mark, name in ((b"BUFR", "bufr"), (b"GRIB", "grib"))}
    found = {name: place for name, place in places.items() if place >= 0}
    return CONTAINERS[min(found, key=lambda n: found[n])] if found else None
