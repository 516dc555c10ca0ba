"""A day on the real stack, from its plan to its evidence."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from deploy.local import StackOptions
from deploy.rehearsal import collect
from deploy.rehearsal.content import Content, ReportSource
from deploy.rehearsal.delivery import Delivery, delivery_plan
from deploy.rehearsal.driver import Driver, Pace, Tell
from deploy.rehearsal.evidence import Evidence
from deploy.rehearsal.scenario import Scenario
from deploy.rehearsal.sender import Sender
from deploy.rehearsal.stack import RehearsalStack
from deploy.rehearsal.timing import CycleTiming, timings
from model.domain.errors import AppaError
from worker.jobs.clock import CLOCK_VARIABLE, Clock, clock_text
from worker.jobs.layout import Layout

__all__ = ["Day", "run_day"]

ENVIRONMENT = {
    "APPA_SWEEP_SECONDS": "0.3",
    "APPA_RESEND_SECONDS": "4.0",
    "APPA_LEASE_SECONDS": "6.0",
    "APPA_REPORT_SECONDS": "1.0",
}
"""Real seconds that would be hours of a rehearsal at their usual values."""


@dataclass(frozen=True)
class Day:
    """What came of a day.

    Attributes:
        scenario, plan, contents: What was meant.
        evidence: What was found.
        timings: Of all published cycles.
        clock: The operational clock it ran on.
        longest_lag: Most that a due cycle waited beyond its cut-off, by the operational clock.
        seconds: Real time from the first process to the last analysis.
    """

    scenario: Scenario
    plan: Sequence[Delivery]
    contents: Mapping[str, Content]
    evidence: Evidence
    timings: Sequence[CycleTiming]
    clock: Clock
    longest_lag: timedelta
    seconds: float


def run_day(scenario: Scenario, folder: Path, pace: Pace, tell: Tell = lambda line: None) -> Day:
    """Runs the scenario in an empty folder.

    Raises:
        AppaError: If the stack does not start, or the day does not come to its end.
    """
    torch.set_num_threads(1)  # the cores belong to the workers
    source = ReportSource(scenario)
    plan = delivery_plan(scenario)
    contents = source.contents(plan)
    tell(f"{len(plan)} files, {sum(len(c.seconds) for c in contents.values())} values")
    began = time.monotonic()
    for attempt in range(3):
        data = folder / f"data-{attempt}"
        start = pace.start_seconds * 2**attempt
        clock = Clock(scenario.start, time.time() + start, pace.speed)
        with RehearsalStack(_options(scenario, data, clock)) as stack:
            took = stack.start(10.0 * start)
            if time.time() > clock.anchor:
                tell(f"the start took {took:.0f} s, longer than planned: once more")
                continue
            outage = scenario.outage
            sender = Sender(stack.url, plan, contents, clock, outage)
            driver = Driver(scenario, pace, clock, stack, sender, tell)
            sender.start()
            try:
                driver.follow()
            finally:
                sender.stop()
            seconds = time.monotonic() - began
            return _collect(driver, source, plan, contents, Layout(data), seconds)
    raise AppaError(f"Expected the stack to start within {start:.0f} s; it took {took:.0f} s.")


def _options(scenario: Scenario, data: Path, clock: Clock) -> StackOptions:
    scenario.configure(Layout(data).create())
    text = clock_text(clock.epoch, clock.anchor, clock.speed)
    return StackOptions(
        data=data,
        port=0,
        models=(scenario.checkpoint,),
        quiet=True,
        copies={"scheduler": scenario.schedulers, "model": scenario.model_workers},
        environment={**ENVIRONMENT, CLOCK_VARIABLE: text},
    )


def _collect(
    driver: Driver,
    source: ReportSource,
    plan: Sequence[Delivery],
    contents: Mapping[str, Content],
    layout: Layout,
    seconds: float,
) -> Day:
    scenario, stores = driver.scenario, driver.stack.stores
    sendings = tuple(driver.sender.sendings)
    uploads = {s.batch_id for s in sendings}
    evidence = Evidence(
        analyses=collect.analyses(layout, collect.error_of(scenario, source.world)),
        cycles=collect.cycles(stores, driver.keys),
        sendings=sendings,
        stored=collect.stored(stores, uploads),
        taken_in=collect.taken_in(stores, uploads, driver.clock),
        standstill=driver.standstill,
        climatology=collect.climatology(scenario, source.world),
        speed=driver.clock.speed,
        kills=tuple(driver.kills),
    )
    return Day(
        scenario,
        plan,
        contents,
        evidence,
        timings(stores, driver.keys, driver.clock),
        driver.clock,
        driver.longest_lag,
        seconds,
    )
