"""Define the bodies of requests and answers that are not records of the worker's contract."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.batches import BatchRecord
from worker.contract.cycles import CycleRecord
from worker.contract.events import EventType
from worker.contract.jobs import JobRecord
from worker.contract.queues import ModelInfo, WorkerReport
from worker.contract.webhooks import Webhook
from worker.results.manifest import AnalysisManifest
from worker.results.verification.series import SeriesRow

__all__ = ["CreatedWebhook", "NewWebhook", "WebhookView"]

_NEXT = "Give it as `cursor` for the next page; null on the last."


class JobPage(BaseModel):
    """Jobs, newest first."""

    items: list[JobRecord]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Matching jobs in all.")


class BatchPage(BaseModel):
    """Uploads, newest first."""

    items: list[BatchRecord]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Matching uploads in all.")


class CyclePage(BaseModel):
    """Cycles, latest valid time first."""

    items: list[CycleRecord]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Matching cycles in all.")


class AnalysisList(BaseModel):
    """Published analyses, latest valid time first."""

    items: list[AnalysisManifest]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Matching analyses in all.")


class VerificationPage(BaseModel):
    """Numbers of the verification series, oldest valid time first."""

    items: list[SeriesRow]
    next_cursor: str | None = Field(default=None, description=_NEXT)


class LatestFile(BaseModel):
    """One file of the latest analysis."""

    name: str
    url: str = Field(description="Path on this gateway.")
    size: int
    sha256: str
    media_type: str
    role: str


class LatestAnalysis(BaseModel):
    """The newest analysis of one kind."""

    analysis_id: str
    kind: str
    valid_time: datetime
    flavour: str
    revision: int
    created: datetime
    files: list[LatestFile]


class UploadFormat(BaseModel):
    """A format that uploads may have."""

    name: str
    meaning: str
    media_type: str


class CapabilitiesView(BaseModel):
    """What can be asked of this system now."""

    version: str = Field(description="Of the gateway.")
    models: list[ModelInfo] = Field(description="Loaded checkpoints, the default one first.")
    formats: dict[str, str] = Field(description="Output formats of running workers.")
    decoders: dict[str, str] = Field(description="Input formats of running workers.")
    networks: list[str] = Field(description="Report types.")
    variables: dict[str, str] = Field(description="Ids of the vocabulary and their units.")
    qc_outcomes: dict[str, str] = Field(description="Names in `rejected_by` and their meaning.")
    uploads: list[UploadFormat] = Field(description="Formats the gateway recognises.")
    job_kinds: list[str]
    limits: dict[str, int] = Field(description="Bounds of this gateway.")
    workers: list[WorkerReport] = Field(description="Processes heard of lately.")


class ReadinessCheck(BaseModel):
    """One part of readiness."""

    ok: bool
    detail: str = ""


class Readiness(BaseModel):
    """Whether the system can do its job now."""

    ready: bool
    checks: dict[str, ReadinessCheck] = Field(
        description="`redis`, `storage`, and one for each queue."
    )
    models: list[str] = Field(description="Loaded checkpoints.")
    warnings: list[str] = Field(default=[], description="Settings of Redis that lose data.")


class Live(BaseModel):
    """The process answers."""

    status: str = "alive"
    version: str


class QueueMessage(BaseModel):
    """Data of the event `queue`."""

    queue_position: int


JobEvents: dict[str, Any] = {
    "snapshot": "the whole job, first thing after connecting",
    "state": "the job moved: `{state, time}` and `error`",
    "progress": "`{phase, step, steps, eta_seconds, message}`",
    "queue": "`{queue_position}`, while it waits",
    "done": "the whole job in its last state; the stream ends",
}
"""Names of the server-sent events of a job."""


class NewWebhook(BaseModel):
    """A subscription as it is asked for."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        description="Where events are posted to (http or https, a public host).",
        min_length=1,
        max_length=2000,
        examples=["https://example.org/hooks/appa"],
    )
    events: list[EventType] = Field(
        default=[EventType.ANALYSIS_PUBLISHED], min_length=1, description="What to tell."
    )
    description: str = Field(default="", max_length=500, description="For people.")


class WebhookView(BaseModel):
    """A subscription, without its secret."""

    id: str = Field(description="Unique, sorts by creation time.")
    url: str = Field(description="Where events are posted to.")
    events: list[EventType] = Field(description="What is told.")
    description: str = Field(description="For people.")
    created: datetime = Field(description="UTC.")
    disabled: str = Field(description="Why nothing is sent any more; empty while it is.")

    @classmethod
    def of(cls, webhook: Webhook) -> "WebhookView":
        """What is shown of `webhook`."""
        return cls.model_validate(webhook.model_dump(include=set(cls.model_fields)))


class CreatedWebhook(WebhookView):
    """A new subscription; the secret is shown this once."""

    secret: str = Field(description="Verify messages with it; `whsec_` and base64.")
