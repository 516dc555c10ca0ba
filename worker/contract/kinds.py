"""Specify jobs: filtering, forecast, reanalysis, and the plan of times each one makes.

* Filtering: the analysis of one hour from the observations of the window that ends there.
* Forecast: the states that follow an analysis, without observations.
* Reanalysis: all states of a past period from all its observations, early and late ones.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from model.domain.observations import REPORT_TYPES
from model.domain.windows import WindowPlan

__all__ = [
    "BackgroundChoice",
    "FilteringSpec",
    "ForecastSpec",
    "FullHour",
    "JOB_SPEC",
    "JobSpec",
    "ObservationSelection",
    "ReanalysisSpec",
    "SpecBase",
    "UtcTime",
]

BackgroundChoice = Literal["auto", "previous_analysis", "climatology"]


def _utc(time: datetime) -> datetime:
    """`time` in UTC; a time without a zone is read as UTC."""
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"Expected a time within the calendar; got {time.isoformat()}.") from None


def _full_hour(time: datetime) -> datetime:
    time = _utc(time)
    if time != time.replace(minute=0, second=0, microsecond=0):
        raise ValueError(f"Expected a full hour in UTC; got {time.isoformat()}.")
    return time


def _networks(names: list[str] | None) -> list[str] | None:
    unknown = sorted(set(names or ()) - set(REPORT_TYPES))
    if unknown:
        raise ValueError(f"Unknown networks {unknown}. Known: {', '.join(sorted(REPORT_TYPES))}.")
    return names


UtcTime = Annotated[datetime, AfterValidator(_utc)]
FullHour = Annotated[datetime, AfterValidator(_full_hour)]


class ObservationSelection(BaseModel):
    """Which stored observations a job may use; the default is all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    networks: Annotated[list[str] | None, AfterValidator(_networks)] = Field(
        default=None, description="Report types to use (`synop`, `temp`, …); null for all."
    )
    batches: list[str] | None = Field(
        default=None, description="Only observations of these uploads; null for all."
    )
    cut_off: UtcTime | None = Field(
        default=None, description="Last arrival accepted (UTC); later ones are flagged `late`."
    )
    withhold: float | None = Field(
        default=None,
        ge=0.0,
        le=0.5,
        description=(
            "Stable share of the stations kept back for verification; null for the installation's "
            "own share."
        ),
    )
    withhold_stations: list[str] = Field(
        default=[], description="Stations kept back for verification besides that share."
    )


class SpecBase(BaseModel):
    """Fields of every kind of job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None,
        description="Name of the checkpoint; null for the worker's own.",
        examples=["t31"],
    )
    members: int = Field(default=8, ge=1, le=512, description="Ensemble members.")
    steps: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Diffusion steps; null for the checkpoint's default.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed; the same job gives the same members."
    )
    observations: ObservationSelection = Field(
        default_factory=lambda: ObservationSelection(), description="Which observations to use."
    )
    outputs: list[str] = Field(
        default=["netcdf", "feedback", "quicklook"],
        min_length=1,
        description="Formats wanted, of those that running workers report.",
    )
    fields: Literal["members", "mean", "members_and_mean"] = Field(
        default="members_and_mean",
        description="What the files hold: members, mean and spread, or both.",
    )
    background: BackgroundChoice = Field(
        default="auto",
        description=(
            "First guess: `previous_analysis` brought forward, `climatology`, or `auto` (the "
            "former when a usable one exists)."
        ),
    )
    background_batch: str | None = Field(
        default=None,
        max_length=100,
        description=(
            "First guess: an upload of GRIB fields with every channel of the model, brought "
            "forward; a forecast starts from it. In place of a previous analysis."
        ),
    )
    background_max_age_hours: int = Field(
        default=12,
        ge=0,
        le=240,
        description=(
            "Oldest previous analysis or upload accepted, before the one that would be the regular "
            "first guess: that of the hour before."
        ),
    )

    @model_validator(mode="after")
    def _one_background(self) -> Self:
        if self.background_batch is not None and self.background != "auto":
            raise ValueError(
                "Expected background 'auto' with background_batch, which is the background; got "
                f"'{self.background}'."
            )
        return self

    @property
    def reference_time(self) -> datetime:
        """The time the result is filed under."""
        raise NotImplementedError

    @property
    def first_guess_until(self) -> datetime:
        """Last valid time of an earlier result that may serve as first guess."""
        return self.reference_time - timedelta(hours=1)

    @property
    def first_guess_age(self) -> timedelta:
        """How much older than that it may be."""
        return timedelta(hours=self.background_max_age_hours)

    @property
    def continues(self) -> str | None:
        """The result that must be continued, when one was named."""
        return None

    @property
    def priority(self) -> int:
        """Place in the queue, one of `worker.jobs.queues.PRIORITIES`: lower ones go first."""
        return 0

    @property
    def starts_warm(self) -> bool:
        """Whether the diffusion may start from the background instead of from pure noise."""
        return False

    def plan(self, blanket: int, past: int = 0) -> WindowPlan:
        """The states of the job.

        Arguments:
            blanket: States the model denoises together.
            past: States up to the reference time that the earlier result holds.
        """
        raise NotImplementedError

    @staticmethod
    def _hours(start: datetime, end: datetime) -> int:
        return round((end - start) / timedelta(hours=1))


class FilteringSpec(SpecBase):
    """The state at `valid_time`, given the observations of the `window_hours` before it."""

    kind: Literal["filtering"] = Field(default="filtering", description="The kind of job.")
    valid_time: FullHour = Field(description="Time of the analysis (full hour, UTC).")
    window_hours: int | None = Field(
        default=None,
        ge=1,
        le=240,
        description="Hourly states in the window; null for the model's blanket.",
    )
    write_hours: int = Field(
        default=1, ge=1, le=240, description="The last so many hours of the window are written."
    )
    warm_start: bool = Field(
        default=False,
        description=(
            "Start the diffusion part of the way from the background brought forward: fewer steps, "
            "needs a usable previous analysis or upload; otherwise the job starts cold and says so."
        ),
    )

    @model_validator(mode="after")
    def _written_inside_window(self) -> "FilteringSpec":
        if self.window_hours is not None and self.write_hours > self.window_hours:
            raise ValueError(
                f"Expected write_hours of at most window_hours ({self.window_hours}); got "
                f"{self.write_hours}."
            )
        return self

    @property
    def reference_time(self) -> datetime:
        """The time the result is filed under."""
        return self.valid_time

    @property
    def starts_warm(self) -> bool:
        """As asked for."""
        return self.warm_start

    def plan(self, blanket: int, past: int = 0) -> WindowPlan:
        """The states of the window; see `SpecBase.plan`."""
        length = max(self.window_hours or blanket, self.write_hours)
        return WindowPlan.filtering(self.valid_time, length, written=self.write_hours)


class ForecastSpec(SpecBase):
    """`lead_hours` states after `valid_time`, tied to the analyses up to it."""

    kind: Literal["forecast"] = Field(default="forecast", description="The kind of job.")
    valid_time: FullHour = Field(description="Start of the forecast (full hour, UTC).")
    lead_hours: int = Field(
        default=24, ge=1, le=360, description="Length of the forecast in hours."
    )
    past_hours: int | None = Field(
        default=None,
        ge=1,
        le=240,
        description="States up to the start that are tied; null for half a blanket.",
    )
    analysis_id: str | None = Field(
        default=None, description="The analysis to start from; null for the newest at `valid_time`."
    )
    hours_per_pass: int | None = Field(
        default=None, ge=1, description="New states of each pass; null for one pass."
    )

    @model_validator(mode="after")
    def _one_start(self) -> "ForecastSpec":
        if self.background_batch is not None and self.analysis_id is not None:
            raise ValueError(
                "Expected one start of the forecast; got both analysis_id and background_batch."
            )
        return self

    @property
    def reference_time(self) -> datetime:
        """The time the result is filed under."""
        return self.valid_time

    @property
    def priority(self) -> int:
        """After the analyses, which the next hour needs."""
        return 3

    @property
    def first_guess_until(self) -> datetime:
        """The analysis at the start itself."""
        return self.valid_time

    @property
    def first_guess_age(self) -> timedelta:
        """No older one will do."""
        return timedelta(0)

    @property
    def continues(self) -> str | None:
        """The analysis to start from, when one was named."""
        return self.analysis_id

    def plan(self, blanket: int, past: int = 0) -> WindowPlan:
        """The tied states and the forecast; see `SpecBase.plan`."""
        wanted = self.past_hours or max(1, blanket // 2)
        tied = min(wanted, past) if past else wanted
        return WindowPlan.forecast(
            self.valid_time,
            past=tied,
            lead_hours=self.lead_hours,
            new_states_per_pass=self.hours_per_pass,
        )


class ReanalysisSpec(SpecBase):
    """Hourly states from `start` to `end`, each given the observations of the whole period."""

    kind: Literal["reanalysis"] = Field(default="reanalysis", description="The kind of job.")
    start: FullHour = Field(description="First state (full hour, UTC).")
    end: FullHour = Field(description="Last state (full hour, UTC), included.")
    margin_hours: int = Field(
        default=0,
        ge=0,
        le=48,
        description="States computed before `start` and after `end` but not written.",
    )

    @model_validator(mode="after")
    def _ends_after_start(self) -> "ReanalysisSpec":
        if self.end < self.start:
            raise ValueError(
                f"Expected 'end' at or after 'start' ({self.start.isoformat()}); got "
                f"{self.end.isoformat()}."
            )
        return self

    @property
    def reference_time(self) -> datetime:
        """The time the result is filed under."""
        return self.start

    @property
    def priority(self) -> int:
        """After all that someone waits for: the past has time."""
        return 6

    def plan(self, blanket: int, past: int = 0) -> WindowPlan:
        """The states of the period and its margins, at least one blanket long; see `SpecBase`."""
        wanted = self._hours(self.start, self.end) + 1
        length = max(wanted + 2 * self.margin_hours, blanket)
        before = self.margin_hours
        written = tuple(before <= i < before + wanted for i in range(length))
        first = self.start - timedelta(hours=before)
        return WindowPlan.reanalysis(first, length, written=written)


JobSpec = Annotated[FilteringSpec | ForecastSpec | ReanalysisSpec, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[FilteringSpec | ForecastSpec | ReanalysisSpec] = TypeAdapter(JobSpec)
