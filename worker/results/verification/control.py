"""Compare the statistics of a finished job with control limits.

Limits are the median of the trailing cycles of the same flavour plus and minus k sigma, with sigma
= 1.4826 times the median absolute deviation, so that a few bad cycles hardly affect either.
(Control charts: Shewhart, "Economic control of quality of manufactured product", 1931; the robust
sigma: Rousseeuw and Croux, "Alternatives to the median absolute deviation", JASA 88, 1993.)
The statistics to check and their limits are configured in `verification.yaml` in the data folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.domain.files import read_yaml_model
from worker.contract.layout import Layout
from worker.results.verification.series import (
    ALL,
    LIMIT_SUFFIXES,
    SeriesEntry,
    SeriesFilter,
    StatisticRow,
    find_series,
    newest_revisions,
    read_series,
)

__all__ = [
    "ControlPolicy",
    "ControlResult",
    "ControlRule",
    "ControlLimits",
    "Outside",
    "check_cycle",
    "check_limits",
    "read_control_policy",
    "robust_limits",
    "trailing_series",
]


class ControlRule(BaseModel):
    """A statistic that is watched, for every network, variable and layer that it matches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistic: str = Field(description="Name in the time series.")
    networks: list[str] = Field(default=[], description="Only these; empty for every network.")
    variables: list[str] = Field(default=[], description="Only these; empty for every variable.")
    layers: list[str] = Field(default=[ALL], description="Only these; empty for every layer.")
    side: Literal["both", "high", "low"] = Field(
        default="both", description="Which direction is alarming."
    )
    sigmas: float | None = Field(default=None, gt=0, description="Null for the policy's own.")
    same_hour: bool = Field(
        default=False, description="Compare with the same hour of other days only."
    )
    absent_is_zero: bool = Field(
        default=False, description="An analysis without this number counts as 0: for counts."
    )


_DEFAULT_RULES = [
    ControlRule(statistic="chi2", networks=[ALL]),
    ControlRule(statistic="withheld_rmse_analysis", side="high"),
    ControlRule(statistic="bias_background"),
    ControlRule(statistic="spread_skill"),
    ControlRule(statistic="used_new", same_hour=True, absent_is_zero=True),
]


class ControlPolicy(BaseModel):
    """Control limits: median of the cycles before, plus and minus so many robust sigmas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="Whether limits are looked at.")
    flavours: list[str] = Field(
        default=["early", "final"], description="Analyses watched, each against its own kind."
    )
    cycles: int = Field(default=360, ge=8, le=5000, description="Cycles looked back on.")
    minimum: int = Field(default=20, ge=5, description="Cycles needed before limits apply.")
    minimum_same_hour: int = Field(
        default=7, ge=5, description="The same for statistics compared by the hour of the day."
    )
    sigmas: float = Field(default=5.0, gt=0, description="Half width, in robust sigmas.")
    least_sigma: float = Field(
        default=0.03,
        ge=0,
        description="A sigma is at least this share of the median: steady numbers may move a bit.",
    )
    least_count: int = Field(
        default=10, ge=1, description="Means of fewer values are not looked at."
    )
    rules: list[ControlRule] = Field(default=_DEFAULT_RULES, description="What is watched.")


def read_control_policy(path: Path) -> ControlPolicy:
    """Return the policy in the file, or the default one when there is no file.

    Raises:
        ConfigurationError: If the file is not a policy, naming the fields that do not fit.
    """
    if not path.exists():
        return ControlPolicy()
    hint = "See docs/verification.md."
    return read_yaml_model(path, ControlPolicy, "control limits", hint=hint)


_MAD_TO_SIGMA = 1.4826
_STEPS = timedelta(hours=2), timedelta(hours=24)
"""Distances between cycles assumed in the search: usual maximum, then absolute maximum."""
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Outside:
    """One statistic of one cycle that lies outside its control limits."""

    network: str
    variable: str
    layer: str
    statistic: str
    value: float
    low: float
    high: float
    cycles: int


@dataclass(frozen=True)
class ControlLimits:
    """Control limits of one statistic in one cycle; None on a side without a limit."""

    low: float | None
    high: float | None
    cycles: int

    def within(self, other: "ControlLimits") -> "ControlLimits":
        """Return the narrower limit on each side, if several rules apply to one statistic."""
        lows = [limit for limit in (self.low, other.low) if limit is not None]
        highs = [limit for limit in (self.high, other.high) if limit is not None]
        cycles = max(self.cycles, other.cycles)
        return ControlLimits(max(lows, default=None), min(highs, default=None), cycles)


@dataclass(frozen=True)
class ControlResult:
    """The comparison of one cycle with its control limits.

    Attributes:
        cycles: Number of earlier cycles that the limits are based on.
        checked: Number of statistics that have limits.
        outside: Statistics outside their limits.
        limits: Limits by network, variable, layer and statistic.
    """

    cycles: int
    checked: int
    outside: tuple[Outside, ...]
    limits: Mapping[Key, ControlLimits]

    @property
    def rows(self) -> list[StatisticRow]:
        """Return rows of the time series: the number outside limits, and the limits of each statistic."""
        rows = [
            StatisticRow(ALL, ALL, ALL, "outside_limits", float(len(self.outside)), self.checked)
        ]
        for (network, variable, layer, statistic), limits in self.limits.items():
            for suffix, value in zip(LIMIT_SUFFIXES, (limits.low, limits.high), strict=True):
                if value is not None:
                    name = statistic + suffix
                    rows.append(StatisticRow(network, variable, layer, name, value, limits.cycles))
        return rows

    @property
    def scores(self) -> dict[str, Any]:
        """Return the entry `control` of the scores in the manifest."""
        lines = [asdict(line) for line in self.outside]
        return {"cycles": self.cycles, "checked": self.checked, "outside": lines}


def trailing_series(
    layout: Layout, flavour: str, before: datetime, policy: ControlPolicy
) -> pa.Table:
    """Return the checked statistics of earlier cycles, in their newest revision.

    Arguments:
        layout: The data folder.
        flavour: `early` or `final`.
        before: Valid time, exclusive.
        policy: Number of cycles, and statistics to check.
    """
    entries: list[SeriesEntry] = []
    for step in _STEPS:  # avoids listing folders of years ago for hourly cycles
        start = before - policy.cycles * step
        found = find_series(layout, start, before - timedelta(seconds=1), [flavour])
        entries = newest_revisions(found)[-policy.cycles :]
        if len(entries) == policy.cycles:
            break
    names = sorted({rule.statistic for rule in policy.rules})
    every = any(not rule.layers for rule in policy.rules)
    layers = () if every else sorted({name for rule in policy.rules for name in rule.layers})
    return read_series(layout, entries, SeriesFilter(statistics=names, layers=layers))


def robust_limits(
    values: NDArray[np.float64], sigmas: float, least_sigma: float = 0.0
) -> tuple[float, float]:
    """Return lower and upper limit: median plus and minus `sigmas` robust standard deviations.

    Arguments:
        values: With shape (cycles,).
        sigmas: Half width in standard deviations.
        least_sigma: Smallest sigma, as a share of the absolute median.
    """
    centre = float(np.median(values))
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(values - centre)))
    reach = sigmas * max(sigma, least_sigma * abs(centre))
    return centre - reach, centre + reach


def check_limits(
    rows: Iterable[StatisticRow], valid_time: datetime, trailing: pa.Table, policy: ControlPolicy
) -> ControlResult:
    """Compare the statistics of one cycle with those of earlier cycles.

    Arguments:
        rows: Statistics of this cycle.
        valid_time: Valid time of this cycle (UTC).
        trailing: A table of `SERIES_SCHEMA`; one revision for each valid time.
        policy: The limits.
    """
    current = {(r.network, r.variable, r.layer, r.statistic): (r.value, r.count) for r in rows}
    frame = trailing.to_pandas()
    times = pd.DatetimeIndex(frame["valid_time"].unique())
    history = _Histories(frame, times, valid_time.hour)
    limits: dict[Key, ControlLimits] = {}
    checked, outside = 0, []
    for rule in policy.rules:
        for key in _matching(rule, current, history.known):
            value, count = current.get(key, (0.0, 0))
            if not rule.absent_is_zero and count < policy.least_count:
                continue
            past = history.of(key, rule, policy.least_count)
            needed = policy.minimum_same_hour if rule.same_hour else policy.minimum
            if len(past) < needed:
                continue
            checked += 1
            low, high = robust_limits(past, rule.sigmas or policy.sigmas, policy.least_sigma)
            if (value > high and rule.side != "low") or (value < low and rule.side != "high"):
                outside.append(Outside(*key, value, low, high, len(past)))
            watched = ControlLimits(
                None if rule.side == "high" else low,
                None if rule.side == "low" else high,
                len(past),
            )
            limits[key] = watched.within(limits.get(key, watched))
    return ControlResult(len(times), checked, tuple(outside), limits)


def _matching(rule: ControlRule, current: Mapping[Key, Any], known: Sequence[Key]) -> list[Key]:
    """Return the statistics a rule applies to, including past ones where absence counts as zero."""
    keys = {*current, *(known if rule.absent_is_zero else ())}
    return sorted(
        key
        for key in keys
        if key[3] == rule.statistic
        and (not rule.networks or key[0] in rule.networks)
        and (not rule.variables or key[1] in rule.variables)
        and (not rule.layers or key[2] in rule.layers)
    )


class _Histories:
    """Statistics of the trailing cycles, by network, variable, layer and name."""

    def __init__(self, frame: pd.DataFrame, times: pd.DatetimeIndex, hour: int) -> None:
        self.times, self.hour = times, hour
        keys = ["network", "variable", "layer", "statistic"]
        columns = ["valid_time", "value", "count"]
        groups = frame.groupby(keys, observed=True, sort=False)[columns] if len(frame) else ()
        self.groups: dict[Key, pd.DataFrame] = {name: group for name, group in groups}

    @property
    def known(self) -> list[Key]:
        """Return the keys of all statistics that any trailing cycle has."""
        return list(self.groups)

    def of(self, key: Key, rule: ControlRule, least_count: int) -> NDArray[np.float64]:
        """Return the trailing values for a rule, with shape (cycles,)."""
        group = self.groups.get(key)
        if rule.absent_is_zero:
            times = self.times
            past = pd.Series(0.0, index=times)
            if group is not None:
                past.loc[group["valid_time"].to_numpy()] = group["value"].to_numpy()
        elif group is None:
            return np.zeros(0)
        else:
            group = group[group["count"] >= least_count]
            past = pd.Series(group["value"].to_numpy(), index=pd.DatetimeIndex(group["valid_time"]))
        if rule.same_hour:
            past = past[pd.DatetimeIndex(past.index).hour == self.hour]
        values: NDArray[np.float64] = past.to_numpy(dtype=float)
        return values


def check_cycle(
    rows: Iterable[StatisticRow], entry: SeriesEntry, layout: Layout
) -> ControlResult | None:
    """Compare the statistics of one cycle with its control limits; None for a flavour without limits.

    Arguments:
        rows: Statistics of this cycle.
        entry: The cycle.
        layout: The data folder, where policy and time series are.

    Raises:
        ConfigurationError: If the file is not a policy.
        StorageError: If the series cannot be read.
    """
    policy = read_control_policy(layout.verification_file)
    if not policy.enabled or entry.flavour not in policy.flavours:
        return None
    trailing = trailing_series(layout, entry.flavour, entry.valid_time, policy)
    return check_limits(rows, entry.valid_time, trailing, policy)
