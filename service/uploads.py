"""Receive an upload: streamed to disk, hashed, counted and recognised, never held in memory.

The first bytes decide the format (`worker.observations.formats`); file name and media type do not.
The gateway never opens a file beyond its head: decoding happens in a limited child process of a
worker. The bytes arrive under a temporary name, locked, and become visible whole in one step.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from model.domain.errors import DecodeError
from service.errors import DiskFull, TooLarge, UnsupportedContent, UploadStalled
from worker.contract.disk import free_bytes, is_disk_full
from worker.contract.part_file import PartFile
from worker.observations.formats import FORMATS, HEAD_BYTES, FileFormat, recognise

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class UploadLimits:
    """Bounds of one upload: size, space it must leave, longest pause, bytes a second."""

    max_bytes: int
    min_free_bytes: int
    idle_seconds: float
    min_rate: float = 0.0


@dataclass(frozen=True)
class StoredUpload:
    """An upload received whole, still in its part file."""

    sha256: str
    size: int
    format: FileFormat


def check_length(length: str | None, folder: Path, limits: UploadLimits) -> None:
    """Refuse an upload by its announced length, before a byte is read.

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


def _recognise(head: bytes) -> FileFormat:
    try:
        return recognise(head)
    except DecodeError as error:
        raise UnsupportedContent(
            error.message,
            headers={"Connection": "close"},
            known=list(FORMATS),
        ) from error


class UploadPace:
    """Drop an upload that pauses for too long, or is slower than the least rate.

    Only the time spent waiting for the sender counts, in stretches of the longest pause.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._waited = 0.0
        self._received = 0

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """Return the next of `chunks`, None after the last.

        Raises:
            UploadStalled: If it does not come in time, or too few bytes came.
        """
        idle, rate = self._limits.idle_seconds, self._limits.min_rate
        start = time.monotonic()
        try:
            async with asyncio.timeout(idle):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise _stalled(f"Expected data at least every {idle:g} s") from None
        self._waited += time.monotonic() - start
        self._received += len(chunk or b"")
        if self._waited >= idle:
            if chunk is not None and self._received < rate * self._waited:
                raise _stalled(f"Expected at least {rate:g} bytes a second over {idle:g} s")
            self._waited, self._received = 0.0, 0
        return chunk


def _stalled(expected: str) -> UploadStalled:
    message = f"{expected}; the upload stalled and was dropped."
    return UploadStalled(message, headers={"Connection": "close"})


async def receive_upload(
    chunks: AsyncIterator[bytes], part: PartFile, limits: UploadLimits
) -> StoredUpload:
    """Write `chunks` into `part`, a block at a time, in a thread.

    Raises:
        TooLarge: As soon as the count passes the limit.
        UnsupportedContent: As soon as the first bytes are of no known format.
        DiskFull: When the disk is full.
        UploadStalled: When the sender pauses or is too slow.
    """
    block = bytearray()
    format: FileFormat | None = None
    received = 0
    pace = UploadPace(limits)
    while (chunk := await pace.next(chunks)) is not None:
        received += len(chunk)
        if received > limits.max_bytes:
            raise TooLarge(limits.max_bytes)
        block += chunk
        if format is None and len(block) >= HEAD_BYTES:
            format = _recognise(bytes(block[:HEAD_BYTES]))
        if len(block) >= BLOCK_BYTES:
            await _write(part, block)
            block = bytearray()
    format = format or _recognise(bytes(block[:HEAD_BYTES]))
    await _write(part, block)
    return StoredUpload(part.sha256, part.size, format)


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
