"""Decode IODA-style NetCDF: groups MetaData, ObsValue, ObsError and PreQC over one dimension.

Names after JCSDA jedi-docs, `inside/conventions/objects_and_layouts.md`, in both the camelCase
and the older snake_case spelling. Feedback files of this service give network and kind of vertical
coordinate by location (`MetaData/reportType`, `MetaData/verticalKind`, numbers with their meanings)
and are read back row by row.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import cftime
import netCDF4
import numpy as np

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
from worker.observations.decoders.coordinates import degrees_factor, has_place, pascal_factor
from worker.observations.decoders.options import IodaOptions
from worker.observations.lexicons import IODA, IODA_NAMES
from worker.observations.units import conversion, coordinate_factor

__all__ = ["decode_ioda", "encode_example"]

_GROUPS = ("MetaData", "ObsValue", "ObsError", "PreQC")
_AT_SURFACE = {"synop", "ship", "buoy", "drifter", "scatterometer", "gnss"}
_MISSING = 1e30
_TIME_UNITS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (1e-9, ("nanoseconds", "nanosecond", "ns")),
    (1e-6, ("microseconds", "microsecond", "us")),
    (1e-3, ("milliseconds", "millisecond", "ms", "msec", "msecs")),
    (1.0, ("seconds", "second", "secs", "sec", "s")),
    (60.0, ("minutes", "minute", "mins", "min")),
    (3600.0, ("hours", "hour", "hrs", "hr", "h")),
    (86400.0, ("days", "day", "d")),
)
_UNIT_SECONDS = {name: seconds for seconds, names in _TIME_UNITS for name in names}
_LAST_SECOND = 9.2e9
_MAX_TIME_STEP = 30.0
_WORST_MARK = 3
"""NCEP quality marks above this mean rejected (prepbufr table 7); IODA keeps them as PreQC."""


def decode_ioda(path: Path, context: DecodeContext) -> Decoded:
    """Return the rows of every known variable of ObsValue.

    The option `report_type` names the network; without it, rows with a pressure or height are taken
    as aloft. Units come from the attribute `units`; where it is absent IODA's own SI is assumed and
    noted, except for positions and pressures that are plausible only in other units.

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
    _check_size(data, context, report.size)
    place = _place(data["MetaData"], IodaOptions.of(context.options), report)
    length = len(place["lat"])
    usable = has_place(place["lat"]) & has_place(place["lon"])
    timed = ~np.isnat(place["time"])
    for row in np.flatnonzero(~usable):
        report.reject("no_position", detail=f"location {row + 1}", report=int(row) + 1)
    for row in np.flatnonzero(usable & ~timed):
        report.reject("no_time", detail=f"location {row + 1}", report=int(row) + 1)
    report.reports += length
    tables = []
    for name in data["ObsValue"].variables:
        report.messages += 1
        columns = _variable(data, name, place, context, report)
        if columns is not None:
            good = usable & timed & np.isfinite(columns["obs_value"])
            good &= _levelled(columns, good, report)
            part = {n: v[good] if np.ndim(v) else v for n, v in columns.items()}
            tables.append(build_table(context, int(good.sum()), **part))
            report.decoded += 1
    report.bytes_decoded = report.size
    return finish(concat_tables(tables), report)


def _check_size(data: Any, context: DecodeContext, size: int) -> None:
    """Refuse too many locations or values before reading any: fill values take no space in the file."""
    groups = [data[name] for name in _GROUPS if name in data.groups]
    variables = [variable for group in groups for variable in group.variables.values()]
    locations = [int(variable.shape[0]) for variable in variables if variable.shape]
    check_rows(max(locations, default=0), context, "locations")
    context.budget(size).take(sum(int(variable.size) for variable in variables))


def _floats(variable: Any) -> np.ndarray:
    try:
        values = np.ma.filled(np.ma.asarray(variable[:]).astype(np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise DecodeError(
            f"Expected numbers in {_path(variable)}; got {variable.dtype}.", reason="invalid_table"
        ) from error
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) < _MISSING, values, np.nan)


def _first(group: Any, *names: str) -> Any | None:
    return next((group[name] for name in names if name in group.variables), None)


def _path(variable: Any) -> str:
    return f"{variable.group().name}/{variable.name}"


def _in_units(variable: Any, wanted: str, length: int) -> tuple[np.ndarray, bool]:
    """Return numbers in the unit wanted, and whether the file names theirs."""
    if variable.shape != (length,):
        raise DecodeError(
            f"Expected {length} values in {_path(variable)}, as locations; got {variable.shape}.",
            reason="invalid_table",
        )
    values, units = _floats(variable), str(getattr(variable, "units", "")).strip()
    if not units or not np.isfinite(values).any():
        return values, bool(units)
    factor = coordinate_factor(units, wanted)
    if factor is None:
        raise DecodeError(
            f"Expected {_path(variable)} in {wanted}, or in a unit that is converted to it; got "
            f"units '{units}'.",
            reason="invalid_table",
        )
    return values * factor, True


def _position(
    lat: Any, lon: Any, length: int, options: IodaOptions, report: DecodeReport, **who: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return latitude and longitude in degrees."""
    north, named = _in_units(lat, "degree", length)
    east, named_too = _in_units(lon, "degree", length)
    if named or named_too:
        return north, east
    factor = degrees_factor(north, east, options.angle_units, report, **who)
    return north * factor, east * factor


def _place(meta: Any, options: IodaOptions, report: DecodeReport) -> dict[str, Any]:
    """Return position, time and station of each location, with shape (locations,)."""
    lat, lon = _first(meta, "latitude", "lat"), _first(meta, "longitude", "lon")
    if lat is None or lon is None:
        raise DecodeError(
            "Expected MetaData/latitude and MetaData/longitude.", reason="invalid_table"
        )
    length = len(lat[:])

    def numbers(wanted: str, *names: str) -> np.ndarray:
        found = _first(meta, *names)
        if found is None:
            return np.full(length, np.nan)
        values, named = _in_units(found, wanted, length) if wanted else (_floats(found), True)
        if wanted != "Pa" or named:
            return values
        return values * pascal_factor(values, options.pressure_units, _path(found))

    station = _first(meta, "stationIdentification", "station_id", "satelliteIdentifier")
    asked, networks = options.report_type or "", _coded(meta, "reportType")
    stations = _words(station, length)
    of_each = np.full(length, asked or "other") if networks is None or asked else networks
    north, east = _position(lat, lon, length, options, report, networks=of_each, stations=stations)
    return {
        "lat": north,
        "lon": east,
        "time": _times(meta, length),
        "station_id": stations,
        "elevation": numbers("m", "stationElevation", "station_elevation"),
        "pressure": numbers("Pa", "pressure", "air_pressure"),
        "top": numbers("Pa", "pressureTop"),
        "height": numbers("m", "height", "geometric_height"),
        "channel": numbers("", "sensorChannelNumber"),
        "scan_angle": numbers("degree", "sensorViewAngle"),
        "vertical_kind": _coded(meta, "verticalKind", VERTICAL_KINDS),
        "network": asked,
        "report_type": asked or (networks if networks is not None else "other"),
    }


def _coded(meta: Any, name: str, known: Collection[str] = REPORT_TYPES) -> np.ndarray | None:
    """Return the texts of a numeric variable with `flag_meanings`, as feedback files have them.

    None if the file has no such variable or its texts are unknown.
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
    if variable is not None and variable.dtype is not str and variable.dtype.kind in "iuf":
        if variable.shape != (length,):
            raise DecodeError(
                f"Expected {length} times, as locations; got {variable.shape}.",
                reason="invalid_table",
            )
        return _since(variable)
    variable = _first(meta, "datetime", "dateTime")
    if variable is None:
        raise DecodeError("Expected MetaData/dateTime.", reason="invalid_table")
    return parse_times(_words(variable, length))


def _since(variable: Any) -> np.ndarray:
    """Return datetime64 from numbers with CF units; NaT if masked or beyond 1678 to 2262."""
    units = str(getattr(variable, "units", ""))
    unit, _, start = units.partition(" since ")
    calendar = str(getattr(variable, "calendar", "standard"))
    try:
        size = _UNIT_SECONDS[unit.strip().lower()]
        epoch = cftime.num2date(
            0, f"seconds since {start}", calendar,
            only_use_cftime_datetimes=False, only_use_python_datetimes=True,
        )  # fmt: skip
    except (KeyError, ValueError, OverflowError) as error:
        raise DecodeError(
            f"Expected units such as 'seconds since 1970-01-01T00:00:00Z' of {_path(variable)}, and "
            f"a calendar of real days; got units '{units}', calendar '{calendar}'.",
            reason="invalid_table",
        ) from error
    counts = np.ma.asarray(variable[:])
    _check_precision(variable, counts, size)
    start_second = epoch.replace(tzinfo=UTC).timestamp()
    seconds = _floats(variable) * size + start_second
    with np.errstate(invalid="ignore"):
        known = np.abs(seconds) < _LAST_SECOND
    whole = np.where(known, seconds, 0.0)
    times = np.rint(whole * 1e3).astype("datetime64[ms]")  # tenths of an hour are no exact floats
    return np.where(known, times, np.datetime64("NaT")).astype("datetime64[ns]")


def _check_precision(variable: Any, counts: np.ma.MaskedArray, size: float) -> None:
    """Refuse numbers too coarse for a time, such as 32-bit seconds since 1970."""
    if variable.dtype.kind != "f" or not np.ma.count(counts):
        return
    step = float(np.spacing(np.abs(counts).max())) * size
    if step > _MAX_TIME_STEP:
        raise DecodeError(
            f"Expected times to within {_MAX_TIME_STEP:g} s in {_path(variable)}; {variable.dtype} "
            f"with units '{variable.units}' holds them to {step:g} s only.",
            reason="invalid_table",
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
    if level is None or variable.shape != (len(place["lat"]),):
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
    error = _errors(data, name, ours, scale, len(place["lat"]), report)
    if error is None:
        return None
    marks = _group(data, "PreQC", name, len(place["lat"]))
    with np.errstate(invalid="ignore"):
        flagged = np.array([None, "preqc"], dtype=object)[(marks > _WORST_MARK).astype(int)]
    return {
        **{n: place[n] for n in _OF_PLACE},
        "variable": ours,
        "vertical_kind": kind,
        "vertical": vertical,
        "vertical_top": np.where(np.asarray(kind) == "layer", place["top"], np.nan),
        "obs_value": _floats(variable) * scale + offset,
        "obs_error": error,
        "rejected_by": flagged,
    }


def _levelled(columns: dict[str, Any], given: np.ndarray, report: DecodeReport) -> np.ndarray:
    """Return which locations have the level that their value needs; count the others."""
    needed = np.isin(np.asarray(columns["vertical_kind"]).astype(str), _LEVELLED)
    lost = needed & ~np.isfinite(columns["vertical"])
    if count := int(np.count_nonzero(lost & given)):
        report.values_set_aside[f"no_level {columns['variable']}"] += count
    return np.asarray(~lost)


_LEVELLED = ("pressure", "height", "layer", "channel")

_OF_PLACE = ("lat", "lon", "time", "station_id", "elevation", "report_type", "scan_angle")
"""Columns that all variables at a location share."""

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
    pressed, high = (np.isfinite(place[name]) for name in ("pressure", "height"))
    if not (pressed | high).any():
        return surface, "surface", nowhere
    # Each location has the level that it gives; sondes without a sensor of pressure give heights.
    kind = np.where(pressed | ~high, "pressure", "height").astype(object)
    return aloft, kind, np.where(pressed, place["pressure"], place["height"])


def _own_level(name: str, place: dict[str, Any]) -> Level | None:
    """Return what a name means in a feedback file, which gives the kind by location."""
    if name not in IODA.own and name not in VARIABLES:  # variables of extensions are stored by id
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


def _errors(
    data: Any, name: str, ours: str, scale: float, length: int, report: DecodeReport
) -> np.ndarray | None:
    """Return errors in SI, from their own units where they name any, else from those of the values.

    None, and a count, if their units are unknown.
    """
    errors = _group(data, "ObsError", name, length)
    if not np.isfinite(errors).any():
        return errors
    units = getattr(data["ObsError"][name], "units", None)
    factors = (scale, 0.0) if units is None else conversion(str(units), ours)
    if factors is None:
        report.reject("invalid_table", detail=f"ObsError/{name} in unknown units '{units}'")
        return None
    return errors * factors[0]


def _group(data: Any, group: str, name: str, length: int) -> np.ndarray:
    if group not in data.groups or name not in data[group].variables:
        return np.full(length, np.nan)
    if data[group][name].shape != (length,):
        raise DecodeError(
            f"Expected {length} values in {group}/{name}, as locations; got "
            f"{data[group][name].shape}.",
            reason="invalid_table",
        )
    return _floats(data[group][name])


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
