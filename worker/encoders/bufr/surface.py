"""Land stations (307080), ships (308009), moored (315008) and drifting buoys (315009)."""

import re

import numpy as np

from worker.decoders.units import wind_direction
from worker.encoders.bufr.message import MessageTemplate, calendar
from worker.encoders.bufr.reports import ReportTable

__all__ = ["BUOY", "DRIFTER", "SHIP", "SYNOP", "drifter", "moored_buoy", "ship", "synop"]

SYNOP = MessageTemplate((301_150, 307_080), 0, 2, {"": (0, 0)})
SHIP = MessageTemplate((308_009,), 1, 0, {"": (0,)})
BUOY = MessageTemplate((315_008,), 1, 25, {"short": (0, 1, 0, 0, 0, 0, 0, 0)})
DRIFTER = MessageTemplate((315_009,), 1, 0, {"short": (0, 1, 1, 1), "": (0,)})

_HEIGHT = "heightOfSensorAboveLocalGroundOrDeckOfMarinePlatform"
_MEAN_WIND = 2
_NOMINAL, _LAST_POSITION = 25, 26
_WIGOS = re.compile(r"(\d+)-(\d+)-(\d+)-(.+)")

Columns = dict[str, np.ndarray | list[str] | float | str]


def _place(reports: ReportTable) -> Columns:
    moment = calendar(reports.time)
    moment.pop("#1#second")
    return {**moment, "#1#latitude": reports.lat, "#1#longitude": reports.lon}


def _common(reports: ReportTable) -> Columns:
    u, v = reports.get("10m_u_component_of_wind"), reports.get("10m_v_component_of_wind")
    speed = np.where(np.isnan(u), reports.get("10m_wind_speed"), np.hypot(u, v))
    return {
        "#1#nonCoordinatePressure": reports.get("surface_pressure"),
        "#1#pressureReducedToMeanSeaLevel": reports.get("mean_sea_level_pressure"),
        "#1#airTemperature": reports.get("2m_temperature"),
        "#1#timeSignificance": float(_MEAN_WIND),
        "#1#windDirection": np.round(wind_direction(u, v)),
        "#1#windSpeed": speed,
    }


def _humidity(reports: ReportTable) -> Columns:
    return {
        "#1#dewpointTemperature": reports.get("2m_dewpoint_temperature"),
        "#1#relativeHumidity": np.round(reports.get("2m_relative_humidity") * 100.0),
    }


def synop(reports: ReportTable) -> Columns:
    """Columns of land stations; sensors at 2 m and 10 m, rain of the past hour."""
    rain = reports.get("total_precipitation") * 1_000.0
    return {
        **_land_identity(reports),
        **_place(reports),
        "#1#heightOfStationGroundAboveMeanSeaLevel": reports.elevation,
        "#1#heightOfBarometerAboveMeanSeaLevel": reports.elevation,
        f"#1#{_HEIGHT}": 2.0,
        **_common(reports),
        **_humidity(reports),
        "#4#timePeriod": np.where(np.isnan(rain), np.nan, -1.0),
        "#1#totalPrecipitationOrTotalWaterEquivalent": rain,
        f"#7#{_HEIGHT}": 10.0,
        "#10#timePeriod": -10.0,
    }


def _land_identity(reports: ReportTable) -> Columns:
    number = len(reports)
    series, issuer, issue = (np.full(number, np.nan) for _ in range(3))
    block, station = np.full(number, np.nan), np.full(number, np.nan)
    local, name = [""] * number, [""] * number
    for i, text in enumerate(reports.station_id):
        if match := _WIGOS.fullmatch(text):
            series[i], issuer[i], issue[i] = (int(match.group(k)) for k in (1, 2, 3))
            local[i] = match.group(4)[:16]
        elif re.fullmatch(r"\d{5}", text):
            block[i], station[i] = int(text[:2]), int(text[2:])
        else:
            name[i] = text[:20]
    return {
        "#1#wigosIdentifierSeries": series,
        "#1#wigosIssuerOfIdentifier": issuer,
        "#1#wigosIssueNumber": issue,
        "#1#wigosLocalIdentifierCharacter": local,
        "#1#blockNumber": block,
        "#1#stationNumber": station,
        "#1#stationOrSiteName": name,
    }


def ship(reports: ReportTable) -> Columns:
    """Columns of ships; a call sign has at most nine characters."""
    return {
        "#1#shipOrMobileLandStationIdentifier": [t[:9] for t in reports.station_id],
        **_place(reports),
        "#1#heightOfBarometerAboveMeanSeaLevel": np.nan_to_num(reports.elevation),
        **_common(reports),
        **_humidity(reports),
        "#1#oceanographicWaterTemperature": reports.get("sea_surface_temperature"),
        "#8#timePeriod": -10.0,
    }


def _platform_number(reports: ReportTable) -> np.ndarray:
    return np.array([float(t) if t.isdigit() else np.nan for t in reports.station_id])


def moored_buoy(reports: ReportTable) -> Columns:
    """Columns of moored buoys with a WMO number of up to seven digits."""
    return {
        "#1#marineObservingPlatformIdentifier": _platform_number(reports),
        **_place(reports),
        **_common(reports),
        **_humidity(reports),
        "#1#seaSurfaceTemperature": reports.get("sea_surface_temperature"),
    }


def drifter(reports: ReportTable) -> Columns:
    """Columns of drifting buoys: the last position is of the nominal time."""
    nominal = calendar(reports.time, 2)
    nominal.pop("#2#second")
    common = _common(reports)
    return {
        "#1#marineObservingPlatformIdentifier": _platform_number(reports),
        **_place(reports),
        **nominal,
        **common,
        "#1#timeSignificance": float(_LAST_POSITION),
        "#2#timeSignificance": float(_NOMINAL),
        "#3#timeSignificance": float(_MEAN_WIND),
        "#1#oceanographicWaterTemperature": reports.get("sea_surface_temperature"),
    }
