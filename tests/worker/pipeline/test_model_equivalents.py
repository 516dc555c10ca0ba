"""Feedback columns from ensembles of H(x), by hand and for a calibrated ensemble."""

import numpy as np
import pytest
from scipy.stats import chi2

from model.diagnostics.equivalents import Equivalents
from tests.worker.verification.feedback_of import make_feedback
from worker.observations.columns import float_column
from worker.pipeline.departures import fill_analysis, fill_background


@pytest.mark.parametrize(("mirrored", "variance"), [(False, 20 / 3), (True, 5.0)])
def test_spread_of_two_pairs_by_hand(mirrored, variance):
    """Deviations 1, -1, 3, -3: squares of 20, of four values or of two and their twins."""
    table = make_feedback(2, obs_value=[12.0, 280.0])
    hofx = np.array([[11.0], [9.0], [13.0], [7.0]])
    found = Equivalents(np.array([0]), np.ones(1), hofx, mirrored)
    for fill, name in (
        (fill_background, "background"),
        (lambda *a: fill_analysis(*a, 0), "analysis"),
    ):
        filled = fill(table, found)
        assert float_column(filled, f"hofx_{name}")[0] == 10.0
        assert float_column(filled, f"{name}_departure")[0] == 2.0
        assert float_column(filled, f"{name}_spread")[0] == pytest.approx(np.sqrt(variance))
        assert filled[f"{name}_spread"].null_count == 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_ranks_of_a_calibrated_analysis_are_flat(mirrored):
    count, std, error, members = 8000, 2.0, 1.0, 8
    rng = np.random.default_rng(11)
    deviation = std * rng.standard_normal((members, count))
    if mirrored:
        deviation[1::2] = -deviation[::2]
    mean = rng.normal(280, 5, count)
    value = mean + std * rng.standard_normal(count) + error * rng.standard_normal(count)
    table = make_feedback(count, obs_value=value, obs_error=np.full(count, error))
    hofx = mean + deviation
    found = Equivalents(np.arange(count), np.full(count, error), hofx, mirrored)
    counts = np.bincount(fill_analysis(table, found, 3)["rank"].to_numpy())
    assert len(counts) == (5 if mirrored else 9)
    expected = count / len(counts)
    limit = chi2.ppf(0.9999, len(counts) - 1)
    assert ((counts - expected) ** 2 / expected).sum() < limit
