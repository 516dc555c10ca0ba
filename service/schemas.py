"""Define the schemas of the HTTP API: what requests and answers hold.

Answers about jobs, uploads, cycles and analyses are views: they hold what callers may rely on, and
nothing of the bookkeeping in the records they are made from. Ids of API keys are shown to their
own holders and to those who see everyone's records.
"""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.keys import ApiKey
from worker.contract.batches import BatchRecord, BatchState, IngestSummary
from worker.contract.cycles import CycleRecord, CycleState, Flavour
from worker.contract.events import EventType
from worker.contract.jobs import JobRecord, JobState, Progress
from worker.contract.kinds import JobSpec
from worker.contract.queues import ModelInfo, WorkerReport
from worker.contract.records import Problem
from worker.contract.suites import Difference, Outcome, Trial, TrialCycle
from worker.contract.webhooks import DeliveryState, Webhook
from worker.results.manifest import AnalysisManifest, ManifestFile, Pin
from worker.results.verification.series import SeriesRow

__all__ = [
    "AnalysisList",
    "AnalysisView",
    "BatchPage",
    "BatchView",
    "CapabilitiesView",
    "AttemptView",
    "ReadinessCheck",
    "CreatedWebhook",
    "CyclePage",
    "CycleView",
    "DeliveryView",
    "JobEvents",
    "JobPage",
    "JobView",
    "LatestAnalysis",
    "LatestFile",
    "Live",
    "MAX_ITEMS",
    "NewWebhook",
    "PinView",
    "Readiness",
    "TrialView",
    "UploadFormat",
    "VerificationPage",
    "WebhookView",
]

MAX_ITEMS = "Maximum number of items."
_NEXT = "Pass it as `cursor` to get the next page; null on the last page."
_KEY_ID = "Id of the API key that {}; empty without a key, or if it is another caller's."


def _visible(key_id: str, caller: ApiKey) -> str:
    return key_id if key_id == caller.id or caller.sees_all else ""


class View(BaseModel):
    """Base of answers whose fields are copied by name from a record."""

    model_config = ConfigDict(from_attributes=True)


class JobView(View):
    """A job: what was requested, its state, and where its result is published."""

    id: str = Field(description="Unique; ids sort by creation time.")
    spec: JobSpec = Field(description="What was requested.")
    state: JobState = Field(description="Present state.")
    created: datetime = Field(description="When it was submitted (UTC).")
    started: datetime | None = Field(description="When its newest attempt started (UTC).")
    finished: datetime | None = Field(description="When it reached a final state (UTC).")
    progress: Progress = Field(description="Latest progress.")
    attempts: int = Field(ge=0, description="Number of times a worker has started it.")
    retry_at: datetime | None = Field(
        description="When it is tried again (UTC), after the fault in `error`; else null."
    )
    worker: str | None = Field(description="Worker of its newest attempt.")
    error: Problem | None = Field(description="Why it failed or was retried.")
    analysis_id: str = Field(description="Id under which the result is published.")
    api_key: str = Field(description=_KEY_ID.format("submitted it"))
    request_id: str = Field(description="Request that submitted it, as in the log.")
    flavour: str = Field(description="`early`, `final` or `challenger`; empty outside the cycles.")
    revision: int = Field(ge=1, description="Revision of the result for its valid time.")
    cycle: dict[str, Any] = Field(description="Facts about its cycle; empty outside the cycles.")

    @classmethod
    def of(cls, job: JobRecord, caller: ApiKey) -> Self:
        """Return what `caller` may see of `job`."""
        view = cls.model_validate(job)
        return view.model_copy(update={"api_key": _visible(job.api_key, caller)})


class BatchView(View):
    """An upload of observations and what became of it."""

    id: str = Field(description="Unique; ids sort by arrival.")
    state: BatchState = Field(description="Present state.")
    created: datetime = Field(description="When it arrived (UTC, by the operational clock).")
    started: datetime | None = Field(description="When ingest last started (UTC).")
    finished: datetime | None = Field(description="When ingest ended (UTC).")
    sha256: str = Field(description="SHA-256 of the bytes received.")
    size: int = Field(ge=0, description="Number of bytes.")
    container: str = Field(description="Format detected: `bufr`, `grib`, `csv`, `parquet`, …")
    file_name: str = Field(description="Name given by the sender.")
    options: dict[str, Any] = Field(
        description="How it is decoded: `report_type`, `errors`, and options of the decoder."
    )
    attempts: int = Field(ge=0, description="Number of times a worker has started it.")
    retry_at: datetime | None = Field(
        description="When it is tried again (UTC), after the fault in `error`; else null."
    )
    message: str = Field(description="Why it waits, after a fault; else empty.")
    worker: str | None = Field(description="Worker of its newest attempt.")
    summary: IngestSummary | None = Field(description="Counts, once ingested.")
    error: Problem | None = Field(description="Why it was rejected or failed.")
    api_key: str = Field(description=_KEY_ID.format("sent it"))
    request_id: str = Field(description="Request that sent it, as in the log.")

    @classmethod
    def of(cls, batch: BatchRecord, caller: ApiKey) -> Self:
        """Return what `caller` may see of `batch`."""
        view = cls.model_validate(batch)
        update = {"api_key": _visible(batch.api_key, caller)}
        if not caller.sees(batch.api_key):  # who sent the same content gets no more than that
            update |= {"file_name": "", "request_id": ""}
        return view.model_copy(update=update)


class CycleView(View):
    """A cycle: one valid time and flavour."""

    id: str = Field(description="Key, such as `20031001T06Z_early`; keys sort by valid time.")
    valid_time: datetime = Field(description="Time of the analysis (UTC).")
    flavour: Flavour = Field(description="`early` or `final`.")
    cut_off: datetime = Field(description="Last arrival accepted (UTC).")
    state: CycleState = Field(description="Present state.")
    job_id: str = Field(description="Newest job submitted for it; empty before.")
    analysis_id: str = Field(description="Newest analysis published for it; empty before.")
    revision: int = Field(ge=1, description="1 for early, 2 for final, more for reruns.")
    decided: datetime | None = Field(
        description="When its observations were complete and it became due (UTC)."
    )
    caught_up: bool = Field(description="Whether it became due only after the next cut-off.")
    behind_seconds: float = Field(description="Seconds from the cut-off to the decision.")
    message: str = Field(description="Why it was skipped, failed or retried.")
    attempts: int = Field(ge=0, description="Jobs submitted for this revision.")
    published: datetime | None = Field(description="When the analysis became readable (UTC).")
    forecast_job_id: str = Field(description="Forecast started from it; empty if there is none.")
    forecast_id: str = Field(description="Id under which that forecast is published.")
    cold_job_id: str = Field(description="Cold window it is compared with; empty if there is none.")
    cold_id: str = Field(description="Id under which that cold window is published.")
    asked_by: str = Field(description=_KEY_ID.format("requested the rerun"))

    @classmethod
    def of(cls, cycle: CycleRecord, caller: ApiKey) -> Self:
        """Return what `caller` may see of `cycle`."""
        view = cls.model_validate(cycle)
        return view.model_copy(update={"asked_by": _visible(cycle.asked_by, caller)})


class TrialView(View):
    """A challenger beside a champion, from its beginning to its end."""

    id: int = Field(description="Number of the trial.")
    suite: dict[str, Any] = Field(description="What it has of its own: `model`, `errors`, …")
    suite_id: str = Field(description="Its name and a digest of its content.")
    champion_id: str = Field(description="Suite beside which it runs; empty for the first one.")
    begun: datetime = Field(description="When it was first seen in the policy (UTC).")
    first_time: datetime = Field(description="Valid time of its first cycle (UTC).")
    counted_from: datetime = Field(description="Valid time of the first cycle compared (UTC).")
    least_cycles: int = Field(description="Cycles compared before a verdict.")
    cycles: dict[str, int] = Field(description="Its cycles, by state.")
    newest_time: datetime | None = Field(description="Valid time of its newest cycle (UTC).")
    verdict: Literal["better", "worse", "undecided"] = Field(
        description="What all values together say of it, at the 5 % level."
    )
    differences: list[Difference] = Field(
        description="Its mean square error at withheld stations against the champion's: of all "
        "values, by network, by variables, by both."
    )
    ended: datetime | None = Field(description="When it ended (UTC); null while it runs.")
    outcome: Outcome | None = Field(description="How it ended; null while it runs.")
    by: str = Field(description=_KEY_ID.format("ended it"))
    note: str = Field(description="Why it was ended, or what it waits for.")

    @classmethod
    def of(
        cls, trial: Trial, cycles: dict[str, int], newest: TrialCycle | None, caller: ApiKey
    ) -> Self:
        """Return what `caller` may see of `trial`."""
        return cls.model_validate(
            {
                **trial.model_dump(exclude={"suite"}),
                "suite": trial.suite.model_dump(mode="json", exclude_defaults=True),
                "cycles": cycles,
                "newest_time": newest.valid_time if newest else None,
                "verdict": trial.verdict,
                "by": _visible(trial.by, caller),
            }
        )


class AnalysisView(View):
    """A published result: its files, and what is needed to reproduce it."""

    id: str = Field(description="Id of the result.")
    job_id: str = Field(description="Job that computed it.")
    kind: str = Field(description="Kind of that job: `filtering`, `forecast` or `reanalysis`.")
    valid_time: datetime = Field(description="Analysis time; start of a forecast or reanalysis.")
    times: list[datetime] = Field(description="Valid times in the files (UTC).")
    flavour: str = Field(description="`early`, `final` or `challenger`; empty outside the cycles.")
    revision: int = Field(ge=1, description="Revision for this valid time.")
    cycle: dict[str, Any] = Field(
        description="In a cycle: `key`, `decided`, `caught_up`, `behind_seconds`, `attempt`, and "
        "`policy`, a hash."
    )
    created: datetime = Field(description="When it was computed (UTC).")
    files: list[ManifestFile] = Field(description="All files of the result.")
    members: int = Field(ge=1, description="Ensemble members.")
    mirrored: bool = Field(
        description="Whether members are antithetic pairs (0 and 1, 2 and 3, …): the spread is "
        "then the root mean square deviation, with M instead of M - 1, and ranks count every "
        "other member."
    )
    window_start: datetime | None = Field(description="Start of the observation window, exclusive.")
    window_end: datetime | None = Field(description="End of the observation window, inclusive.")
    cut_off: datetime | None = Field(description="Last arrival accepted (UTC).")
    observations: dict[str, int] = Field(
        description="Observed values by outcome: `used`, or the rejecting check."
    )
    background: dict[str, Any] = Field(description="First guess, its source and age.")
    flags: list[str] = Field(description="`zero_observations`, `cold_start`, …")
    scores: dict[str, Any] = Field(description="Departure statistics and chi-square.")
    provenance: dict[str, Any] = Field(
        description="Hashes of checkpoint and observations, code version, seeds, settings."
    )
    spec: JobSpec = Field(description="What was requested.")

    @classmethod
    def of(cls, manifest: AnalysisManifest) -> Self:
        """Return the answer about a published result."""
        return cls.model_validate(manifest)


class PinView(View):
    """A pin, which exempts a result from retention."""

    analysis_id: str = Field(description="The result.")
    created: datetime = Field(description="When it was pinned (UTC).")
    by: str = Field(description=_KEY_ID.format("pinned it"))
    note: str = Field(description="What it is kept for.")

    @classmethod
    def of(cls, pin: Pin, caller: ApiKey) -> Self:
        """Return what `caller` may see of `pin`."""
        return cls.model_validate(pin).model_copy(update={"by": _visible(pin.by, caller)})


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    items: list[JobView]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Number of matching jobs.")


class BatchPage(BaseModel):
    """A page of uploads, newest first."""

    items: list[BatchView]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Number of uploads of this state and sender, of any time.")


class CyclePage(BaseModel):
    """A page of cycles, latest valid time first."""

    items: list[CycleView]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Number of matching cycles.")


class AnalysisList(BaseModel):
    """A page of published analyses, latest valid time first."""

    items: list[AnalysisView]
    next_cursor: str | None = Field(default=None, description=_NEXT)
    total: int = Field(description="Number of matching analyses.")


class VerificationPage(BaseModel):
    """A page of the verification series, oldest valid time first."""

    items: list[SeriesRow]
    next_cursor: str | None = Field(default=None, description=_NEXT)


class LatestFile(BaseModel):
    """A file of the latest analysis of a kind."""

    name: str
    url: str = Field(description="Path on this gateway.")
    size: int
    sha256: str
    media_type: str
    role: str


class LatestAnalysis(BaseModel):
    """The latest analysis of one kind."""

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
    """What can be requested now, as running workers report it, and the limits."""

    version: str = Field(description="Version of the gateway.")
    models: list[ModelInfo] = Field(description="Loaded checkpoints, the default one first.")
    formats: dict[str, str] = Field(description="Output formats of running workers.")
    decoders: dict[str, str] = Field(description="Input formats of running workers.")
    networks: list[str] = Field(description="Report types.")
    variables: dict[str, str] = Field(description="Units by variable id.")
    qc_outcomes: dict[str, str] = Field(description="Meaning of each name in `rejected_by`.")
    uploads: list[UploadFormat] = Field(description="Formats that the gateway recognises.")
    job_kinds: list[str] = Field(description="Kinds of job.")
    limits: dict[str, int] = Field(description="Limits of this gateway.")
    workers: list[WorkerReport] = Field(description="Worker processes that have reported lately.")


class ReadinessCheck(BaseModel):
    """Result of one readiness check, with what it found."""

    ok: bool
    detail: str = ""


class Readiness(BaseModel):
    """Whether uploads can be received and jobs can be run now."""

    ready: bool
    checks: dict[str, ReadinessCheck] = Field(
        description="`redis`, `storage`, `disk`, and one check for each queue."
    )
    models: list[str] = Field(description="Loaded checkpoints.")
    warnings: list[str] = Field(default=[], description="Settings of Redis that may lose data.")


class Live(BaseModel):
    """The gateway process responds; nothing else was checked."""

    status: str = "alive"
    version: str


JobEvents: dict[str, Any] = {
    "snapshot": "the whole job, first after connecting",
    "state": "the job changed state: `{state, time}`, and `error` if there is one",
    "progress": "`{phase, step, steps, eta_seconds, message}`",
    "queue": "`{queue_position}`, while the job waits",
    "done": "the whole job in its final state; the stream ends",
}
"""Types and data of the server-sent events of a job."""


class NewWebhook(BaseModel):
    """A webhook to create: an address and the events it receives."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        description="Address that events are posted to (http or https, a public host).",
        min_length=1,
        max_length=2000,
        examples=["https://example.org/hooks/appa"],
    )
    events: list[EventType] = Field(
        default=[EventType.ANALYSIS_PUBLISHED],
        min_length=1,
        description="Types of event to deliver.",
    )
    description: str = Field(default="", max_length=500, description="A note for people.")


class WebhookView(View):
    """A subscription of an address to events, without its secret."""

    id: str = Field(description="Unique; ids sort by creation time.")
    url: str = Field(description="Address that events are posted to.")
    events: list[EventType] = Field(description="Types of event delivered.")
    description: str = Field(description="A note for people.")
    created: datetime = Field(description="When it was created (UTC).")
    disabled: str = Field(
        description="Why nothing is delivered any more; empty while it is active."
    )

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """Return what operators may see of `webhook`."""
        return cls.model_validate(webhook)


class CreatedWebhook(WebhookView):
    """A new webhook; its secret is shown only in this answer."""

    secret: str = Field(description="Verifies its messages; `whsec_` and base64.")


class AttemptView(View):
    """An attempt to deliver a message."""

    time: datetime = Field(description="When it started (UTC).")
    status: int | None = Field(description="HTTP status of the response; null without one.")
    error: str = Field(description="Why the message does not count as delivered.")
    milliseconds: int = Field(ge=0, description="Duration.")


class DeliveryView(View):
    """A message to a webhook and the attempts to deliver it."""

    event_id: str = Field(description="Id of the event, sent as `webhook-id`.")
    webhook_id: str = Field(description="The webhook.")
    type: EventType = Field(description="Type of the event.")
    created: datetime = Field(description="When it was queued (UTC).")
    state: DeliveryState = Field(description="Present state.")
    attempts: list[AttemptView] = Field(description="Attempts so far, oldest first.")
    earlier: int = Field(
        description="How many of them were made before it was given up and asked for again."
    )
    next_attempt: datetime | None = Field(description="When it is retried (UTC); null if never.")
    body: str = Field(description="The signed text.")
