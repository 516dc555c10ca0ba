"""Summarise all starts of an experiment as rows of tables, by season and group of channels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from lab.osse.scores import Method, StartSkill
from model.domain.variables import Channel

__all__ = [
    "ForecastRow",
    "GROUPS",
    "GroupRow",
    "MethodRow",
    "SEASONS",
    "channel_groups",
    "channel_means",
    "forecast_rows",
    "group_rows",
    "method_rows",
    "overall",
    "season",
]

SEASONS = ("DJF", "MAM", "JJA", "SON")
"""Named by their months, northern winter first."""


def season(time: datetime) -> str:
    """Return the season of a time (UTC)."""
    return SEASONS[time.astimezone(UTC).month % 12 // 3]


GROUPS: dict[str, tuple[str, ...]] = {
    "temperature": ("2m_temperature", "temperature"),
    "wind": (
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
        "u_component_of_wind",
        "v_component_of_wind",
    ),
    "geopotential, pressure": ("geopotential", "mean_sea_level_pressure"),
    "humidity": ("specific_humidity",),
    "precipitation": ("total_precipitation",),
    # Prescribed by the climate of a nature run: nothing can beat climatology there.
    "sea surface": ("sea_surface_temperature",),
}
"""Name of a group to the variables in it, at all levels."""


def channel_groups(channels: Sequence[Channel]) -> dict[str, list[int]]:
    """Return the name of a group to the positions of its channels; groups without a channel are left out."""
    found = {
        name: [i for i, c in enumerate(channels) if c.variable in variables]
        for name, variables in GROUPS.items()
    }
    return {name: positions for name, positions in found.items() if positions}


Float = NDArray[np.float64]


@dataclass(frozen=True)
class MethodRow:
    """A method over all starts.

    Attributes:
        method: Its name.
        mean: Standardised RMSE, over channels and starts.
        worst: Mean over channels at the worst start.
        worst_start: Its analysis time.
        seconds: Median wall clock; None where it was not measured.
        processor: Median processor seconds over all cores, likewise.
    """

    method: Method
    mean: float
    worst: float
    worst_start: datetime
    seconds: float | None
    processor: float | None


@dataclass(frozen=True)
class GroupRow:
    """Analyses of a group of channels, over all starts.

    Attributes:
        group: Its name.
        channels: How many.
        errors: Method to mean standardised RMSE.
        spread_ratio: Mean spread over error of the filtering ensemble.
    """

    group: str
    channels: int
    errors: dict[Method, float]
    spread_ratio: float


@dataclass(frozen=True)
class ForecastRow:
    """Forecasts of a group of channels from the starts of a season.

    Attributes:
        season: One of `SEASONS`, or `all`.
        group: Name of the group, or `all`.
        starts: How many.
        channels: How many.
        forecast, persistence, climatology: Mean standardised RMSE; persistence is that of the
            analysis that the forecast starts from.
        above_persistence, above_climatology: Channels whose forecast is better, mean over starts.
    """

    season: str
    group: str
    starts: int
    channels: int
    forecast: float
    persistence: float
    climatology: float
    above_persistence: int
    above_climatology: int


def _errors(starts: Sequence[StartSkill], method: Method) -> Float:
    """Return the errors of a method, with shape (starts, C)."""
    return np.array([s.errors[method] for s in starts])


def _common(starts: Sequence[StartSkill]) -> list[Method]:
    return [m for m in Method if all(m in s.errors for s in starts)]


def channel_means(starts: Sequence[StartSkill]) -> dict[Method, Float]:
    """Return the mean over starts of each method's error by channel, each with shape (C,)."""
    return {m: _errors(starts, m).mean(axis=0) for m in _common(starts)}


def overall(starts: Sequence[StartSkill], method: Method) -> float:
    """Return the mean over channels and starts; NaN where a start lacks the method."""
    return float(_errors(starts, method).mean()) if method in _common(starts) else math.nan


def method_rows(starts: Sequence[StartSkill]) -> tuple[MethodRow, ...]:
    """Return all methods, in the order of `Method`."""
    rows = []
    for method in _common(starts):
        errors = _errors(starts, method).mean(axis=1)
        worst = int(errors.argmax())
        costs = (
            _median([s.seconds.get(method) for s in starts]),
            _median([s.processor.get(method) for s in starts]),
        )
        mean = float(errors.mean())
        rows.append(MethodRow(method, mean, float(errors[worst]), starts[worst].end, *costs))
    return tuple(rows)


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def group_rows(starts: Sequence[StartSkill], channels: Sequence[Channel]) -> tuple[GroupRow, ...]:
    """Return the errors of each group's analyses, and of the baselines."""
    means = channel_means(starts)
    ratio = np.array([s.spread_ratio for s in starts])
    shown = (Method.FILTERING, Method.WINDOWED, Method.OPTIMAL_INTERPOLATION, Method.CLIMATOLOGY)
    return tuple(
        GroupRow(
            group,
            len(chosen),
            {m: float(means[m][chosen].mean()) for m in shown if m in means},
            float(np.nanmean(ratio[:, chosen]))
            if np.isfinite(ratio[:, chosen]).any()
            else math.nan,
        )
        for group, chosen in channel_groups(channels).items()
    )


def forecast_rows(
    starts: Sequence[StartSkill], channels: Sequence[Channel]
) -> tuple[ForecastRow, ...]:
    """Return every season with a start and all of them, each by group and over all channels."""
    if Method.FORECAST not in _common(starts):
        return ()
    groups = channel_groups(channels) | {"all": list(range(len(channels)))}
    rows = []
    for name in (*SEASONS, "all"):
        part = [s for s in starts if name in (season(s.end), "all")]
        if not part:
            continue
        forecast, persistence, climatology = (
            _errors(part, m).mean(axis=0)
            for m in (Method.FORECAST, Method.PERSISTENCE, Method.CLIMATOLOGY_AHEAD)
        )
        for group, chosen in groups.items():
            f, p, c = (e[chosen] for e in (forecast, persistence, climatology))
            rows.append(
                ForecastRow(
                    season=name,
                    group=group,
                    starts=len(part),
                    channels=len(chosen),
                    forecast=float(f.mean()),
                    persistence=float(p.mean()),
                    climatology=float(c.mean()),
                    above_persistence=int((f < p).sum()),
                    above_climatology=int((f < c).sum()),
                )
            )
    return tuple(rows)
