"""Filtering: the analysis of one hour from the observations of the window that ends there."""

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from model.domain.windows import WindowPlan
from worker.jobs.kinds.base import FullHour, SpecBase

__all__ = ["FilteringSpec"]


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
