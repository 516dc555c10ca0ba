"""A job: its states and the allowed moves between them, its progress and its record."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import AppaError
from worker.jobs.kinds import JobSpec

__all__ = [
    "ALLOWED_MOVES",
    "TERMINAL",
    "JobRecord",
    "JobState",
    "Phase",
    "Problem",
    "Progress",
    "utc_now",
]


def utc_now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


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
"""The one table of moves. `running -> queued` only for a retryable error or a lost worker."""

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


class Record(BaseModel):
    """Base of what is kept in Redis and shown over HTTP."""

    model_config = ConfigDict(extra="forbid")


class Problem(Record):
    """Why a job or batch did not succeed."""

    code: str = Field(description="Stable code of the error.")
    message: str = Field(description="What was expected, what came, what to do.")
    retryable: bool = Field(
        default=False, description="Whether trying again unchanged may succeed."
    )
    context: dict[str, Any] = Field(
        default={}, description="Values for machines: field, expected, got."
    )

    @classmethod
    def of(cls, error: BaseException) -> "Problem":
        """The problem that `error` stands for; errors outside our family have a code of their own."""
        if isinstance(error, AppaError):
            return cls(
                code=error.code,
                message=error.message,
                retryable=error.retryable,
                context={k: str(v) for k, v in error.context.items()},
            )
        name = type(error).__name__
        return cls(code="internal_error", message=f"{name}: {error}", context={"type": name})


class Progress(Record):
    """The last thing a job told about itself."""

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
    token: int = Field(default=0, ge=0, description="Fencing token of the newest attempt.")
    publishing: bool = Field(
        default=False, description="Set when its result is being made visible."
    )
    worker: str | None = Field(
        default=None, description="Name of the worker of the newest attempt."
    )
    error: Problem | None = Field(
        default=None, description="Why it failed, or why it was tried again."
    )
    analysis_id: str = Field(description="Under this name its result is published.")
    api_key: str = Field(
        default="", description="Id of the API key that submitted it; empty when none."
    )
    request_id: str = Field(default="", description="Request that submitted it, for the logs.")
    flavour: str = Field(default="", description="`early`, `final`, or empty outside the cycles.")
    revision: int = Field(default=1, ge=1, description="Revision of the result for its valid time.")
    cycle: dict[str, Any] = Field(
        default={}, description="Facts about its cycle, passed on to the manifest; empty outside."
    )

    @property
    def kind(self) -> str:
        """`filtering`, `forecast` or `reanalysis`."""
        return self.spec.kind

    @property
    def done(self) -> bool:
        """Whether the state can no longer change."""
        return self.state in TERMINAL
