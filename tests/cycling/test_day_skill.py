"""Drift is found when it is there, and chance is not called drift."""

from dataclasses import replace

import numpy as np
import pytest
from planted import HOUR, SCENARIO, make_case
from scipy.stats import linregress

from lab.rehearsal.verdict import day_skill, judge_skill, trend

HOURS = np.arange(24.0)


def test_a_line_of_independent_errors_is_that_of_ordinary_least_squares():
    # residuals that alternate in sign have no positive memory
    values = 0.3 + 0.002 * HOURS + 0.01 * (-1.0) ** HOURS
    line, known = trend(HOURS, values), linregress(HOURS, values)
    assert line.slope == pytest.approx(known.slope)
    assert line.error == pytest.approx(known.stderr)


def test_memory_widens_the_uncertainty():
    smooth = 0.3 + 0.01 * np.sin(HOURS / 4.0)
    line, known = trend(HOURS, smooth), linregress(HOURS, smooth)
    assert line.error > 2.0 * known.stderr


def test_chance_seldom_counts_as_drift_and_drift_does():
    rng = np.random.default_rng(0)
    noise = 0.3 + 0.01 * rng.standard_normal((400, 24))
    assert np.mean([trend(HOURS, y).rises for y in noise]) < 0.08  # 5 % is the level of the test
    drifting = noise[:50] + 0.003 * HOURS
    assert all(trend(HOURS, y).rises for y in drifting)


def evidence(errors, climatology=0.6):
    case = make_case()
    analyses = tuple(
        replace(a, error=errors((a.valid_time - SCENARIO.start) / HOUR))
        for a in case.evidence.analyses
    )
    climate = {t: climatology for t in SCENARIO.cycles}
    return replace(case.evidence, analyses=analyses, climatology=climate)


def judged(errors, **changes):
    scenario = replace(SCENARIO, settle_hours=3)
    return judge_skill(day_skill(scenario, evidence(errors, **changes)))


def test_a_level_day_passes():
    assert not judged(lambda h: 0.5 if h == 0 else 0.3 + 0.01 * (-1.0) ** h)


def test_a_drifting_day_fails():
    found = judged(lambda h: 0.6 if h == 0 else 0.3 + 0.02 * h + 0.01 * (-1.0) ** h)
    assert found and all("rise" in f.message for f in found)


def test_a_day_no_better_than_its_cold_start_or_climatology_fails():
    found = judged(lambda h: 0.3 if h == 0 else 0.4 + 0.01 * (-1.0) ** h, climatology=0.35)
    messages = " ".join(f.message for f in found)
    assert "cold start" in messages and "climatology" in messages


def test_a_short_day_is_not_judged():
    assert day_skill(replace(SCENARIO, settle_hours=8), evidence(lambda h: 0.3)) is None
