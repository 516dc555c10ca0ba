"""Run a day on the real stack, and collect its evidence and the costs of its analyses.

Costs are real seconds: by phase, and from cut-off to publication.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch

from deploy.local import StackOptions
from lab.rehearsal import evidence as collect
from lab.rehearsal.content import DeliveryContent
from lab.rehearsal.driver import Driver, RehearsalPace, RehearsalStack, Report
from lab.rehearsal.evidence import Evidence
from lab.rehearsal.scenario import PlannedDelivery, Scenario, delivery_plan
from lab.rehearsal.sender import ReportSender
from lab.rehearsal.source import ReportSource
from model.domain.errors import AppaError
from worker.contract.clock import CLOCK_VARIABLE, Clock, clock_text
from worker.contract.layout import Layout
from worker.contract.store import Stores

__all__ = ["CycleTiming", "Day", "Medians", "medians", "phase_seconds", "run_day", "timings"]

PHASES = ("loading", "gathering", "background", "sampling", "writing", "publishing")


@dataclass(frozen=True)
class CycleTiming:
    """Durations from the cut-off of one published cycle to its publication.

    Attributes:
        key: Of the cycle.
        valid_time, flavour: Of the cycle.
        attempts: Starts of its job.
        behind: From cut-off to decision, by the operational clock; s.
        waited: From the job's creation to its last start; real s.
        phases: Real s by phase of the last attempt.
        cost: From its last start to publication; real s.
        fresh: From cut-off to publication; real s.
        queued: Of these, the wait for earlier cycles; real s.
    """

    key: str
    valid_time: datetime
    flavour: str
    attempts: int
    behind: float
    waited: float
    phases: dict[str, float]
    cost: float
    fresh: float
    queued: float = 0.0


def timings(stores: Stores, keys: Iterable[str], clock: Clock) -> list[CycleTiming]:
    """Return the timings of all published cycles, by key."""
    found = []
    for record in stores.cycles.load(keys):
        job = stores.jobs.find(record.job_id) if record.job_id else None
        if job is None or job.started is None or job.finished is None or record.published is None:
            continue
        cost = (job.finished - job.started).total_seconds()
        fresh = (record.published - record.cut_off).total_seconds() / clock.speed
        found.append(
            CycleTiming(
                key=record.key,
                valid_time=record.valid_time,
                flavour=record.flavour.value,
                attempts=job.attempts,
                behind=record.behind_seconds,
                waited=(job.started - job.created).total_seconds(),
                phases=phase_seconds(stores.jobs.events(job.id)),
                cost=cost,
                fresh=fresh,
                queued=fresh - cost - record.behind_seconds / clock.speed,
            )
        )
    return sorted(found, key=lambda t: t.key)


def phase_seconds(events: Sequence[tuple[str, str, Any]]) -> dict[str, float]:
    """Return seconds from the first event of each phase to that of the next, in the last attempt.

    The server stamps events with its own time in milliseconds.
    """
    first: dict[str, int] = {}
    for event, kind, data in events:
        name = str(data.get("phase") if kind == "progress" else data.get("state"))
        if name == "running":
            first.clear()
        first.setdefault(name, int(event.partition("-")[0]))
    names = list(first)
    return {
        a: (first[b] - first[a]) / 1000
        for a, b in zip(names, names[1:], strict=False)
        if a in PHASES
    }


@dataclass(frozen=True)
class Medians:
    """Medians over the warm cycles of a day that ran undisturbed, in real seconds."""

    count: int
    cost: float
    fresh: float
    longest_fresh: float
    unqueued: float
    phases: dict[str, float]


def medians(found: Iterable[CycleTiming], warm: Iterable[str]) -> Medians | None:
    """Return medians of cycles that started warm, at the first attempt, without delay; None if none.

    Arguments:
        found: From `timings`.
        warm: Keys of the cycles that continued an earlier analysis.
    """
    wanted = set(warm)
    runs = [t for t in found if t.key in wanted and t.attempts == 1 and t.behind < 3600.0]
    if not runs:
        return None
    return Medians(
        count=len(runs),
        cost=median(t.cost for t in runs),
        fresh=median(t.fresh for t in runs),
        longest_fresh=max(t.fresh for t in runs),
        unqueued=median(t.fresh - t.queued for t in runs),
        phases={name: median(t.phases.get(name, 0.0) for t in runs) for name in PHASES},
    )


ENVIRONMENT = {
    "APPA_SWEEP_SECONDS": "0.3",
    "APPA_RESEND_SECONDS": "4.0",
    "APPA_LEASE_SECONDS": "6.0",
    "APPA_REPORT_SECONDS": "1.0",
}
"""Intervals in real seconds; their usual values would be hours of a rehearsal."""


@dataclass(frozen=True)
class Day:
    """Results of a simulated day: what was planned, the evidence, and the timings of cycles.

    Attributes:
        scenario, plan, contents: What was planned.
        evidence: What was found.
        timings: Of all published cycles.
        clock: The operational clock it ran on.
        longest_lag: Longest wait of a due cycle after its cut-off, by the operational clock.
        seconds: Real time from the first process to the last analysis.
        data: The data folder, while it is kept.
    """

    scenario: Scenario
    plan: Sequence[PlannedDelivery]
    contents: Mapping[str, DeliveryContent]
    evidence: Evidence
    timings: Sequence[CycleTiming]
    clock: Clock
    longest_lag: timedelta
    seconds: float
    data: Path


def run_day(
    scenario: Scenario, folder: Path, pace: RehearsalPace, report: Report = lambda line: None
) -> Day:
    """Run the scenario in an empty folder.

    Raises:
        AppaError: If the stack does not start, or the day does not come to its end.
    """
    torch.set_num_threads(1)  # the cores belong to the workers
    source = ReportSource(scenario)
    plan = delivery_plan(scenario)
    contents = source.contents(plan)
    stations = folder / "stations.csv"
    stations.write_text(source.station_list())
    report(f"{len(plan)} files, {sum(len(c.seconds) for c in contents.values())} values")
    began = time.monotonic()
    for attempt in range(3):
        data = folder / f"data-{attempt}"
        start = pace.start_seconds * 2**attempt
        clock = Clock(scenario.start, time.time() + start, pace.speed)
        with RehearsalStack(_options(scenario, data, clock, stations)) as stack:
            took = stack.start(10.0 * start)
            if time.time() > clock.anchor:
                report(f"the start took {took:.0f} s, longer than planned: once more")
                continue
            outage = scenario.outage
            sender = ReportSender(stack.url, plan, contents, clock, outage)
            driver = Driver(scenario, pace, clock, stack, sender, report)
            sender.start()
            try:
                driver.follow()
            finally:
                sender.stop()
            seconds = time.monotonic() - began
            return _collect(driver, source, plan, contents, Layout(data), seconds)
    raise AppaError(f"Expected the stack to start within {start:.0f} s; it took {took:.0f} s.")


def _options(scenario: Scenario, data: Path, clock: Clock, stations: Path) -> StackOptions:
    scenario.configure(Layout(data).create())
    text = clock_text(clock.epoch, clock.anchor, clock.speed)
    return StackOptions(
        data=data,
        port=0,
        models=(scenario.checkpoint,),
        quiet=True,
        copies={"scheduler": scenario.schedulers, "model": scenario.model_workers},
        environment={**ENVIRONMENT, CLOCK_VARIABLE: text, "APPA_STATIONS": str(stations.resolve())},
        buckets=False,
    )


def _collect(
    driver: Driver,
    source: ReportSource,
    plan: Sequence[PlannedDelivery],
    contents: Mapping[str, DeliveryContent],
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
        ingested=collect.ingested(stores, uploads, driver.clock),
        outage=driver.outage,
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
        layout.root,
    )
