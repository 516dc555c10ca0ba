"""Store jobs in Redis: their record, their progress, their states and the allowed moves between them.

The record is the single source of truth about a job; messages on the queue only name it.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from worker.contract import scripts
from worker.contract.kinds import KINDS, JobSpec
from worker.contract.record_store import RecordStore
from worker.contract.records import Problem, Record, utc_now
from worker.contract.suites import CHALLENGER
from worker.contract.usage import Charge

__all__ = [
    "ALLOWED_MOVES",
    "COMPARED_WITH",
    "JobRecord",
    "JobState",
    "JobStore",
    "Phase",
    "Progress",
    "TERMINAL",
]

COMPARED_WITH = "compared_with"
"""Key in the `cycle` of a cold window with the id of the analysis it is compared with."""


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


ALLOWED_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING, JobState.QUEUED}
    ),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.CANCELLED: frozenset(),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
}
"""Allowed transitions. `running -> queued` only for a retryable error or a lost worker."""

TERMINAL = frozenset(state for state, moves in ALLOWED_MOVES.items() if not moves)


class Phase(StrEnum):
    """What a running job is doing, in this order."""

    WAITING = "waiting"
    LOADING = "loading"
    GATHERING = "gathering"
    BACKGROUND = "background"
    SAMPLING = "sampling"
    WRITING = "writing"
    PUBLISHING = "publishing"
    DONE = "done"


class Progress(Record):
    """The last progress that a running job reported."""

    phase: Phase = Field(default=Phase.WAITING, description="What the job is doing.")
    step: int = Field(default=0, ge=0, description="Diffusion steps done.")
    steps: int = Field(default=0, ge=0, description="Diffusion steps in all; 0 when not known yet.")
    eta_seconds: float | None = Field(default=None, description="Estimated seconds until the end.")
    queue_position: int | None = Field(
        default=None, description="Jobs ahead of this one; null once it runs."
    )
    message: str = Field(default="", description="A sentence for people.")


class JobRecord(Record):
    """One job: what was asked, where it stands, what came of it."""

    id: str = Field(description="Unique, sorts by creation time.")
    spec: JobSpec = Field(description="What was asked.")
    state: JobState = Field(default=JobState.QUEUED, description="Where the job is in its life.")
    created: datetime = Field(default_factory=utc_now, description="When it was submitted (UTC).")
    started: datetime | None = Field(
        default=None, description="When the last attempt started (UTC)."
    )
    finished: datetime | None = Field(
        default=None, description="When it reached its last state (UTC)."
    )
    progress: Progress = Field(default_factory=lambda: Progress(), description="Last progress.")
    attempts: int = Field(default=0, ge=0, description="How often a worker has started it.")
    lost: int = Field(default=0, ge=0, description="How often the worker of an attempt died.")
    retry_at: datetime | None = Field(
        default=None,
        description="No new attempt before this (UTC), after the fault in `error`; null otherwise.",
    )
    token: int = Field(default=0, ge=0, description="Fencing token of the newest attempt.")
    publishing: bool = Field(
        default=False, description="Set when its result is being made visible."
    )
    worker: str | None = Field(
        default=None, description="Name of the worker of the newest attempt."
    )
    error: Problem | None = Field(default=None, description="Why it failed, or why it was retried.")
    analysis_id: str = Field(description="Under this name its result is published.")
    api_key: str = Field(
        default="", description="Id of the API key that submitted it; empty when none."
    )
    request_id: str = Field(default="", description="Request that submitted it, for the logs.")
    trace: str = Field(default="", description="Span that submitted it, a W3C `traceparent`.")
    flavour: str = Field(
        default="", description="`early`, `final`, `challenger`, or empty outside the cycles."
    )
    revision: int = Field(default=1, ge=1, description="Revision of the result for its valid time.")
    cycle: dict[str, Any] = Field(
        default={},
        description=(
            "Facts about its cycle, passed on to the manifest, with the `suite` that it runs; of a "
            "cold window the analysis that it is `compared_with`; else empty."
        ),
    )

    @property
    def kind(self) -> str:
        """Return the kind of job, a name of `worker.contract.kinds.KINDS`."""
        return self.spec.kind

    @property
    def priority(self) -> int:
        """Return the priority of its message, one of `queues.PRIORITIES`; lower goes first.

        Jobs that only serve a comparison with a cycle's analysis come last: nobody waits for them.
        """
        if self.flavour == CHALLENGER or COMPARED_WITH in self.cycle:
            return KINDS["reanalysis"].priority
        return self.spec.priority

    @property
    def done(self) -> bool:
        """Return whether the state can no longer change."""
        return self.state in TERMINAL


class JobStore(RecordStore[JobRecord]):
    """Jobs in Redis, with the state transitions that gateway, scheduler and workers make."""

    noun = "job"
    model = JobRecord
    waiting = JobState.QUEUED
    working = JobState.RUNNING
    leased = (JobState.RUNNING, JobState.CANCELLING)
    ends = frozenset(state.value for state in TERMINAL)

    def kind_of(self, record: JobRecord) -> str:
        return record.kind

    def _sources(self, to: str) -> list[str]:
        return [state for state, moves in ALLOWED_MOVES.items() if to in moves]

    def create(
        self, record: JobRecord, *, unique_key: str = "", charge: Charge | None = None
    ) -> tuple[JobRecord, bool]:
        """Store a new job, or return the one under the same unique key.

        Arguments:
            record: In state `queued`.
            unique_key: The caller's idempotency key, or that of a cycle: no second job is created
                under it.
            charge: Amount counted against its owner's quota if the job is new.

        Returns:
            The job under that key, and whether it was created now.

        Raises:
            StorageError: If it cannot be written to the archive; no job is created.
            QuotaExceeded: If it is new and `charge` does not fit into its owner's quota of the day.
        """
        unique = [unique_key] if unique_key else []
        if self.archive is None or (unique_key and self.key_value(unique_key) is not None):
            return self._create(record, kind=record.kind, unique=unique, charge=charge)
        # Written to disk before it is accepted, so that it survives a loss of Redis.
        names = {self.keys.unique(self.noun, name): record.id for name in unique}
        self.archive.put([self.kept(record, names)])
        try:
            job, created = self._create(
                record, kind=record.kind, unique=unique, looked_up=True, charge=charge
            )
        except BaseException:
            self.archive.drop(self.noun, [record.id])
            raise
        if not created:
            self.archive.drop(self.noun, [record.id])
        return job, created

    def read(self, record_id: str) -> JobRecord:
        """Return a job with its place in the queue filled in, as the gateway shows it.

        Raises:
            NoSuchRecord: If there is none.
        """
        job = self.get(record_id)
        if job.state is JobState.QUEUED:
            place = self.position(record_id)
            job.progress = job.progress.model_copy(update={"queue_position": place})
        return job

    def cancel(self, record_id: str) -> JobState:
        """Cancel a job: at once if it is queued, else at its next step; return the new state.

        Raises:
            MoveRefused: If it is finished, or its result is being published.
            NoSuchRecord: If there is none.
        """
        end = {"finished": utc_now().isoformat()}
        return JobState(
            self._run(
                scripts.CANCEL,
                record_id,
                self._fields(end),
                self._event(JobState.CANCELLED),
                self._event(JobState.CANCELLING),
            )
        )

    def report(self, record_id: str, token: int, progress: Progress) -> JobState:
        """Store and announce progress; return the state, so that a cancel is noticed.

        Raises:
            LeaseLost: If a newer attempt holds the job.
        """
        text = progress.model_dump_json()
        return JobState(self._run(scripts.PROGRESS, record_id, token, text))

    def begin_publication(self, record_id: str, token: int) -> None:
        """Enter publication; from here on a cancel is refused.

        Raises:
            LeaseLost: If a newer attempt holds the job.
            MoveRefused: If it is being cancelled.
        """
        self._run(scripts.PUBLISH, record_id, token, JobState.RUNNING)

    def succeed(self, record_id: str, token: int, progress: Progress) -> None:
        """End the job successfully: its result is visible."""
        to = JobState.SUCCEEDED
        self.move(record_id, to, token=token, terminal=True, progress=progress, error=None)

    def fail(self, record_id: str, token: int | None, problem: Problem) -> None:
        """End the job after an error that is not retried."""
        self.move(record_id, JobState.FAILED, token=token, terminal=True, error=problem)

    def confirm_cancel(self, record_id: str, token: int) -> None:
        """End a cancelled job after its worker has stopped."""
        self.move(record_id, JobState.CANCELLED, token=token, terminal=True)

    def requeue(
        self, record_id: str, token: int, problem: Problem, retry_at: datetime | None = None
    ) -> None:
        """Put the job back in the queue after a transient error.

        Arguments:
            record_id: The job.
            token: Token of the attempt that failed.
            problem: The reason, kept in the record and shown as its progress.
            retry_at: No new attempt before this (UTC); at once when absent.
        """
        values = {
            "error": problem,
            "retry_at": retry_at,
            "publishing": False,
            "progress": Progress(message=f"waiting: {problem.message}"),
        }
        self.move(record_id, JobState.QUEUED, token=token, terminal=False, **values)
