"""Read the policy of the cycles: which hours are analysed, with which cut-offs, how to catch up.

Read from `cycles.yaml` in the data folder; without that file nothing is cycled.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    field_validator,
    model_validator,
)

from model.domain.errors import ConfigurationError
from model.domain.files import read_yaml, read_yaml_model
from worker.contract.cycles import Flavour
from worker.contract.kinds import FullHour
from worker.contract.suites import Suite, SuiteSettings
from worker.observations.errors import load_errors
from worker.observations.qc.base import load_parameters

__all__ = [
    "CatchUp",
    "ChallengerPolicy",
    "ComparisonPolicy",
    "CutOff",
    "CyclePolicy",
    "ForecastPolicy",
    "frozen_suite",
    "read_policy",
]

_MAX_MINUTES = 14 * 24 * 60


class CutOff(RootModel[dict[str, float]]):
    """Minutes after the valid time, by the hour of the day: one number, or a map with `default`."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_number_for_all(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return {"default": value}
        return {str(hour): minutes for hour, minutes in value.items()}

    @field_validator("root", mode="after")
    @classmethod
    def _every_hour_known(cls, value: dict[str, float]) -> dict[str, float]:
        wrong = [k for k in value if k != "default" and not (k.isdecimal() and int(k) < 24)]
        if wrong:
            raise ValueError(f"Expected hours of the day from 0 to 23, or 'default'; got {wrong}.")
        hours = {k if k == "default" else str(int(k)): v for k, v in value.items()}
        missing = [hour for hour in range(24) if str(hour) not in hours]
        if "default" not in hours and missing:
            raise ValueError(f"Expected 'default' for the hours that are not named: {missing}.")
        if any(not 0.0 <= minutes <= _MAX_MINUTES for minutes in hours.values()):
            raise ValueError(f"Expected from 0 to {_MAX_MINUTES} minutes after the valid time.")
        return hours

    def of(self, hour: int) -> timedelta:
        """Return the delay after the valid time, for cycles of this hour of the day."""
        return timedelta(minutes=self.root.get(str(hour), self.root.get("default", 0.0)))

    @property
    def longest(self) -> timedelta:
        """Return the longest delay of any hour of the day."""
        return timedelta(minutes=max(self.root.values()))


class CatchUp(BaseModel):
    """What happens to cycles that were missed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_age_hours: float = Field(
        default=48.0, gt=0, description="Cycles whose cut-off is longer ago are skipped."
    )
    order: Literal["oldest_first", "newest_first"] = Field(
        default="oldest_first", description="Which of the missed cycles comes first."
    )
    at_once: int = Field(default=1, ge=1, le=64, description="Cycle jobs in flight at once.")
    early: Literal["make", "skip"] = Field(
        default="make",
        description="What becomes of an early analysis once the final cut-off has passed, too.",
    )


class ForecastPolicy(BaseModel):
    """Forecasts that start from final analyses: at which hours, how long, of how many members."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: list[Annotated[int, Field(ge=0, le=23)]] = Field(
        default=[0, 12], description="Hours of the day whose final analysis starts a forecast."
    )
    lead_hours: int = Field(default=48, ge=1, le=360, description="Length of the forecast.")
    members: int | None = Field(
        default=None, ge=1, le=512, description="Ensemble members; null for as many as the cycle's."
    )


class ComparisonPolicy(BaseModel):
    """Cold windows that cycles are compared with: whether their memory still helps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: list[Annotated[int, Field(ge=0, le=23)]] = Field(
        default=[0], description="Hours of the day whose final analysis is compared."
    )


class ChallengerPolicy(BaseModel):
    """A second suite that makes every final analysis again, to be compared and promoted or dropped.

    What it does not name is as the rest of the policy says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_]{0,39}$", description="Lower-case letters, digits and '_'."
    )
    model: str | None = Field(
        default=None, description="Checkpoint, which every model worker has loaded."
    )
    errors: str | dict[str, Any] = Field(
        default={},
        description="Observation errors upon those of the installation: as in errors.yaml, or the "
        "name of such a file in the data folder.",
    )
    checks: str | dict[str, Any] = Field(
        default={}, description="Parameters of quality control, likewise, as in checks.yaml."
    )
    settings: SuiteSettings = Field(default=SuiteSettings(), description="Of the assimilation.")
    outputs: list[str] = Field(
        default=["feedback"], min_length=1, description="Formats of its results."
    )
    spin_up_hours: int = Field(
        default=48, ge=0, le=2400, description="Cycles of its first hours are not compared."
    )
    least_cycles: int = Field(
        default=48, ge=3, le=10_000, description="Cycles compared before there is a verdict."
    )


class CyclePolicy(BaseModel):
    """How this installation cycles: which analyses are made when, and from what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: FullHour = Field(description="Valid time of the first cycle (full hour, UTC).")
    end: FullHour | None = Field(
        default=None, description="Valid time of the last cycle; null for no end."
    )
    step_hours: int = Field(default=1, ge=1, le=24, description="From one cycle to the next.")
    window_hours: int | None = Field(
        default=None, ge=1, le=240, description="Hourly states in a window; null for the blanket."
    )
    members: int = Field(default=8, ge=1, le=512, description="Ensemble members.")
    model: str | None = Field(default=None, description="Checkpoint; null for the worker's own.")
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="Diffusion steps; null for the checkpoint's own."
    )
    sampler: str | None = Field(default=None, max_length=100, description="Null for the default.")
    guidance: str | None = Field(default=None, max_length=100, description="Null for the default.")
    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the networks' products; null for the worker's own."
    )
    outputs: list[str] = Field(
        default=["netcdf", "feedback", "quicklook"], min_length=1, description="Formats wanted."
    )
    early_cut_off_minutes: CutOff = Field(
        default=CutOff({"default": 20.0}),
        description="Last arrival for the early analysis, after the valid time.",
    )
    final_cut_off_minutes: CutOff = Field(
        default=CutOff({"default": 180.0}),
        description="Last arrival for the final analysis, after the valid time.",
    )
    catch_up: CatchUp = Field(default=CatchUp(), description="What happens to missed cycles.")
    warm_start: bool = Field(
        default=True,
        description=(
            "Go on from an earlier analysis: with its memory where the checkpoint knows the errors "
            "of its backgrounds, else from its trajectory."
        ),
    )
    background_max_age_hours: int = Field(
        default=6, ge=1, le=240, description="Oldest previous analysis that is continued."
    )
    forecast: ForecastPolicy | None = Field(default=None, description="Forecasts; null for none.")
    compare: ComparisonPolicy | None = Field(
        default=None, description="Comparisons with cold windows; null for none."
    )
    challenger: ChallengerPolicy | None = Field(
        default=None, description="A second suite on trial; null for none."
    )
    withhold: float | None = Field(
        default=None, ge=0.0, le=0.5, description="Share of stations kept back for verification."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="From it each hour's seed is made.")
    ingest_grace_seconds: float = Field(
        default=120.0,
        ge=0.0,
        description=(
            "Real seconds that a cycle waits for uploads that arrived in time and are still being "
            "taken in."
        ),
    )
    retries: int = Field(
        default=1, ge=0, le=10, description="New jobs for a cycle whose job has failed."
    )

    _suite: Suite | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _final_after_early(self) -> Self:
        for hour in range(24):
            early, final = self.early_cut_off_minutes.of(hour), self.final_cut_off_minutes.of(hour)
            if final <= early:
                raise ValueError(
                    f"Expected the final cut-off after the early one; at hour {hour} they are "
                    f"{final / timedelta(minutes=1):g} and {early / timedelta(minutes=1):g} minutes."
                )
        if self.end is not None and self.end < self.start:
            raise ValueError("Expected 'end' at or after 'start'.")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.challenger is not None and "feedback" not in self.outputs:
            raise ValueError("Expected 'feedback' in 'outputs': a challenger is compared by it.")
        if self.challenger is not None and self.withhold == 0.0:
            raise ValueError("Expected 'withhold' above 0: a challenger is compared there.")
        return self

    @property
    def step(self) -> timedelta:
        """Return the time from one cycle to the next."""
        return timedelta(hours=self.step_hours)

    @property
    def digest(self) -> str:
        """Return the digest of this policy, stored in the manifest of every cycled analysis."""
        text = self.model_dump_json(exclude={"challenger"})  # it does not affect them
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def suite(self) -> Suite | None:
        """Return the suite set by `with_suite`; None for the settings of the policy itself."""
        return self._suite

    def with_suite(self, suite: Suite | None) -> "CyclePolicy":
        """Return a copy of the policy with the checkpoint and settings of a suite, and the suite itself."""
        if suite is None:
            return self
        own = {n: v for n, v in suite.settings.model_dump().items() if v is not None}
        own |= {"model": suite.model} if suite.model is not None else {}
        changed = self.model_copy(update=own)
        changed._suite = suite
        return changed

    def cut_off(self, valid_time: datetime, flavour: str) -> datetime:
        """Return the last arrival accepted by the analysis of `valid_time` in this flavour."""
        early = flavour == Flavour.EARLY
        minutes = self.early_cut_off_minutes if early else self.final_cut_off_minutes
        return valid_time + minutes.of(valid_time.hour)


def read_policy(path: Path) -> CyclePolicy | None:
    """Return the policy in `cycles.yaml`, or None when there is no such file.

    Raises:
        ConfigurationError: If the file is not a policy, naming the fields that do not fit.
    """
    if not path.exists():
        return None
    hint = "Write a commented example with: appa cycles init."
    return read_yaml_model(path, CyclePolicy, "a policy of cycles", hint=hint)


def frozen_suite(challenger: ChallengerPolicy, folder: Path) -> Suite:
    """Return the suite of a challenger with the content of the files that it names.

    Arguments:
        challenger: As in the policy.
        folder: The data folder, where files are looked for.

    Raises:
        ConfigurationError: If a file is absent, or errors or checks are faulty.
    """
    errors, checks = (_content(o, folder) for o in (challenger.errors, challenger.checks))
    load_errors(errors)
    load_parameters(checks)
    if "withholding" in checks:
        raise ConfigurationError(
            "Expected no 'withholding' among the checks of a challenger: it is compared at the "
            "stations that the champion withholds, too."
        )
    return Suite(
        name=challenger.name,
        model=challenger.model,
        errors=errors,
        checks=checks,
        settings=challenger.settings,
    )


def _content(given: str | Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return read_yaml(folder / given) if isinstance(given, str) else dict(given)
