"""Define assimilation windows, and plan a trajectory: what is observed, tied and written.

Filtering, reanalysis and forecast are the same computation with different plans; the code that
carries out a plan does not distinguish them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from model.domain.errors import InvalidInput

__all__ = ["HOUR", "AssimilationWindow", "WindowPlan", "hourly"]


def _check_utc(name: str, time: datetime) -> None:
    if time.tzinfo is None or time.utcoffset() != timedelta(0):
        raise InvalidInput(f"Expected {name} as a time in UTC; got {time.isoformat()}.")


HOUR = timedelta(hours=1)
"""From one state of a trajectory to the next."""


@dataclass(frozen=True)
class AssimilationWindow:
    """The half-open interval (start, end]: an observation at `start` belongs to the window before.

    Attributes:
        start: UTC, exclusive.
        end: UTC, inclusive.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        _check_utc("window start", self.start)
        _check_utc("window end", self.end)
        if self.end <= self.start:
            raise InvalidInput(
                f"Expected a window that ends after it starts; got ({self.start.isoformat()}, "
                f"{self.end.isoformat()}]."
            )

    def __contains__(self, time: datetime) -> bool:
        return self.start < time <= self.end

    @property
    def length(self) -> timedelta:
        """Time from the start to the end."""
        return self.end - self.start


def hourly(first: datetime, count: int) -> tuple[datetime, ...]:
    """Return `count` consecutive full hours from `first` (UTC)."""
    _check_utc("first time", first)
    return tuple(first.astimezone(UTC) + timedelta(hours=i) for i in range(count))


@dataclass(frozen=True)
class WindowPlan:
    """Which states of a trajectory are observed, tied to a background, and written.

    Attributes:
        times: Valid times of the trajectory, hourly, ascending, UTC; T of them.
        observed: T flags: observations near this time enter the likelihood.
        tied: T flags: the latent state is conditioned on the background given to `assimilate`.
        written: T flags: the state is part of the result.
        stride: Hours between the starts of neighbouring blankets; None lets the model choose.
        new_states_per_pass: For an autoregressive forecast, how many new states each pass
            generates; None generates the whole trajectory at once.
    """

    times: tuple[datetime, ...]
    observed: tuple[bool, ...]
    tied: tuple[bool, ...]
    written: tuple[bool, ...]
    stride: int | None = None
    new_states_per_pass: int | None = None

    def __post_init__(self) -> None:
        for name in ("observed", "tied", "written"):
            if len(getattr(self, name)) != len(self.times):
                raise InvalidInput(
                    f"Expected one '{name}' flag for each of {len(self.times)} times; got "
                    f"{len(getattr(self, name))}."
                )
        if not self.times:
            raise InvalidInput("Expected at least one time in a window plan; got none.")
        if self.times != hourly(self.times[0], len(self.times)):
            raise InvalidInput("Expected consecutive hourly times in a window plan.")
        if not any(self.written):
            raise InvalidInput("Expected at least one written time in a window plan; got none.")

    @property
    def length(self) -> int:
        """The number of hourly states, T."""
        return len(self.times)

    @property
    def written_times(self) -> tuple[datetime, ...]:
        """Valid times of the states that are written."""
        return tuple(t for t, w in zip(self.times, self.written, strict=True) if w)

    @property
    def window(self) -> AssimilationWindow | None:
        """The window of observations that the observed times use; None if no time is observed.

        An observation is used at the nearest state or interpolated between two, so the window
        reaches from one hour before the first observed time to the last one.
        """
        used = [t for t, o in zip(self.times, self.observed, strict=True) if o]
        if not used:
            return None
        return AssimilationWindow(used[0] - HOUR, used[-1])

    @classmethod
    def filtering(
        cls, end: datetime, length: int, *, written: int = 1, stride: int | None = None
    ) -> "WindowPlan":
        """Plan an analysis of observations up to `end`; the last `written` states are the analysis."""
        times = hourly(end - timedelta(hours=length - 1), length)
        flags = tuple(i >= length - written for i in range(length))
        return cls(times, (True,) * length, (False,) * length, flags, stride)

    @classmethod
    def reanalysis(
        cls,
        start: datetime,
        length: int,
        *,
        written: Sequence[bool] | None = None,
        stride: int | None = None,
    ) -> "WindowPlan":
        """Plan a reanalysis of observations over the whole window; by default every state is written."""
        flags = tuple(written) if written is not None else (True,) * length
        return cls(hourly(start, length), (True,) * length, (False,) * length, flags, stride)

    @classmethod
    def forecast(
        cls,
        start: datetime,
        *,
        past: int,
        lead_hours: int,
        stride: int | None = None,
        new_states_per_pass: int | None = None,
    ) -> "WindowPlan":
        """Plan a forecast: `past` states up to and including `start` are tied; `lead_hours` states follow."""
        length = past + lead_hours
        times = hourly(start - timedelta(hours=past - 1), length)
        tied = tuple(i < past for i in range(length))
        return cls(
            times,
            (False,) * length,
            tied,
            tuple(not t for t in tied),
            stride,
            new_states_per_pass,
        )
