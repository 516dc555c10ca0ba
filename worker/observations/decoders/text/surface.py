"""Decode SYNOP, SHIP and METAR by pymetdecoder (British Antarctic Survey) and metar."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from model.domain.errors import DecodeError
from model.domain.physics import (
    KNOT,
    ZERO_CELSIUS,
    height_of_pressure,
    pressure_at_height,
)
from worker.observations.decoders.text.bulletins import Clock, Report
from worker.observations.station_list import Place, airport
from worker.observations.units import wind_components

__all__ = ["Decoded", "decode_metar", "decode_synop", "find_place"]

NAN = float("nan")
_NOTHING = ("46///", "/////")
"""Groups of a report that says nothing, as NIL does."""


@dataclass
class Decoded:
    """What one report gives.

    Attributes:
        network: Its report type.
        station: Its identifier.
        time: UTC.
        place: Where it is.
        rows: Variable, kind of height, vertical coordinate and value in SI of each value.
        correction: Whether the report itself says that it corrects another.
        profile: Whether its rows are one ascent.
        barometer: Height that station pressure refers to in m.
    """

    network: str
    station: str
    time: datetime
    place: Place
    rows: list[tuple[str, str, float, float]] = field(default_factory=list)
    correction: bool = False
    profile: bool = False

    def add(self, variable: str, value: float, kind: str = "surface", at: float = NAN) -> None:
        """Add a value unless it is NaN."""
        if value == value:
            self.rows.append((variable, kind, at, float(value)))


def find_place(station: str, places: Mapping[str, Place]) -> Place:
    """Return the place of a station by its identifier.

    Raises:
        DecodeError: With reason `no_position`.
    """
    if place := places.get(station):
        return place
    raise DecodeError(
        f"Expected station {station} in the list of stations (APPA_STATIONS); it is not there.",
        reason="no_position",
    )


def no_time(what: str) -> DecodeError:
    """Return the error of a report whose day and hour cannot be placed."""
    return DecodeError(
        f"Expected a day and hour shortly before the arrival; got {what}. Give the decoder option "
        "`reference_time`.",
        reason="no_time",
    )


def decode_synop(report: Report, clock: Clock, places: Mapping[str, Place]) -> Decoded | None:
    """Return the values of a SYNOP or SHIP report; None for NIL that takes nothing back.

    Raises:
        DecodeError: With a reason.
    """
    words, nothing = report.words, "NIL" in report.words
    if nothing:
        if not report.corrects or report.code != "AAXX":
            return None
        words = (*words[: words.index("NIL")], *_NOTHING)
    from pymetdecoder import synop  # noqa: PLC0415 (used for text only)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = synop.SYNOP().decode(" ".join((report.code, *words)))
    except Exception as error:  # the library raises its own and others
        raise DecodeError(f"{report.code}: {error}", reason="undecodable") from error
    day, hour = _value(found, "obs_time", "day"), _value(found, "obs_time", "hour")
    time = None if day != day or hour != hour else clock.time(int(day), int(hour))
    if time is None:
        raise no_time(f"{day:g} {hour:g}")
    station = str(
        (found.get("station_id") or found.get("callsign") or {}).get("value") or "unknown"
    )
    network = "synop"
    if report.code == "BBXX":
        network = "buoy" if station.isdigit() and len(station) in (5, 7) else "ship"
    if position := found.get("station_position"):
        height = 0.0 if report.code == "BBXX" else _value(position, "elevation")
        place = Place(position["latitude"], position["longitude"], height, height)
    elif nothing and station not in places:
        return None  # nor had an earlier report of it a place
    else:
        place = find_place(station, places)
    result = Decoded(network, station, time, place)
    _surface(found, result)
    return result


def _value(found: Mapping[str, Any], *names: str) -> float:
    """Return the number under some names, NaN where there is none."""
    for name in names:
        found = found.get(name) or {}
    number = found.get("value") if isinstance(found, Mapping) else None
    return float(number) if isinstance(number, int | float) else NAN


def _surface(found: Mapping[str, Any], result: Decoded) -> None:
    result.add("surface_pressure", _value(found, "station_pressure") * 100.0)
    result.add("mean_sea_level_pressure", _value(found, "sea_level_pressure") * 100.0)
    result.add("2m_temperature", _value(found, "air_temperature") + ZERO_CELSIUS)
    result.add("2m_dewpoint_temperature", _value(found, "dewpoint_temperature") + ZERO_CELSIUS)
    result.add("2m_relative_humidity", _value(found, "relative_humidity") / 100.0)
    result.add("sea_surface_temperature", _value(found, "sea_surface_temperature") + ZERO_CELSIUS)
    wind = found.get("surface_wind") or {}
    factor = KNOT if (wind.get("speed") or {}).get("unit") == "KT" else 1.0
    direction = wind.get("direction") or {}
    degrees = 0.0 if direction.get("calm") else _value(wind, "direction")
    _wind(result, _value(wind, "speed") * factor, degrees)
    for section in ("precipitation_s1", "precipitation_s3"):
        rain = found.get(section) or {}
        hourly = _value(rain, "time_before_obs") == 1.0
        amount = 0.0 if (rain.get("amount") or {}).get("trace") else _value(rain, "amount")
        if hourly and amount == amount:
            result.add("total_precipitation", amount / 1_000.0)
            break


def _wind(result: Decoded, speed: float, direction: float) -> None:
    if direction != direction:
        result.add("10m_wind_speed", speed)
        return
    u, v = wind_components(np.array([speed]), np.array([direction]))
    result.add("10m_u_component_of_wind", float(u[0]))
    result.add("10m_v_component_of_wind", float(v[0]))


def decode_metar(report: Report, clock: Clock, places: Mapping[str, Place]) -> Decoded | None:
    """Return the values of a METAR or SPECI; None for NIL.

    QNH is the sea level pressure of the standard atmosphere that has the aerodrome's pressure at
    its height, rounded down to whole hPa; the station pressure follows, half a hPa too low in the mean.

    Raises:
        DecodeError: With a reason.
    """
    corrects = report.corrects or "COR" in report.words
    if "NIL" in report.words and not corrects:
        return None
    from metar import Metar  # noqa: PLC0415 (used for text only)

    words = [word for word in report.words if word not in ("COR", "NIL")]
    day_hour = next((w for w in words if len(w) == 7 and w.endswith("Z") and w[:6].isdigit()), "")
    if not day_hour:
        raise DecodeError(
            "Expected a METAR with day and time (171220Z); got none.", reason="no_time"
        )
    time = clock.time(int(day_hour[:2]), int(day_hour[2:4]), int(day_hour[4:6]))
    if time is None:
        raise no_time(day_hour)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Metar.Metar(
                " ".join(("METAR", *words)), month=time.month, year=time.year, strict=False
            )
    except Exception as error:  # the library raises its own and others
        raise DecodeError(f"METAR: {error}", reason="undecodable") from error
    station = found.station_id or "unknown"
    place = places.get(station) or airport(station)
    if place is None:
        raise DecodeError(
            f"Expected a known airport; '{station}' is neither in the list of stations nor in that of "
            "airports.",
            reason="no_position",
        )
    result = Decoded("synop", station, time, place, correction="COR" in report.words)
    _aviation(found, result)
    return result


def _aviation(found: Any, result: Decoded) -> None:
    for variable, quantity in (
        ("2m_temperature", found.temp),
        ("2m_dewpoint_temperature", found.dewpt),
    ):
        if quantity is not None:
            result.add(variable, quantity.value("C") + ZERO_CELSIUS)
    if found.press is not None and result.place.barometer == result.place.barometer:
        above = height_of_pressure(np.array(found.press.value("HPA") * 100.0))
        pressure = pressure_at_height(above + result.place.barometer)
        result.add("surface_pressure", float(pressure))
    if found.press_sea_level is not None:
        result.add("mean_sea_level_pressure", found.press_sea_level.value("HPA") * 100.0)
    if found.wind_speed is not None:
        speed = found.wind_speed.value("MPS")
        direction = 0.0 if not speed else NAN
        if found.wind_dir is not None:
            direction = found.wind_dir.value()
        _wind(result, speed, direction)
