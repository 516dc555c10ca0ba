"""Decode IODA-style NetCDF: groups MetaData, ObsValue, ObsError and PreQC over one dimension.

Names after JCSDA jedi-docs, `inside/conventions/objects_and_layouts.md`, in both the camelCase
and the older snake_case spelling. Feedback files of this service give network and kind of vertical
coordinate by location (`MetaData/reportType`, `MetaData/verticalKind`, numbers with their meanings)
and are read back row by row.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd

from model.domain.errors import DecodeError
from model.domain.observations import REPORT_TYPES, VERTICAL_KINDS
from model.domain.variables import VARIABLES
from worker.observations.columns import build_table, concat_tables
from worker.observations.decoders.base import (
    DecodeContext,
    Decoded,
    DecodeReport,
    check_rows,
    finish,
    parse_times,
    strip_texts,
)
from worker.observations.lexicons import IODA, IODA_NAMES
from worker.observations.units import conversion

__all__ = ["decode_ioda", "encode_example"]

_AT_SURFACE = {"synop", "ship", "buoy", "drifter", "scatterometer", "gnss"}
_MISSING = 1e30
_UNIT_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
_LAST_SECOND = 9.2e9
_WORST_MARK = 3
"""NCEP quality marks above this mean rejected (prepbufr table 7); IODA keeps them as PreQC."""


def decode_ioda(path: Path, context: DecodeContext) -> Decoded:
    """Return the rows of every known variable of ObsValue.

    The option `report_type` names the network; without it, rows with a pressure or height are taken
    as aloft. Units come from the attribute `units`; where it is absent IODA's own SI is assumed and
    noted.

    Raises:
        DecodeError: If the file is no NetCDF, lacks the groups, or has names that are not UTF-8.
    """
    report = DecodeReport(format="ioda-netcdf", size=path.stat().st_size)
    try:
        with netCDF4.Dataset(path) as data:
            return _decode(data, context, report)
    except UnicodeError as error:
        raise DecodeError(
            f"Expected names and texts in UTF-8; {error}. Write the file again with such names.",
            reason="invalid_table",
        ) from error
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
    check_rows(length, context, "locations")
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
    report.bytes_decoded = report.size
    return finish(concat_tables(tables), report)


def _floats(variable: Any) -> np.ndarray:
    values = np.ma.filled(np.ma.asarray(variable[:]).astype(np.float64), np.nan)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) < _MISSING, values, np.nan)


def _first(group: Any, *names: str) -> Any | None:
    return next((group[name] for name in names if name in group.variables), None)


def _place(meta: Any, context: DecodeContext) -> dict[str, Any]:
    """Return position, time and station of each location, with shape (locations,)."""
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
    asked, networks = context.options.get("report_type", ""), _coded(meta, "reportType")
    if asked and asked not in REPORT_TYPES:
        raise DecodeError(f"Unknown report type '{asked}'.", reason="invalid_table")
    return {
        "lat": _floats(lat),
        "lon": _floats(lon),
        "time": _times(meta, length),
        "station_id": _words(station, length),
        "elevation": numbers("stationElevation", "station_elevation"),
        "pressure": numbers("pressure", "air_pressure"),
        "top": numbers("pressureTop"),
        "height": numbers("height", "geometric_height"),
        "channel": numbers("sensorChannelNumber"),
        "vertical_kind": _coded(meta, "verticalKind", VERTICAL_KINDS),
        "network": asked,
        "report_type": asked or (networks if networks is not None else "other"),
    }


def _coded(meta: Any, name: str, known: Collection[str] = REPORT_TYPES) -> np.ndarray | None:
    """Return the words of a variable of numbers with `flag_meanings`, as feedback files have them.

    None if the file has no such variable or its words are not known ones.
    """
    variable = _first(meta, name)
    words = str(getattr(variable, "flag_meanings", "")).split()
    if variable is None or not words or not set(words) <= set(known):
        return None
    numbers = np.ma.filled(np.ma.asarray(variable[:]), -1).astype(np.int64)
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= len(words):
        return None
    return np.asarray(np.array(words, dtype=object)[numbers])


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
    return parse_times(_words(variable, length))


def _since(counts: np.ma.MaskedArray, units: str) -> np.ndarray:
    """Return datetime64 from counts and `seconds since …`; NaT if masked or beyond 1678 to 2262."""
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
    """Return the strings of a string, character or integer variable; empty where it is absent."""
    if variable is None:
        return np.full(length, "", dtype=object)
    raw = variable[:]
    if variable.dtype is not str and variable.dtype.kind == "S":
        raw = netCDF4.chartostring(np.ma.filled(raw, b" "))
    return strip_texts(np.asarray(raw))


def _variable(
    data: Any, name: str, place: dict[str, Any], context: DecodeContext, report: DecodeReport
) -> dict[str, Any] | None:
    """Return the columns of one variable; None, and a count, if it is not known."""
    variable = data["ObsValue"][name]
    level = _own_level(name, place) if place["vertical_kind"] is not None else _level(name, place)
    if level is None or len(variable.shape) != 1:
        report.reject("unsupported_variable", detail=f"ObsValue/{name}")
        return None
    ours, kind, vertical = level
    if not ours:
        report.reject("invalid_table", detail=f"ObsValue/{name} without pressure or height")
        return None
    factors = _conversion(variable, name, ours, report)
    if factors is None:
        return None
    scale, offset = factors
    error = _group(data, "ObsError", name, len(place["lat"]))
    marks = _group(data, "PreQC", name, len(place["lat"]))
    with np.errstate(invalid="ignore"):
        flagged = np.array([None, "preqc"], dtype=object)[(marks > _WORST_MARK).astype(int)]
    return {
        **{n: place[n] for n in ("lat", "lon", "time", "station_id", "elevation", "report_type")},
        "variable": ours,
        "vertical_kind": kind,
        "vertical": vertical,
        "vertical_top": np.where(np.asarray(kind) == "layer", place["top"], np.nan),
        "obs_value": _floats(variable) * scale + offset,
        "obs_error": error * scale,
        "rejected_by": flagged,
    }


Level = tuple[str, str | np.ndarray, np.ndarray]
"""Variable, kind and value of the vertical coordinate."""


def _level(name: str, place: dict[str, Any]) -> Level | None:
    """Return what a name means in the whole file; no variable if a level is needed and absent."""
    surface, aloft = IODA.surface.get(name, ""), IODA.aloft.get(name, "")
    if not surface and not aloft:
        return None
    nowhere = np.full(len(place["lat"]), np.nan)
    if surface and (place["network"] in _AT_SURFACE or not aloft):
        return surface, "surface", nowhere
    for kind in ("pressure", "height"):
        if np.isfinite(place[kind]).any():
            return aloft, kind, place[kind]
    return surface, "surface", nowhere


def _own_level(name: str, place: dict[str, Any]) -> Level | None:
    """Return what a name means in a feedback file, which gives the kind by location."""
    if name not in IODA.own and name not in VARIABLES:  # variables of extensions keep their id
        return None
    kind, vertical = place["vertical_kind"], np.full(len(place["lat"]), np.nan)
    for column, kinds in (
        ("pressure", ("pressure", "layer")),
        ("height", ("height",)),
        ("channel", ("channel",)),
    ):
        vertical = np.where(np.isin(kind.astype(str), kinds), place[column], vertical)
    return IODA.own.get(name, name), kind, vertical


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


def encode_example(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a NetCDF file of the first station of the example rows, with the variables it has."""
    rows = [row for row in rows if row["station_id"] == rows[0]["station_id"]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.nc4"
        with netCDF4.Dataset(path, "w") as data:
            data.createDimension("Location", 1)
            _write_place(data.createGroup("MetaData"), rows[0])
            for group in ("ObsValue", "ObsError"):
                data.createGroup(group)
            for row in rows:
                name = IODA_NAMES[row["variable"]]
                value = data["ObsValue"].createVariable(name, "f4", ("Location",))
                value.units = VARIABLES[row["variable"]].units
                value[:] = row["obs_value"]
                if row["obs_error"] is not None:
                    error = data["ObsError"].createVariable(name, "f4", ("Location",))
                    error[:] = row["obs_error"]
        return path.read_bytes()


def _write_place(meta: Any, row: Mapping[str, Any]) -> None:
    for name, column in (
        ("latitude", "lat"),
        ("longitude", "lon"),
        ("stationElevation", "elevation"),
    ):
        meta.createVariable(name, "f4", ("Location",))[:] = row[column]
    time = meta.createVariable("dateTime", "i8", ("Location",))
    time.units = "seconds since 1970-01-01T00:00:00Z"
    time[:] = int(row["time"].timestamp())
    station = meta.createVariable("stationIdentification", str, ("Location",))
    station[:] = np.array([row["station_id"]], dtype=object)
