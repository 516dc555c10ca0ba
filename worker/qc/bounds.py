"""Gross limits by variable and level."""

import numpy as np
import pyarrow as pa

from worker.columns import BoolArray, codes, numbers, row_pressure
from worker.qc.context import QCContext

__all__ = ["bounds"]


def bounds(table: pa.Table, context: QCContext) -> BoolArray:
    """Values outside the limits of their variable, interpolated in ln p between levels."""
    limits = context.of("bounds")["limits"]
    variable, names = codes(table, "variable")
    value, pressure = numbers(table, "obs_value"), row_pressure(table)
    bad = np.zeros(len(table), dtype=bool)
    for i, name in enumerate(names):
        if name not in limits:
            continue
        rows = variable == i
        low, high = (_limit(limits[name], side, pressure[rows]) for side in ("low", "high"))
        with np.errstate(invalid="ignore"):
            bad[rows] = (value[rows] < low) | (value[rows] > high)
    return bad


def _limit(entry: dict, side: str, pressure: np.ndarray) -> np.ndarray:
    if "pressure" not in entry:
        return np.full(len(pressure), float(entry[side]))
    levels = np.log(np.asarray(entry["pressure"], dtype=float) * 100.0)
    order = np.argsort(levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.interp(np.log(pressure), levels[order], np.asarray(entry[side], float)[order])
