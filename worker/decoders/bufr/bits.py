"""Unsigned numbers of any width at any bit of a string of bytes."""

import numpy as np

__all__ = ["gather_bits", "read_bits"]


def gather_bits(buffer: np.ndarray, places: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Many numbers at once.

    Arguments:
        buffer: Bytes, with eight more at the end than any number needs, (B,).
        places: First bits, (N, K).
        widths: Bits of each column, at most 56; 0 gives 0, (K,).

    Returns:
        uint64, (N, K).
    """
    windows = np.lib.stride_tricks.as_strided(
        buffer, shape=(len(buffer) - 7, 8), strides=(1, 1), writeable=False
    )
    word = windows[places >> 3].view(">u8")[..., 0].astype(np.uint64)
    inside = (places & 7).astype(np.uint64)
    width = widths.astype(np.uint64)
    # A shift by 64 is undefined; columns without bits are masked to zero anyway.
    right = np.minimum(np.uint64(64) - width - inside, np.uint64(63))
    mask = (np.uint64(1) << width) - np.uint64(1)
    return (word >> right) & mask


def read_bits(body: bytes, at: int, width: int) -> int:
    """One unsigned number of `width` bits at bit `at`; all ones beyond the end."""
    high = -(-(at + width) // 8)
    if high > len(body):
        return (1 << width) - 1
    number = int.from_bytes(body[at // 8 : high], "big") >> (high * 8 - at - width)
    return number & ((1 << width) - 1)
