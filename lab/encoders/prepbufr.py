"""Encode sondes as NCEP's PrepBUFR: mass and wind of an ascent are separate reports."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import ReportTable, calendar, gather
from lab.encoders.ncep import PREPBUFR, fortran_records
from model.domain.physics import ZERO_CELSIUS

__all__ = ["prepbufr_sondes"]

_MASS, _WIND = 120, 220
_CATEGORY = 102
_GOOD, _FIRST = 2, 1
"""Quality mark and program code of a value as it was first reported."""
_IN_MESSAGE = 10


def prepbufr_sondes(table: pa.Table) -> bytes:
    """Return the sondes of a table as a file of records, `gdas.t12z.prepbufr`."""
    reports = gather(table.filter(pc.equal(table["report_type"], "temp")))
    if not len(reports):
        return b""
    hour = reports.time.max().astype("datetime64[h]")
    parts = calendar(np.array([hour]))
    when = [int(parts[f"#1#{name}"][0]) for name in ("year", "month", "day", "hour")]
    found = []
    for name in dict.fromkeys(reports.station_id.tolist()):
        own = reports.take(np.flatnonzero(reports.station_id == name))
        found += [_mass(own, hour), _wind(own, hour)]
    messages = [
        PREPBUFR.message("ADPUPA", found[n : n + _IN_MESSAGE], when, _CATEGORY)
        for n in range(0, len(found), _IN_MESSAGE)
    ]
    return fortran_records([PREPBUFR.definitions(when), *messages])


def _head(levels: ReportTable, kind: int, hour: np.datetime64) -> dict[str, Any]:
    seconds = float((levels.time[0] - hour.astype("datetime64[s]")).astype(np.int64))
    return {
        "SID": levels.station_id[0], "XOB": float(levels.lon[0]), "YOB": float(levels.lat[0]),
        "DHR": seconds / 3600.0, "ELV": float(np.nan_to_num(levels.elevation[0])), "TYP": kind,
        "T29": 11, "CAT": 1,
    }  # fmt: skip


def _level(pressure: float, **parts: Any) -> dict[str, Any]:
    event = {"POB": pressure / 100.0, "PQM": _GOOD, "PPC": _FIRST}
    return {"CAT": 1, "P___INFO": {"P__EVENT": [event]}, **parts}


def _events(name: str, value: float) -> dict[str, Any]:
    event = {f"{name}OB": value, f"{name}QM": _GOOD, f"{name}PC": _FIRST}
    return {f"{name}___INFO": {f"{name}__EVENT": [event]}}


def _mass(levels: ReportTable, hour: np.datetime64) -> dict[str, Any]:
    temperature, humidity = levels.get("temperature"), levels.get("specific_humidity")
    found = []
    for pressure, t, q in zip(levels.vertical, temperature, humidity, strict=True):
        parts = _events("T", float(t) - ZERO_CELSIUS) if np.isfinite(t) else {}
        parts |= _events("Q", 1e6 * float(q)) if np.isfinite(q) else {}
        found.append(_level(float(pressure), **parts))
    return {**_head(levels, _MASS, hour), "PRSLEVEL": found}


def _wind(levels: ReportTable, hour: np.datetime64) -> dict[str, Any]:
    east, north = levels.get("u_component_of_wind"), levels.get("v_component_of_wind")
    found = []
    for pressure, u, v in zip(levels.vertical, east, north, strict=True):
        event = {"UOB": float(u), "VOB": float(v), "WQM": _GOOD, "WPC": _FIRST}
        parts = {"W___INFO": {"W__EVENT": [event]}} if np.isfinite(u) and np.isfinite(v) else {}
        found.append(_level(float(pressure), **parts))
    return {**_head(levels, _WIND, hour), "PRSLEVEL": found}
