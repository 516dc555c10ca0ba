"""Errors estimated from the departures of a linear-Gaussian system in which R and B are known."""

import numpy as np
import pytest

from model.domain.ensembles import AntitheticPairs
from tests.worker.verification.feedback_of import make_feedback
from worker.results.verification.departures import departure_statistics

CYCLES, STATES = 3000, 12
NETWORKS = ["synop"] * 4 + ["ship"] * 4


def experiment(assumed=(1.0, 3.0), true=(1.0, 3.0), bias=0.0, seed=3):
    """Departures of many Kalman analyses, the matrices H, B, R and the spread in observation space."""
    rng = np.random.default_rng(seed)
    distance = np.abs(np.subtract.outer(np.arange(STATES), np.arange(STATES)))
    covariance = 4.0 * np.exp(-distance / 3.0)
    operator = rng.uniform(0, 1, (8, STATES))
    operator /= operator.sum(axis=1, keepdims=True) / 1.5
    used = np.repeat(assumed, 4) ** 2
    in_observations = operator @ covariance @ operator.T
    gain = covariance @ operator.T @ np.linalg.inv(in_observations + np.diag(used))
    factor = np.linalg.cholesky(covariance)
    back = factor @ rng.standard_normal((STATES, CYCLES))
    noise = np.repeat(true, 4)[:, None] * rng.standard_normal((8, CYCLES))
    innovation = noise + bias - operator @ back
    after = innovation - operator @ gain @ innovation
    count = 8 * CYCLES
    table = make_feedback(
        count,
        departures={
            "background_departure": innovation.ravel(),
            "analysis_departure": after.ravel(),
            "background_spread": np.repeat(np.sqrt(np.diag(in_observations)), CYCLES),
        },
        report_type=np.repeat(NETWORKS, CYCLES).tolist(),
        station_id=["s"] * count,
        variable="mean_sea_level_pressure",
        obs_error=np.repeat(np.sqrt(used), CYCLES),
    )
    spread = {
        name: np.sqrt(np.diag(in_observations)[i : i + 4].mean())
        for name, i in (("synop", 0), ("ship", 4))
    }
    found = {s.report_type: s for s in departure_statistics(table)}
    return found, spread


def test_right_errors_are_found_and_ratios_are_one():
    found, spread = experiment()
    for name, error in (("synop", 1.0), ("ship", 3.0)):
        line = found[name]
        assert line.desroziers_error == pytest.approx(error, rel=0.03)
        assert line.desroziers_spread == pytest.approx(spread[name], rel=0.04)
        for ratio in (line.error_ratio, line.spread_ratio, line.spread_skill, line.chi2):
            assert ratio == pytest.approx(1.0, abs=0.06)


def test_a_bias_of_the_observations_is_not_taken_for_error():
    found, spread = experiment(bias=5.0)
    assert found["synop"].bias_background == pytest.approx(5.0, abs=0.15)
    assert found["synop"].desroziers_error == pytest.approx(1.0, rel=0.03)
    assert found["synop"].desroziers_spread == pytest.approx(spread["synop"], rel=0.04)
    assert found["synop"].chi2 > 5


def test_errors_assumed_too_small_show_in_the_ratio():
    found, _ = experiment(assumed=(1.0, 3.0), true=(2.0, 3.0))
    assert found["synop"].error_ratio > 1.3
    assert found["synop"].chi2 > 1.3
    assert found["synop"].spread_skill < 0.9


def test_small_ensembles_widen_the_prediction():
    table = make_feedback(
        2,
        departures={"background_departure": [1.0, -1.0], "background_spread": [2.0, 2.0]},
        obs_error=[1.0, 1.0],
    )
    (line,) = departure_statistics(table, pairs=AntitheticPairs.of(range(4), antithetic=False))
    assert line.spread_skill == pytest.approx(np.sqrt(4.0 * 5 / 4 + 1))
    (line,) = departure_statistics(table, pairs=AntitheticPairs.of(range(4), antithetic=True))
    assert line.spread_skill == pytest.approx(np.sqrt(4.0 + 1))  # the mean of pairs is exact
    both = departure_statistics(table, overall=True)
    assert [s.layer for s in both] == ["all", "surface"]
    assert both[0].count == both[1].count == 2
