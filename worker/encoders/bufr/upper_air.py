"""Sondes (309052), aircraft (311010) and satellite winds (310077)."""

import re

import numpy as np

from worker.decoders.units import (
    GRAVITY,
    dewpoint_from_specific_humidity,
    flight_level_from_pressure,
    wind_direction,
)
from worker.encoders.bufr.message import MessageTemplate, calendar
from worker.encoders.bufr.reports import ReportTable

__all__ = ["AIRCRAFT", "AMV", "aircraft", "amv", "sonde", "sonde_template"]

AIRCRAFT = MessageTemplate((311_010,), 4, 0, {"short": (0,) * 6, "": (0, 0)})
AMV = MessageTemplate((310_077,), 5, 0, {"": (0, 0, 0, 0)})

_BALLOON_LAUNCH = 18
_STANDARD_LEVEL = 65_536
_STANDARD = (1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100, 70, 50, 30, 20, 10)
_QI_WITHOUT_FORECAST = 5
_METHODS = {
    "infrared": 1,
    "visible": 2,
    "water-vapour-cloud": 3,
    "combined": 4,
    "water-vapour-clear": 5,
    "ozone": 6,
    "water-vapour": 7,
}

Columns = dict[str, np.ndarray | list[str] | float | str]


def _wind(reports: ReportTable) -> tuple[np.ndarray, np.ndarray]:
    """Direction in whole degrees and speed in m s-1."""
    u, v = reports.get("u_component_of_wind"), reports.get("v_component_of_wind")
    return np.round(wind_direction(u, v)), np.hypot(u, v)


def sonde_template(levels: int, subcategory: int) -> MessageTemplate:
    """Template of an ascent with that many levels."""
    return MessageTemplate((309_052,), 2, subcategory, {"extended": (levels,), "": (0,)})


def sonde(levels: ReportTable) -> Columns:
    """Columns of one ascent; levels from the ground up, drift relative to the lowest."""
    station = levels.station_id[0]
    wmo = re.fullmatch(r"\d{5}", station)
    direction, speed = _wind(levels)
    dewpoint = dewpoint_from_specific_humidity(levels.get("specific_humidity"), levels.vertical)
    columns: Columns = {
        "#1#blockNumber": float(station[:2]) if wmo else np.nan,
        "#1#stationNumber": float(station[2:]) if wmo else np.nan,
        "#1#shipOrMobileLandStationIdentifier": "" if wmo else station[:9],
        "#1#timeSignificance": float(_BALLOON_LAUNCH),
        **calendar(levels.time[:1]),
        "#1#latitude": levels.lat[:1],
        "#1#longitude": levels.lon[:1],
        "#1#heightOfStationGroundAboveMeanSeaLevel": levels.elevation[:1],
    }
    by_level = {
        "timePeriod": (levels.time - levels.time[0]).astype(np.float64),
        "extendedVerticalSoundingSignificance": np.where(
            np.isin(np.round(levels.vertical / 100.0), _STANDARD), _STANDARD_LEVEL, 0
        ),
        "pressure": levels.vertical,
        "nonCoordinateGeopotentialHeight": np.round(levels.get("geopotential") / GRAVITY),
        "latitudeDisplacement": levels.lat - levels.lat[0],
        "longitudeDisplacement": levels.lon - levels.lon[0],
        "airTemperature": levels.get("temperature"),
        "dewpointTemperature": dewpoint,
        "windDirection": direction,
        "windSpeed": speed,
    }
    for name, values in by_level.items():
        columns |= {f"#{k + 1}#{name}": float(value) for k, value in enumerate(values)}
    return columns


def aircraft(reports: ReportTable) -> Columns:
    """Columns of aircraft reports; the pressure becomes a flight level in whole metres."""
    direction, speed = _wind(reports)
    q = reports.get("specific_humidity")
    return {
        "#1#aircraftRegistrationNumberOrOtherIdentification": [t[:8] for t in reports.station_id],
        **calendar(reports.time),
        "#1#latitude": reports.lat,
        "#1#longitude": reports.lon,
        "#1#flightLevel": np.round(flight_level_from_pressure(reports.vertical)),
        "#1#airTemperature": reports.get("temperature"),
        "#1#windDirection": direction,
        "#1#windSpeed": speed,
        "#1#mixingRatio": q / (1.0 - q),
        "#1#relativeHumidity": np.round(reports.get("relative_humidity") * 100.0),
    }


def amv(reports: ReportTable) -> Columns:
    """Columns of satellite winds of full quality; the platform names the method."""
    direction, speed = _wind(reports)
    satellite = [re.fullmatch(r"sat(\d+)", text) for text in reports.station_id]
    return {
        "#1#satelliteIdentifier": np.array([float(m.group(1)) if m else np.nan for m in satellite]),
        "#1#satelliteDerivedWindComputationMethod": np.array(
            [float(_METHODS.get(text, "nan")) for text in reports.platform]
        ),
        **calendar(reports.time),
        "#1#latitude": reports.lat,
        "#1#longitude": reports.lon,
        "#1#pressure": reports.vertical,
        "#1#windDirection": direction,
        "#1#windSpeed": speed,
        "#1#standardGeneratingApplication": float(_QI_WITHOUT_FORECAST),
        "#1#percentConfidence": 100.0,
    }
