"""Where GRIB messages begin and end in a file, by their own marks and lengths."""

import mmap
from collections.abc import Iterator

from worker.decoders.report import DecodeReport

__all__ = ["frames", "holds_several"]


def frames(data: mmap.mmap, report: DecodeReport) -> Iterator[tuple[int, int]]:
    """Offset and length of each whole message."""
    at, end = data.find(b"GRIB"), 0
    while at >= 0:
        length = _length(data, at)
        if length is None:
            report.reject("bad_frame", at, 0, f"edition {data[at + 7 : at + 8]!r} or no end mark")
            at = data.find(b"GRIB", at + 4)
            continue
        if length == 0:
            report.reject("truncated", at, len(data) - at)
            at = data.find(b"GRIB", at + 4)
            continue
        report.bytes_between += at - end
        yield at, length
        end = at + length
        at = data.find(b"GRIB", end)
    report.bytes_between += len(data) - end


def _length(data: mmap.mmap, at: int) -> int | None:
    """Bytes of the message at `at`; 0 if the file ends before; None if it is no message."""
    head = data[at : at + 16]
    if len(head) < 16:
        return 0
    if head[7] == 1:
        length = int.from_bytes(head[4:7], "big")
    elif head[7] == 2:
        length = int.from_bytes(head[8:16], "big")
    else:
        return None
    if at + length > len(data):
        return 0
    if length > 16 and data[at + length - 4 : at + length] == b"7777":
        return length
    # GRIB 1 beyond 8 MB counts its length in units of 120 bytes: the end mark tells.
    stop = data.find(b"7777GRIB", at) if head[7] == 1 and length & 0x800000 else -1
    return stop + 4 - at if stop >= 0 else None


def holds_several(message: bytes) -> bool:
    """Whether a GRIB 2 message has more than one product definition (section 4)."""
    at, products = 16, 0
    while message[7] == 2 and at + 5 <= len(message) - 4:
        length = int.from_bytes(message[at : at + 4], "big")
        products += message[at + 4] == 4
        if length < 5:
            break
        at += length
    return products > 1
