"""Training, validation and test periods that never overlap and lie apart by a gap."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from model.domain.errors import InvalidInput

__all__ = ["Period", "Periods", "Splits"]


class Period(BaseModel):
    """[start, end) of valid times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: datetime
    end: datetime

    @model_validator(mode="after")
    def _ordered(self) -> "Period":
        if self.end <= self.start:
            raise ValueError(f"expected an end after {self.start}; got {self.end}")
        return self

    @property
    def bounds(self) -> tuple[str, str]:
        """Start and end in the form numpy reads."""
        return self.start.isoformat(), self.end.isoformat()


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


Periods = Annotated[tuple[Period, ...], BeforeValidator(_listed), Field(min_length=1)]
"""One period or several in order, as on both sides of a test year."""


class Splits(BaseModel):
    """The periods of each split and the smallest allowed gap between two splits in days."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Periods
    validation: Periods
    test: Periods
    gap_days: Annotated[float, Field(ge=0)] = 10.0

    @model_validator(mode="after")
    def _apart(self) -> "Splits":
        named = sorted(
            (
                (period.start, period.end, name)
                for name in ("train", "validation", "test")
                for period in self.of(name)
            ),
            key=lambda x: x[0],
        )
        for (_, end, before), (start, _, after) in zip(named, named[1:], strict=False):
            gap = self.gap_days if before != after else 0.0
            if start - end < timedelta(days=gap):
                raise InvalidInput(
                    f"Expected at least {gap} days between the {before} and {after} periods; "
                    f"{before} ends {end}, {after} starts {start}."
                )
        return self

    def of(self, split: str) -> tuple[Period, ...]:
        """The periods of `train`, `validation` or `test`."""
        periods: tuple[Period, ...] = getattr(self, split)
        return periods

    def bounds(self, split: str) -> list[tuple[str, str]]:
        """Start and end of each of those periods, in the form numpy reads."""
        return [period.bounds for period in self.of(split)]
