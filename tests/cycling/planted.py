"""A day of evidence as a sound system would leave it, made without the code that is tested: faults
are planted into it.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from lab.rehearsal.audit import Case
from lab.rehearsal.content import DeliveryContent
from lab.rehearsal.evidence import (
    AnalysisEvidence,
    BatchUse,
    CycleEvidence,
    DeliveryRecord,
    Evidence,
    OutageRecord,
)
from lab.rehearsal.scenario import DAY_NETWORK, Scenario, delivery_plan

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
SCENARIO = Scenario(hours=10, window_hours=1, silent_hour=7, copied_hour=4, outage_hours=(5.4, 7.4))


def make_case(scenario: Scenario = SCENARIO) -> Case:
    """A day without a fault."""
    plan = delivery_plan(scenario)
    contents = {d.name: _content(d) for d in plan}
    sendings = tuple(_sending(scenario, d) for d in plan)
    analyses, cycles = [], {}
    for number in range(scenario.hours):
        time = scenario.start + number * HOUR
        for flavour, minutes, revision in (("early", 55, 1), ("final", 175, 2)):
            cut_off = time + minutes * MINUTE
            key = f"{time:%Y%m%dT%H}Z_{flavour}"
            late = _late(scenario, cut_off)
            analyses.append(
                _analysis(plan, contents, sendings, time, flavour, cut_off, revision, late)
            )
            cycles[key] = CycleEvidence(
                key, "published", f"an-{key}", late >= HOUR, late.total_seconds(), cut_off + late
            )
    first, last = scenario.outage_hours
    restart = scenario.start + last * HOUR
    stop = OutageRecord(scenario.start + first * HOUR, restart - 5 * MINUTE, restart)
    stored = {s.batch_id: len(contents[s.name].seconds) for s in sendings}
    ingested = {s.batch_id: s.acknowledged + 5 * SECOND for s in sendings}
    evidence = Evidence(tuple(analyses), cycles, sendings, stored, ingested, stop)
    return Case(scenario, plan, contents, evidence)


def _late(scenario: Scenario, cut_off: datetime) -> timedelta:
    first, last = (scenario.start + h * HOUR for h in scenario.outage_hours)
    return last - cut_off if first <= cut_off < last else timedelta(seconds=30)


def _content(delivery) -> DeliveryContent:
    """Values every five minutes of the delivery's hour, one more for each part."""
    end = int(delivery.hour.timestamp())
    return DeliveryContent(b"x", np.arange(end - 3300, end + 1, 300 - 20 * delivery.part))


def _sending(scenario: Scenario, delivery) -> DeliveryRecord:
    first, last = (scenario.start + h * HOUR for h in scenario.outage_hours)
    at = last + MINUTE if first <= delivery.arrival < last else delivery.arrival
    name = delivery.copy_of if delivery.same_bytes else delivery.name
    return DeliveryRecord(delivery.name, f"batch-{name}", at, at + 20 * SECOND)


def _analysis(plan, contents, sendings, time, flavour, cut_off, revision, late):
    batches, identity = {}, []
    for delivery, sending in zip(plan, sendings, strict=True):
        seconds = contents[delivery.name].seconds
        low, high = time.timestamp() - 1800, time.timestamp()
        rows = sum(low < s <= high for s in seconds)
        if rows and sending.acknowledged <= cut_off and sending.batch_id not in batches:
            copy = bool(delivery.copy_of) and not delivery.same_bytes
            batches[sending.batch_id] = (
                BatchUse(rows, 0, 0, 0, rows) if copy else BatchUse(rows, 0, rows, rows - 1, 0)
            )
            if not copy:
                identity.append(delivery.name)
    used = sum(b.used for b in batches.values())
    cold = time == SCENARIO.start
    return AnalysisEvidence(
        analysis_id=f"an-{time:%Y%m%dT%H}Z_{flavour}",
        valid_time=time,
        flavour=flavour,
        revision=revision,
        cut_off=cut_off,
        window_start=time - 30 * MINUTE,
        window_end=time,
        flags=(*(("cold_start",) if cold else ()), *(() if used else ("zero_observations",))),
        background=(
            {"source": "climatology"}
            if cold
            else {
                "source": "previous_analysis",
                "analysis_id": f"an-{time - HOUR:%Y%m%dT%H}Z_early",
            }
        ),
        cycle={"caught_up": late >= HOUR},
        counted=used,
        used=used,
        repeated=0,
        batches=batches,
        digest=hashlib.sha256("".join(sorted(identity)).encode()).hexdigest(),
    )


def with_analysis(case: Case, number: int, **changes) -> Case:
    """The case with one analysis changed."""
    analyses = list(case.evidence.analyses)
    analyses[number] = replace(analyses[number], **changes)
    return replace(case, evidence=replace(case.evidence, analyses=tuple(analyses)))


def with_cycle(case: Case, key: str, **changes) -> Case:
    """The case with one cycle's record changed."""
    cycles = dict(case.evidence.cycles)
    cycles[key] = replace(cycles[key], **changes)
    return replace(case, evidence=replace(case.evidence, cycles=cycles))


def outcomes(plan, scenario=SCENARIO) -> Counter:
    """How many deliveries come in time for the early analysis of their hour, the final one, none."""

    def outcome(d):
        minutes = (d.arrival - d.hour) / MINUTE
        return (
            "early"
            if minutes <= scenario.early
            else "final"
            if minutes <= scenario.final
            else "none"
        )

    return Counter(outcome(d) for d in plan)


__all__ = [
    "DAY_NETWORK",
    "HOUR",
    "MINUTE",
    "SCENARIO",
    "make_case",
    "outcomes",
    "with_analysis",
    "with_cycle",
]
