"""Write surface reports in the character codes of WMO: land stations as CREX, ships as BBXX.

WMO-No. 306, volume I.2, FM 95 CREX, and volume I.1, FM 13 SHIP.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import ReportTable, gather, reported_direction
from model.domain.physics import ZERO_CELSIUS

__all__ = ["crex_stations", "ship_bulletin"]

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
