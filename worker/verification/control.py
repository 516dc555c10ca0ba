"""Control limits: is this cycle like the cycles before it?

Limits are the median of the trailing cycles of the same flavour plus and minus k sigma, with sigma
= 1.4826 times the median absolute deviation: a few bad cycles among them move neither much.
(Control charts: Shewhart, "Economic control of quality of manufactured product", 1931; the robust
sigma: Rousseeuw and Croux, "Alternatives to the median absolute deviation", JASA 88, 1993.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from worker.jobs.layout import Layout
from worker.jobs.verification_series import (
    SeriesEntry,
    SeriesFilter,
    find_series,
    newest_revisions,
    read_series,
)
from worker.verification.policy import ControlPolicy, ControlRule
from worker.verification.rows import Row

__all__ = ["Control", "Outside", "check_limits", "robust_limits", "trailing_series"]

_MAD_TO_SIGMA = 1.4826
_STEPS = timedelta(hours=2), timedelta(hours=24)
"""Cycles are seldom further apart than the first, and never than the second."""
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Outside:
    """A number outside its limits."""

    network: str
    variable: str
    layer: str
    statistic: str
    value: float
    low: float
    high: float
    cycles: int


@dataclass(frozen=True)
class Control:
    """Outcome for one cycle.

    Attributes:
        cycles: Cycles looked back on.
        checked: Numbers that have limits.
        outside: Those outside of them.
    """

    cycles: int
    checked: int
    outside: tuple[Outside, ...]

    @property
    def scores(self) -> dict[str, Any]:
        """For the manifest."""
        lines = [asdict(line) for line in self.outside]
        return {"cycles": self.cycles, "checked": self.checked, "outside": lines}


def trailing_series(
    layout: Layout, flavour: str, before: datetime, policy: ControlPolicy
) -> pa.Table:
    """The watched statistics of the cycles before a valid time, of each its newest revision.

    Arguments:
        layout: The data folder.
        flavour: `early` or `final`.
        before: Valid time, exclusive.
        policy: How many cycles, which statistics.
    """
    entries: list[SeriesEntry] = []
    for step in _STEPS:  # folders of years ago need not be listed for hourly cycles
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
    """Lower and upper limit from values that were in order.

    Arguments:
        values: With shape (cycles,).
        sigmas: Half width.
        least_sigma: Smallest sigma, as a share of the absolute median.
    """
    centre = float(np.median(values))
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(values - centre)))
    reach = sigmas * max(sigma, least_sigma * abs(centre))
    return centre - reach, centre + reach


def check_limits(
    rows: Iterable[Row], valid_time: datetime, trailing: pa.Table, policy: ControlPolicy
) -> Control:
    """Compares the statistics of one cycle with those of the cycles before.

    Arguments:
        rows: Of this cycle.
        valid_time: Of this cycle (UTC).
        trailing: A table of `SERIES_SCHEMA`; one revision for each valid time.
        policy: The limits.
    """
    current = {(r.network, r.variable, r.layer, r.statistic): (r.value, r.count) for r in rows}
    frame = trailing.to_pandas()
    times = pd.DatetimeIndex(frame["valid_time"].unique())
    history = _Histories(frame, times, valid_time.hour)
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
    return Control(len(times), checked, tuple(outside))


def _matching(rule: ControlRule, current: Mapping[Key, Any], known: Sequence[Key]) -> list[Key]:
    """Keys that the rule watches; those only in the past, too, where absence says something."""
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
    """Values of the cycles before, by network, variable, layer and statistic."""

    def __init__(self, frame: pd.DataFrame, times: pd.DatetimeIndex, hour: int) -> None:
        self.times, self.hour = times, hour
        keys = ["network", "variable", "layer", "statistic"]
        columns = ["valid_time", "value", "count"]
        groups = frame.groupby(keys, observed=True, sort=False)[columns] if len(frame) else ()
        self.groups: dict[Key, pd.DataFrame] = {name: group for name, group in groups}  # type: ignore[misc]

    @property
    def known(self) -> list[Key]:
        """What the cycles before had."""
        return list(self.groups)

    def of(self, key: Key, rule: ControlRule, least_count: int) -> NDArray[np.float64]:
        """The values that count for this rule."""
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
        return past.to_numpy(dtype=float)
