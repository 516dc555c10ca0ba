"""Receive an upload: streamed to disk, hashed, counted and recognised, never held in memory.

The format is what the first bytes say; name and media type are not asked, and the gateway never
opens a file beyond its head: decoding happens in a limited child process of a worker. The bytes
arrive under a name nobody reads, locked, and become visible whole in one step.
"""

import asyncio
import fcntl
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from anyio import to_thread

from model.domain.files import move_into_place, sync_folder
from service.errors import DiskFull, TooLarge, UnsupportedContent, UploadStalled
from worker.contract.disk import free_bytes, is_disk_full

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


class PartFile:
    """Bytes on their way in, under a name that nobody reads.

    The file is locked while its process lives, so that another start of the gateway can tell
    uploads that are under way from those a killed process left behind (`sweep`).

    Arguments:
        path: Where the bytes are received; on the file system they will stay on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "xb", buffering=0)  # lives as long as the upload
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes | bytearray) -> None:
        """Appends `data` and includes it in the hash."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of the bytes written so far."""
        return self._hash.hexdigest()

    def publish(self, target: Path) -> None:
        """Makes the bytes durable, then visible as `target` in one step."""
        target.parent.mkdir(parents=True, exist_ok=True)
        move_into_place(self.path, target)
        sync_folder(target.parent.parent)
        self._file.close()

    def discard(self) -> None:
        """Leaves nothing."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            self.discard()


def sweep(folder: Path, pattern: str = "upload-*") -> int:
    """Removes the parts that no living process is writing; returns how many."""
    removed = 0
    for path in folder.glob(pattern):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                removed += 1
        except OSError:  # being written, or gone
            continue
    return removed


BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class UploadLimits:
    """What one upload may take."""

    max_bytes: int
    min_free_bytes: int
    idle_seconds: float


@dataclass(frozen=True)
class StoredUpload:
    """What arrived, still in its part file."""

    sha256: str
    size: int
    container: Container


def check_length(length: str | None, folder: Path, limits: UploadLimits) -> None:
    """Refuses an upload by its announced length, before a byte is read.

    Raises:
        TooLarge: Above the limit.
        DiskFull: More than the disk has left.
    """
    announced = int(length) if length and length.isdigit() else 0
    if announced > limits.max_bytes:
        raise TooLarge(limits.max_bytes, announced)
    free = free_bytes(folder)
    if announced + limits.min_free_bytes > free:
        raise DiskFull(
            f"Expected {announced + limits.min_free_bytes} free bytes for this upload; the disk has "
            f"{free}. Nothing was kept; try again when the operator has made room.",
            headers={"Retry-After": "600", "Connection": "close"},
        )


def _recognise(head: bytes) -> Container:
    if not head:
        raise UnsupportedContent("Expected a file of observations; got an empty body.")
    container = sniff(head)
    if container is None:
        raise UnsupportedContent(
            f"Expected the first bytes of one of: {', '.join(CONTAINERS)}; got {head[:8]!r}. "
            "Compressed files and archives must be unpacked first.",
            headers={"Connection": "close"},
            known=list(CONTAINERS),
        )
    return container


async def _next(chunks: AsyncIterator[bytes], idle_seconds: float) -> bytes | None:
    try:
        async with asyncio.timeout(idle_seconds):
            return await anext(chunks, None)
    except TimeoutError:
        raise UploadStalled(
            f"Expected data at least every {idle_seconds:g} s; the upload stalled and was dropped.",
            headers={"Connection": "close"},
        ) from None


async def receive_upload(
    chunks: AsyncIterator[bytes], part: PartFile, limits: UploadLimits
) -> StoredUpload:
    """Writes `chunks` into `part`, a block at a time, in a thread.

    Raises:
        TooLarge: As soon as the count passes the limit.
        UnsupportedContent: As soon as the first bytes are of no known format.
        DiskFull: When the disk is full.
    """
    block = bytearray()
    container: Container | None = None
    received = 0
    while (chunk := await _next(chunks, limits.idle_seconds)) is not None:
        received += len(chunk)
        if received > limits.max_bytes:
            raise TooLarge(limits.max_bytes)
        block += chunk
        if container is None and len(block) >= HEAD_BYTES:
            container = _recognise(bytes(block[:HEAD_BYTES]))
        if len(block) >= BLOCK_BYTES:
            await _write(part, block)
            block = bytearray()
    container = container or _recognise(bytes(block[:HEAD_BYTES]))
    await _write(part, block)
    return StoredUpload(part.sha256, part.size, container)


async def _write(part: PartFile, block: bytearray) -> None:
    try:
        await to_thread.run_sync(part.write, block)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            "Expected room for the upload; the disk is full. Nothing was kept; try again when the "
            "operator has made room.",
            headers={"Retry-After": "600", "Connection": "close"},
        ) from error
