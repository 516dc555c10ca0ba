"""Flags of the provider, missing values, impossible places and times, late arrival."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.columns import BoolArray, codes, numbers, times
from worker.qc.context import QCContext

__all__ = ["flags", "impossible", "late", "missing"]

_HOUR = 3_600_000_000_000


def flags(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows that carry a flag number without the name of a check: the provider's own verdict."""
    return numbers(table, "qc_flag") > 0


def missing(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows without a finite value."""
    return ~np.isfinite(numbers(table, "obs_value"))


def late(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows that arrived after the cut-off."""
    if context.cut_off is None:
        return np.zeros(len(table), dtype=bool)
    limit = pa.scalar(context.cut_off, pa.timestamp("ns", tz="UTC"))
    return pc.greater(table["received_time"], limit).to_numpy().astype(bool)


def impossible(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows whose position, height or time cannot be, or lie outside the domain."""
    p = context.of("domain")
    lat, lon = numbers(table, "lat"), numbers(table, "lon")
    bad = ~((np.abs(lat) <= 90.0) & (lon >= -180.0) & (lon < 180.0))
    if p["null_island"]:
        bad |= (lat == 0.0) & (lon == 0.0)
    if p["box"] is not None:
        bad |= _outside(lat, lon, p["box"])
    bad |= _beyond(numbers(table, "elevation"), p["elevation"], required=False)
    bad |= _vertical(table, p)
    time = times(table)
    bad |= time > times(table, "received_time") + p["future_hours"] * _HOUR
    return bad | (time < np.datetime64(p["earliest"], "ns").astype(np.int64))


def _outside(lat: np.ndarray, lon: np.ndarray, box: list[float]) -> BoolArray:
    west, south, east, north = box
    across = (lon - west) % 360.0 <= (east - west) % 360.0
    return ~(across & (lat >= south) & (lat <= north))


def _beyond(values: np.ndarray, limits: list[float], *, required: bool) -> BoolArray:
    absent = np.isnan(values)
    outside = ~((values >= limits[0]) & (values <= limits[1]))
    return np.where(absent, required, outside)


def _vertical(table: pa.Table, p: dict) -> BoolArray:
    kind, names = codes(table, "vertical_kind")
    vertical, top = numbers(table, "vertical"), numbers(table, "vertical_top")
    pressure = [100.0 * limit for limit in p["pressure"]]
    bad = np.zeros(len(kind), dtype=bool)
    for i, name in enumerate(names):
        rows = kind == i
        if name in ("pressure", "layer"):
            bad[rows] = _beyond(vertical[rows], pressure, required=True)
        if name == "layer":
            bad[rows] |= ~(top[rows] < vertical[rows])
        if name == "height":
            bad[rows] = _beyond(vertical[rows], p["height"], required=True)
    return bad
