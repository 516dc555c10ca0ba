"""Impact of networks: closed forms of the linear Gaussian case."""

import numpy as np
import pytest

from model.diagnostics.equivalents import Equivalents
from tests.worker.verification.feedback_of import make_feedback
from worker.results.verification.departures import estimate_impact

MEMBERS = 12
NETWORKS = ["synop", "synop", "ship", "temp", "temp"]
USED, WITHHELD = np.arange(3), np.array([3, 4])


def exact_ensemble(covariance, rng):
    """Members (M, D) whose sample covariance is the one given and whose mean is zero."""
    white = rng.standard_normal((MEMBERS, len(covariance)))
    white -= white.mean(0)
    orthonormal, _ = np.linalg.qr(white)
    return np.sqrt(MEMBERS - 1) * orthonormal @ np.linalg.cholesky(covariance).T


@pytest.fixture
def linear():
    """Five values of a state of three numbers: three assimilated, two withheld."""
    rng = np.random.default_rng(4)
    operator = rng.standard_normal((5, 3))
    error = np.array([0.5, 1.0, 0.8, 0.7, 1.2])
    departure = rng.standard_normal(5) * 2
    seen, r = operator[USED], np.diag(error[USED] ** 2)
    gain = seen.T @ np.linalg.inv(seen @ seen.T + r)  # the prior covariance is 1
    covariance = np.eye(3) - gain @ seen
    increment = gain @ departure[USED]
    hofx = exact_ensemble(covariance, rng) @ operator.T + operator @ increment
    after = departure - operator @ increment
    contribution = operator[WITHHELD] @ gain * departure[USED]  # (W, 3)
    return error, departure, after, hofx, contribution


def feedback_of(linear, **columns):
    _, before, after, _, _ = linear
    departures = {"background_departure": before, "analysis_departure": after}
    outcomes = [None, None, None, "withheld", "withheld"]
    columns = {"obs_value": before, **columns}  # H(x_b) is zero
    place = {"lat": np.full(5, 50.0), "lon": np.full(5, 8.0)} | columns
    return make_feedback(5, outcomes, departures, report_type=NETWORKS, **place)


def estimated(linear, new=None, **columns):
    error, *_, hofx, _ = linear
    rows = np.arange(5)
    analysis = Equivalents(rows, error, hofx)
    every = np.ones(5, dtype=bool) if new is None else new
    found = estimate_impact(feedback_of(linear, **columns), analysis, every)
    return {one.network: one for one in found}


def test_shares_of_all_networks_add_up_to_what_the_analysis_took_away(linear):
    error, before, after, _, contribution = linear
    found = estimated(linear)
    e_b, e_a = before[WITHHELD] / error[WITHHELD], after[WITHHELD] / error[WITHHELD]
    whole = (e_b @ e_b - e_a @ e_a) / (e_b @ e_b)
    assert sum(one.share for one in found.values()) == pytest.approx(whole, rel=1e-4)
    each = ((e_a + e_b) / error[WITHHELD]) @ contribution / (e_b @ e_b)
    assert found["synop"].share == pytest.approx(each[:2].sum(), rel=1e-4)
    assert found["ship"].share == pytest.approx(each[2], rel=1e-4)
    assert (found["synop"].count, found["ship"].count) == (2, 1)


def test_what_is_far_away_or_was_seen_before_did_nothing(linear):
    near = estimated(linear)
    far = estimated(linear, lat=np.array([50.0, 50.0, -50.0, 50.0, 50.0]))
    assert far["ship"].share == 0.0
    assert far["synop"].share == pytest.approx(near["synop"].share)
    old = estimated(linear, new=np.array([True, True, False, True, True]))
    assert list(old) == ["synop"]


def test_nothing_is_said_without_withheld_values_or_from_one_member(linear):
    error, *_, hofx, _ = linear
    feedback, every = feedback_of(linear), np.ones(5, dtype=bool)
    one = Equivalents(np.arange(5), error, hofx[:1])
    assert estimate_impact(feedback, one, every) == ()
    used_only = Equivalents(USED, error[USED], hofx[:, USED])
    assert estimate_impact(feedback, used_only, every) == ()
