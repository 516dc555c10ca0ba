"""Audit a day: compare every cycle with what it should have been, from plan and evidence alone.

The observations that each analysis should have used follow from the plan and the senders' log.
Checks of cycles: complete, in order, on time, continued from the right background. Checks of
observations: all that arrived in time are used, once, and no others.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from lab.rehearsal.content import DeliveryContent
from lab.rehearsal.evidence import AnalysisEvidence, DeliveryRecord, Evidence
from lab.rehearsal.scenario import PlannedDelivery, Scenario
from model.domain.windows import HOUR
from worker.contract.cycles import FIRST_REVISION, CycleState, Flavour, cycle_key

__all__ = [
    "CHECKS",
    "Case",
    "Expectation",
    "AuditFinding",
    "Findings",
    "alike",
    "audit",
    "backgrounds",
    "catching_up",
    "complete",
    "counts",
    "deadlines",
    "duplicates",
    "expectation",
    "observations",
    "patience",
    "revisions",
    "same_day",
    "silence",
    "late_cut_offs",
    "storage",
]

HALF_AN_HOUR = timedelta(minutes=30)


@dataclass
class Expectation:
    """Expected inputs of one analysis: numbers of values in its window, by upload.

    Attributes:
        start, end: The window (start, end].
        cut_off: Last arrival.
        expected: Uploads that had arrived by the cut-off.
        possible: Uploads that were arriving at the cut-off.
        copies: Uploads that repeat another, whose values may not be used again.
    """

    start: datetime
    end: datetime
    cut_off: datetime
    expected: dict[str, int] = field(default_factory=dict)
    possible: dict[str, int] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)

    @property
    def empty(self) -> bool:
        """Whether there are certainly no observations to use."""
        return not any(self.expected.values()) and not any(self.possible.values())


def expectation(
    scenario: Scenario,
    valid_time: datetime,
    flavour: str,
    plan: Sequence[PlannedDelivery],
    contents: Mapping[str, DeliveryContent],
    sendings: Sequence[DeliveryRecord],
) -> Expectation:
    """Return the expected inputs of an analysis."""
    start = valid_time - scenario.window_hours * HOUR + HALF_AN_HOUR
    wanted = Expectation(start, valid_time, scenario.cut_off(valid_time, flavour))
    deliveries = {d.name: d for d in plan}
    arrived: set[str] = set()
    # The same bytes twice are one upload, there since the first time.
    for sending in sorted(sendings, key=lambda s: s.acknowledged):
        if sending.batch_id in arrived:
            continue
        arrived.add(sending.batch_id)
        delivery = deliveries[sending.name]
        values = contents[sending.name].within(start, valid_time)
        if not values or sending.tried > wanted.cut_off:
            continue
        if sending.acknowledged <= wanted.cut_off:
            wanted.expected[sending.batch_id] = values
        else:
            wanted.possible[sending.batch_id] = values
        if delivery.copy_of:
            wanted.copies.add(sending.batch_id)
    return wanted


def late_cut_offs(
    scenario: Scenario, plan: Sequence[PlannedDelivery], sendings: Sequence[DeliveryRecord]
) -> tuple[str, ...]:
    """Return deliveries that arrived on the other side of a cut-off of their hour than planned.

    Those planned for the outage are meant to be late and are not counted.
    """
    deliveries = {d.name: d for d in plan}
    found = []
    for sending in sendings:
        delivery = deliveries[sending.name]
        if scenario.outage is not None and delivery.arrival in scenario.outage:
            continue
        for flavour in ("early", "final"):
            cut_off = scenario.cut_off(delivery.hour, flavour)
            if (delivery.arrival <= cut_off) != (sending.acknowledged <= cut_off):
                found.append(sending.name)
                break
    return tuple(found)


@dataclass(frozen=True)
class AuditFinding:
    """A deviation from the expected outcome."""

    check: str
    cycle: str
    message: str


@dataclass(frozen=True)
class Case:
    """Plan and evidence of a rehearsal, as the checks read them."""

    scenario: Scenario
    plan: Sequence[PlannedDelivery]
    contents: Mapping[str, DeliveryContent]
    evidence: Evidence

    def expected(self, analysis: AnalysisEvidence) -> Expectation:
        """Return the expected inputs of this analysis."""
        return expectation(
            self.scenario,
            analysis.valid_time,
            analysis.flavour,
            self.plan,
            self.contents,
            self.evidence.sendings,
        )

    def files_in_time(self, analysis: AnalysisEvidence) -> frozenset[str] | None:
        """Return the names of the files to be used; None if one was arriving at the cut-off."""
        wanted = self.expected(analysis)
        names = {s.batch_id: s.name for s in reversed(self.evidence.sendings)}
        return None if wanted.possible else frozenset(names[batch] for batch in wanted.expected)


Findings = Iterator[tuple[str, str]]
"""(cycle, message)"""


_HICCUP = 20.0
"""Real seconds by which a busy machine may delay a scheduler: more than an hour on a fast clock."""


def complete(case: Case) -> Findings:
    """Check that each cycle has one early and one final analysis, and that there are no others."""
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


def revisions(case: Case) -> Findings:
    """Check that early analyses are revision 1, final ones 2, and that early ones came first."""
    for analysis in case.evidence.analyses:
        right = FIRST_REVISION[Flavour(analysis.flavour)]
        if analysis.revision != right:
            yield analysis.key, f"expected revision {right}; got {analysis.revision}"
    for time in case.scenario.cycles:
        early, final = (case.evidence.cycles.get(cycle_key(time, f)) for f in Flavour)
        if early and final and early.decided and final.decided and early.decided > final.decided:
            yield final.key, "was decided before the early analysis"


def deadlines(case: Case) -> Findings:
    """Check that cut-off and window are those of the policy."""
    for analysis in case.evidence.analyses:
        wanted = case.expected(analysis)
        for name, got, right in (
            ("cut-off", analysis.cut_off, wanted.cut_off),
            ("start of the window", analysis.window_start, wanted.start),
            ("end of the window", analysis.window_end, wanted.end),
        ):
            if got != right:
                yield analysis.key, f"expected the {name} {right}; got {got}"


def patience(case: Case) -> Findings:
    """Check that cycles were decided after their cut-off and the ingest of all uploads in time."""
    for time in case.scenario.cycles:
        for flavour in Flavour:
            record = case.evidence.cycles.get(cycle_key(time, flavour))
            if record is None or record.decided is None:
                continue
            cut_off = case.scenario.cut_off(time, flavour)
            if record.decided < cut_off:
                yield record.key, "was decided before its cut-off"
            if record.decided < _last_ingested(case, cut_off):
                yield record.key, "was decided while uploads in time were still being taken in"


def _last_ingested(case: Case, cut_off: datetime) -> datetime:
    """Return when the last upload that had arrived by the cut-off was ingested."""
    ends = [
        case.evidence.ingested[s.batch_id]
        for s in case.evidence.sendings
        if s.acknowledged <= cut_off and s.batch_id in case.evidence.ingested
    ]
    return max(ends, default=cut_off)


def catching_up(case: Case) -> Findings:
    """Check that the cycles that fell due while nothing ran, and no others, were caught up."""
    stop = case.evidence.outage
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
    """Return whether nothing ran at the cut-off, or ingest was slow."""
    stop = case.evidence.outage
    if stop is not None and stop.killed - HOUR <= cut_off < stop.ready:
        return True
    return _last_ingested(case, cut_off) > cut_off + HOUR / 2


def backgrounds(case: Case) -> Findings:
    """Check that each analysis names its background, and continues an earlier one if possible."""
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


def storage(case: Case) -> Findings:
    """Check that every file was sent, and is in the store with all its values."""
    sent = {s.name: s.batch_id for s in case.evidence.sendings}
    for delivery in case.plan:
        content = case.contents[delivery.name]
        if not content.data:
            continue
        batch = sent.get(delivery.name)
        if batch is None:
            yield delivery.name, "was not sent"
        elif case.evidence.stored.get(batch) != len(content.seconds):
            yield (
                delivery.name,
                f"expected {len(content.seconds)} values in the store; got "
                f"{case.evidence.stored.get(batch)}",
            )


def observations(case: Case) -> Findings:
    """Check that all values that had arrived by the cut-off entered, and no others."""
    names = {s.batch_id: s.name for s in reversed(case.evidence.sendings)}
    for analysis in case.evidence.analyses:
        wanted = case.expected(analysis)
        for batch, values in wanted.expected.items():
            use = analysis.batches.get(batch)
            if use is None:
                yield analysis.key, f"{names[batch]} is missing: {values} values in time"
            elif use.rows != values or use.late:
                yield (
                    analysis.key,
                    f"{names[batch]}: expected {values} values, none late; got {use.rows}, of "
                    f"which {use.late} late",
                )
            elif not use.entered and batch not in wanted.copies:
                yield analysis.key, f"{names[batch]}: none of {values} values entered"
        for batch, use in analysis.batches.items():
            known = batch in wanted.expected or batch in wanted.possible
            if not known and use.entered:
                name = names.get(batch, f"the unknown upload {batch}")
                yield analysis.key, f"{name} came after the cut-off; {use.entered} values entered"


def counts(case: Case) -> Findings:
    """Check that the manifest counts as many values in use as the feedback holds."""
    for analysis in case.evidence.analyses:
        if analysis.counted != analysis.used:
            yield (
                analysis.key,
                f"the manifest counts {analysis.counted} values in use, the feedback holds "
                f"{analysis.used}",
            )


def duplicates(case: Case) -> Findings:
    """Check that what was sent twice was used once, and that the same bytes are one upload."""
    sent = {s.name: s.batch_id for s in case.evidence.sendings}
    for delivery in case.plan:
        same = sent.get(delivery.name) == sent.get(delivery.copy_of)
        if delivery.copy_of and same is not delivery.same_bytes:
            yield delivery.name, f"expected {'the' if delivery.same_bytes else 'another'} upload"
    for analysis in case.evidence.analyses:
        wanted = case.expected(analysis)
        if analysis.repeated:
            yield analysis.key, f"{analysis.repeated} values are used more than once"
        for batch in wanted.copies & set(wanted.expected):
            use = analysis.batches.get(batch)
            if use and (use.entered or not use.duplicates):
                yield (
                    analysis.key,
                    f"a repeated file: expected its {use.rows} values to be duplicates; "
                    f"{use.duplicates} are, {use.entered} entered",
                )


def silence(case: Case) -> Findings:
    """Check that analyses without observations, and no others, are flagged as such."""
    for analysis in case.evidence.analyses:
        wanted, said = case.expected(analysis), "zero_observations" in analysis.flags
        if wanted.empty and not said:
            yield analysis.key, "expected the flag zero_observations"
        if said and (analysis.used or any(wanted.expected.values())):
            yield (
                analysis.key,
                f"says zero_observations; {sum(wanted.expected.values())} values were in time, "
                f"{analysis.used} were used",
            )


CHECKS: dict[str, Callable[[Case], Findings]] = {
    "complete": complete,
    "revisions": revisions,
    "deadlines": deadlines,
    "storage": storage,
    "observations": observations,
    "counts": counts,
    "duplicates": duplicates,
    "silence": silence,
    "patience": patience,
    "catching up": catching_up,
    "backgrounds": backgrounds,
}
"""By name, in the order of the report."""


def audit(case: Case) -> tuple[AuditFinding, ...]:
    """Return all findings; none means that the day passed."""
    return tuple(
        AuditFinding(name, cycle, message)
        for name, check in CHECKS.items()
        for cycle, message in check(case)
    )


def same_day(one: Case, other: Case) -> tuple[AuditFinding, ...]:
    """Return what was published in one run of a day and not in the other.

    Compared are valid time, flavour and revision, and the observations of each analysis for which
    the senders got the same files in by its cut-off in both runs.
    """
    found = []
    for which, here, there in (("first run", one, other), ("second run", other, one)):
        known = {(a.valid_time, a.flavour, a.revision): a for a in there.evidence.analyses}
        for analysis in here.evidence.analyses:
            twin = known.get((analysis.valid_time, analysis.flavour, analysis.revision))
            if twin is None:
                message = f"revision {analysis.revision} is in the {which} only"
                found.append(AuditFinding("same day", analysis.key, message))
            elif analysis.digest != twin.digest and alike(here, there, analysis):
                message = f"made of {analysis.digest[:12]} in the {which}, not in the other"
                found.append(AuditFinding("same day", analysis.key, message))
    return tuple(found)


def alike(one: Case, other: Case, analysis: AnalysisEvidence) -> bool:
    """Return whether the same files arrived by the cut-off of an analysis in both runs."""
    here, there = (case.files_in_time(analysis) for case in (one, other))
    return here is not None and here == there
