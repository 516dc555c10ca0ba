"""Write reports in the character codes of WMO: land stations as CREX or METAR, ships as BBXX, ascents.

WMO-No. 306, volume I.2, FM 95 CREX, and volume I.1, FM 13 SHIP, FM 15 METAR, FM 32 PILOT and FM 35 TEMP
with their parts A and C; code tables 0777 (dewpoint depression), 1734 (last level with wind) and 3931
(tenths and sign of the temperature). The remarks of METAR are those of the United States (FCM-H1, Surface
Weather Observations and Reports, 2019).
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import ReportTable, gather, reported_direction
from model.domain.physics import KNOT, ZERO_CELSIUS, dewpoint_from_specific_humidity
from worker.observations.units import wind_direction

__all__ = [
    "crex_stations",
    "in_metar",
    "in_temp",
    "location_indicator",
    "metar_bulletin",
    "pilot_bulletin",
    "ship_bulletin",
    "temp_bulletin",
]

_CREX = "T000103 A000 B01001 B01002 D01011 D01012 B05001 B06001 B07030 B10051 B12101 B11001 B11002"
_MISSING = "/////"


def crex_stations(table: pa.Table, reports_per_message: int = 100) -> bytes:
    """Return the land stations of a table, by their WMO numbers, as CREX messages."""
    reports = gather(table.filter(pc.equal(table["report_type"], "synop")))
    lines = list(_crex_reports(reports))
    messages = [
        f"CREX++\n{_CREX}++\n" + "+\n".join(lines[n : n + reports_per_message]) + "++\n7777\n"
        for n in range(0, len(lines), reports_per_message)
    ]
    return "".join(messages).replace("\n", "\r\r\n").encode("ascii")


def _crex_reports(reports: ReportTable) -> Iterator[str]:
    wind = _wind(reports)
    for n, when in enumerate(reports.time.astype("datetime64[m]").astype(object)):
        station = reports.station_id[n]
        numbers = (
            _scaled(reports.lat[n], 5), _scaled(reports.lon[n], 5), _scaled(reports.elevation[n], 1),
            _scaled(reports.get("mean_sea_level_pressure")[n], -1),
            _scaled(reports.get("2m_temperature")[n] - ZERO_CELSIUS, 2),
            _scaled(wind[0][n], 0), _scaled(wind[1][n], 1),
        )  # fmt: skip
        yield f"{station[:2]} {station[2:]} {when:%Y %m %d %H %M} {' '.join(numbers)}"


def _wind(reports: ReportTable) -> tuple[np.ndarray, np.ndarray]:
    u, v = reports.get("10m_u_component_of_wind"), reports.get("10m_v_component_of_wind")
    return reported_direction(u, v), np.hypot(u, v)


def _scaled(value: float, decimals: int) -> str:
    return str(round(float(value) * 10.0**decimals)) if np.isfinite(value) else _MISSING


def ship_bulletin(table: pa.Table) -> bytes:
    """Return the ships of a table as a bulletin: positions to 0.1 degrees, wind in whole m s-1.

    Reports are of full hours; a call sign has letters and digits only.
    """
    reports = gather(table.filter(pc.equal(table["report_type"], "ship")))
    if not len(reports):
        return b""
    first = reports.time[0].astype("datetime64[m]").astype(object)
    body = "".join(f"BBXX\n{line}=\n" for line in _ships(reports))
    return f"SNVX01 EGRR {first:%d%H}00\n{body}".replace("\n", "\r\r\n").encode("ascii")


def _ships(reports: ReportTable) -> Iterator[str]:
    direction, speed = _wind(reports)
    temperature = np.round(10.0 * (reports.get("2m_temperature") - ZERO_CELSIUS)).astype(int)
    pressure = np.round(reports.get("mean_sea_level_pressure") / 10.0).astype(int) % 10_000
    for n, when in enumerate(reports.time.astype("datetime64[m]").astype(object)):
        lat, lon = round(10 * float(reports.lat[n])), round(10 * float(reports.lon[n]))
        quadrant = {(True, True): 1, (False, True): 3, (False, False): 5, (True, False): 7}
        force = round(float(speed[n]))
        tens = 0 if force == 0 else round(float(direction[n]) / 10.0) or 36
        sign, degrees = int(temperature[n] < 0), abs(int(temperature[n]))
        yield (
            f"{reports.station_id[n]} {when:%d%H}1 99{abs(lat):03d} "
            f"{quadrant[lat >= 0, lon >= 0]}{abs(lon):04d} 46/// /{tens:02d}{force:02d} "
            f"1{sign}{degrees:03d} 4{pressure[n]:04d}"
        )


_LOWEST, _HIGHEST = 95_000.0, 104_990.0
"""Pa; SLP leaves the hundreds of hPa out, and no other pressure can be told from its digits."""


def location_indicator(number: int) -> str:
    """Return the four characters that stand for an aerodrome with a number up to 4095.

    No country's indicators begin with X.
    """
    return f"X{number:03X}"


def in_metar(table: pa.Table) -> pa.Table:
    """Return the rows that a METAR can carry: no pressure below 950 or above 1049.9 hPa."""
    value, pressure = table["obs_value"], pc.equal(table["variable"], "mean_sea_level_pressure")
    inside = pc.and_(pc.greater_equal(value, _LOWEST), pc.less_equal(value, _HIGHEST))
    return table.filter(pc.or_(pc.invert(pressure), inside))


def metar_bulletin(table: pa.Table, indicators: Mapping[str, str]) -> bytes:
    """Return the land stations of a table as METAR: wind in whole knots and tens of degrees.

    Temperature and sea level pressure are given to tenths in the remarks; QNH, which the rows lack, is
    coded as missing, as by a failed sensor.

    Arguments:
        table: Rows of land stations on full hours; those of others are ignored.
        indicators: Location indicator by station.
    """
    reports = gather(in_metar(table.filter(pc.equal(table["report_type"], "synop"))))
    if not len(reports):
        return b""
    first = reports.time[0].astype("datetime64[m]").astype(object)
    body = "".join(f"{line}=\n" for line in _aerodromes(reports, indicators))
    return f"SAXX99 KWBC {first:%d%H}00\n{body}".replace("\n", "\r\r\n").encode("ascii")


def _aerodromes(reports: ReportTable, indicators: Mapping[str, str]) -> Iterator[str]:
    direction, speed = _wind(reports)
    for n, when in enumerate(reports.time.astype("datetime64[m]").astype(object)):
        celsius = round(10.0 * float(reports.get("2m_temperature")[n] - ZERO_CELSIUS))
        pressure = float(reports.get("mean_sea_level_pressure")[n])
        knots = round(float(speed[n]) / KNOT)
        degrees = 0 if knots == 0 else 10 * round(float(direction[n]) / 10.0) or 360
        whole = round(abs(celsius) / 10.0)
        remarks = f"T{int(celsius < 0)}{abs(celsius):03d}"
        if np.isfinite(pressure):
            remarks = f"SLP{round(pressure / 10.0) % 1_000:03d} {remarks}"
        yield (
            f"METAR {indicators[str(reports.station_id[n])]} {when:%d%H%M}Z {degrees:03d}{knots:02d}KT "
            f"9999 {'M' if celsius < 0 else ''}{whole:02d}/// Q//// RMK {remarks}"
        )


# -- ascents

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
    degrees and half a knot; heights and the surface, which the rows lack, are coded as missing.
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
    """Return the position of each level by its pressure in hPa."""
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
        for p in given:
            n = found.get(p)
            temperature = _temperature_group(reports, depression, n)
            groups.append(f"{_name(p)}/// {temperature} {_wind_group(reports, n)}")
        last = str(given[-1])[0]  # of 10, 100 or 1000 alike
        yield (
            f"TT{part * 2} {_day(reports)}{last} {reports.station_id[0]} {' '.join(groups)} 88999 77999"
        )


def _name(level: int) -> str:
    """Return the two digits of a standard level, whose part says whether they are tens of hPa."""
    return f"{level // 10 % 100 if level >= 100 else level:02d}"


def _temperature_group(reports: ReportTable, depression: np.ndarray, n: int | None) -> str:
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


def _wind_group(reports: ReportTable, n: int | None) -> str:
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
            f"44{len(some)}{_name(some[0])} "
            + " ".join(_wind_group(reports, found.get(p)) for p in some)
            for some in (given[n : n + 3] for n in range(0, len(given), 3))
        ]
        yield f"PP{part * 2} {_day(reports)}0 {reports.station_id[0]} {' '.join(groups)} 77999"
