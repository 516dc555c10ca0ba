"""Round bits: set mantissa bits without information to zero, so that files compress.

The number of bits kept of each field is the largest of three:

* the bits that hold 99 % of the *real information*, the mutual information of a bit with the same
  bit of the eastward neighbour; information that a random bit would also show is not counted;
* enough that the rounding error is a tenth of the ensemble spread or less at 9 points of 10;
* enough that the error of a typical value is a tenth of the typical difference of neighbours.

The first alone would degrade gradients of fields whose values are large compared with their variations
(mean sea level pressure); the other two protect gradients and the ensemble.

References:
    | Compressing atmospheric data into its real information content (Klöwer, Razinger, Dominguez,
      Düben & Palmer, 2021)
    | https://doi.org/10.1038/s43588-021-00156-2
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

__all__ = [
    "METHOD",
    "Rounded",
    "bit_information",
    "bits_of_rows",
    "information_bits",
    "keep_bits",
    "round_bits",
    "round_field",
    "sampled_rows",
    "usable_rows",
]

METHOD = (
    "BitRound; mantissa bits kept hold 99 % of the real information (Kloewer et al. 2021, "
    "doi:10.1038/s43588-021-00156-2), and the error is at most a tenth of the ensemble spread at 9 "
    "points of 10 and of the typical difference of neighbouring points"
)

MANTISSA = 23
INFORMATION = 0.99
FRACTION = 0.1
SAMPLE = 1 << 13
"""Number of values sampled, among which a thousandth of a bit of information is significant."""
SAMPLED_ROWS = 24
"""Rows sampled at least, however wide: fewer would leave out whole latitudes."""

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded field, the number of mantissa bits kept and the largest change of a value."""

    values: Float
    bits: int
    error: float


def round_bits(values: Float, bits: int) -> Float:
    """Round to nearest, ties to even, keeping `bits` of the 23 mantissa bits; NaN stays NaN."""
    if bits >= MANTISSA:
        return values
    drop = MANTISSA - bits
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    odd = (raw >> np.uint32(drop)) & np.uint32(1)
    rounded = (raw + half + odd) & np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def _used(values: Float) -> NDArray[np.bool_]:
    """Return the mask of values other than exact zeros, whose bits all agree and carry no information."""
    used: NDArray[np.bool_] = np.isfinite(values) & (values != 0)
    return used


@lru_cache(maxsize=64)
def sampled_rows(count: int, width: int) -> NDArray[np.int64]:
    """Return the rows to sample, spread evenly over `count` rows of `width` values; read-only."""
    looked_at = min(count, max(SAMPLED_ROWS, SAMPLE // width))
    rows = np.linspace(0, count - 1, looked_at).astype(np.int64)
    rows.flags.writeable = False
    return rows


def usable_rows(rows: Float) -> NDArray[np.bool_]:
    """Return which rows (n, X) hold a value usable for bit information, with shape (n,)."""
    found: NDArray[np.bool_] = np.any(_used(rows), axis=-1)
    return found


def _differences(rows: Float, used: NDArray[np.bool_]) -> Float:
    """Return how far used values are from their eastward neighbours around the globe, without zeros."""
    right = np.roll(rows, -1, axis=-1)
    if not used.all():
        both = used & np.roll(used, -1, axis=-1)
        rows, right = rows[both], right[both]
    differences: Float = np.abs(rows - right)
    return differences[differences > 0]


def _entropy(*shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in bits of cases with these shares, of each element."""
    entropy: NDArray[np.float64] = entr(np.stack(shares)).sum(0) / np.log(2)
    return entropy


def bit_information(values: Float) -> NDArray[np.float64]:
    """Return the real information, in bits, of each of the 32 bits, sign first, with shape (32,).

    Exponents are compared as signed magnitudes so that one step of the exponent changes few bits.

    Arguments:
        values: A field, with shape (*, X); the last axis is the circle of longitude.
    """
    rows = values.reshape(-1, values.shape[-1])
    used, left = _used(rows), _biased(rows)
    right = np.roll(left, -1, axis=-1)
    whole = bool(used.all())
    if not whole:
        both_used = used & np.roll(used, -1, axis=-1)
        left, right = left[both_used], right[both_used]
    count = left.size
    if not count:
        return np.zeros(32)
    first, both = _share_of_ones(left), _share_of_ones(left & right)
    second = first if whole else _share_of_ones(right)  # around a whole circle: the same values
    neither = np.maximum(1.0 - first - second + both, 0.0)  # not below zero by rounding
    joint = _entropy(both, first - both, second - both, neither)
    information = _entropy(first, 1.0 - first, second, 1.0 - second) - joint
    return np.where(information < _chance(count), 0.0, information)


_MOST = 255
"""Largest count that fits into a byte."""


def _share_of_ones(raw: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the share of values in which each of the 32 bits is set, the highest first.

    Each bit has a byte as counter, eight in an integer, so that one addition counts eight bits.
    """
    wide = -(-raw.size // _MOST)
    padded = np.zeros(_MOST * wide, dtype=">u4")
    padded[: raw.size] = raw.ravel()
    eights = np.unpackbits(padded.view(np.uint8)).view(np.uint64).reshape(_MOST, 4 * wide)
    counts = eights.sum(axis=0, dtype=np.uint64).view(np.uint8).reshape(wide, 32)
    share: NDArray[np.float64] = counts.sum(axis=0, dtype=np.int64) / raw.size
    return share


def _biased(values: Float) -> NDArray[np.uint32]:
    """Return the raw bits, with the exponent as sign and magnitude instead of biased."""
    raw = values.view(np.uint32)
    exponent = ((raw >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int32) - 127
    magnitude = np.abs(exponent).astype(np.uint32) | np.where(exponent < 0, 0x80, 0).astype(
        np.uint32
    )
    return (raw & np.uint32(0x807FFFFF)) | (magnitude << np.uint32(23))


@lru_cache(maxsize=64)
def _chance(count: int) -> float:
    """Return the information that a random bit shows in `count` pairs in 1 of 100 cases.

    From the normal approximation of the binomial: a share of 0.5 + 2.576 / (2 sqrt(n)).
    """
    share = np.array(min(1.0, 0.5 + 2.576 / (2 * np.sqrt(count))))
    return float(1.0 - _entropy(share, 1.0 - share))


def information_bits(values: Float) -> int:
    """Return how many mantissa bits hold 99 % of the real information of a field (*, X)."""
    information = bit_information(values)
    if information.sum() == 0:
        return 0
    share = np.cumsum(information) / information.sum()
    return max(0, int(np.argmax(share >= INFORMATION)) - 8)  # bit 9 is the first of the mantissa


def _guard(ratio: float) -> int:
    """Return the bits for which half a unit in the last place, 2^(e - bits - 1), is below `FRACTION`.

    Arguments:
        ratio: 2^e over the scale that the error is compared with.
    """
    return int(np.ceil(np.log2(max(ratio, 1e-30) / (2 * FRACTION))))


def _neighbours_in_order(values: NDArray[Any], low: int) -> tuple[float, float]:
    """Return the values of ranks `low` and `low` + 1 (the last one twice) of numbers (n,), unordered.

    One partition: a sort, and a partition around two places, each take many times as long on some
    processors.
    """
    parted = np.partition(values, low)
    above = parted[low + 1 :]
    return float(parted[low]), float(above.min() if above.size else parted[low])


def _median(values: NDArray[Any]) -> float:
    """Return the median of numbers (n,), without the checks of `np.median`."""
    low, high = _neighbours_in_order(values, (values.size - 1) // 2)
    return low if values.size % 2 else (low + high) / 2


def _median_exponent(exponents: NDArray[np.int32]) -> float:
    """Return the median of small integers (n,), from their counts."""
    least = int(exponents.min())
    ranks = np.cumsum(np.bincount(exponents - least))
    places = ((exponents.size - 1) // 2, exponents.size // 2)
    return least + float(np.searchsorted(ranks, places, side="right").mean())


def _ninth_tenth(values: NDArray[np.float64]) -> float:
    """Return the quantile 0.9 of numbers (n,), interpolated like `np.quantile`."""
    place = (values.size - 1) * 0.9
    low = int(place)
    a, b = _neighbours_in_order(values, low)
    share = place - low
    return a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share)


def keep_bits(values: Float, spread: Float | None = None) -> int:
    """Return how many mantissa bits of a field on one level to keep.

    Arguments:
        values: With shape (*, Y, X); NaN where undefined.
        spread: Ensemble spread of the same trailing dimensions; None when there is none.
    """
    width = values.shape[-1]
    rows = values.reshape(-1, width)
    around = None if spread is None else spread.reshape(-1, width)
    chosen = sampled_rows(len(rows), width)
    if not usable_rows(rows[chosen]).any():
        chosen = np.flatnonzero(usable_rows(rows))
    return bits_of_rows(rows[chosen], None if around is None else around[chosen % len(around)])


def bits_of_rows(rows: Float, around: Float | None = None) -> int:
    """Return how many mantissa bits to keep, estimated from rows of a field.

    Arguments:
        rows: With shape (n, X).
        around: Ensemble spread of the same rows; None when there is none.
    """
    used = _used(rows)
    if not used.any():
        return 0
    exponent = np.frexp(rows)[1] - 1
    bits = [information_bits(rows)]
    differences = _differences(rows, used)
    if differences.size:
        typical = _median_exponent(exponent[used])
        bits.append(_guard(2.0**typical / _median(differences)))
    if around is not None:
        where = used & np.isfinite(around) & (around > 0)
        if where.any():
            size = np.ldexp(1.0, exponent)  # 2^e; in float32 its ratio to a tiny spread is infinite
            bits.append(_guard(_ninth_tenth(size[where] / around[where])))
    return min(max(bits), MANTISSA)


def round_field(values: Float, spread: Float | None = None, bits: int | None = None) -> Rounded:
    """Round a field to `bits`, by default those from `keep_bits`, whose arguments these are."""
    bits = keep_bits(values, spread) if bits is None else bits
    rounded = round_bits(values, bits)
    error = np.abs(rounded - values, dtype=np.float64)
    largest = float(np.nanmax(error)) if np.isfinite(error).any() else 0.0
    return Rounded(rounded, bits, largest)
