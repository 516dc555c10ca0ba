"""The first replication count of a large message, read bit by bit before a library unpacks it.

Unpacking builds some kilobytes per value: a legal sonde message of 1.4 MB with 65 535 levels needs
3.5 GB and many seconds. The count stands near the front of section 4 and costs nothing to read.
Operators that change widths are not followed, so a count that could not fit is not believed.
"""

from model.domain.errors import DecodeError
from worker.decoders.base import MessageLimits
from worker.decoders.bufr.layout import ASSOCIATED, COUNTS
from worker.decoders.bufr.sections import Header

__all__ = ["check_first_count"]

_NO_WIDTH = 2_147_483_647
_INCREMENT_WIDTH = 6
_TEXT_WIDTH = 64


class _Bits:
    """Reads numbers of some bits from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def skip(self, count: int) -> None:
        self.at += count

    def read(self, count: int) -> int | None:
        """The next number, or None beyond the end."""
        low, high = self.at // 8, -(-(self.at + count) // 8)
        if high > len(self.data):
            return None
        number = int.from_bytes(self.data[low:high], "big") >> (high * 8 - self.at - count)
        self.at += count
        return number & ((1 << count) - 1)


def check_first_count(
    expanded: tuple[int, ...],
    widths: tuple[int, ...],
    message: bytes,
    header: Header,
    limits: MessageLimits,
) -> None:
    """Sets a message aside whose first delayed replication is beyond the limits.

    Arguments:
        expanded: Expanded descriptors.
        widths: Original width in bits of each.
        message: All bytes.
        header: Sections 1 and 3.
        limits: Bounds.

    Raises:
        DecodeError: With reason `too_large`.
    """
    if ASSOCIATED in expanded or len(widths) != len(expanded):
        return
    bits = _Bits(header.data(message))
    at = _to_first_count(bits, expanded, widths, header)
    count = None if at is None else bits.read(widths[at])
    if at is None or count is None:
        return
    span = (expanded[at - 1] - 100_000) // 1_000
    inner = [w for w in widths[at + 1 : at + 1 + span] if w != _NO_WIDTH]
    _judge(count, inner, len(bits.data) * 8 - bits.at, header, limits)


def _to_first_count(
    bits: _Bits, expanded: tuple[int, ...], widths: tuple[int, ...], header: Header
) -> int | None:
    """Moves to the first count; its place among the descriptors, or None if there is none."""
    for at, (code, width) in enumerate(zip(expanded, widths, strict=True)):
        if code in COUNTS:
            return at
        if width != _NO_WIDTH and not _skip_element(bits, width, header):
            return None
    return None


def _skip_element(bits: _Bits, width: int, header: Header) -> bool:
    bits.skip(width)
    if header.compressed:
        increment = bits.read(_INCREMENT_WIDTH)
        if increment is None:
            return False
        # Texts (long elements) give their increments in bytes.
        bits.skip(increment * header.subsets * (8 if width >= _TEXT_WIDTH else 1))
    return True


def _judge(count: int, inner: list[int], left: int, header: Header, limits: MessageLimits) -> None:
    extra = _INCREMENT_WIDTH if header.compressed else 0
    if count * (sum(inner) + extra * len(inner)) > left:
        return
    reports = header.subsets if header.compressed else 1
    if count > limits.replications or count * len(inner) * reports > limits.values:
        raise DecodeError(
            f"Expected a message within the limits; got a replication of {count} in {reports} "
            f"reports, at most {limits.replications} and {limits.values} values allowed.",
            reason="too_large",
        )
