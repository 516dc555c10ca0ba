"""Bit rounding against exact arithmetic and fields whose information is known by construction."""

import numpy as np
import pytest

from worker.results.outputs.bitround import (
    _share_of_ones,
    bit_information,
    information_bits,
    keep_bits,
    round_bits,
    round_field,
)


@pytest.mark.parametrize("bits", [0, 1, 7, 15, 22])
def test_rounding_is_to_the_nearest_multiple_of_the_last_bit_kept(bits):
    values = (np.random.default_rng(0).normal(size=4096) * 1e3).astype(np.float32)
    exponent = np.frexp(values)[1] - 1
    unit = 2.0 ** (exponent - bits)
    expected = np.rint(values.astype(np.float64) / unit) * unit
    np.testing.assert_array_equal(round_bits(values, bits), expected)


def test_rounding_leaves_missing_values_zeros_and_full_precision():
    values = np.array([np.nan, 0.0, 1.5, -2.25], dtype=np.float32)
    np.testing.assert_array_equal(round_bits(values, 3), values)
    noisy = np.float32(np.pi) * np.ones(3, dtype=np.float32)
    assert round_bits(noisy, 23) is noisy


def _planted(rows=64, columns=512, known=5):
    """Values in [1, 2) whose first `known` mantissa bits are those of their neighbours mostly."""
    rng = np.random.default_rng(1)
    top = np.repeat(rng.integers(0, 1 << known, (rows, columns // 64)), 64, axis=1)
    low = rng.integers(0, 1 << (23 - known), (rows, columns))
    raw = (127 << 23) | (top << (23 - known)) | low
    return raw.astype(np.uint32).view(np.float32)


def test_information_is_in_the_planted_bits_alone():
    information = bit_information(_planted())
    # A bit equal to its neighbour's but for one change in 64 (which flips it half of the time).
    flip = 0.5 / 64
    expected = 1 + flip * np.log2(flip) + (1 - flip) * np.log2(1 - flip)
    np.testing.assert_allclose(information[9:14], expected, atol=0.03)
    assert not information[14:].any()
    assert not information[:9].any()


def test_bits_beyond_the_information_are_dropped():
    assert information_bits(_planted(known=5)) == 5


def test_error_stays_a_tenth_of_the_spread():
    rng = np.random.default_rng(2)
    lon = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    field = (101325 + 900 * np.cos(lon) + 0 * np.arange(48)[:, None]) + rng.normal(
        0, 5, (8, 48, 96)
    )
    values = field.astype(np.float32)
    spread = values.std(axis=0, ddof=1)
    done = round_field(values, spread)
    error = np.abs(done.values.astype(np.float64) - values)
    assert np.mean(error <= 0.1 * spread) >= 0.9
    assert done.bits < 23
    assert done.error == error.max()


def test_zeros_of_precipitation_do_not_count_as_information():
    rng = np.random.default_rng(3)
    rain = np.where(np.arange(512) % 128 < 64, 0.0, np.exp(rng.normal(-8, 1, (64, 512))))
    assert information_bits(rain.astype(np.float32)) <= 6


def test_a_field_of_zeros_or_missing_values_needs_no_bits():
    assert keep_bits(np.zeros((4, 8), dtype=np.float32)) == 0
    done = round_field(np.full((4, 8), np.nan, dtype=np.float32))
    assert (done.bits, done.error) == (0, 0.0)
    assert np.isnan(done.values).all()


def test_rare_values_between_the_rows_looked_at_count():
    rain = np.zeros((700, 96), dtype=np.float32)
    rain[3] = np.linspace(1e-4, 2e-4, 96)
    assert keep_bits(rain) >= 5


@pytest.mark.parametrize("count", [1, 254, 255, 256, 1000])
def test_shares_of_ones_are_those_of_counting(count):
    raw = np.random.default_rng(count).integers(0, 2**32, count, dtype=np.uint32)
    expected = [sum(int(v) >> bit & 1 for v in raw) / count for bit in range(31, -1, -1)]
    np.testing.assert_array_equal(_share_of_ones(raw), expected)
    np.testing.assert_array_equal(_share_of_ones(np.full(count, 2**32 - 1, np.uint32)), 1.0)


def test_values_without_information_leave_out_the_pairs_they_are_in():
    field = _planted()
    gaps = field.copy()
    gaps[:, 3], gaps[:, 50] = np.nan, 0.0
    around = np.delete(field, [2, 3, 49, 50], axis=-1)  # pairs that the gaps take away
    assert bit_information(gaps)[14:].sum() == 0
    np.testing.assert_allclose(bit_information(gaps)[:14], bit_information(around)[:14], atol=0.03)
