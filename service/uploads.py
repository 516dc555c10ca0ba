"""Receiving an upload: streamed to disk, hashed, counted and recognised, never held in memory."""

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from service.containers import CONTAINERS, HEAD_BYTES, Container, sniff
from service.errors import DiskFull, TooLarge, UnsupportedContent, UploadStalled
from service.partfile import PartFile, free_bytes

BLOCK_BYTES = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        if error.errno not in FULL:
            raise
        raise DiskFull(
            "Expected room for the upload; the disk is full. Nothing was kept; try again when the "
            "operator has made room.",
            headers={"Retry-After": "600", "Connection": "close"},
        ) from error
