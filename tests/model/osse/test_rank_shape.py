"""Rank histograms of synthetic ensembles whose calibration is known."""

import numpy as np
import pytest

from lab.osse.ranks import rank_shapes, station_ranks
from model.diagnostics.ensembles import rank_shape, ranks

HOURS = 24


def histogram(spread, *, members=8, stations=400, seed=0, bias=0.0, error=1.0):
    """Ranks where the truth is N(0, 1) and members are N(bias, spread): calibrated for 1 and 0.

    All hours of a station share their state, so that they are far from independent.
    """
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.standard_normal(stations), HOURS)
    drawn = np.repeat(bias + spread * rng.standard_normal((members, stations)), HOURS, axis=1)
    values = truth + error * rng.standard_normal(truth.shape)
    found = ranks(drawn, values, np.full(len(values), error), rng)
    kinds = np.full(len(values), "surface 2m_temperature")
    names = np.repeat(np.array([f"s{i}" for i in range(stations)]), HOURS)
    return station_ranks(found, members, kinds, names, 1.0)


@pytest.mark.parametrize("members", [4, 8])
def test_a_calibrated_ensemble_is_flat(members):
    shape = rank_shapes([histogram(1.0, members=members)])[0]
    assert shape.values == 400 * HOURS
    assert shape.stations == 400
    assert sum(shape.bins) == pytest.approx(1.0)
    assert np.array(shape.bins) * 9 == pytest.approx(1.0, abs=0.25)
    assert abs(shape.excess) < 3 * shape.uncertainty


def test_too_little_spread_and_bias_are_u_shaped_and_too_much_is_a_dome():
    narrow = rank_shapes([histogram(0.3, error=0.3)])[0]
    assert narrow.excess > 0.5
    assert narrow.bins[0] > 1.3 / 9 > 0.9 / 9 > narrow.bins[4]
    assert narrow.bins[8] > 1.3 / 9
    assert rank_shapes([histogram(1.0, bias=2.0, error=0.3)])[0].excess > 0.5
    assert rank_shapes([histogram(3.0, error=0.3)])[0].excess < -0.3


def test_the_uncertainty_is_the_scatter_of_the_excess():
    found = [rank_shapes([histogram(1.0, stations=60, seed=s)])[0] for s in range(200)]
    scatter = np.std([f.excess for f in found])
    assert np.mean([f.uncertainty for f in found]) == pytest.approx(scatter, rel=0.15)
    # Taking the hours as independent would claim far more.
    share = 2 / 9
    naive = np.sqrt(share * (1 - share) / (60 * HOURS)) / share
    assert scatter > 1.5 * naive


def test_excess_and_uncertainty_of_two_stations_by_hand():
    counts = np.zeros((2, 9))
    counts[0, [0, 4]] = 1, 3
    counts[1, [1, 8]] = 2, 2
    shape = rank_shape("two", counts)
    # 3 of 8 are in the outer bins; residuals 1 - 1.5 and 2 - 1.5, factor 2 / 1.
    assert shape.excess == pytest.approx(3 / 8 * 4.5 - 1)
    assert shape.uncertainty == pytest.approx(np.sqrt(2 * 0.5) / 8 * 4.5)
    assert rank_shape("one", counts[:1]).uncertainty is None


@pytest.mark.parametrize("members", [2, 4, 8, 20])
def test_equal_counts_stay_flat_in_nine_bins(members):
    shape = rank_shape("flat", np.full((3, members + 1), 5.0))
    assert shape.bins == pytest.approx([1 / 9] * 9)
    assert shape.excess == pytest.approx(0.0, abs=1e-12)


def test_kinds_of_one_station_are_pooled_and_starts_are_not():
    found = {
        "surface 2m_temperature": {"a": [1, 0, 0], "b": [0, 1, 0]},
        "surface 10m_u_component_of_wind": {"a": [0, 0, 1]},
        "sondes temperature": {"c": [2, 0, 0]},
    }
    shapes = {s.name: s for s in rank_shapes([found, found])}
    assert list(shapes)[:3] == ["all", "surface", "sondes"]
    assert (shapes["surface"].values, shapes["surface"].stations) == (6, 4)
    assert (shapes["all"].values, shapes["all"].stations) == (10, 6)
    assert shapes["sondes"].bins[:3] == pytest.approx([1 / 3] * 3)
    assert shapes["surface 2m_temperature"].values == 4
