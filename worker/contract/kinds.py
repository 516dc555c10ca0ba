"""Specify jobs: filtering, forecast, reanalysis, and the plan of times each one makes.

* Filtering: the analysis of one hour from the observations of the window that ends there.
* Forecast: the states that follow an analysis, without observations.
* Reanalysis: all states of a past period from all its observations, early and late ones.

All that differs between kinds is in their specification and in one `JobKind` each, listed in
`KINDS`: file names, titles, the queue, retention, the catalogue, the API and its examples read it
from there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from model.domain.errors import ConfigurationError
from model.domain.observations import REPORT_TYPES
from model.domain.registry import Registry
from model.domain.times import LEAP_SECOND, read_time
from model.domain.windows import WindowPlan

__all__ = [
    "ArrivalTime",
    "BackgroundChoice",
    "FIRST_YEAR",
    "FilteringSpec",
    "ForecastSpec",
    "FullHour",
    "JobKind",
    "JobSpec",
    "KINDS",
    "KindName",
    "LAST_YEAR",
    "MAX_REANALYSIS_HOURS",
    "ObservationSelection",
    "ReanalysisSpec",
    "SpecBase",
    "UtcTime",
]

BackgroundChoice = Literal["auto", "previous_analysis", "climatology"]


FIRST_YEAR, LAST_YEAR = 1700, 2200
"""Accepted years: times are int64 nanoseconds since 1970, which range from 1677 to 2262."""
MAX_REANALYSIS_HOURS = 366 * 24
"""Maximum length of a reanalysis in hours: it is one trajectory, held in memory as a whole."""
_DATE_AND_CLOCK = re.compile(r"\s*\d{4}-?\d\d-?\d\d[Tt_ ]\d\d")


def _with_clock(time: Any) -> Any:
    """Refuse numbers and dates, which pydantic would read as seconds since 1970 and as midnight."""
    if isinstance(time, str) and LEAP_SECOND.search(time):
        try:
            return read_time(time)
        except ValueError:
            return time  # pydantic says what is wrong with the rest of it
    if isinstance(time, datetime) or (isinstance(time, str) and _DATE_AND_CLOCK.match(time)):
        return time
    raise ValueError(
        f"Expected a date and a clock such as 2025-01-01T06:00:00Z; got {str(time)[:40]!r}."
    )


def _utc(time: datetime) -> datetime:
    """Return `time` in UTC; a time without a zone is read as UTC."""
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"Expected a time within the calendar; got {time.isoformat()}.") from None


def _countable(time: datetime) -> datetime:
    # Converting between time zones shifts a time by less than a day.
    if not FIRST_YEAR <= time.year <= LAST_YEAR:
        raise ValueError(
            f"Expected a year from {FIRST_YEAR} to {LAST_YEAR}; got {time.isoformat()}."
        )
    return _utc(time)


def _full_hour(time: datetime) -> datetime:
    time = _countable(time)
    if time != time.replace(minute=0, second=0, microsecond=0):
        raise ValueError(f"Expected a full hour in UTC; got {time.isoformat()}.")
    return time


def _networks(names: list[str] | None) -> list[str] | None:
    unknown = sorted(set(names or ()) - set(REPORT_TYPES))
    if unknown:
        raise ValueError(f"Unknown networks {unknown}. Known: {', '.join(sorted(REPORT_TYPES))}.")
    return names


UtcTime = Annotated[datetime, BeforeValidator(_with_clock), AfterValidator(_utc)]
ArrivalTime = Annotated[datetime, BeforeValidator(_with_clock), AfterValidator(_countable)]
"""A time that is compared with those of the observation store."""
FullHour = Annotated[datetime, BeforeValidator(_with_clock), AfterValidator(_full_hour)]


class ObservationSelection(BaseModel):
    """Which stored observations a job may use; the default is all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    networks: Annotated[list[str] | None, AfterValidator(_networks)] = Field(
        default=None, description="Report types to use (`synop`, `temp`, …); null for all."
    )
    deny: Annotated[list[str], AfterValidator(_networks)] = Field(
        default=[],
        description=(
            "Report types not to assimilate, to learn what they are worth: their values are in the "
            "feedback as `passive`, those of withheld stations as `withheld`. An earlier analysis "
            "that is continued may have seen them."
        ),
    )
    batches: list[str] | None = Field(
        default=None, description="Only observations of these uploads; null for all."
    )
    cut_off: ArrivalTime | None = Field(
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

    @property
    def report_types(self) -> tuple[str, ...]:
        """Return the report types to look at; empty for all."""
        return tuple(self.networks or ())

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.deny and set(self.deny) >= set(self.networks or REPORT_TYPES):
            raise ValueError(f"Expected a network that is not denied; got deny={self.deny}.")
        return self


class SpecBase(BaseModel):
    """Fields of every kind of job; a kind adds `kind`, a literal of its name, and its times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    if TYPE_CHECKING:  # each kind declares it as a literal, which tells them apart
        kind: str

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
    sampler: str | None = Field(
        default=None,
        max_length=100,
        description="Sampler, one of the model's in the capabilities; null for its default.",
    )
    guidance: str | None = Field(
        default=None,
        max_length=100,
        description="How observations guide the sampler, one of the model's in the capabilities; "
        "null for its default.",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the networks' products; null for the worker's own."
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
        """Place in the queue, one of `worker.contract.queues.PRIORITIES`: lower ones go first."""
        return KINDS[self.kind].priority

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
            "Go on from an earlier analysis or upload: with its memory where the checkpoint knows "
            "the errors of its backgrounds, else from its trajectory; without a usable one the job "
            "starts cold and says so."
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
        """Return whether the job asks for a warm start."""
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
    def first_guess_until(self) -> datetime:
        """The analysis at the start itself."""
        return self.valid_time

    @property
    def first_guess_age(self) -> timedelta:
        """Return zero: the analysis at the start, no older one."""
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
        if (hours := self._hours(self.start, self.end) + 1) > MAX_REANALYSIS_HOURS:
            raise ValueError(
                f"Expected a reanalysis of at most {MAX_REANALYSIS_HOURS} hours; got {hours}. Send "
                "shorter ones, with margin_hours where they meet."
            )
        return self

    @property
    def reference_time(self) -> datetime:
        """The time the result is filed under."""
        return self.start

    def plan(self, blanket: int, past: int = 0) -> WindowPlan:
        """The states of the period and its margins, at least one blanket long; see `SpecBase`."""
        wanted = self._hours(self.start, self.end) + 1
        length = max(wanted + 2 * self.margin_hours, blanket)
        before = self.margin_hours
        written = tuple(before <= i < before + wanted for i in range(length))
        first = self.start - timedelta(hours=before)
        return WindowPlan.reanalysis(first, length, written=written)


@dataclass(frozen=True)
class JobKind:
    """A kind of job and its results: everything that other modules need to know about it.

    Attributes:
        name: Name in specifications, the API and the catalogue.
        spec: Its specification, with `kind` a literal of the name; its `plan` says which states
            are computed, observed, tied and written.
        tag: Its tag in file names: 2 to 8 lower-case letters, unique among kinds.
        noun: Noun for a result, such as "analysis".
        plural: Plural of the noun.
        description: Description of its collection in the catalogue.
        summary: Summary of the example.
        example: A specification, shown in the API documentation.
        priority: Place in the queue, one of `worker.contract.queues.PRIORITIES`.
        forecast: Whether its states follow the reference time and have not seen observations.
        instant: Whether a result represents its reference time, however many states it holds.
        cycled: Whether the cycles compute it every hour. Its results then come as `early` and
            `final`, each with its own retention rule.
        keep_days: Days that results outside the cycles are kept; None for ever. Installations
            change it in `retention.yaml`.
        keep_newest: Number of the newest results that are kept whatever their age.
    """

    name: str
    spec: type[SpecBase]
    tag: str
    noun: str
    plural: str
    description: str
    summary: str
    example: Mapping[str, Any] = field(hash=False)
    priority: int = 0
    forecast: bool = False
    instant: bool = False
    cycled: bool = False
    keep_days: float | None = None
    keep_newest: int = 0

    def __post_init__(self) -> None:
        given = self.spec.model_fields.get("kind")
        if given is None or given.default != self.name:
            raise ConfigurationError(
                f"Expected {self.spec.__name__} to have a field 'kind' with the default "
                f"'{self.name}'.",
                kind=self.name,
            )
        if not re.fullmatch("[a-z]{2,8}", self.tag) or self.tag in _OTHER_TAGS:
            raise ConfigurationError(
                f"Expected a tag of 2 to 8 lower-case letters other than "
                f"{', '.join(_OTHER_TAGS)} for job kind '{self.name}'; got '{self.tag}'.",
                kind=self.name,
            )

    def retention_class(self, flavour: str) -> str:
        """Return the retention rule that a result of this kind and flavour falls under."""
        return (flavour or "manual") if self.cycled else self.name


_OTHER_TAGS = ("obsfb", "ql")
"""Tags of feedback files and quick-looks, which results of every kind may have."""

KINDS: Registry[JobKind] = Registry(
    "job kind",
    "appa.job_kinds",
    JobKind,
    ("tag",),
    filtering=JobKind(
        name="filtering",
        spec=FilteringSpec,
        tag="an",
        noun="analysis",
        plural="analyses",
        description="Ensemble analyses of one hour each, from the observations of the window that "
        "ends there.",
        summary="The analysis of 06 UTC from the observations of the last six hours",
        example={
            "kind": "filtering",
            "valid_time": "2025-01-01T06:00:00Z",
            "window_hours": 6,
            "members": 8,
            "observations": {"networks": ["synop", "temp"], "cut_off": "2025-01-01T07:00:00Z"},
        },
        instant=True,
        cycled=True,
        keep_days=30,
        keep_newest=24,
    ),
    forecast=JobKind(
        name="forecast",
        spec=ForecastSpec,
        tag="fc",
        noun="forecast",
        plural="forecasts",
        description="Ensemble forecasts from analyses, hour by hour.",
        summary="24 hours from the newest analysis of 06 UTC",
        example={"kind": "forecast", "valid_time": "2025-01-01T06:00:00Z", "lead_hours": 24},
        priority=3,  # after the analyses, which the next hour needs
        forecast=True,
        keep_days=14,
        keep_newest=8,
    ),
    reanalysis=JobKind(
        name="reanalysis",
        spec=ReanalysisSpec,
        tag="ra",
        noun="reanalysis",
        plural="reanalyses",
        description="Ensembles of a past period, hour by hour, from all of its observations.",
        summary="A past day from all its observations",
        example={
            "kind": "reanalysis",
            "start": "2025-01-01T00:00:00Z",
            "end": "2025-01-01T23:00:00Z",
            "members": 4,
            "outputs": ["netcdf"],
        },
        priority=6,  # after everything that someone waits for
    ),
)


class _OneOfKinds:
    """Validate as the specification that `kind` names: a union of those of all kinds.

    The union is built when a model or a route uses it, not when this module is imported, so that an
    extension can import this module to register its kind.
    """

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        specs: Any = reduce(or_, (kind.spec for kind in KINDS.values()))
        return handler.generate_schema(Annotated[specs, Field(discriminator="kind")])


class _KindNames:
    """Validate as the name of a kind."""

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(KINDS))


JobSpec = Annotated[SpecBase, _OneOfKinds()]
"""The specification of a job of any kind, told apart by `kind`."""
KindName = Annotated[str, _KindNames()]
"""The name of a kind of job."""
