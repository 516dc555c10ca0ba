"""Tables, JSON and picture of a day say what the evidence holds."""

import io
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image
from planted import SCENARIO, make_case
from rich.console import Console

from lab.rehearsal.day import CycleTiming, Day
from lab.rehearsal.verdict import (
    cost_table,
    cycle_table,
    draw_day,
    findings_table,
    judge,
    summary_table,
    verdict_json,
)
from worker.contract.clock import Clock


@pytest.fixture(scope="module")
def day() -> Day:
    case = make_case()
    scenario = replace(SCENARIO, settle_hours=3)
    analyses = tuple(
        replace(
            a,
            flags=a.flags if "cold_start" in a.flags else (*a.flags, "warm_start"),
            error=0.5 if "cold_start" in a.flags else 0.31 + 0.01 * (-1) ** a.valid_time.hour,
        )
        for a in case.evidence.analyses
    )
    evidence = replace(
        case.evidence, analyses=analyses, climatology=dict.fromkeys(scenario.cycles, 0.55)
    )
    timings = [
        CycleTiming(a.key, a.valid_time, a.flavour, 1, 30.0, 0.1, {"sampling": i + 1.0}, i + 2.0, i)
        for i, a in enumerate(analyses)
    ]
    clock = Clock(scenario.start, 1.7e9, 60.0)
    lag = timedelta(minutes=12)
    return Day(
        scenario, case.plan, case.contents, evidence, timings, clock, lag, 900.0, Path("data")
    )


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_a_line_for_each_hour_with_its_remarks(day):
    text = shown(cycle_table(day))
    assert text.count("UTC") == SCENARIO.hours
    assert "nobody observed" in text and "two files came twice" in text and "caught up" in text
    # 0.31 ± 0.01 and the cold start
    assert "0.500" in text and "0.320" in text and "0.300" in text


def test_the_summary_counts_and_the_verdict_is_sound(day):
    verdict = judge(day)
    assert verdict.sound and verdict.skill.cold == 0.5
    text = shown(summary_table(day, verdict))
    assert "10 and 10 of 10" in text and "no rise" in text and "15.0 min" in text
    assert "Findings" in shown(findings_table(verdict))


def test_the_cost_is_the_median_of_warm_cycles(day):
    # analyses 2 to 19 are warm, analysis i costs i + 2 seconds
    verdict = judge(day)
    assert verdict.timing.count == 18
    assert verdict.timing.cost == 12.5
    assert verdict.timing.phases["sampling"] == 11.5
    assert "12.5" in shown(cost_table(day, verdict))


def test_json_holds_every_cycle(day):
    told = json.loads(json.dumps(verdict_json(day, judge(day)), default=str))
    assert told["sound"] is True and len(told["cycles"]) == 20
    assert told["skill"]["final"]["rises"] is False


def test_a_fault_is_told(day):
    analyses = day.evidence.analyses[1:]
    faulty = replace(day, evidence=replace(day.evidence, analyses=analyses))
    verdict = judge(faulty)
    assert not verdict.sound
    assert "expected one analysis" in shown(findings_table(verdict))
    assert f"{SCENARIO.start:%Y%m%dT%H}Z_early" in shown(findings_table(verdict))


def test_a_picture_is_drawn(day, tmp_path):
    with Image.open(draw_day(day, judge(day), tmp_path / "day.png")) as picture:
        title = picture.info["Title"]
    first, last = (f"{t:%Y-%m-%d %H}" for t in (SCENARIO.start, day.scenario.cycles[-1]))
    assert f"{first} to {last} UTC · appa-t31 · simulated atmosphere" in title
