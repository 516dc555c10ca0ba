"""Hold what was accepted in an exercise against what became of it."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from lab.chaos.content import Row
from lab.chaos.traffic import JobSent, Ledger, UploadSent
from worker.contract.batches import BatchState
from worker.contract.jobs import JobState

__all__ = ["BatchFound", "ChaosReport", "Evidence", "JobFound", "Verdict", "judge"]

TOLERANCE = 1
"""Units of the precision of a variable by which a value may differ from what was sent."""


@dataclass(frozen=True)
class BatchFound:
    """What the system says of an upload.

    Attributes:
        state: A `BatchState`.
        sha256: Of its bytes.
        observations: Values stored, by its summary; None without one.
        problem: Its error, for people.
    """

    state: str
    sha256: str
    observations: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class JobFound:
    """What the system says of a job: its `JobState`, its result, its error."""

    state: str
    analysis_id: str
    problem: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is there after an exercise.

    Attributes:
        batches: Uploads by id.
        jobs: Jobs by id.
        rows: Rows of the observation store by the upload that they name.
        analyses: The job of each published result, by the id of the result.
        damaged: Results that are not whole, for people.
        leftovers: What is stuck, or has grown without bound, for people.
        undisturbed: How many rows damaged content gives where nothing goes wrong, by its hash.
    """

    batches: Mapping[str, BatchFound]
    jobs: Mapping[str, JobFound]
    rows: Mapping[str, Counter[Row]]
    analyses: Mapping[str, str]
    damaged: Collection[str] = ()
    leftovers: Collection[str] = ()
    undisturbed: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """How many ended right, and what did not.

    Attributes:
        accepted: Uploads and jobs that were accepted.
        ended: Of these, how many ended once and right.
        lost: Of these, how many are unknown, have not ended, or lack rows or a result.
        doubled: Contents and jobs of which there is more than one.
        wrongly_rejected: Valid uploads that were refused, rejected or failed, and jobs that failed.
        findings: A sentence for each of those, and for all else that is not as it should be.
    """

    accepted: int = 0
    ended: int = 0
    lost: int = 0
    doubled: int = 0
    wrongly_rejected: int = 0
    findings: list[str] = field(default_factory=list)

    def count(self, fault: str, finding: str) -> None:
        """Count a fault by the name of its number, and say what it is."""
        setattr(self, fault, getattr(self, fault) + 1)
        self.findings.append(f"{fault.replace('_', ' ')}: {finding}")


@dataclass(frozen=True)
class ChaosReport:
    """The report of an exercise, as it is printed for programs."""

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
    findings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Return whether no fault was found."""
        faults = (self.lost, self.doubled, self.wrongly_rejected, self.http_5xx)
        return not any(faults) and not self.findings and self.ended == self.accepted

    def as_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {**asdict(self), "findings": list(self.findings)}


def judge(ledger: Ledger, evidence: Evidence) -> Verdict:
    """Return what became of everything that was sent."""
    verdict = Verdict()
    by_content: dict[str, list[str]] = defaultdict(list)
    for batch_id, batch in evidence.batches.items():
        by_content[batch.sha256].append(batch_id)
    for sent in ledger.uploads.values():
        batches = by_content.pop(sent.content.sha256, [])
        _upload(sent, batches, evidence, verdict)
    for batch_id in (batch_id for batches in by_content.values() for batch_id in batches):
        verdict.findings.append(f"batch {batch_id} is of a content that nobody sent")
    for job in ledger.jobs.values():
        _job(job, evidence, verdict)
    verdict.findings += [*_store(evidence), *_results(evidence), *evidence.leftovers]
    verdict.findings += [f"not whole: {told}" for told in (*ledger.damaged, *evidence.damaged)]
    return verdict


def _upload(sent: UploadSent, batches: list[str], evidence: Evidence, verdict: Verdict) -> None:
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
    verdict: Verdict,
) -> None:
    """Damaged content may be read or rejected, but must end by what is in it."""
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


def _unfinished(sent: UploadSent, found: Mapping[str, BatchFound], verdict: Verdict) -> None:
    told = "; ".join(f"{i} {batch.state} {batch.problem}".strip() for i, batch in found.items())
    ends = (BatchState.REJECTED, BatchState.FAILED)
    rejected = all(batch.state in ends for batch in found.values())
    verdict.count("wrongly_rejected" if rejected else "lost", f"{sent.content.name}: {told}")


def _rows(sent: UploadSent, stored: Counter[Row], verdict: Verdict) -> None:
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


def _job(sent: JobSent, evidence: Evidence, verdict: Verdict) -> None:
    name = f"job {sent.order.number}"
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


def _store(evidence: Evidence) -> Iterator[str]:
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


def _results(evidence: Evidence) -> Iterator[str]:
    known = {job.analysis_id for job in evidence.jobs.values()}
    for analysis_id in evidence.analyses.keys() - known:
        yield f"result {analysis_id} is of no known job"


def _names(ids: Collection[str]) -> str:
    return ", ".join(sorted(ids)) or "none"
