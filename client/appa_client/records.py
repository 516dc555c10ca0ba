"""Define what a gateway answers: jobs, uploads, analyses, cycles, verification.

Fields that a newer gateway adds are accepted and kept: they are attributes of the record, and are
in `model_dump()`. All times carry the zone UTC.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from appa_client.errors import InvalidRequestError
from appa_client.plots import Owner

__all__ = [
    "Analysis",
    "AnalysisFile",
    "Batch",
    "BatchState",
    "Challengers",
    "Cycle",
    "CycleChange",
    "CycleExplanation",
    "CycleState",
    "Difference",
    "Flavour",
    "IngestSummary",
    "Job",
    "JobSpec",
    "JobState",
    "LateNetwork",
    "ObservationSelection",
    "OutcomeCount",
    "Problem",
    "Progress",
    "Readiness",
    "ReadinessCheck",
    "Reign",
    "SeriesRow",
    "SourceStatus",
    "Trial",
    "cycle_key",
]


class Answer(BaseModel):
    """Base of all answers: immutable, and open to fields that this version does not know."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Problem(Answer):
    """Why a job or an upload did not succeed.

    Attributes:
        message: What was expected, what came, and what to do.
        retryable: Whether the same request may succeed when it is sent again.
        context: Values for programs, such as `field`, `expected` and `got`.
    """

    code: str
    message: str
    retryable: bool = False
    context: dict[str, Any] = {}


class JobState(StrEnum):
    """State of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Progress(Answer):
    """Latest progress of a job.

    Attributes:
        phase: `waiting`, `loading`, `gathering`, `background`, `sampling`, `writing`, …
        step: Diffusion steps completed.
        steps: Diffusion steps in total; 0 while unknown.
        eta_seconds: Estimated seconds until the end.
        queue_position: Number of jobs ahead; None once the job runs.
        message: A sentence for people.
    """

    phase: str = "waiting"
    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None
    queue_position: int | None = None
    message: str = ""


class ObservationSelection(Answer):
    """Which stored observations a job uses; None stands for all.

    Attributes:
        networks: Report types, such as `synop`.
        batches: Ids of uploads.
        cut_off: Last arrival accepted.
        withhold: Share of the stations withheld for verification.
        withhold_stations: Further stations withheld for verification.
    """

    networks: list[str] | None = None
    batches: list[str] | None = None
    cut_off: datetime | None = None
    withhold: float | None = None
    withhold_stations: list[str] = []


class JobSpec(Answer):
    """What a job computes. Fields of its kind, such as `valid_time`, are attributes as well.

    Attributes:
        kind: `filtering`, `forecast`, `reanalysis`, …
        model: Checkpoint; None for the worker's own.
        members: Ensemble members.
        steps: Diffusion steps; None for the checkpoint's default.
        sampler: Sampler; None for the checkpoint's default.
        guidance: How observations guide it; None for the checkpoint's default.
        precision: `float32` or `bfloat16`; None for the worker's own.
        seed: The same job with the same seed gives the same members.
        observations: Which observations are used.
        outputs: Output formats.
    """

    kind: str
    model: str | None = None
    members: int
    steps: int | None = None
    sampler: str | None = None
    guidance: str | None = None
    precision: str | None = None
    seed: int
    observations: ObservationSelection
    outputs: list[str]


class Job(Answer):
    """A job: what was requested, its state, and where its result is published.

    Attributes:
        spec: What was requested.
        created: When it was submitted.
        started: When its newest attempt started.
        finished: When it reached a final state.
        attempts: Number of times a worker has started it.
        retry_at: When it is tried again, after the fault in `error`.
        error: Why it failed or was retried.
        analysis_id: Id under which the result is published.
        request_id: Request that submitted it, to quote to the operator.
        flavour: `early` or `final`; empty outside the cycles.
        revision: Revision of the result for its valid time.
    """

    id: str
    spec: JobSpec
    state: JobState
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    progress: Progress = Progress()
    attempts: int = 0
    retry_at: datetime | None = None
    error: Problem | None = None
    analysis_id: str
    request_id: str = ""
    flavour: str = ""
    revision: int = 1

    @property
    def kind(self) -> str:
        """Kind of the job: `filtering`, `forecast`, `reanalysis` and so on."""
        return self.spec.kind

    @property
    def done(self) -> bool:
        """Whether the state is final, so that waiting any longer changes nothing."""
        return self.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class BatchState(StrEnum):
    """State of an upload. `rejected`: nothing in it could be read; `failed`: the service failed."""

    RECEIVED = "received"
    INGESTING = "ingesting"
    INGESTED = "ingested"
    REJECTED = "rejected"
    FAILED = "failed"


class IngestSummary(Answer):
    """Counts of an ingested upload: messages (or rows) found, and observed values stored.

    Attributes:
        used: Stored values that passed quality control at arrival.
        by_report_type: Stored values by network.
        by_rejection: Stored values by rejecting check.
        rejected_by_report_type: The same for each network that has any.
        decode_report: Report of the decoder.
    """

    messages: int = 0
    undecoded: int = 0
    observations: int = 0
    used: int = 0
    by_variable: dict[str, int] = {}
    by_report_type: dict[str, int] = {}
    by_rejection: dict[str, int] = {}
    rejected_by_report_type: dict[str, dict[str, int]] = {}
    decode_report: dict[str, Any] = {}


class SourceStatus(Answer):
    """A source of observations: a subscription to the notifications of WIS2.

    Attributes:
        name: Unique in the installation.
        broker: Address of the broker.
        topics: Topic filters.
        connected: Whether the broker delivers now.
        detail: Why it is not connected, or why it waits; empty otherwise.
        since: Connected or offline since then.
        backlog: Number of announced files that are still to be fetched.
        lag_seconds: Age of the oldest of these in the backlog.
        latency_seconds: From publication to acceptance, of the newest data accepted.
        received: Notifications so far.
        duplicates: Of these, announcements of data that were known.
        accepted: Data handed over to ingest.
        known: Data whose bytes had been received before, from anybody.
        failures: Fetches that failed and were tried again.
        refused: Data given up, by reason.
        size: Bytes accepted.
        last_received: Time of the newest notification.
        last_accepted: When data were accepted last.
        reported: When the process of the feeds last reported.
    """

    name: str
    broker: str
    topics: list[str]
    connected: bool
    detail: str
    since: datetime | None
    backlog: int
    lag_seconds: float
    latency_seconds: float | None
    received: int
    duplicates: int
    accepted: int
    known: int
    failures: int
    refused: dict[str, int]
    size: int
    last_received: datetime | None
    last_accepted: datetime | None
    reported: datetime


class Batch(Answer):
    """An upload of observations.

    Attributes:
        created: When it arrived; `started` and `finished` are those of its ingest.
        size: Number of bytes received.
        container: Format, detected from the content: `bufr`, `grib`, `csv`, …
        file_name: Name given by the sender.
        options: How it is decoded: `report_type`, `errors` and options of the decoder.
        summary: Counts, once ingested.
        error: Why it was rejected or failed.
        api_key: Id of the API key that sent it, `source:NAME` for a source, as far as the caller sees.
        request_id: Request that sent it, to quote to the operator.
    """

    id: str
    state: BatchState
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    sha256: str
    size: int
    container: str
    file_name: str = ""
    options: dict[str, Any] = {}
    summary: IngestSummary | None = None
    error: Problem | None = None
    api_key: str = ""
    request_id: str = ""

    @property
    def done(self) -> bool:
        """Whether the state is final, so that waiting any longer changes nothing."""
        return self.state in (BatchState.INGESTED, BatchState.REJECTED, BatchState.FAILED)


class AnalysisFile(Answer):
    """A file of an analysis; `role` is `data`, `feedback`, `quicklook` and so on."""

    name: str
    size: int
    sha256: str
    media_type: str
    role: str = "data"


class Analysis(Answer):
    """A published result.

    Attributes:
        job_id: Job that computed it.
        valid_time: Time of the analysis; start of a forecast or reanalysis.
        times: Valid times in the files.
        flavour: `early` or `final`; empty outside the cycles.
        revision: Revision for this valid time.
        created: When it was computed.
        window_start: Start of the observation window, exclusive.
        window_end: End of the observation window, inclusive.
        cut_off: Last arrival accepted.
        observations: Observed values by outcome: `used`, or the rejecting check.
        background: First guess, its source and age.
        flags: `zero_observations`, `cold_start`, …
        scores: Departure statistics and chi-square.
        provenance: Checkpoint, code version, seeds and settings.
        spec: What was requested.
    """

    id: str
    job_id: str
    kind: str
    valid_time: datetime
    times: list[datetime]
    flavour: str = ""
    revision: int = 1
    created: datetime
    files: list[AnalysisFile]
    members: int
    window_start: datetime | None = None
    window_end: datetime | None = None
    cut_off: datetime | None = None
    observations: dict[str, int] = {}
    background: dict[str, Any] = {}
    flags: list[str] = []
    scores: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    spec: JobSpec
    _owner: Owner = PrivateAttr(default_factory=Owner)

    def owned(self, client: Any) -> Self:
        """Return the analysis, which now knows the client that draws for it."""
        self._owner = Owner(client)
        return self

    def plot(self, field: str, **options: Any) -> Any:
        """Draw a field; the same as `plot` of the client that read the analysis.

        Arguments:
            field: Such as `t2m`, `t`, `gh`, `ws`.
            options: `level`, `time`, `statistic`, `view`, `ax` …

        Returns:
            A matplotlib figure; to be awaited if the client is an `AsyncAppaClient`.

        Raises:
            InvalidRequestError: If no client has read the analysis.
        """
        if self._owner.client is None:
            raise InvalidRequestError(
                f"Expected an analysis that a client has read; '{self.id}' was made or copied. "
                f"Use client.plot('{self.id}', …)."
            )
        return self._owner.client.plot(self.id, field, **options)


class Flavour(StrEnum):
    """The early analysis of a valid time, or the final one with late observations."""

    EARLY = "early"
    FINAL = "final"


def cycle_key(valid_time: datetime, flavour: str) -> str:
    """Return the key of a cycle, such as `20031001T06Z_early`.

    Raises:
        ValueError: If `flavour` is neither `early` nor `final`.
    """
    return f"{valid_time.astimezone(UTC):%Y%m%dT%H}Z_{Flavour(flavour).value}"


class CycleState(StrEnum):
    """State of a cycle; the last four are final unless a rerun is requested."""

    WAITING = "waiting"
    DUE = "due"
    SUBMITTED = "submitted"
    PUBLISHED = "published"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


_OPEN_CYCLES = (CycleState.WAITING, CycleState.DUE, CycleState.SUBMITTED)


class Cycle(Answer):
    """A cycle: one valid time and flavour.

    Attributes:
        id: Key, such as `20031001T06Z_early`.
        cut_off: Last arrival accepted.
        job_id: Newest job submitted for it; empty before.
        analysis_id: Newest analysis published for it; empty before.
        revision: 1 for early, 2 for final, more for reruns.
        decided: When its observations were complete.
        caught_up: Whether it became due only after the next cut-off.
        behind_seconds: Seconds from the cut-off to the decision.
        message: Why it was skipped, failed or retried.
        published: When the analysis became readable.
        forecast_job_id: Forecast started from the analysis; empty when there is none.
        forecast_id: Id under which that forecast is published.
        cold_job_id: Cold window that the analysis is compared with; empty when there is none.
        cold_id: Id under which that cold window is published.
    """

    id: str
    valid_time: datetime
    flavour: Flavour
    cut_off: datetime
    state: CycleState
    job_id: str = ""
    analysis_id: str = ""
    revision: int = 1
    decided: datetime | None = None
    caught_up: bool = False
    behind_seconds: float = 0.0
    message: str = ""
    published: datetime | None = None
    forecast_job_id: str = ""
    forecast_id: str = ""
    cold_job_id: str = ""
    cold_id: str = ""

    @property
    def done(self) -> bool:
        """Whether the cycle stays as it is unless a rerun is requested."""
        return self.state not in _OPEN_CYCLES

    @property
    def freshness_seconds(self) -> float | None:
        """Seconds from the cut-off to the published analysis; None before."""
        if self.published is None:
            return None
        return (self.published - self.cut_off).total_seconds()


class Difference(Answer):
    """How a challenger's mean square error at withheld stations differs from the champion's.

    Attributes:
        network: Report type, or `all`.
        variables: `temperature`, `wind`, `humidity`, `mass`, or `all`.
        cycles: Cycles compared.
        values: Values compared.
        percent: Below zero where the challenger is better.
        low: Lower end of the 95 % interval; None for few cycles.
        high: Upper end.
        correlation: Lag-1 autocorrelation of the difference from cycle to cycle.
    """

    network: str
    variables: str
    cycles: int
    values: int
    percent: float
    low: float | None = None
    high: float | None = None
    correlation: float = 0.0


class Trial(Answer):
    """A challenger beside a champion, from its beginning to its end.

    Attributes:
        suite: Its own settings, which replace those of the policy: `model`, `errors`, `checks`, `settings`.
        suite_id: Its name and a digest of its content.
        champion_id: Suite beside which it runs; empty for the first one.
        first_time: Valid time of its first cycle.
        counted_from: Valid time of the first cycle compared.
        least_cycles: Cycles compared before a verdict.
        cycles: Its cycles, by state.
        newest_time: Valid time of its newest cycle.
        verdict: `better`, `worse` or `undecided`.
        differences: Of all values, by network, by variables, by both.
        outcome: `promoted`, `dropped`, `replaced` or `withdrawn`; None while it runs.
        note: Why it was ended, or what it waits for.
    """

    id: int
    suite: dict[str, Any]
    suite_id: str
    champion_id: str
    begun: datetime
    first_time: datetime
    counted_from: datetime
    least_cycles: int
    cycles: dict[str, int]
    newest_time: datetime | None = None
    verdict: str
    differences: list[Difference] = []
    ended: datetime | None = None
    outcome: str | None = None
    by: str = ""
    note: str = ""


class Reign(Answer):
    """Since when a suite has been champion; its id is empty for the settings of the policy itself."""

    suite_id: str
    since: datetime | None = None
    note: str = ""


class Challengers(Answer):
    """The champion, the challenger if there is one, the trials and the champions before."""

    champion: Reign
    challenger: Trial | None = None
    history: list[Trial] = []
    reigns: list[Reign] = []


class OutcomeCount(Answer):
    """Number of observed values of a network with one outcome of quality control."""

    network: str
    outcome: str
    count: int
    meaning: str = ""


class LateNetwork(Answer):
    """Number of values of a network that arrived after the cut-off, first and last arrival."""

    network: str
    count: int
    first: datetime
    last: datetime


class CycleChange(Answer):
    """Difference between an analysis and the previous revision of its valid time.

    Attributes:
        added: Values used only now, by network.
        dropped: Values used before and rejected now, by network and check.
        kept: Number of values used by both.
    """

    from_analysis: str
    from_flavour: str
    from_revision: int
    from_cut_off: datetime | None = None
    added: dict[str, int] = {}
    dropped: list[OutcomeCount] = []
    kept: int = 0


class CycleExplanation(Answer):
    """What became of the observations of a cycle.

    Attributes:
        revisions: Analyses of its valid time, oldest revision first.
        window_start: Start of the observation window, exclusive.
        window_end: End of the observation window, inclusive.
        background: First guess: source, analysis, age.
        outcomes: Values by outcome.
        used: Values used, by network; None without a feedback file.
        late: Values that arrived after the cut-off.
        rejected: Values rejected by a check, other than the late ones.
        changed: Difference from the previous revision, if there is one.
    """

    cycle: Cycle
    revisions: list[str] = []
    window_start: datetime | None = None
    window_end: datetime | None = None
    background: dict[str, str | int | float | None] = {}
    flags: list[str] = []
    outcomes: dict[str, int] = {}
    used: dict[str, int] | None = None
    late: list[LateNetwork] = []
    rejected: list[OutcomeCount] = []
    changed: CycleChange | None = None


class SeriesRow(Answer):
    """A number of the verification series.

    Attributes:
        flavour: `early` or `final`; empty outside the cycles.
        network: Report type; `all`; or `states` for statistics of the fields themselves.
        layer: `surface`, `400-600 hPa`, …, or `all`.
        statistic: Name of the statistic, such as `withheld_rmse_analysis`.
        value: In SI units of the variable, or a ratio.
        count: Number of observed values it was computed from.
    """

    valid_time: datetime
    flavour: str
    revision: int
    analysis_id: str
    network: str
    variable: str
    layer: str
    statistic: str
    value: float
    count: int


class ReadinessCheck(Answer):
    """Result of one readiness check, with what it found."""

    ok: bool
    detail: str = ""


class Readiness(Answer):
    """Whether uploads can be received and jobs can be run now.

    Attributes:
        checks: `redis`, `storage`, `disk`, and one for each queue.
        models: Loaded checkpoints, the default one first.
        warnings: Settings of the broker that may lose data; too little disk.
    """

    ready: bool
    checks: dict[str, ReadinessCheck]
    models: list[str] = []
    warnings: list[str] = []
