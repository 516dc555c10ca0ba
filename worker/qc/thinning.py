"""Thinning: of the values in one box of the model, the most central one is used."""

import numpy as np
import pyarrow as pa

from worker.columns import (
    BoolArray,
    codes,
    groups,
    is_one_of,
    kept,
    numbers,
    row_pressure,
    times,
)
from worker.qc.cells import box_keys
from worker.qc.context import QCContext

__all__ = ["thinning"]

_HOUR = 3.6e12


def thinning(table: pa.Table, context: QCContext) -> BoolArray:
    """All rows of a box but one: the closest in level, then in time, then by station and order.

    The choice does not look at the variable, so that both wind components stay together.
    """
    p = context.of("thinning")
    bad = np.zeros(len(table), dtype=bool)
    rows = np.flatnonzero(kept(table) & is_one_of(table, "report_type", p["report_types"]))
    if not len(rows):
        return bad
    sub = table.take(rows)
    keys = box_keys(sub, context, p["degrees"], p["hours"])
    station = codes(sub, "station_id")[0]
    box = groups(*keys, *([station] if p["per_station"] else []))
    offset = np.abs(times(sub) / (p["hours"] * _HOUR) % 1.0 - 0.5)
    order = np.lexsort(
        (
            numbers(sub, "observation_id"),
            codes(sub, "batch_id")[0],
            station,
            -offset,
            _level_distance(row_pressure(sub), context.levels),
            box,
        )
    )
    later = np.zeros(len(rows), dtype=bool)
    later[order[1:]] = box[order[1:]] == box[order[:-1]]
    bad[rows] = later
    return bad


def _level_distance(pressure: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Distance in ln p from the nearest model level, rounded so that equal levels tie."""
    if not levels:
        return np.zeros(len(pressure))
    grid = np.log(np.asarray(levels, float) * 100.0)
    x = np.log(np.maximum(pressure, 1.0))
    return np.round(np.min([np.abs(x - level) for level in grid], axis=0), 6)
