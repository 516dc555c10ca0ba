"""Write ascents in the character codes of WMO: TEMP with parts A and C, PILOT likewise.

WMO-No. 306, volume I.1, FM 32 PILOT and FM 35 TEMP; code tables 0777 (dewpoint depression), 1734 (last
level with wind) and 3931 (tenths and sign of the temperature).
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import ReportTable, gather
from model.domain.physics import KNOT, ZERO_CELSIUS, dewpoint_from_specific_humidity
from worker.observations.units import wind_direction

__all__ = ["in_temp", "pilot_bulletin", "temp_bulletin"]

_LOW = (1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100)
_HIGH = (70, 50, 30, 20, 10)
_PILOT_LOW = _LOW[1:]
_FINEST, _LARGEST = 5.0, 49.4
"""K; depressions are given in tenths up to 5, in whole kelvins up to 49."""
_NO_WIND = _NO_TEMPERATURE = "/////"
_KNOTS = 50


def in_temp(table: pa.Table) -> pa.Table:
    """Return the rows that a TEMP can carry: humidity up to saturation, no dewpoint 50 K below."""
    reports = gather(table)
    depression = _depression(reports)
    spoilt = (depression < 0.0) | (depression > _LARGEST)
    if not spoilt.any():
        return table
    names = zip(reports.station_id[spoilt].tolist(), reports.vertical[spoilt].tolist(), strict=True)
    gone = set(names)
    rows = zip(*(table[n].to_pylist() for n in ("station_id", "vertical", "variable")), strict=True)
    kept = [v != "specific_humidity" or (s, p) not in gone for s, p, v in rows]
    return table.filter(pa.array(kept))


def _depression(reports: ReportTable) -> np.ndarray:
    """Return temperature minus dewpoint in K, (N,)."""
    dewpoint = dewpoint_from_specific_humidity(reports.get("specific_humidity"), reports.vertical)
    return np.asarray(reports.get("temperature") - dewpoint)


def temp_bulletin(table: pa.Table) -> bytes:
    """Return the sondes of a table, by WMO number, at standard levels: temperature to 0.15 K, wind to 2.5
    degrees and half a knot; heights and the surface, which the rows do not tell, are missing.
    """
    return _bulletin(table, "temp", "USXX99", _temp)


def pilot_bulletin(table: pa.Table) -> bytes:
    """Return the pilot balloons of a table, by WMO number: winds at standard levels above 1000 hPa."""
    return _bulletin(table, "pilot", "UPXX99", _pilot)


def _bulletin(
    table: pa.Table, kind: str, heading: str, write: Callable[[ReportTable], Iterator[str]]
) -> bytes:
    reports = gather(table.filter(pc.equal(table["report_type"], kind)))
    if not len(reports):
        return b""
    launched = reports.time[0].astype("datetime64[m]").astype(object)
    lines = [f"{heading} EGRR {launched:%d%H}00"]
    for station in dict.fromkeys(reports.station_id.tolist()):
        own = reports.take(np.flatnonzero(reports.station_id == station))
        lines += [f"{part}=" for part in write(own)]
    return "".join(f"{line}\r\r\n" for line in lines).encode("ascii")


def _levels(reports: ReportTable) -> Mapping[int, int]:
    """Return the place of each level by its pressure in hPa."""
    return {round(pressure / 100.0): n for n, pressure in enumerate(reports.vertical.tolist())}


def _day(reports: ReportTable) -> str:
    launched = reports.time[0].astype("datetime64[m]").astype(object)
    return f"{launched.day + _KNOTS:02d}{launched:%H}"


def _temp(reports: ReportTable) -> Iterator[str]:
    found, depression = _levels(reports), _depression(reports)
    for part, names in (("A", _LOW), ("C", _HIGH)):
        given = [p for p in names if p >= min(found)]
        if not found.keys() & set(names):
            continue
        groups = ["99/// ///// /////"] if part == "A" else []
        groups += [
            f"{_name(p)}/// {_temperature(reports, depression, found.get(p))} {_wind(reports, found.get(p))}"
            for p in given
        ]
        last = str(given[-1])[0]  # of 10, 100 or 1000 alike
        yield (
            f"TT{part * 2} {_day(reports)}{last} {reports.station_id[0]} {' '.join(groups)} 88999 77999"
        )


def _name(level: int) -> str:
    """Return the two digits of a standard level, whose part says whether they are tens of hPa."""
    return f"{level // 10 % 100 if level >= 100 else level:02d}"


def _temperature(reports: ReportTable, depression: np.ndarray, n: int | None) -> str:
    if n is None or not np.isfinite(reports.get("temperature")[n]):
        return _NO_TEMPERATURE
    celsius = float(reports.get("temperature")[n]) - ZERO_CELSIUS
    tenths = round(10.0 * abs(celsius))
    # Even tenths are above zero, odd ones below.
    tenths = tenths | 1 if celsius < 0.0 else tenths & ~1
    return f"{tenths:03d}{_dryness(float(depression[n]))}"


def _dryness(depression: float) -> str:
    if not np.isfinite(depression):
        return "//"
    if depression <= _FINEST + 0.5:
        return f"{round(10.0 * min(depression, _FINEST)):02d}"
    return f"{50 + round(depression):02d}"


def _wind(reports: ReportTable, n: int | None) -> str:
    """Return `dddff`: degrees in steps of 5, with the hundreds of knots added to them."""
    if n is None:
        return _NO_WIND
    u, v = (float(reports.get(f"{c}_component_of_wind")[n]) for c in "uv")
    if not (np.isfinite(u) and np.isfinite(v)):
        return _NO_WIND
    knots = round(float(np.hypot(u, v)) / KNOT)
    exact = float(wind_direction(np.array(u), np.array(v)))
    degrees = 0 if knots == 0 else 5 * round(exact / 5.0) or 360
    return f"{degrees + knots // 100:03d}{knots % 100:02d}"


def _pilot(reports: ReportTable) -> Iterator[str]:
    found = _levels(reports)
    for part, names in (("A", _PILOT_LOW), ("C", _HIGH)):
        given = [p for p in names if p >= min(found)]
        if not found.keys() & set(names):
            continue
        groups = [
            f"44{len(some)}{_name(some[0])} " + " ".join(_wind(reports, found.get(p)) for p in some)
            for some in (given[n : n + 3] for n in range(0, len(given), 3))
        ]
        yield f"PP{part * 2} {_day(reports)}0 {reports.station_id[0]} {' '.join(groups)} 77999"
