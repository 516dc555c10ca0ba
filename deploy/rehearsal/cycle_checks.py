"""Checks of the cycles themselves: all there, in order, when their time had come, going on from
each other."""

from collections import Counter
from datetime import datetime

from deploy.rehearsal.case import Case, Told
from deploy.rehearsal.scenario import HOUR
from worker.jobs.cycle import FIRST_REVISION, CycleState, Flavour, cycle_key

__all__ = ["backgrounds", "catching_up", "complete", "deadlines", "patience", "revisions"]

_HICCUP = 20.0
"""Real s that a busy machine may let a scheduler wait: more than an hour on a fast clock."""


def complete(case: Case) -> Told:
    """Each cycle has one early and one final analysis, and nothing else was published."""
    wanted = {(t, f.value) for t in case.scenario.cycles for f in Flavour}
    counts = Counter((a.valid_time, a.flavour) for a in case.evidence.analyses)
    for time, flavour in sorted(wanted | set(counts)):
        count = counts[time, flavour]
        if (time, flavour) not in wanted:
            yield f"{time:%Y%m%dT%H}Z_{flavour}", "was published but is no cycle of this day"
        elif count != 1:
            yield cycle_key(time, flavour), f"expected one analysis; got {count}"
    for time, flavour in sorted(wanted):
        record = case.evidence.cycles.get(cycle_key(time, flavour))
        state = record.state if record else "unknown"
        if state != CycleState.PUBLISHED:
            yield cycle_key(time, flavour), f"expected the cycle to be published; it is {state}"


def revisions(case: Case) -> Told:
    """Early analyses are revision 1, final ones 2; the early one was decided first."""
    for analysis in case.evidence.analyses:
        right = FIRST_REVISION[Flavour(analysis.flavour)]
        if analysis.revision != right:
            yield analysis.key, f"expected revision {right}; got {analysis.revision}"
    for time in case.scenario.cycles:
        early, final = (case.evidence.cycles.get(cycle_key(time, f)) for f in Flavour)
        if early and final and early.decided and final.decided and early.decided > final.decided:
            yield final.key, "was decided before the early analysis"


def deadlines(case: Case) -> Told:
    """Cut-off and window are those of the policy."""
    for analysis in case.evidence.analyses:
        wanted = case.expected(analysis)
        for name, got, right in (
            ("cut-off", analysis.cut_off, wanted.cut_off),
            ("start of the window", analysis.window_start, wanted.start),
            ("end of the window", analysis.window_end, wanted.end),
        ):
            if got != right:
                yield analysis.key, f"expected the {name} {right}; got {got}"


def patience(case: Case) -> Told:
    """A cycle is decided once its cut-off has passed and all uploads that came in time are in."""
    for time in case.scenario.cycles:
        for flavour in Flavour:
            record = case.evidence.cycles.get(cycle_key(time, flavour))
            if record is None or record.decided is None:
                continue
            cut_off = case.scenario.cut_off(time, flavour)
            if record.decided < cut_off:
                yield record.key, "was decided before its cut-off"
            if record.decided < _last_taken_in(case, cut_off):
                yield record.key, "was decided while uploads in time were still being taken in"


def _last_taken_in(case: Case, cut_off: datetime) -> datetime:
    """When the last upload that was there by the cut-off was in the store."""
    ends = [
        case.evidence.taken_in[s.batch_id]
        for s in case.evidence.sendings
        if s.acknowledged <= cut_off and s.batch_id in case.evidence.taken_in
    ]
    return max(ends, default=cut_off)


def catching_up(case: Case) -> Told:
    """Cycles whose turn came while nothing ran are made afterwards and say so; no others do."""
    stop = case.evidence.standstill
    for time in case.scenario.cycles:
        for flavour in Flavour:
            record = case.evidence.cycles.get(cycle_key(time, flavour))
            if record is None or record.decided is None:
                continue
            cut_off = case.scenario.cut_off(time, flavour)
            behind = (record.decided - cut_off).total_seconds()
            if stop is not None and stop.killed <= cut_off and record.decided < stop.restarted:
                yield record.key, "was decided while nothing ran"
            if abs(behind - record.behind_seconds) > 1.0:
                yield (
                    record.key,
                    f"expected to be {behind:.0f} s behind; says {record.behind_seconds:.0f} s",
                )
            if record.caught_up != (record.decided >= cut_off + HOUR):
                yield record.key, f"{behind:.0f} s behind, but caught up is {record.caught_up}"
            slow = behind / case.evidence.speed > _HICCUP
            if record.caught_up and slow and not _had_reason(case, cut_off):
                yield record.key, "was caught up, but nothing held it up"
    for analysis in case.evidence.analyses:
        record = case.evidence.cycles.get(analysis.key)
        if record and analysis.cycle.get("caught_up") is not record.caught_up:
            yield analysis.key, "manifest and record differ about having been caught up"


def _had_reason(case: Case, cut_off: datetime) -> bool:
    """Whether nothing ran at the cut-off, or the uploads took their time."""
    stop = case.evidence.standstill
    if stop is not None and stop.killed - HOUR <= cut_off < stop.ready:
        return True
    return _last_taken_in(case, cut_off) > cut_off + HOUR / 2


def backgrounds(case: Case) -> Told:
    """Each analysis says what it started from; where it can, it goes on from an earlier one."""
    published = {a.analysis_id: a for a in case.evidence.analyses}
    first = case.scenario.cycles[0]
    for analysis in case.evidence.analyses:
        source = analysis.background.get("source")
        if source not in ("previous_analysis", "climatology"):
            yield analysis.key, f"expected the source of its background; got {source!r}"
        elif source == "climatology":
            if "cold_start" not in analysis.flags:
                yield analysis.key, "started from climatology without the flag cold_start"
            if case.scenario.warm_start and analysis.valid_time > first:
                yield analysis.key, "started cold although there were earlier analyses"
        else:
            earlier = published.get(str(analysis.background.get("analysis_id")))
            if earlier is None or earlier.valid_time >= analysis.valid_time:
                yield analysis.key, "continues no earlier analysis of this day"
