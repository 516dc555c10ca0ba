"""Cycles on the real stack under an accelerated clock: embedded server, gateway, workers, scheduler,
real BUFR over HTTP; the model alone is tiny.
"""

from collections import Counter
from dataclasses import replace

import pytest

from lab.rehearsal.audit import Case, alike, audit, same_day
from lab.rehearsal.day import Day, run_day
from lab.rehearsal.driver import RehearsalPace
from lab.rehearsal.scenario import QUICK_NETWORK, QUICK_PARTS, Scenario

# The tiny model's weights are random: departures from its background mean nothing.
NO_BACKGROUND_CHECKS = {n: {"enabled": False} for n in ("background_check", "buddy", "orography")}


@pytest.fixture
def scenario(checkpoint):
    return Scenario(
        checkpoint=str(checkpoint),
        network=QUICK_NETWORK,
        parts=QUICK_PARTS,
        window_hours=1,
        members=2,
        steps=3,
        checks=NO_BACKGROUND_CHECKS,
    )


def case_of(day: Day) -> Case:
    return Case(day.scenario, day.plan, day.contents, day.evidence)


def judged(day: Day):
    return audit(case_of(day))


def outcomes(day: Day) -> Counter:
    return Counter(
        (analysis.flavour, "late or absent" if len(analysis.batches) < sent else "all")
        for analysis in day.evidence.analyses
        for sent in [len({d.name for d in day.plan if d.hour == analysis.valid_time})]
    )


def test_a_morning_of_cycles_is_made_of_what_had_arrived(scenario, tmp_path):
    morning = replace(
        scenario,
        hours=4,
        early=40.0,
        final=100.0,
        silent_hour=3,
        copied_hour=0,
        outage_hours=None,
        guard_minutes=9.0,
    )
    day = run_day(morning, tmp_path, RehearsalPace(600.0, start_seconds=20.0, patience=120.0))
    assert judged(day) == ()
    assert len(day.timings) == 8
    flags = {a.key: set(a.flags) for a in day.evidence.analyses}
    silent = {key for key, said in flags.items() if "zero_observations" in said}
    assert silent == {"20031001T09Z_early", "20031001T09Z_final"}
    assert "warm_start" in flags["20031001T08Z_final"]
    # the scenario is no idle one: something came late, something twice
    assert outcomes(day)["early", "late or absent"]
    assert any(b.duplicates for a in day.evidence.analyses for b in a.batches.values())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_day_with_an_outage_and_the_same_day_with_doubled_parts(scenario, tmp_path):
    pace = RehearsalPace(240.0, start_seconds=15.0, patience=180.0)
    (tmp_path / "one").mkdir()
    single = run_day(scenario, tmp_path / "one", pace)
    assert judged(single) == ()
    assert sum(c.caught_up for c in single.evidence.cycles.values()) >= 2
    doubled = replace(scenario, schedulers=2, model_workers=2, kills=(3.0, 16.0), steps=60)
    (tmp_path / "two").mkdir()
    double = run_day(doubled, tmp_path / "two", pace)
    assert judged(double) == ()
    assert len(double.evidence.kills) == 2
    assert sum(t.attempts > 1 for t in double.timings) >= 1
    one, two = case_of(single), case_of(double)
    assert same_day(one, two) == ()
    compared = sum(alike(one, two, a) for a in single.evidence.analyses)
    assert compared > 0.8 * len(single.evidence.analyses)
