"""Training, validation and test periods that never overlap and lie apart by a gap."""

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.domain.errors import InvalidInput

__all__ = ["Period", "Splits"]


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


class Splits(BaseModel):
    """The three periods and the smallest allowed gap between any two of them in days."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Period
    validation: Period
    test: Period
    gap_days: Annotated[float, Field(ge=0)] = 10.0

    @model_validator(mode="after")
    def _apart(self) -> "Splits":
        named = sorted(
            ((p.start, p.end, n) for n, p in self if isinstance(p, Period)), key=lambda x: x[0]
        )
        for (_, end, before), (start, _, after) in zip(named, named[1:], strict=False):
            if start - end < timedelta(days=self.gap_days):
                raise InvalidInput(
                    f"Expected at least {self.gap_days} days between the {before} and {after} periods; "
                    f"{before} ends {end}, {after} starts {start}."
                )
        return self
