"""Decode ODB-2 with the usual `@hdr` and `@body` columns, read by pyodc."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyodc

from model.domain.errors import DecodeError
from model.domain.variables import VARIABLES
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport, build_table
from worker.observations.lexicons.odb import (
    REPORT_TYPE_OF_CODETYPE,
    REPORT_TYPE_OF_OBSTYPE,
    SURFACE_VARIABLES,
    UPPER_AIR_VARIABLES,
)
from worker.observations.units import conversion

__all__ = ["decode_odb"]

_PRESSURE, _HEIGHT = 1, 2
_REJECTED = 0b1100
"""Bits of datum_status: active 1, passive 2, rejected 4, blacklisted 8."""

_NEEDED = ("date", "time", "lat", "lon", "varno", "obsvalue")


def decode_odb(path: Path, context: DecodeContext) -> Decoded:
    """Rows of the known variables; others are counted by their number.

    Values are SI and times hhmmss, as ECMWF writes them. Options for other writers: `units`, such as
    `{"geopotential": "gpm", "relative_humidity": "%"}`; `clock: "hhmm"`; `report_type` for files
    without `obstype`; `ignore_status` keeps values that the sender's assimilation rejected.

    Raises:
        DecodeError: If the file is no ODB-2 or lacks columns.
    """
    report = DecodeReport(format="odb2", size=path.stat().st_size)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas warns about fragmented frames inside pyodc
            frames = list(pyodc.read_odb(file))
    except Exception as error:
        # pyodc raises bare AssertionError, struct.error, KeyError and more on torn files.
        raise DecodeError(f"Expected ODB-2; {error!r}.", reason="undecodable") from error
    if not frames:
        raise DecodeError("Expected at least one ODB-2 frame.", reason="no_messages")
    frame = pd.concat([_short(f) for f in frames], ignore_index=True)
    if len(frame) > context.limits.values:
        raise DecodeError(
            f"Expected at most {context.limits.values} rows; got {len(frame)}.", reason="too_large"
        )
    report.messages, report.reports = len(frames), len(frame)
    table = _rows(frame, context, report)
    report.bytes_decoded, report.decoded = report.size, len(frames) if len(table) else 0
    if not len(table) and not report.rejected:
        report.reject("no_values", detail="no rows")
    report.count_rows(table)
    return Decoded(table, report)


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns we need without their `@table`; the first of equal names counts."""
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
    """Float64, NaN where missing or where the column is absent."""
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    # ODB's own missing values of reals and integers.
    return np.where((values == -2147483647.0) | (values == 2147483647.0), np.nan, values)


def _rows(frame: pd.DataFrame, context: DecodeContext, report: DecodeReport) -> pa.Table:
    varno = _numbers(frame, "varno")
    value, kind = _numbers(frame, "obsvalue"), _numbers(frame, "vertco_type")
    reference = _numbers(frame, "vertco_reference_1")
    surface, aloft = (
        np.isin(varno, list(SURFACE_VARIABLES)),
        np.isin(varno, list(UPPER_AIR_VARIABLES)),
    )
    levelled = np.isin(kind, (_PRESSURE, _HEIGHT)) & np.isfinite(reference)
    lat, lon = _numbers(frame, "lat"), _numbers(frame, "lon")
    if (_numbers(frame, "latlon_rad") == 1).any():
        lat, lon = np.rad2deg(lat), np.rad2deg(lon)
    clock = _numbers(frame, "time") * (100.0 if context.options.get("clock") == "hhmm" else 1.0)
    time = _times(_numbers(frame, "date"), clock)
    good = surface | aloft
    for number in np.unique(varno[~good]):
        count = int((varno == number).sum())
        report.reject("unsupported_variable", detail=f"varno {number:g}: {count} rows")
    for reason, wrong, what in (
        ("invalid_table", aloft & ~levelled, "vertco_type 1 (Pa) or 2 (m) and a reference"),
        ("no_position", ~(np.isfinite(lat) & np.isfinite(lon)), "lat and lon"),
        ("no_time", np.isnat(time), "date and time"),
        ("no_values", ~np.isfinite(value), "obsvalue"),
    ):
        for row in np.flatnonzero(good & wrong):
            report.reject(reason, detail=f"row {row + 1} without {what}", report=int(row))
        good &= ~wrong
    names = np.array(
        [
            SURFACE_VARIABLES.get(int(n), UPPER_AIR_VARIABLES.get(int(n), "")) if n == n else ""
            for n in varno
        ],
        object,
    )
    error = _errors(frame)
    for variable, units in dict(context.options.get("units") or {}).items():
        factors = conversion(str(units), variable) if variable in VARIABLES else None
        if factors is None:
            raise DecodeError(f"Unknown units '{units}' of '{variable}'.", reason="invalid_table")
        rows = names == variable
        value[rows], error[rows] = value[rows] * factors[0] + factors[1], error[rows] * factors[0]
    vertical_kind = np.where(surface, "surface", np.where(kind == _HEIGHT, "height", "pressure"))
    columns = {
        "report_type": _networks(frame, context),
        "station_id": _words(frame, "statid"),
        "time": time,
        "lat": lat,
        "lon": lon,
        "elevation": _numbers(frame, "stalt"),
        "vertical_kind": vertical_kind.astype(object),
        "vertical": np.where(surface, np.nan, reference),
        "variable": names,
        "obs_value": value,
        "obs_error": error,
        "profile_id": _numbers(frame, "seqno") % 2**31,
        "rejected_by": _status(frame, context),
    }
    return build_table(context, int(good.sum()), **{n: v[good] for n, v in columns.items()})


def _times(date: np.ndarray, time: np.ndarray) -> np.ndarray:
    """datetime64 from yyyymmdd and hhmmss; NaT where either is no such number."""
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
    times = pd.to_datetime(clock, errors="coerce").to_numpy().astype("datetime64[ns]")
    # pandas lets the clock run over into the next day.
    real = (clock["hour"] < 24) & (clock["minute"] < 60) & (clock["second"] < 60)
    return np.where(real.to_numpy(), times, np.datetime64("NaT"))


def _errors(frame: pd.DataFrame) -> np.ndarray:
    final, first = _numbers(frame, "final_obs_error"), _numbers(frame, "obs_error")
    error = np.where(np.isfinite(final), final, first)
    return np.where(error > 0.0, error, np.nan)


def _status(frame: pd.DataFrame, context: DecodeContext) -> np.ndarray:
    """`preqc` where the sender's assimilation rejected or blocklisted the value."""
    status = np.nan_to_num(_numbers(frame, "datum_status"), nan=0.0).astype(np.int64)
    if context.options.get("ignore_status"):
        status = np.zeros_like(status)
    return np.where(status & _REJECTED != 0, "preqc", None)


def _networks(frame: pd.DataFrame, context: DecodeContext) -> np.ndarray:
    default = context.options.get("report_type", "other")
    obstype, codetype = _numbers(frame, "obstype"), _numbers(frame, "codetype")
    return np.array(
        [
            REPORT_TYPE_OF_CODETYPE.get(int(c), "") or REPORT_TYPE_OF_OBSTYPE.get(int(o), default)
            if c == c and o == o
            else (REPORT_TYPE_OF_OBSTYPE.get(int(o), default) if o == o else default)
            for o, c in zip(obstype, codetype, strict=True)
        ],
        dtype=object,
    )


def _words(frame: pd.DataFrame, name: str) -> np.ndarray:
    if name not in frame.columns:
        return np.full(len(frame), "", dtype=object)
    texts = frame[name].astype(object).where(frame[name].notna(), "")
    return np.array([str(t).strip("\x00 ") for t in texts], dtype=object)
