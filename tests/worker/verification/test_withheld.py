"""Scores against withheld stations: which rows count, and what they give."""

import numpy as np
import pytest
from scipy.stats import chi2

from model.diagnostics.equivalents import Equivalents
from tests.worker.verification.feedback_of import make_feedback
from worker.results.verification.report import score_withheld

RNG = np.random.default_rng(0)


def equivalents(rows, hofx, error=1.0, antithetic=False):
    rows = np.asarray(rows)
    return Equivalents(rows, np.full(len(rows), error), np.asarray(hofx, dtype=float), antithetic)


def test_two_stations_by_hand():
    table = make_feedback(3, [None, "withheld", "withheld"], obs_value=[280.0, 282.0, 286.0])
    analysis = equivalents([0, 1, 2], [[280.0, 280, 284], [280.0, 282, 286]])
    background = equivalents([0, 1, 2], [[280.0, 281, 281], [280.0, 279, 283]])
    layer, whole = sorted(
        score_withheld(table, background, analysis, RNG), key=lambda s: s.layer, reverse=True
    )
    assert (layer.network, layer.variable, layer.layer) == ("synop", "2m_temperature", "surface")
    assert (layer.count, layer.error, whole.layer) == (2, 1.0, "all")
    # Means of the analysis are 281 and 285, departures 1 and 1; of the background 280 and 282.
    assert (layer.analysis.rmse, layer.analysis.bias) == (1.0, 1.0)
    assert layer.background.rmse == pytest.approx(np.sqrt((2**2 + 4**2) / 2))
    assert layer.background.bias == pytest.approx(3.0)
    # Variance 2 of two members, times 3 / 2, plus the error's 1.
    assert layer.analysis.spread_skill == pytest.approx(2.0)
    assert sum(layer.analysis.ranks) == 2 and len(layer.analysis.ranks) == 3
    assert whole.analysis.rmse == layer.analysis.rmse


def test_two_pairs_by_hand():
    table = make_feedback(1, "withheld", obs_value=[12.0])
    # Mean 10; deviations 1, -1, 2, -2 of which two are drawn: variance 5 / 2.
    analysis = equivalents([0], [[11.0], [9.0], [12.0], [8.0]], antithetic=True)
    score = score_withheld(table, None, analysis, RNG)[0].analysis
    assert score.rmse == 2.0
    assert score.spread_skill == pytest.approx(np.sqrt(5 / 2 + 1) / 2)
    assert len(score.ranks) == 3  # among two members


def test_a_reliable_ensemble_in_pairs():
    """Members about the mean of the posterior, which the truth is drawn from too."""
    count, std, error = 6000, 1.5, 1.0
    rng = np.random.default_rng(9)
    mean = rng.normal(280, 5, count)
    half = std * rng.standard_normal((4, count))
    members = np.stack([half, -half], axis=1).reshape(8, count) + mean
    value = mean + std * rng.standard_normal(count) + error * rng.standard_normal(count)
    table = make_feedback(count, "withheld", obs_value=value)
    rows = np.arange(count)
    score = score_withheld(table, None, equivalents(rows, members, antithetic=True), rng)[
        0
    ].analysis
    assert score.rmse == pytest.approx(np.hypot(std, error), rel=0.03)
    assert score.spread_skill == pytest.approx(1.0, abs=0.03)
    assert score.crps == pytest.approx(np.hypot(std, error) / np.sqrt(np.pi), rel=0.03)
    assert score.outliers == pytest.approx(1.0, abs=0.06)
    assert score.flatness * 4 < chi2.ppf(0.9999, 4)
    # Taken for independent, the same members look too wide, and their ranks make a dome.
    wrong = score_withheld(table, None, equivalents(rows, members), rng)[0].analysis
    assert wrong.spread_skill > 1.05
    assert wrong.outliers < 0.9 and wrong.flatness * 8 > chi2.ppf(0.9999, 8)


def test_layers_of_a_sounding_and_all_of_them():
    table = make_feedback(
        3,
        "withheld",
        report_type="temp",
        variable="temperature",
        vertical_kind="pressure",
        vertical=np.array([50_000.0, 55_000.0, 85_000.0]),
        obs_value=np.array([260.0, 262.0, 280.0]),
    )
    analysis = equivalents([0, 1, 2], [[259.0, 260.0, 277.0]])
    found = {s.layer: s for s in score_withheld(table, None, analysis, RNG)}
    assert {k: s.count for k, s in found.items()} == {
        "400-600 hPa": 2, "800-1100 hPa": 1, "all": 3,
    }  # fmt: skip
    assert found["all"].analysis.rmse == pytest.approx(np.sqrt((1 + 4 + 9) / 3))
    assert found["all"].background is None
    assert found["all"].analysis.crps is None  # one member has no fair score


def test_rejected_rows_and_rows_without_an_equivalent_do_not_count():
    outcomes = ["background_check", "withheld", "late", None]
    table = make_feedback(4, outcomes, obs_value=np.full(4, 280.0))
    analysis = equivalents([0, 2, 3], np.full((2, 3), 99.0))
    assert score_withheld(table, None, analysis, RNG) == []
    assert score_withheld(table.slice(0, 0), None, equivalents([], np.zeros((2, 0))), RNG) == []


def test_a_reliable_ensemble_of_an_optimal_analysis():
    """Kalman filter of one value: both ensembles are reliable, the analysis is the closer one."""
    count, members, spread, error = 4000, 10, 2.0, 1.0
    rng = np.random.default_rng(8)
    truth = rng.normal(280, 5, count)
    back = truth + spread * rng.standard_normal(count)
    assimilated = truth + error * rng.standard_normal(count)
    gain = spread**2 / (spread**2 + error**2)
    mean = back + gain * (assimilated - back)
    after = np.sqrt(1 - gain) * spread
    value = truth + error * rng.standard_normal(count)
    draws = rng.standard_normal((2, members, count))
    # Members and truth are exchangeable about the (unknown) centre of the posterior.
    table = make_feedback(count, "withheld", obs_value=value)
    rows = np.arange(count)
    found = score_withheld(
        table,
        equivalents(rows, back + spread * draws[0]),
        equivalents(rows, mean + after * draws[1]),
        rng,
    )[0]
    for score, std in ((found.background, spread), (found.analysis, after)):
        assert score.rmse == pytest.approx(np.sqrt(std**2 * (1 + 1 / members) + error**2), rel=0.03)
        assert score.spread_skill == pytest.approx(1.0, abs=0.03)
        assert score.outliers == pytest.approx(1.0, abs=0.1)
        assert score.crps == pytest.approx(np.hypot(std, error) / np.sqrt(np.pi), rel=0.04)
        assert abs(score.bias) < 0.15
