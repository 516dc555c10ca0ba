"""A sensor that repeats the same value over hours."""

import numpy as np
import pyarrow as pa

from worker.columns import BoolArray, codes, groups, kept, numbers, times
from worker.qc.context import QCContext

__all__ = ["stuck"]

_HOUR = 3_600_000_000_000


def stuck(table: pa.Table, context: QCContext) -> BoolArray:
    """Values that stay exactly equal over enough consecutive reports and hours of one station."""
    p = context.of("stuck")
    bad = np.zeros(len(table), dtype=bool)
    variable, names = codes(table, "variable")
    value, time = numbers(table, "obs_value"), times(table)
    good = kept(table) & np.isfinite(value)
    if p["ignore_zero"]:
        good &= value != 0.0
    for name, limit in p["variables"].items():
        if name not in names:
            continue
        rows = np.flatnonzero(good & (variable == names.index(name)))
        if len(rows):
            sub = table.select(["report_type", "station_id"]).take(rows)
            series = groups(*(codes(sub, n)[0] for n in ("report_type", "station_id")))
            bad[rows] = _repeats(series, time[rows], value[rows], limit["count"], limit["hours"])
    return bad


def _repeats(
    series: np.ndarray, time: np.ndarray, value: np.ndarray, count: int, hours: float
) -> BoolArray:
    order = np.lexsort((time, series))
    s, t, v = series[order], time[order], value[order]
    starts = np.append(True, (s[1:] != s[:-1]) | (v[1:] != v[:-1]))
    run = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(s)) - 1
    # Distinct times count: one report may hold a value twice.
    steps = np.append(True, (t[1:] != t[:-1]) | starts[1:])
    length = np.bincount(run, weights=steps)
    long = (length >= count) & (t[last] - t[first] >= hours * _HOUR)
    bad = np.zeros(len(s), dtype=bool)
    bad[order] = long[run]
    return bad
