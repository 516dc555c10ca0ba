"""Write surface reports in the character codes of WMO: land stations as CREX or METAR, ships as BBXX.

WMO-No. 306, volume I.2, FM 95 CREX, and volume I.1, FM 13 SHIP and FM 15 METAR; the remarks of METAR
are those of the United States (FCM-H1, Surface Weather Observations and Reports, 2019).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import ReportTable, gather, reported_direction
from model.domain.physics import KNOT, ZERO_CELSIUS

__all__ = ["crex_stations", "in_metar", "location_indicator", "metar_bulletin", "ship_bulletin"]

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

    Temperature and sea level pressure come to tenths in the remarks; QNH, which the rows do not tell,
    is missing, as where the sensor fails.

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
