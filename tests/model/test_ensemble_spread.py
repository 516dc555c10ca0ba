"""Spread and ranks of calibrated synthetic ensembles, with and without antithetic pairs."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from model.diagnostics.ensembles import rank_shape, ranks
from model.diagnostics.scores import spread_skill
from model.domain.ensembles import AntitheticPairs
from model.domain.grids import Grid

GRID = Grid("t31", "gaussian", 48, 96)


def ensemble(members, antithetic, shape, seed=0):
    """Members and a truth that is drawn from the same distribution, of variance 1 about a mean."""
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=draw)
    noise = torch.randn(members, *shape, generator=draw)
    if antithetic:
        noise = torch.stack([noise[i - i % 2] * (1 - 2 * (i % 2)) for i in range(members)])
    truth = mean + torch.randn(shape, generator=draw)
    return mean + noise, truth


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("members", [2, 3, 8])
def test_a_calibrated_ensemble_has_the_spread_of_its_error(members, antithetic):
    drawn, truth = ensemble(members, antithetic, (6, 48, 96))
    pairs = AntitheticPairs.of(range(members), antithetic)
    ratio = spread_skill(drawn, truth, GRID, pairs).ratio
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("members", [2, 3, 5, 8])
def test_the_variance_is_that_of_the_posterior(members, antithetic):
    count = 200_000
    drawn, _ = ensemble(members, antithetic, (count,))
    found = AntitheticPairs.of(range(members), antithetic).variance(drawn.numpy())
    # The divisor leaves at least members / 2 squares of a Gaussian in the mean.
    error = np.sqrt(2 / (count * max(members // 2, 1)))
    assert found.mean() == pytest.approx(1.0, abs=4 * error)


def test_two_pairs_by_hand():
    """Deviations 1, -1, 3, -3: the mean square of the draws is (1 + 9) / 2, whoever has a twin."""
    members = np.array([[11.0], [9.0], [13.0], [7.0]], dtype=np.float32)
    pairs, apart = AntitheticPairs.of(range(4), True), AntitheticPairs.of(range(4), False)
    assert (pairs.divisor, pairs.inflation, pairs.antithetic) == (4.0, 1.0, True)
    assert (apart.divisor, apart.inflation, apart.antithetic) == (3.0, 1.25, False)
    assert pairs.variance(members) == pytest.approx(5.0)
    assert apart.variance(members) == pytest.approx(20 / 3)
    assert pairs.std(members) == pytest.approx(np.sqrt(5.0))
    # A third member, alone: the mean has a ninth of the variance.
    assert AntitheticPairs.of(range(3), True).divisor == pytest.approx(3 * (1 - 1 / 9))


def test_one_member_has_no_spread():
    for antithetic in (False, True):
        single = AntitheticPairs.of([0], antithetic)
        assert single.std(np.ones((1, 3))) is None and not single.antithetic


def test_independent_members_are_divided_by_one_less_to_the_last_bit():
    members = np.random.default_rng(1).normal(280, 3, (7, 500)).astype(np.float32)
    found = AntitheticPairs.of(range(7), False).std(members)
    np.testing.assert_array_equal(found, members.std(axis=0, dtype=np.float64, ddof=1))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("members", [4, 7, 8])
def test_ranks_of_a_calibrated_ensemble_are_flat(members, antithetic):
    drawn, truth = ensemble(members, antithetic, (20_000,))
    rng, error = np.random.default_rng(0), np.full(20_000, 0.2)
    values = truth.numpy() + error * rng.standard_normal(20_000)
    for chosen in AntitheticPairs.of(range(members), antithetic).independent:
        found = ranks(drawn.numpy()[list(chosen)], values, error, rng)
        counts = np.bincount(found, minlength=len(chosen) + 1)
        shape = rank_shape("synthetic", counts[None])
        assert np.array(shape.bins) * 9 == pytest.approx(1.0, abs=0.08)
        assert shape.excess == pytest.approx(0.0, abs=0.05)
        expected = 20_000 / len(counts)
        limit = chi2.ppf(0.999, len(counts) - 1)
        assert ((counts - expected) ** 2 / expected).sum() < limit


def test_pairs_are_found_by_the_members_numbers():
    apart = AntitheticPairs.of([0, 1, 2, 3], False)
    assert (apart.unpaired, apart.independent) == (4, ((0, 1, 2, 3),))
    pairs = AntitheticPairs.of([0, 1, 2, 3], True)
    assert (pairs.unpaired, pairs.independent) == (0, ((0, 2), (1, 3)))
    odd = AntitheticPairs.of([0, 1, 2], True)
    assert (odd.unpaired, odd.independent) == (1, ((0, 2), (1, 2)))
    # Number 3 has its partner in another job.
    cut = AntitheticPairs.of([3, 4, 5], True)
    assert (cut.unpaired, cut.independent) == (1, ((0, 1), (0, 2)))
    assert list(pairs.independent_pairs()) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert len(list(apart.independent_pairs())) == 6
