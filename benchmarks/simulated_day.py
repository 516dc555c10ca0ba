"""A simulated day of hourly cycles on the real stack: drift, cost of a warm cycle, freshness.

    python -m benchmarks.simulated_day [--model appa-t31] [--hours 24] [--members 4]
                                       [--job-seconds 22] [--window 24] [--cold] [--doubled]
                                       [--picture FILE] [--json]

Runs what `appa rehearse` runs (real BUFR over HTTP, early, late and twice, an outage of everything)
and prints

* `cost of an hourly warm cycle`: real seconds from the start of its job to the published analysis,
  by phase; the median over cycles that started warm and were not disturbed,
* `freshness`: real seconds from the cut-off to the published analysis,
* the errors of the day against the truth, their trend, and the audit's findings.

With `--job-seconds` the clock is set to what an analysis costs on this machine. Too fast a clock
delays analyses (and spoils the freshness), but changes none of them.
"""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console

from lab.rehearsal.day import run_day
from lab.rehearsal.driver import RehearsalPace
from lab.rehearsal.scenario import day_scenario
from lab.rehearsal.source import first_cycle, world_of
from lab.rehearsal.verdict import (
    cost_table,
    cycle_table,
    draw_day,
    findings_table,
    judge,
    summary_table,
    verdict_json,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="appa-t31", help="checkpoint, by name or folder")
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--window", type=int, default=24, help="hours of observations")
    parser.add_argument("--job-seconds", type=float, default=22.0)
    parser.add_argument("--cold", action="store_true", help="start no analysis warm")
    parser.add_argument("--doubled", action="store_true", help="two schedulers, two model workers")
    parser.add_argument("--picture", type=Path, help="write a PNG there")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    world = world_of(arguments.model, None)
    scenario = day_scenario(
        arguments.hours,
        start=first_cycle(world, None),
        checkpoint=arguments.model,
        world=world,
        members=arguments.members,
        window_hours=arguments.window,
        warm_start=not arguments.cold,
        doubled=arguments.doubled,
    )
    console = Console(stderr=arguments.json, highlight=False, width=130)
    with tempfile.TemporaryDirectory() as folder:
        pace = RehearsalPace(scenario.speed_for(arguments.job_seconds), start_seconds=30.0)
        day = run_day(scenario, Path(folder), pace, console.print)
    verdict = judge(day)
    if arguments.picture:
        draw_day(day, verdict, arguments.picture)
    if arguments.json:
        print(json.dumps(verdict_json(day, verdict), default=str))
        return
    tables = cycle_table(day), summary_table(day, verdict), cost_table(day, verdict)
    for table in (*tables, findings_table(verdict)):
        if table is not None:
            console.print(table)


if __name__ == "__main__":
    main()
