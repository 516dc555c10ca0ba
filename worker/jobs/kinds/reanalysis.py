"""Reanalysis: all states of a past period from all its observations, early and late ones."""

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field, model_validator

from model.domain.windows import WindowPlan
from worker.jobs.kinds.base import FullHour, SpecBase

__all__ = ["ReanalysisSpec"]


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
