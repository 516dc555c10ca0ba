"""Decode ODB-2 with the usual `@hdr` and `@body` columns, read by pyodc.

Feedback files of this service name variable and network of each row in columns of the table `appa`
and are read back by these names.
"""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyodc

from model.domain.errors import DecodeError
from model.domain.observations import REPORT_TYPES
from model.domain.variables import VARIABLES
from worker.observations.columns import build_table
from worker.observations.decoders.base import (
    DecodeContext,
    Decoded,
    DecodeReport,
    check_rows,
    finish,
    nanoseconds,
    padded_numbers,
    strip_texts,
)
from worker.observations.decoders.coordinates import degrees_factor, has_place, pascal_factor
from worker.observations.decoders.options import OdbOptions
from worker.observations.lexicons import (
    CODETYPE,
    OBSTYPE,
    ODB,
    REPORT_TYPE_OF_CODETYPE,
    REPORT_TYPE_OF_OBSTYPE,
    VARNO,
    VERTCO,
)
from worker.observations.units import conversion

__all__ = ["decode_odb", "encode_example"]

_REJECTED = 0b1100
"""Bits of datum_status: active 1, passive 2, rejected 4, blacklisted 8."""

_NEEDED = ("date", "time", "lat", "lon", "varno", "obsvalue")


def decode_odb(path: Path, context: DecodeContext) -> Decoded:
    """Return the rows of the known variables; count others by their number.

    Values are SI, positions in degrees unless a column `latlon_rad` says otherwise, and times
    hhmmss, as ECMWF writes them. Options for other writers are in `OdbOptions`.

    Raises:
        DecodeError: If the file is no ODB-2, lacks columns, or holds times, positions or pressures
            that are plausible only in other units and no option states the unit.
    """
    report = DecodeReport(format="odb2", size=path.stat().st_size)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas warns about fragmented frames inside pyodc
            frames = _frames(file, report.size, context)
    except DecodeError:
        raise
    except Exception as error:
        # pyodc raises bare AssertionError, struct.error, KeyError and more on corrupt files.
        raise DecodeError(f"Expected ODB-2; {error!r}.", reason="undecodable") from error
    if not frames:
        raise DecodeError("Expected at least one ODB-2 frame.", reason="no_messages")
    frame = pd.concat([_short(f) for f in frames], ignore_index=True)
    report.messages, report.reports = len(frames), len(frame)
    table = _rows(frame, context, report)
    report.bytes_decoded, report.decoded = report.size, len(frames) if len(table) else 0
    return finish(table, report)


def _frames(file: IO[bytes], size: int, context: DecodeContext) -> list[pd.DataFrame]:
    """Return the frames of a file; refuse too many rows or values by the headers.

    The size of the file is no bound: a repeated row takes two bytes, whatever the number of columns.
    """
    headers = pyodc.Reader(file, aggregated=False).frames  # no data are read
    if any(frame.nrows < 0 or frame.ncolumns < 0 for frame in headers):
        raise DecodeError("Expected frames of zero rows or more.", reason="undecodable")
    check_rows(sum(frame.nrows for frame in headers), context)
    context.budget(size).take(sum(frame.nrows * frame.ncolumns for frame in headers))
    file.seek(0)
    return list(pyodc.read_odb(file))


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with names without `@table`; the first of equal names counts."""
    names = [str(name).split("@")[0] for name in frame.columns]
    frame = frame.set_axis(names, axis=1)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    missing = [n for n in _NEEDED if n not in frame.columns]
    if missing:
        raise DecodeError(
            f"Expected the columns {', '.join(_NEEDED)}; missing: {', '.join(missing)}.",
            reason="invalid_table",
            missing=missing,
        )
    return frame


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, NaN where missing or where the column is absent."""
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    # ODB's own missing values of reals and integers.
    return np.where((values == -2147483647.0) | (values == 2147483647.0), np.nan, values)


def _integers(frame: pd.DataFrame, name: str) -> list[int]:
    """Return a column of numbers in a code table, -1 where missing."""
    values = _numbers(frame, name)
    with np.errstate(invalid="ignore"):
        codes = np.where(np.abs(values) < 1e9, values, -1.0)
    return [int(code) for code in codes]


def _rows(frame: pd.DataFrame, context: DecodeContext, report: DecodeReport) -> pa.Table:
    options, own = OdbOptions.of(context.options), "variable" in frame.columns
    names, kinds = _variables(frame, options)
    value, error = _numbers(frame, "obsvalue"), _errors(frame)
    reference, top = (_numbers(frame, f"vertco_reference_{n}") for n in (1, 2))
    networks, stations = _networks(frame, options), _texts(frame, "statid")
    if "statid" in frame.columns and pd.api.types.is_numeric_dtype(frame["statid"]):
        stations = padded_numbers(stations, networks)
    lat, lon = _numbers(frame, "lat"), _numbers(frame, "lon")
    if "latlon_rad" in frame.columns:
        in_radians = _numbers(frame, "latlon_rad") == 1
        lat, lon = (np.where(in_radians, np.rad2deg(angle), angle) for angle in (lat, lon))
    elif not own:
        factor = degrees_factor(
            lat, lon, options.angle_units, report, networks=networks, stations=stations
        )
        lat, lon = lat * factor, lon * factor
    time = _times(_numbers(frame, "date"), _clock(frame, options, own))
    by_pressure = np.isin(kinds.astype(str), ("pressure", "layer"))
    if not own:
        level = np.where(by_pressure, reference, np.nan)
        factor = pascal_factor(level, options.pressure_units, "vertco_reference_1")
        reference, top = (np.where(by_pressure, p * factor, p) for p in (reference, top))
    good = names != ""
    for number, count in _number_counts(_numbers(frame, "varno")[~good]):
        report.reject("unsupported_variable", detail=f"varno {number:g}: {count} rows")
    levelled = np.isin(kinds.astype(str), list(VERTCO))
    unlevelled = (kinds == "") | (levelled & ~np.isfinite(reference))
    for reason, wrong, what in (
        ("invalid_table", unlevelled, "vertco_type 1 (Pa) or 2 (m) and a reference"),
        ("no_position", ~(has_place(lat) & has_place(lon)), "lat and lon"),
        ("no_time", np.isnat(time), "date and time"),
        ("no_values", ~np.isfinite(value), "obsvalue"),
    ):
        for row in np.flatnonzero(good & wrong):
            report.reject(reason, detail=f"row {row + 1} without {what}", report=int(row) + 1)
        good &= ~wrong
    _convert(names, value, error, options)
    columns = {
        "report_type": networks,
        "station_id": stations,
        "time": time,
        "lat": lat,
        "lon": lon,
        "elevation": _numbers(frame, "stalt"),
        "vertical_kind": kinds,
        "vertical": np.where(levelled, reference, np.nan),
        "vertical_top": np.where(kinds == "layer", top, np.nan),
        "scan_angle": _numbers(frame, "scan_angle"),
        "variable": names,
        "obs_value": value,
        "obs_error": error,
        "profile_id": _numbers(frame, "seqno") % 2**31,
        "rejected_by": _status(frame, options),
    }
    return build_table(context, int(good.sum()), **{n: v[good] for n, v in columns.items()})


def _convert(names: np.ndarray, value: np.ndarray, error: np.ndarray, options: OdbOptions) -> None:
    """Convert values and errors in place, by the option `units`."""
    for variable, units in options.units.items():
        factors = conversion(units, variable)
        if factors is not None:  # the options are checked
            rows = names == variable
            value[rows] = value[rows] * factors[0] + factors[1]
            error[rows] *= factors[0]


def _clock(frame: pd.DataFrame, options: OdbOptions, own: bool) -> np.ndarray:
    """Return times of day as hhmmss, with shape (rows,)."""
    clock = _numbers(frame, "time")
    if options.clock is not None:
        return clock * (100.0 if options.clock == "hhmm" else 1.0)
    known = clock[np.isfinite(clock)]
    if own or not known.any() or not ((known >= 0.0) & (known < 2400.0)).all():
        return clock
    raise DecodeError(
        f"Expected the column 'time' as hhmmss; got {known.min():g} to {known.max():g}, which are "
        "all before 00:24, or hours and minutes. Say which with the decoder option 'clock': 'hhmm' "
        "or 'hhmmss'.",
        reason="invalid_table",
    )


def _number_counts(numbers: np.ndarray) -> list[tuple[float, int]]:
    """Return each distinct number with its count; NaN counts as one number."""
    values, counts = np.unique(numbers, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def _coordinates(frame: pd.DataFrame, options: OdbOptions) -> list[int]:
    """Return the type of the vertical coordinate of each row, -1 where missing.

    Raises:
        DecodeError: If the file gives levels without saying what they are, and no option does.
    """
    if "vertco_type" in frame.columns or "vertco_reference_1" not in frame.columns:
        return _integers(frame, "vertco_type")
    given = np.isfinite(_numbers(frame, "vertco_reference_1"))
    if options.vertco is None:
        aloft = [number in ODB.aloft for number in _integers(frame, "varno")]
        if not (given & np.array(aloft)).any():
            return [-1] * len(frame)
        raise DecodeError(
            "Expected the column vertco_type, which says what vertco_reference_1 is; the file has "
            "none. Say it with the decoder option 'vertco': 'pressure' or 'height'.",
            reason="invalid_table",
        )
    return [VERTCO[options.vertco] if level else -1 for level in given.tolist()]


def _variables(frame: pd.DataFrame, options: OdbOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return variable and vertical kind of each row, shape (rows,).

    The variable is empty where the number is unknown, the kind where a level is needed and none of
    a known type is given. One number may stand for a variable at the surface and one aloft.
    """
    varno, vertco = _integers(frame, "varno"), _coordinates(frame, options)
    names = np.full(len(frame), "", dtype=object)
    kinds = names.copy()
    own = _texts(frame, "variable")
    for row, (number, coordinate) in enumerate(zip(varno, vertco, strict=True)):
        name = own[row] if own[row] in VARIABLES else _variable(number, coordinate)
        names[row] = name
        kinds[row] = _vertical_kind(name, coordinate) if name else ""
    return names, kinds


@cache
def _variable(varno: int, vertco: int) -> str:
    surface, aloft = ODB.surface.get(varno, ""), ODB.aloft.get(varno, "")
    if surface and aloft:
        return aloft if vertco in VERTCO.values() else surface
    return surface or aloft


@cache
def _vertical_kind(variable: str, vertco: int) -> str:
    needed = VARIABLES[variable]
    if not needed.needs_level:
        return "column" if needed.vertical == "column" else "surface"
    if needed.vertical in ("layer", "channel"):
        return needed.vertical if vertco == VERTCO[needed.vertical] else ""
    return {VERTCO["pressure"]: "pressure", VERTCO["height"]: "height"}.get(vertco, "")


def _times(date: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return datetime64 from yyyymmdd and hhmmss; NaT where either is no such number."""
    known = np.isfinite(date) & np.isfinite(time)
    d = np.where(known, date, 0).astype(np.int64)
    t = np.where(known, time, 0).astype(np.int64)
    clock = pd.DataFrame(
        {
            "year": d // 10000,
            "month": d // 100 % 100,
            "day": d % 100,
            "hour": t // 10000,
            "minute": t // 100 % 100,
            "second": t % 100,
        }
    )
    times = nanoseconds(pd.to_datetime(clock, errors="coerce").to_numpy())
    # pandas would carry an invalid time of day over into the next day; a leap second goes there.
    real = (clock["hour"] < 24) & (clock["minute"] < 60) & (clock["second"] <= 60)
    return np.where(real.to_numpy(), times, np.datetime64("NaT"))


def _errors(frame: pd.DataFrame) -> np.ndarray:
    final, first = _numbers(frame, "final_obs_error"), _numbers(frame, "obs_error")
    error = np.where(np.isfinite(final), final, first)
    return np.where(error > 0.0, error, np.nan)


def _status(frame: pd.DataFrame, options: OdbOptions) -> np.ndarray:
    """Return `preqc` where the sender's assimilation rejected or blocklisted the value."""
    status = np.nan_to_num(_numbers(frame, "datum_status"), nan=0.0).astype(np.int64)
    if options.ignore_status:
        status = np.zeros_like(status)
    flags = np.array([None, "preqc"], dtype=object)
    return np.asarray(flags[(status & _REJECTED != 0).astype(int)])


def _networks(frame: pd.DataFrame, options: OdbOptions) -> np.ndarray:
    """Return the report type of each row: by name, else by code type, else by observation type."""
    default = options.report_type or "other"
    obstype, codetype = _integers(frame, "obstype"), _integers(frame, "codetype")
    own = _texts(frame, "report_type")
    return np.array(
        [
            name
            if name in REPORT_TYPES
            else (o >= 0 and REPORT_TYPE_OF_CODETYPE.get(c))
            or REPORT_TYPE_OF_OBSTYPE.get(o, default)
            for name, o, c in zip(own, obstype, codetype, strict=True)
        ],
        dtype=object,
    )


def _texts(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return a text column, empty where missing or where the column is absent."""
    if name not in frame.columns:
        return np.full(len(frame), "", dtype=object)
    return strip_texts(frame[name].astype(object).where(frame[name].notna(), ""))


def encode_example(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return an ODB-2 file of the example rows whose variables have a number read anywhere."""
    rows = [row for row in rows if VARNO[row["variable"]] not in ODB.ambiguous]
    missing = float("nan")
    frame = pd.DataFrame(
        {
            "date@hdr": [int(f"{row['time']:%Y%m%d}") for row in rows],
            "time@hdr": [int(f"{row['time']:%H%M%S}") for row in rows],
            "lat@hdr": [row["lat"] for row in rows],
            "lon@hdr": [row["lon"] for row in rows],
            "statid@hdr": [row["station_id"] for row in rows],
            "stalt@hdr": [
                missing if row["elevation"] is None else row["elevation"] for row in rows
            ],
            "obstype@hdr": [OBSTYPE[row["report_type"]] for row in rows],
            "codetype@hdr": [CODETYPE[row["report_type"]] for row in rows],
            "varno@body": [VARNO[row["variable"]] for row in rows],
            "vertco_type@body": [VERTCO["pressure"] for _ in rows],
            "vertco_reference_1@body": [row["vertical"] or missing for row in rows],
            "obsvalue@body": [row["obs_value"] for row in rows],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.odb"
        pyodc.encode_odb(frame, str(path))
        return path.read_bytes()
