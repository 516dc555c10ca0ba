"""Decode IODA-style NetCDF: groups MetaData, ObsValue, ObsError and PreQC over one dimension.

Names after JCSDA jedi-docs, `inside/conventions/objects_and_layouts.md`, in both the camelCase
and the older snake_case spelling.
"""

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd

from model.domain.errors import DecodeError
from model.domain.observations import REPORT_TYPES
from worker.observations.decoders.base import (
    DecodeContext,
    Decoded,
    DecodeReport,
    build_table,
    concat_tables,
)
from worker.observations.lexicons.ioda import IODA_VARIABLES
from worker.observations.units import conversion

__all__ = ["decode_ioda"]

_AT_SURFACE = {"synop", "ship", "buoy", "drifter", "scatterometer", "gnss"}
_MISSING = 1e30
_UNIT_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
_LAST_SECOND = 9.2e9
_WORST_MARK = 3
"""NCEP quality marks above this mean rejected (prepbufr table 7); IODA keeps them as PreQC."""


def decode_ioda(path: Path, context: DecodeContext) -> Decoded:
    """Rows of every known variable of ObsValue.

    The option `report_type` names the network; without it, rows with a pressure or height are taken
    as aloft. Units come from the attribute `units`; where it is absent IODA's own SI is assumed and
    noted.

    Raises:
        DecodeError: If the file is no NetCDF or lacks the groups.
    """
    report = DecodeReport(format="ioda-netcdf", size=path.stat().st_size)
    try:
        with netCDF4.Dataset(path) as data:
            return _decode(data, context, report)
    except (OSError, RuntimeError) as error:
        raise DecodeError(f"Expected a NetCDF file; {error}.", reason="undecodable") from error


def _decode(data: Any, context: DecodeContext, report: DecodeReport) -> Decoded:
    absent = [group for group in ("MetaData", "ObsValue") if group not in data.groups]
    if absent:
        raise DecodeError(
            f"Expected the IODA groups MetaData and ObsValue; missing: {', '.join(absent)}.",
            reason="invalid_table",
            missing=absent,
        )
    meta = data["MetaData"]
    place = _place(meta, context)
    length = len(place["lat"])
    if length > context.limits.values:
        raise DecodeError(
            f"Expected at most {context.limits.values} locations; got {length}.", reason="too_large"
        )
    usable = np.isfinite(place["lat"]) & np.isfinite(place["lon"])
    timed = ~np.isnat(place["time"])
    for row in np.flatnonzero(~usable):
        report.reject("no_position", detail=f"location {row + 1}", report=int(row))
    for row in np.flatnonzero(usable & ~timed):
        report.reject("no_time", detail=f"location {row + 1}", report=int(row))
    report.reports += length
    tables = []
    for name in data["ObsValue"].variables:
        report.messages += 1
        columns = _variable(data, name, place, context, report)
        if columns is not None:
            good = usable & timed & np.isfinite(columns["obs_value"])
            part = {n: v[good] if np.ndim(v) else v for n, v in columns.items()}
            tables.append(build_table(context, int(good.sum()), **part))
            report.decoded += 1
    table = concat_tables(tables)
    if not len(table) and not report.rejected:
        report.reject("no_values", detail="no rows")
    report.bytes_decoded = report.size
    report.count_rows(table)
    return Decoded(table, report)


def _floats(variable: Any) -> np.ndarray:
    values = np.ma.filled(np.ma.asarray(variable[:]).astype(np.float64), np.nan)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) < _MISSING, values, np.nan)


def _first(group: Any, *names: str) -> Any | None:
    return next((group[name] for name in names if name in group.variables), None)


def _place(meta: Any, context: DecodeContext) -> dict[str, Any]:
    """Where, when and who, with shape (locations,)."""
    lat, lon = _first(meta, "latitude", "lat"), _first(meta, "longitude", "lon")
    if lat is None or lon is None:
        raise DecodeError(
            "Expected MetaData/latitude and MetaData/longitude.", reason="invalid_table"
        )
    length = len(lat[:])
    empty = np.full(length, np.nan)

    def numbers(*names: str) -> np.ndarray:
        found = _first(meta, *names)
        return empty if found is None else _floats(found)

    station = _first(meta, "stationIdentification", "station_id", "satelliteIdentifier")
    return {
        "lat": _floats(lat),
        "lon": _floats(lon),
        "time": _times(meta, length),
        "station_id": _words(station, length),
        "elevation": numbers("stationElevation", "station_elevation"),
        "pressure": numbers("pressure", "air_pressure"),
        "height": numbers("height", "geometric_height"),
        "report_type": context.options.get("report_type", ""),
    }


def _times(meta: Any, length: int) -> np.ndarray:
    variable = _first(meta, "dateTime")
    if variable is not None and variable.dtype.kind in "iu":
        units = getattr(variable, "units", "")
        if "since" not in units:
            raise DecodeError(
                "Expected units 'seconds since …' of MetaData/dateTime.", reason="invalid_table"
            )
        return _since(np.ma.asarray(variable[:]), units)
    variable = _first(meta, "datetime", "dateTime")
    if variable is None:
        raise DecodeError("Expected MetaData/dateTime.", reason="invalid_table")
    text = pd.Series(_words(variable, length), dtype=object)
    parsed = pd.to_datetime(text, errors="coerce", utc=True, format="ISO8601")
    return parsed.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")


def _since(counts: np.ma.MaskedArray, units: str) -> np.ndarray:
    """datetime64 from counts and `seconds since …`; NaT where masked or beyond 1678 to 2262."""
    unit, _, start = units.partition(" since ")
    try:
        size = _UNIT_SECONDS[unit.strip().lower()]
        epoch = pd.Timestamp(start.strip())
    except (KeyError, ValueError) as error:
        raise DecodeError(f"Unknown time units '{units}'.", reason="invalid_table") from error
    epoch = epoch.tz_convert(None) if epoch.tzinfo else epoch
    seconds = np.ma.filled(counts.astype(np.float64), np.nan) * size + epoch.timestamp()
    with np.errstate(invalid="ignore"):
        known = np.abs(seconds) < _LAST_SECOND
    whole = np.where(known, seconds, 0.0)
    return np.where(known, (whole * 1e3).astype("datetime64[ms]"), np.datetime64("NaT")).astype(
        "datetime64[ns]"
    )


def _words(variable: Any | None, length: int) -> np.ndarray:
    """Strings from string, character or integer variables."""
    if variable is None:
        return np.full(length, "", dtype=object)
    raw = variable[:]
    if variable.dtype is not str and variable.dtype.kind == "S":
        raw = netCDF4.chartostring(np.ma.filled(raw, b" "))
    return np.array([str(v).strip("\x00 ") for v in np.asarray(raw)], dtype=object)


def _variable(
    data: Any, name: str, place: dict[str, Any], context: DecodeContext, report: DecodeReport
) -> dict[str, Any] | None:
    """Columns of one variable; None, and a count, if we do not know it."""
    variable = data["ObsValue"][name]
    if name not in IODA_VARIABLES or len(variable.shape) != 1:
        report.reject("unsupported_variable", detail=f"ObsValue/{name}")
        return None
    surface, aloft = IODA_VARIABLES[name]
    vertical, kind, ours = _level(surface, aloft, place)
    if ours is None:
        report.reject("invalid_table", detail=f"ObsValue/{name} without pressure or height")
        return None
    factors = _conversion(variable, name, ours, report)
    if factors is None:
        return None
    scale, offset = factors
    error = _group(data, "ObsError", name, len(place["lat"]))
    marks = _group(data, "PreQC", name, len(place["lat"]))
    network = place["report_type"] or "other"
    if network not in REPORT_TYPES:
        raise DecodeError(f"Unknown report type '{network}'.", reason="invalid_table")
    with np.errstate(invalid="ignore"):
        flagged = np.where(marks > _WORST_MARK, "preqc", None)
    return {
        "report_type": network,
        **{n: place[n] for n in ("lat", "lon", "time", "station_id", "elevation")},
        "variable": ours,
        "vertical_kind": kind,
        "vertical": vertical,
        "obs_value": _floats(variable) * scale + offset,
        "obs_error": error * scale,
        "rejected_by": flagged,
    }


def _level(surface: str, aloft: str, place: dict[str, Any]) -> tuple[np.ndarray, str, str | None]:
    """Vertical coordinate, its kind, and our variable; None if a level is needed and absent."""
    nowhere = np.full(len(place["lat"]), np.nan)
    at_surface = place["report_type"] in _AT_SURFACE
    if surface and (at_surface or not aloft):
        return nowhere, "surface", surface
    if np.isfinite(place["pressure"]).any():
        return place["pressure"], "pressure", aloft
    if np.isfinite(place["height"]).any():
        return place["height"], "height", aloft
    return nowhere, "surface", surface or None


def _conversion(
    variable: Any, name: str, ours: str, report: DecodeReport
) -> tuple[float, float] | None:
    units = getattr(variable, "units", None)
    if units is None:
        report.notes["units_assumed_si"] += 1
        height = name == "geopotentialHeight"
        return conversion("gpm", ours) if height else (1.0, 0.0)
    factors = conversion(str(units), ours)
    if factors is None:
        report.reject("invalid_table", detail=f"ObsValue/{name} in unknown units '{units}'")
    return factors


def _group(data: Any, group: str, name: str, length: int) -> np.ndarray:
    if group in data.groups and name in data[group].variables:
        return _floats(data[group][name])
    return np.full(length, np.nan)
