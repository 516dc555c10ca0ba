"""Check rows one by one: provider flags, missing and impossible values, gross limits, blocklist and
late arrival.
"""

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    is_one_of,
    row_pressure,
    time_column,
)
from worker.observations.qc.base import QCContext
from worker.observations.stations import identifiers, station_codes

__all__ = [
    "blocklist",
    "bounds",
    "provider_flags",
    "outside_domain",
    "late_arrival",
    "limit_at",
    "missing_value",
]

_HOUR = 3_600_000_000_000


def provider_flags(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows with a flag but without a rejecting check: those flagged by the provider."""
    return float_column(table, "qc_flag") > 0


def missing_value(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows without a finite value, such as NaN."""
    return ~np.isfinite(float_column(table, "obs_value"))


def late_arrival(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows that arrived after the cut-off."""
    if context.cut_off is None:
        return np.zeros(len(table), dtype=bool)
    limit = pa.scalar(context.cut_off, pa.timestamp("ns", tz="UTC"))
    return np.array(pc.greater(table["received_time"], limit).to_numpy(), dtype=bool)


def outside_domain(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows whose position, height or time is impossible or outside the domain."""
    p = context.of("domain")
    lat, lon = float_column(table, "lat"), float_column(table, "lon")
    bad = ~((np.abs(lat) <= 90.0) & (lon >= -180.0) & (lon < 180.0))
    if p["null_island"]:
        bad |= (lat == 0.0) & (lon == 0.0)
    if p["box"] is not None:
        bad |= _outside(lat, lon, p["box"])
    bad |= _beyond(float_column(table, "elevation"), p["elevation"], required=False)
    bad |= _vertical(table, p)
    time = time_column(table)
    bad |= time > time_column(table, "received_time") + p["future_hours"] * _HOUR
    return bad | (time < np.datetime64(p["earliest"], "ns").astype(np.int64))


def _outside(lat: np.ndarray, lon: np.ndarray, box: list[float]) -> BoolArray:
    west, south, east, north = box
    across = (lon - west) % 360.0 <= (east - west) % 360.0
    return ~(across & (lat >= south) & (lat <= north))


def _beyond(values: np.ndarray, limits: list[float], *, required: bool) -> BoolArray:
    absent = np.isnan(values)
    outside = ~((values >= limits[0]) & (values <= limits[1]))
    return np.where(absent, required, outside)


def _vertical(table: pa.Table, p: Mapping[str, Any]) -> BoolArray:
    kind, names = category_codes(table, "vertical_kind")
    vertical, top = float_column(table, "vertical"), float_column(table, "vertical_top")
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


def bounds(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark values outside the limits of their variable, interpolated in ln p between levels."""
    limits = context.of("bounds")["limits"]
    variable, names = category_codes(table, "variable")
    value, pressure = float_column(table, "obs_value"), row_pressure(table)
    bad = np.zeros(len(table), dtype=bool)
    for i, name in enumerate(names):
        if name not in limits:
            continue
        rows = variable == i
        low, high = (limit_at(limits[name], side, pressure[rows]) for side in ("low", "high"))
        with np.errstate(invalid="ignore"):
            bad[rows] = (value[rows] < low) | (value[rows] > high)
    return bad


def limit_at(entry: Mapping[str, Any], side: str, pressure: np.ndarray) -> np.ndarray:
    """Return one side of the limits of a variable at pressures (Pa), linear in ln p."""
    if "pressure" not in entry:
        return np.full(len(pressure), float(entry[side]))
    levels = np.log(np.asarray(entry["pressure"], dtype=float) * 100.0)
    order = np.argsort(levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        limit = np.interp(np.log(pressure), levels[order], np.asarray(entry[side], float)[order])
    return np.asarray(limit)


def blocklist(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows matched by an entry: station pattern, and optionally networks, variables and period.

    The pattern may be that of any identifier of the station.
    """
    bad = np.zeros(len(table), dtype=bool)
    station, names = station_codes(table)
    reported, known = category_codes(table, "station_id")
    for entry in context.of("blocklist")["entries"]:
        pattern = re.compile(translate(str(entry["station"])))
        rows = np.isin(station, [i for i, name in enumerate(names) if pattern.match(name)])
        hits = [i for i, name in enumerate(known) if _matches(pattern, name)]
        rows |= np.isin(station, station[np.isin(reported, hits)])
        for key, column in (("report_types", "report_type"), ("variables", "variable")):
            if entry.get(key):
                rows &= is_one_of(table, column, entry[key])
        if entry.get("from"):
            rows &= time_column(table) >= _nanoseconds(entry["from"])
        if entry.get("until"):
            rows &= time_column(table) <= _nanoseconds(entry["until"])
        bad |= rows
    return bad


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    return any(pattern.match(form) for form in identifiers(name))


def _nanoseconds(time: object) -> int:
    text = str(time).replace("+00:00", "").removesuffix("Z")
    return int(np.datetime64(text, "ns").astype(np.int64))
