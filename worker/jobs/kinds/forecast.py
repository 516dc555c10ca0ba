"""Forecast: the states that follow an analysis, without observations."""

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field, model_validator

from model.domain.windows import WindowPlan
from worker.jobs.kinds.base import FullHour, SpecBase

__all__ = ["ForecastSpec"]


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
