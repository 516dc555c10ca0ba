"""The delivery plan: seeded, with every kind of lateness in it, and never at a cut-off."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from planted import HOUR, MINUTE, outcomes

from lab.rehearsal.scenario import DELAYS, QUICK_NETWORK, Scenario, delay_minutes, delivery_plan

DAY = Scenario()


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    assert delivery_plan(DAY) == delivery_plan(DAY)
    assert delivery_plan(DAY) != delivery_plan(replace(DAY, seed=1))


def test_a_longer_day_begins_as_a_shorter_one():
    short = {d.name: d for d in delivery_plan(replace(DAY, hours=5))}
    long = {d.name: d for d in delivery_plan(DAY)}
    assert {name: long[name] for name in short} == short


def test_files_an_hour():
    plan = [d for d in delivery_plan(DAY) if not d.copy_of]
    hours = DAY.hours - 1  # one is silent
    counts = Counter(d.network for d in plan)
    for network in ("synop", "ship", "aircraft", "satellite", "scatterometer"):
        assert counts[network] == DAY.parts[network] * hours
    # launches at 00 and 12 UTC, each in two files
    assert counts["temp"] == 2 * DAY.parts["temp"]
    assert not [d for d in plan if d.hour == DAY.start + 7 * HOUR]


@pytest.mark.parametrize("seed", range(5))
def test_some_files_miss_the_early_cut_off_and_some_the_final_one(seed):
    counts = outcomes(delivery_plan(replace(DAY, seed=seed)), DAY)
    assert counts["early"] > 100
    assert counts["final"] >= 5
    assert counts["none"] >= 3


@pytest.mark.parametrize(
    "scenario", [DAY, Scenario(hours=6, network=QUICK_NETWORK, guard_minutes=9)]
)
def test_no_file_arrives_close_to_a_cut_off(scenario):
    cut_offs = [
        time + minutes * MINUTE
        for time in (scenario.start + i * HOUR for i in range(-10, 40))
        for minutes in (55, 175)
    ]
    for delivery in delivery_plan(scenario):
        nearest = min(abs(delivery.arrival - c) for c in cut_offs)
        assert nearest >= scenario.guard_minutes * MINUTE, delivery


def test_copies_follow_their_originals():
    plan = {d.name: d for d in delivery_plan(DAY)}
    copies = [d for d in plan.values() if d.copy_of]
    assert sorted(d.same_bytes for d in copies) == [False, True]
    for copy in copies:
        assert copy.arrival > plan[copy.copy_of].arrival
        assert copy.hour == DAY.start + 4 * HOUR


def test_delays_are_those_of_their_networks():
    rng = np.random.default_rng(3)
    draws = {name: np.array([delay_minutes(name, rng) for _ in range(4000)]) for name in DELAYS}
    assert draws["temp"].min() >= 60 and draws["temp"].max() <= 100
    assert np.median(draws["synop"]) == pytest.approx(9.0, rel=0.05)
    assert draws["synop"].min() >= 3
    assert draws["satellite"].min() >= 30
    # one in twelve is drawn with a tail of 90 minutes beyond at most 120
    beyond = (draws["satellite"] > 120).mean()
    assert 0.03 < beyond < 1 / 12
