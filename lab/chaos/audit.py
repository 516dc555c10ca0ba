"""Audit a chaos exercise: compare what was accepted with what became of it."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from lab.chaos.content import Row
from lab.chaos.cycles import CycledResult, CycleFound
from lab.chaos.traffic import JobSent, Ledger, UploadSent
from worker.contract.batches import BatchState
from worker.contract.cycles import CycleState
from worker.contract.jobs import JobState

__all__ = ["BatchFound", "ChaosReport", "ChaosEvidence", "JobFound", "ChaosVerdict", "judge"]

TOLERANCE = 1
"""Units of the precision of a variable by which a value may differ from what was sent."""


@dataclass(frozen=True)
class BatchFound:
    """Record of an upload as the system returns it after the exercise.

    Attributes:
        state: A `BatchState`.
        sha256: Of its bytes.
        observations: Values stored, by its summary; None without one.
        problem: Its error, for people.
        created: When it arrived, by the operational clock (UTC).
    """

    state: str
    sha256: str
    observations: int | None = None
    problem: str = ""
    created: datetime | None = None


@dataclass(frozen=True)
class JobFound:
    """Record of a job as the system returns it: its `JobState`, result and error."""

    state: str
    analysis_id: str
    problem: str = ""


@dataclass(frozen=True)
class ChaosEvidence:
    """State of the system after an exercise, as far as the audit reads it.

    Attributes:
        batches: Uploads by id.
        jobs: Jobs by id.
        rows: Rows of the observation store by the upload that they name.
        analyses: The job of each published result, by the id of the result.
        damaged: Descriptions of incomplete results.
        leftovers: Descriptions of what is stuck or has grown without bound.
        undisturbed: Number of rows that damaged content gives without faults, by its hash.
        due: Keys of the cycles that fell due.
        cycles: Cycles by key.
        cycled: Inputs of the results of cycles.
        arrival_margin: Time before a cut-off by which an upload must have arrived to be missed in
            its cycle.
        redis_bytes, disk_bytes: Memory of Redis and size of the data folder.
    """

    batches: Mapping[str, BatchFound]
    jobs: Mapping[str, JobFound]
    rows: Mapping[str, Counter[Row]]
    analyses: Mapping[str, str]
    damaged: Collection[str] = ()
    leftovers: Collection[str] = ()
    undisturbed: Mapping[str, int] = field(default_factory=dict)
    due: Collection[str] = ()
    cycles: Mapping[str, CycleFound] = field(default_factory=dict)
    cycled: Collection[CycledResult] = ()
    arrival_margin: timedelta = timedelta(0)
    redis_bytes: int = 0
    disk_bytes: int = 0


@dataclass
class ChaosVerdict:
    """Result of the audit: counts of what ended correctly, and a sentence for all that did not.

    Attributes:
        accepted: Uploads and jobs that were accepted.
        ended: Of these, how many ended once and right.
        cycles: Cycles that fell due.
        cycles_published: Of these, how many ended with one whole analysis.
        cycles_excused: Of these, how many ended without one, for a reason that they state.
        lost: Uploads, jobs and cycles that are unknown, have not ended, or lack rows or a result.
        doubled: Contents, jobs and cycles that were processed more than once.
        wrongly_rejected: Valid uploads that were refused, rejected or failed; jobs and cycles that
            failed.
        findings: A sentence for each of these faults and for any other.
    """

    accepted: int = 0
    ended: int = 0
    cycles: int = 0
    cycles_published: int = 0
    cycles_excused: int = 0
    lost: int = 0
    doubled: int = 0
    wrongly_rejected: int = 0
    findings: list[str] = field(default_factory=list)

    def count(self, fault: str, finding: str) -> None:
        """Increment the counter of a fault, by the counter's name, and record the finding."""
        setattr(self, fault, getattr(self, fault) + 1)
        self.findings.append(f"{fault.replace('_', ' ')}: {finding}")


@dataclass(frozen=True)
class ChaosReport:
    """The report of an exercise, as printed in JSON.

    Attributes:
        accepted, ended: Uploads and jobs.
        uploads, jobs: Valid contents and jobs that were sent.
        mutated: Damaged contents that were uploaded or decoded in batches.
        http_5xx: Responses of that class, except 503 and 507 with a reason and `Retry-After`.
        redis_bytes, disk_bytes: Memory of Redis and size of the data folder at the end.
    """

    seed: int
    minutes: float
    accepted: int
    ended: int
    lost: int
    doubled: int
    wrongly_rejected: int
    kills: int
    full_disks: int
    broker_cuts: int
    mutated: int
    http_5xx: int
    uploads: int
    jobs: int
    cycles: int
    cycles_published: int
    cycles_excused: int
    redis_bytes: int
    disk_bytes: int
    findings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether no fault was found."""
        faults = (self.lost, self.doubled, self.wrongly_rejected, self.http_5xx)
        whole = self.ended == self.accepted
        whole &= self.cycles_published + self.cycles_excused == self.cycles
        return not any(faults) and not self.findings and whole

    def as_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {**asdict(self), "findings": list(self.findings)}


def judge(ledger: Ledger, evidence: ChaosEvidence) -> ChaosVerdict:
    """Return the verdict on everything that was sent."""
    verdict = ChaosVerdict()
    by_content: dict[str, list[str]] = defaultdict(list)
    for batch_id, batch in evidence.batches.items():
        by_content[batch.sha256].append(batch_id)
    for sent in ledger.uploads.values():  # damage may have made two of them the same
        _upload(sent, by_content.get(sent.content.sha256, []), evidence, verdict)
    known = {sent.content.sha256 for sent in ledger.uploads.values()}
    strange = (batches for digest, batches in by_content.items() if digest not in known)
    for batch_id in (batch_id for batches in strange for batch_id in batches):
        verdict.findings.append(f"batch {batch_id} is of a content that nobody sent")
    for job in ledger.jobs.values():
        _job(job, evidence, verdict)
    _cycles(ledger, evidence, verdict)
    _unordered_jobs(ledger, evidence, verdict)
    verdict.findings += [*_store(evidence), *_results(evidence), *evidence.leftovers]
    verdict.findings += [f"not whole: {told}" for told in (*ledger.damaged, *evidence.damaged)]
    return verdict


def _upload(
    sent: UploadSent, batches: list[str], evidence: ChaosEvidence, verdict: ChaosVerdict
) -> None:
    name = sent.content.name
    verdict.accepted += bool(sent.ids)
    if sent.refusal and not sent.content.mutated:
        verdict.count("wrongly_rejected", f"{name} was refused: {sent.refusal}")
    if sent.ids and not batches:
        verdict.count("lost", f"{name} was accepted as {_names(sent.ids)}, which is unknown")
        return
    found = {batch_id: evidence.batches[batch_id] for batch_id in batches}
    ingested = [i for i, batch in found.items() if batch.state == BatchState.INGESTED]
    holders = [i for i in batches if evidence.rows.get(i)]
    if len(ingested) > 1 or len(holders) > 1:
        verdict.count("doubled", f"{name} is in batches {_names({*ingested, *holders})}")
    elif sent.content.mutated:
        _mutated(sent, found, evidence.undisturbed, verdict)
    elif ingested:
        _rows(sent, evidence.rows.get(ingested[0], Counter()), verdict)
    elif sent.ids:
        _unfinished(sent, found, verdict)


def _mutated(
    sent: UploadSent,
    found: Mapping[str, BatchFound],
    undisturbed: Mapping[str, int],
    verdict: ChaosVerdict,
) -> None:
    """Check that damaged content was ingested or rejected as it would be without faults."""
    ends = (BatchState.INGESTED, BatchState.REJECTED)
    ended = [batch for batch in found.values() if batch.state in ends]
    if not ended:
        if sent.ids:
            _unfinished(sent, found, verdict)
        return
    stored = max(batch.observations or 0 for batch in ended)
    expected = undisturbed.get(sent.content.sha256, stored)
    if stored == expected:
        verdict.ended += bool(sent.ids)
        return
    fault = "wrongly_rejected" if not stored else "lost"
    told = "; ".join(batch.problem for batch in ended)
    verdict.count(fault, f"{sent.content.name}: {stored} of {expected} rows are stored. {told}")


def _unfinished(sent: UploadSent, found: Mapping[str, BatchFound], verdict: ChaosVerdict) -> None:
    told = "; ".join(f"{i} {batch.state} {batch.problem}".strip() for i, batch in found.items())
    ends = (BatchState.REJECTED, BatchState.FAILED)
    rejected = all(batch.state in ends for batch in found.values())
    verdict.count("wrongly_rejected" if rejected else "lost", f"{sent.content.name}: {told}")


def _rows(sent: UploadSent, stored: Counter[Row], verdict: ChaosVerdict) -> None:
    """Compare the rows of an ingested upload with those that were sent."""
    name = sent.content.name
    values: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for (station, variable, seconds, value), number in stored.items():
        values[station, variable, seconds] += number * [value]
    wanted = {row[:3]: row[3] for row in sent.content.rows}
    if any(len(values[key]) > 1 for key in wanted):
        verdict.count("doubled", f"{name} has rows twice")
        return
    wrong = [
        key
        for key, value in wanted.items()
        if not values[key] or abs(values[key][0] - value) > TOLERANCE
    ]
    if wrong or len(values) > len(wanted):
        told = f"{len(wrong)} of {len(wanted)} rows are absent or differ, such as {wrong[:1]}"
        verdict.count("lost", f"{name}: {told}; {len(values)} rows are stored")
        return
    verdict.ended += bool(sent.ids)


def _job(sent: JobSent, evidence: ChaosEvidence, verdict: ChaosVerdict) -> None:
    name = f"job {sent.job.number}"
    verdict.accepted += bool(sent.ids)
    if sent.refusal:
        verdict.count("wrongly_rejected", f"{name} was refused: {sent.refusal}")
    if not sent.ids:
        return
    if len(sent.ids) > 1:
        verdict.count("doubled", f"{name} was accepted as {_names(sent.ids)}")
        return
    job_id = next(iter(sent.ids))
    found = evidence.jobs.get(job_id)
    results = [analysis for analysis, maker in evidence.analyses.items() if maker == job_id]
    if found is None:
        verdict.count("lost", f"{name} was accepted as {job_id}, which is unknown")
    elif len(results) > 1:
        verdict.count("doubled", f"{name} has the results {_names(results)}")
    elif found.state == JobState.FAILED:
        verdict.count("wrongly_rejected", f"{name} ({job_id}) failed: {found.problem}")
    elif found.state != JobState.SUCCEEDED or results != [found.analysis_id]:
        told = f"{name} ({job_id}) is {found.state}, its results are {_names(results)}"
        verdict.count("lost", told)
    else:
        verdict.ended += 1


def _cycles(ledger: Ledger, evidence: ChaosEvidence, verdict: ChaosVerdict) -> None:
    """Check that every due cycle ended once: with a complete analysis, or with a reason."""
    results: dict[str, list[CycledResult]] = defaultdict(list)
    for result in evidence.cycled:
        results[result.key].append(result)
    valid = {one.content.sha256 for one in ledger.uploads.values() if not one.content.mutated}
    uploads = {
        batch_id: batch
        for batch_id, batch in evidence.batches.items()
        if batch.state == BatchState.INGESTED and batch.sha256 in valid
    }
    for key in evidence.due:
        verdict.cycles += 1
        _cycle(key, results[key], uploads, evidence, verdict)
    for key in sorted({*evidence.cycles, *results} - set(evidence.due)):
        verdict.findings.append(f"cycle {key} is none of those that fell due")


def _cycle(
    key: str,
    results: list[CycledResult],
    uploads: Mapping[str, BatchFound],
    evidence: ChaosEvidence,
    verdict: ChaosVerdict,
) -> None:
    found = evidence.cycles.get(key)
    ids = [result.id for result in results]
    if found is None:
        verdict.count("lost", f"cycle {key} fell due and is unknown")
    elif len(ids) > 1:
        verdict.count("doubled", f"cycle {key} has the results {_names(ids)}")
    elif found.state == CycleState.PUBLISHED and ids == [found.analysis_id]:
        job = evidence.jobs.get(found.job_id)
        gaps = list(_gaps(results[0], uploads, evidence))
        if job is None or (job.state, job.analysis_id) != (JobState.SUCCEEDED, ids[0]):
            gaps.append(f"its job {found.job_id} is {job.state if job else 'unknown'}")
        if gaps:
            verdict.count("lost", f"cycle {key}: {'; '.join(gaps)}")
        verdict.cycles_published += not gaps
    elif found.state == CycleState.SKIPPED and found.message and not ids:
        verdict.cycles_excused += 1
    elif found.state == CycleState.FAILED and not ids:
        verdict.count("wrongly_rejected", f"cycle {key} failed: {found.message}")
    else:
        told = f"is {found.state} ({found.message or 'no reason'}), its results are {_names(ids)}"
        verdict.count("lost", f"cycle {key} {told}")


def _gaps(
    result: CycledResult, uploads: Mapping[str, BatchFound], evidence: ChaosEvidence
) -> Iterator[str]:
    """Yield uploads in time that an analysis lacks without saying so, and late ones that it used."""
    start, end = result.start.timestamp(), result.end.timestamp()
    missing, late = [], []
    for batch_id, batch in uploads.items():
        if batch.created is None:
            continue
        within = any(start < row[2] <= end for row in evidence.rows.get(batch_id, ()))
        in_time = batch.created <= result.cut_off - evidence.arrival_margin
        if within and in_time and batch_id not in result.seen:
            missing.append(batch_id)
        if batch.created > result.cut_off and batch_id in result.used:
            late.append(batch_id)
    if missing and not result.says_so:
        yield f"{len(missing)} uploads that came in time are not in it, such as {missing[0]}"
    if late:
        yield f"{len(late)} uploads that came late are in it, such as {late[0]}"


def _unordered_jobs(ledger: Ledger, evidence: ChaosEvidence, verdict: ChaosVerdict) -> None:
    """Check that only submitted jobs and the last job of each cycle succeeded."""
    ordered = {job_id for sent in ledger.jobs.values() for job_id in sent.ids}
    ordered |= {cycle.job_id for cycle in evidence.cycles.values()}
    for job_id in sorted(evidence.jobs.keys() - ordered):
        if evidence.jobs[job_id].state == JobState.SUCCEEDED:
            verdict.count("doubled", f"job {job_id} was made beside those that were ordered")


def _store(evidence: ChaosEvidence) -> Iterator[str]:
    """Yield where the observation store and the records of uploads differ."""
    for batch_id in evidence.rows.keys() - evidence.batches.keys():
        if evidence.rows[batch_id]:
            yield f"{evidence.rows[batch_id].total()} rows name {batch_id}, which is unknown"
    for batch_id, batch in evidence.batches.items():
        stored = evidence.rows.get(batch_id, Counter()).total()
        if batch.state != BatchState.INGESTED and stored:
            yield f"{batch_id} is {batch.state} and has {stored} rows"
        if batch.state == BatchState.INGESTED and batch.observations != stored:
            yield f"{batch_id} has {stored} rows; its summary says {batch.observations}"


def _results(evidence: ChaosEvidence) -> Iterator[str]:
    known = {job.analysis_id for job in evidence.jobs.values()}
    for analysis_id in evidence.analyses.keys() - known:
        yield f"result {analysis_id} is of no known job"


def _names(ids: Collection[str]) -> str:
    return ", ".join(sorted(ids)) or "none"
