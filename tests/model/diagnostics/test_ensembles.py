"""Scores of ensembles whose distribution is known."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2, norm
from scores.probability import crps_for_ensemble

from model.diagnostics.ensembles import fair_crps, flatness, outlier_ratio, ranks
from model.domain.ensembles import AntitheticPairs

COUNT = 20_000


def gaussian_crps(mean, std, value):
    """Closed form of Gneiting et al. (2005), eq. 5."""
    z = (value - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


def system(spread, error, members, seed=1):
    """A truth drawn like the members, observed with an error; COUNT times over."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(280, 10, COUNT)
    ensemble = centre + spread * rng.standard_normal((members, COUNT))
    truth = centre + spread * rng.standard_normal(COUNT)
    value = truth + error * rng.standard_normal(COUNT)
    return ensemble, value, np.full(COUNT, error), centre


@pytest.mark.parametrize("members", [2, 8])
def test_mean_score_is_that_of_the_predictive_gaussian(members):
    ensemble, value, errors, centre = system(1.5, 1.0, members)
    exact = gaussian_crps(centre, np.hypot(1.5, 1.0), value)
    found = fair_crps(ensemble, value, errors)
    # Fair: the mean does not depend on the size of the ensemble.
    assert found.mean() == pytest.approx(exact.mean(), abs=4 * (found - exact).std() / COUNT**0.5)
    # A calibrated Gaussian forecast scores sigma / sqrt(pi) on average.
    assert exact.mean() == pytest.approx(np.hypot(1.5, 1.0) / np.sqrt(np.pi), rel=0.02)


@pytest.mark.parametrize("members", [4, 5, 8])
def test_mirrored_members_score_as_independent_ones_do(members):
    rng = np.random.default_rng(6)
    centre = rng.normal(280, 10, COUNT)
    deviation = 1.5 * rng.standard_normal((members, COUNT))
    deviation[1::2] = -deviation[: members - members % 2 : 2]
    value = centre + 1.5 * rng.standard_normal(COUNT) + rng.standard_normal(COUNT)
    errors, exact = np.ones(COUNT), gaussian_crps(centre, np.hypot(1.5, 1.0), value)
    found = fair_crps(centre + deviation, value, errors, AntitheticPairs.of(range(members), True))
    allowed = 4 * (found - exact).std() / COUNT**0.5
    assert found.mean() == pytest.approx(exact.mean(), abs=allowed)
    # Twins are 3 apart on average and not 3 / sqrt(2): as if the forecast were wider.
    assert fair_crps(centre + deviation, value, errors).mean() < exact.mean() - allowed


def test_a_pair_alone_has_no_fair_score():
    pair = np.array([[1.0], [-1.0]])
    assert fair_crps(pair, np.zeros(1), np.ones(1), AntitheticPairs.of(range(2), True)) is None


def test_many_members_give_the_closed_form_at_each_value():
    rng = np.random.default_rng(2)
    members = norm.ppf((np.arange(200) + 0.5) / 200)[:, None] * 2.0 + np.zeros(5)
    value, errors = np.array([-4.0, -1, 0, 0.5, 6]), np.array([0.5, 1, 2, 1, 0.1])
    exact = gaussian_crps(0.0, np.hypot(2.0, errors), value)
    found = fair_crps(rng.permuted(members, axis=0), value, errors)
    np.testing.assert_allclose(found, exact, atol=0.01)


def test_is_the_mean_over_drawn_errors_of_the_usual_fair_score():
    rng = np.random.default_rng(3)
    members, value, errors = rng.normal(0, 1, (5, 4)), rng.normal(0, 1, 4), np.full(4, 0.7)
    drawn = members[:, :, None] + 0.7 * rng.standard_normal((5, 4, 40_000))
    usual = crps_for_ensemble(
        xr.DataArray(drawn, dims=("member", "n", "draw")),
        xr.DataArray(value, dims="n"),
        "member",
        method="fair",
        reduce_dims="draw",
    )
    np.testing.assert_allclose(fair_crps(members, value, errors), usual, atol=0.02)


def test_without_errors_it_is_the_fair_score_of_the_members():
    members = np.array([[0.0], [1.0], [3.0]])
    # By hand: mean |x - 2| = (2 + 1 + 1) / 3, pairs 1 + 3 + 2 = 6, over M (M - 1) = 6.
    assert fair_crps(members, np.array([2.0]), np.zeros(1)) == pytest.approx(4 / 3 - 1.0)
    assert fair_crps(members[:1], np.array([2.0]), np.zeros(1)) is None


def histogram(ensemble, value, errors):
    drawn = ranks(ensemble, value, errors, np.random.default_rng(4))
    return np.bincount(drawn, minlength=len(ensemble) + 1)


def test_ranks_of_a_reliable_ensemble_are_flat():
    ensemble, value, errors, _ = system(1.0, 2.0, 8)
    counts = histogram(ensemble, value, errors)
    assert counts.sum() == COUNT
    assert flatness(counts) * 8 < chi2.ppf(0.9999, 8)
    assert outlier_ratio(counts) == pytest.approx(1.0, abs=0.05)


def test_an_ensemble_that_is_too_narrow_gives_a_u():
    ensemble, value, errors, centre = system(2.0, 1.0, 8)
    counts = histogram(centre + 0.3 * (ensemble - centre), value, errors)
    assert counts[0] > 1.5 * counts[4] < counts[-1]
    assert np.all(np.diff(counts[:5]) < 0) and np.all(np.diff(counts[4:]) > 0)
    assert outlier_ratio(counts) > 1.5
    assert flatness(counts) > 100


def test_without_the_observation_error_a_reliable_ensemble_would_seem_narrow():
    ensemble, value, _, _ = system(1.0, 2.0, 8)
    assert outlier_ratio(histogram(ensemble, value, np.zeros(COUNT))) > 2


def test_ties_are_shared_out_evenly():
    """Dry everywhere: all members and observations are exactly zero."""
    counts = histogram(np.zeros((4, COUNT)), np.zeros(COUNT), np.zeros(COUNT))
    assert flatness(counts) * 4 < chi2.ppf(0.9999, 4)
