"""Weighting functions: the closed form against quadrature, fits against what they were made of."""

import numpy as np
import pytest
from scipy.integrate import quad

from model.domain.errors import InvalidInput
from model.operators.weighting import PEAKS, fit_channel, level_weights, share_inside

LEVELS = 100.0 * np.array([50.0, 100.0, 200.0, 300.0, 500.0, 700.0, 850.0, 925.0, 1000.0])
TEMPERATURES = np.array([205.0, 203.0, 218.0, 229.0, 252.0, 270.0, 279.0, 283.0, 288.0])


def seen(peak, temperatures):
    """What a channel sees of a profile: the integral of -dt/d ln p, piece by piece."""
    x = np.log(LEVELS)

    def integrand(at):
        depth = np.exp(2.0 * (at - np.log(peak)))
        return 2.0 * depth * np.exp(-depth) * np.interp(at, x, temperatures)

    edges = [np.log(peak) - 12.0, *x, np.log(peak) + 3.0]
    edges = sorted(edge for edge in edges if edge <= np.log(peak) + 3.0)
    return sum(quad(integrand, a, b)[0] for a, b in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("peak", [9_000.0, 25_000.0, 40_000.0, 70_000.0, 95_000.0])
def test_the_closed_form_is_the_integral(peak):
    weights = level_weights(LEVELS, peak)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert (weights > 0.0).all()
    assert weights @ TEMPERATURES == pytest.approx(seen(peak, TEMPERATURES), abs=1e-6)


def test_half_of_an_isothermal_step_is_seen_where_transmission_is_one_half():
    # t(p) = 1/2 at p0 sqrt(ln 2): with a step of temperature there, both sides count alike.
    levels = np.geomspace(1.0, 110_000.0, 20_001)
    middle = 50_000.0 * np.sqrt(np.log(2.0))
    found = level_weights(levels, 50_000.0) @ np.where(levels < middle, 200.0, 300.0)
    assert found == pytest.approx(250.0, abs=0.05)


def test_channels_beyond_the_levels_are_told_by_their_share():
    # A channel with its peak at 2 hPa has nothing left to see below 50 hPa.
    assert share_inside(LEVELS, 200.0) == pytest.approx(0.0, abs=1e-12)
    inside = np.exp(-((50.0 / 400.0) ** 2)) - np.exp(-((1000.0 / 400.0) ** 2))
    assert share_inside(LEVELS, 40_000.0) == pytest.approx(inside)


def test_the_same_frequency_has_one_peak():
    """ATMS 5 to 15 are AMSU-A 4 to 14; MSU 2, 3 and 4 lie beside AMSU-A 5, 7 and 9."""
    amsu, atms, msu = PEAKS["amsu-a"], PEAKS["atms"], PEAKS["msu"]
    assert {n + 1: peak for n, peak in amsu.items()} == dict(atms)
    beside = [amsu[5], amsu[7], amsu[9]]  # 53.60, 54.94 and 57.29 GHz for 53.74, 54.96 and 57.95
    assert [msu[2], msu[3], msu[4]] == pytest.approx(beside, rel=0.08)
    assert sorted(amsu.values(), reverse=True) == list(amsu.values())


def test_peaks_are_those_of_other_sources():
    """Line by line with the absorption of P. W. Rosenkranz (1998), by PyRTlib; the NWP SAF on MSU.

    Two decades of spectroscopy between the absorption that the peaks are of and this one are 4 %.
    """
    older = [954.4, 627.7, 397.5, 262.9, 174.1, 86.6, 52.7, 25.8, 12.2, 5.7, 2.8]
    assert list(PEAKS["amsu-a"].values()) == pytest.approx(older, rel=0.045)
    assert list(PEAKS["msu"].values()) == pytest.approx([583.9, 273.7, 83.2], rel=0.045)
    regions = [700.0, 300.0, 90.0]  # hPa, "contribute sounding information from three regions"
    assert list(PEAKS["msu"].values()) == pytest.approx(regions, rel=0.15)


@pytest.mark.parametrize(("channel", "through"), [(4, 0.33), (5, 0.13), (6, 0.02), (7, 0.0)])
def test_as_much_of_the_ground_is_seen_as_line_by_line(channel, through):
    """Transmission from 1013 hPa to space, which the fit of the peaks did not look at."""
    depth = (1_013.0 / PEAKS["amsu-a"][channel]) ** 2
    assert np.exp(-depth) == pytest.approx(through, abs=0.045)


def profiles(count, seed=0):
    """Profiles whose levels vary by 5 K each, half of it together."""
    generator = np.random.default_rng(seed)
    together, own = generator.normal(size=(count, 1)), generator.normal(size=(count, len(LEVELS)))
    return TEMPERATURES + 2.5 * together + 4.3 * own


@pytest.mark.parametrize("peak", [9_000.0, 40_000.0, 70_000.0])
def test_a_peak_and_a_bias_are_found_again(peak):
    given = profiles(400)
    fitted = fit_channel(LEVELS, given, given @ level_weights(LEVELS, peak) + 1.3, spread=0.0)
    assert fitted.peak == pytest.approx(peak, rel=1e-4)
    assert fitted.bias == pytest.approx(1.3, abs=1e-3)
    assert fitted.error < 1e-3 and fitted.count == 400


def test_a_regression_finds_weights_that_no_peak_has():
    given = profiles(20_000)
    weights = np.array([0.0, 0.3, 0.0, 0.1, 0.0, 0.4, 0.0, 0.0, 0.2])
    noise = 0.2 * np.random.default_rng(1).normal(size=len(given))
    fitted = fit_channel(LEVELS, given, given @ weights - 0.7 + noise)
    assert fitted.weights.sum() == pytest.approx(1.0, abs=1e-9)
    # A coefficient is known to 0.2 K / (4.3 K sqrt(20 000)) = 0.0003; the prior holds back a little.
    assert fitted.weights == pytest.approx(weights, abs=0.01)
    assert fitted.error == pytest.approx(0.2, abs=0.02)
    closed = fit_channel(LEVELS, given, given @ weights - 0.7 + noise, spread=0.0)
    assert closed.error > 3.0 * fitted.error


def test_the_prior_holds_a_weight_back_as_a_ridge_does():
    """With two levels one number is free: n x̄² / (n x̄² + σ²/s²) of it is taken over."""
    levels = np.array([30_000.0, 80_000.0])
    generator = np.random.default_rng(2)
    given = np.array([230.0, 275.0]) + generator.normal(size=(200, 2)) * 3.0
    brightness = given @ np.array([0.4, 0.6]) + generator.normal(size=200)
    closed = fit_channel(levels, given, brightness, spread=0.0)
    fitted = fit_channel(levels, given, brightness, spread=0.05)
    contrast = (given[:, 0] - given[:, 1]) / np.sqrt(2.0)
    contrast = contrast - contrast.mean()
    left = brightness - given @ closed.weights
    left = left - left.mean()
    slope = contrast @ left / (contrast @ contrast + fitted.error**2 / 0.05**2)
    moved = (fitted.weights - closed.weights) * np.sqrt(2.0)
    assert moved == pytest.approx([slope, -slope], abs=1e-7)
    assert fitted.error == pytest.approx(float(np.std(left - slope * contrast)), abs=1e-7)


def test_too_few_profiles_are_refused():
    with pytest.raises(InvalidInput, match="at least 50 profiles"):
        fit_channel(LEVELS, profiles(49), np.full(49, 250.0))
