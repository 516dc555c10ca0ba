"""Decode SYNOP, SHIP and METAR by pymetdecoder (British Antarctic Survey) and metar."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from model.domain.errors import DecodeError
from model.domain.physics import (
    FOOT,
    KNOT,
    ZERO_CELSIUS,
    height_of_pressure,
    pressure_at_height,
)
from worker.observations.decoders.text.bulletins import CORRECTED, BulletinClock, BulletinReport
from worker.observations.stations import StationSite, airport
from worker.observations.units import wind_components

__all__ = ["ReportValues", "decode_metar", "decode_synop", "find_place", "without_marks"]

NAN = float("nan")
_NOTHING = ("46///", "/////")
"""Groups of a report without content, such as NIL."""
_SPEED_UNITS = {"KT": KNOT, "KTS": KNOT, "MPS": 1.0, "KMH": 1.0 / 3.6}
_METAR_WIND = re.compile(r"(\d{3}|VRB|///)(P?\d{2,3}|//)(?:G[P\d/]{2,4})?(KTS?|MPS|KMH)?")
_WIND_RANGE = re.compile(r"\d{3}V\d{3}")
_TREND = ("NOSIG", "TEMPO", "BECMG", "RMK")
_GROUP = re.compile(r"[\d/]{5}")
_SECTION = re.compile(r"222(?:\d\d|//)|333|444|555|ICE|NIL")
"""Where section 1 of SYNOP and SHIP ends."""
_NEEDED = {"AAXX": 4, "BBXX": 6, "OOXX": 8}
"""Number of groups up to the wind, which are identified by position."""
_FIRST_GROUP = {"AAXX": 0, "BBXX": 1, "OOXX": 1}
"""Index of the first group of digits; in ship codes a call sign precedes it."""


@dataclass
class ReportValues:
    """Decoded values of one report, with its station and time.

    Attributes:
        network: Its report type.
        station: Its identifier.
        time: UTC.
        place: Where it is.
        rows: Variable, kind of height, vertical coordinate and value in SI of each value.
        correction: Whether the report itself says that it corrects another.
        profile: Whether its rows are one ascent.
        set_aside: Values that give no row, by reason and variable.
    """

    network: str
    station: str
    time: datetime
    place: StationSite
    rows: list[tuple[str, str, float, float]] = field(default_factory=list)
    correction: bool = False
    profile: bool = False
    set_aside: Counter[str] = field(default_factory=Counter)

    def add(self, variable: str, value: float, kind: str = "surface", at: float = NAN) -> None:
        """Add a value unless it is NaN."""
        if value == value:
            self.rows.append((variable, kind, at, float(value)))


def find_place(station: str, places: Mapping[str, StationSite]) -> StationSite:
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
    """Return the error of a report whose day and hour give no date."""
    return DecodeError(
        f"Expected a day and hour shortly before the arrival; got {what}. Give the decoder option "
        "`reference_time`.",
        reason="no_time",
    )


def decode_synop(
    report: BulletinReport, clock: BulletinClock, places: Mapping[str, StationSite]
) -> ReportValues | None:
    """Return the values of a SYNOP or SHIP report; None for NIL that withdraws no earlier report.

    Raises:
        DecodeError: With a reason.
    """
    words, marked = without_marks(report.words)
    nothing = "NIL" in words
    if nothing:
        if not (report.corrects or marked) or report.code != "AAXX":
            return None
        words = (*words[: words.index("NIL")], *_NOTHING)
    malformed = _malformed(report.code, words)
    from pymetdecoder import synop  # noqa: PLC0415 (used for text only)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = synop.SYNOP().decode(" ".join((report.code, *words)))
    except Exception as error:  # the library raises many types
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
        height = 0.0 if report.code == "BBXX" else _elevation(position)
        if abs(position["latitude"]) > 90.0 or abs(position["longitude"]) > 180.0:
            raise DecodeError(
                f"Expected at most 90 and 180 degrees; got {' '.join(words[2:4])}.",
                reason="no_position",
            )
        place = StationSite(position["latitude"], position["longitude"], height, height)
    elif nothing and station not in places:
        return None  # an earlier report had no position either
    else:
        place = find_place(station, places)
    result = ReportValues(network, station, time, place, correction=marked)
    if malformed:
        result.set_aside["malformed group"] += malformed
    _surface(found, result)
    return result


def without_marks(words: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the groups of a report without marks of a correction at its beginning, and if it has any."""
    kept = tuple(w for n, w in enumerate(words) if n > _MARKS or not CORRECTED.fullmatch(w))
    return kept, len(kept) < len(words)


_MARKS = 3
"""Last group that may be a mark: after the date and the station."""


def _malformed(code: str, words: Sequence[str]) -> int:
    """Return the number of malformed groups of section 1 (not five digits or slashes), which are ignored.

    Raises:
        DecodeError: If a group up to the wind is malformed, because these are identified by position.
    """
    last = next((n for n, word in enumerate(words) if _SECTION.fullmatch(word)), len(words))
    wrong = [n for n in range(_FIRST_GROUP[code], last) if not _GROUP.fullmatch(words[n])]
    if wrong and wrong[0] < _NEEDED[code]:
        raise DecodeError(
            f"{code}: expected groups of five digits; got {words[wrong[0]]}", reason="undecodable"
        )
    return len(wrong)


def _value(found: Mapping[str, Any], *names: str) -> float:
    """Return the number under some names, NaN where there is none."""
    for name in names:
        found = found.get(name) or {}
    number = found.get("value") if isinstance(found, Mapping) else None
    return float(number) if isinstance(number, int | float) else NAN


def _elevation(position: Mapping[str, Any]) -> float:
    """Return the height of a mobile station in m; its group says whether it is in feet."""
    unit = (position.get("elevation") or {}).get("unit")
    return _value(position, "elevation") * (FOOT if unit == "ft" else 1.0)


def _surface(found: Mapping[str, Any], result: ReportValues) -> None:
    result.add("surface_pressure", _value(found, "station_pressure") * 100.0)
    result.add("mean_sea_level_pressure", _value(found, "sea_level_pressure") * 100.0)
    result.add("2m_temperature", _value(found, "air_temperature") + ZERO_CELSIUS)
    result.add("2m_dewpoint_temperature", _value(found, "dewpoint_temperature") + ZERO_CELSIUS)
    result.add("2m_relative_humidity", _value(found, "relative_humidity") / 100.0)
    result.add("sea_surface_temperature", _value(found, "sea_surface_temperature") + ZERO_CELSIUS)
    wind = found.get("surface_wind") or {}
    unit = (wind.get("speed") or {}).get("unit")
    direction = wind.get("direction") or {}
    degrees = 0.0 if direction.get("calm") else _value(wind, "direction")
    _wind(result, _value(wind, "speed") * {"KT": KNOT, "m/s": 1.0}.get(unit or "", NAN), degrees)
    if unit not in ("KT", "m/s") and _value(wind, "speed") > 0.0:
        result.set_aside["no_unit 10m_wind_speed"] += 1
    for section in ("precipitation_s1", "precipitation_s3"):
        rain = found.get(section) or {}
        hourly = _value(rain, "time_before_obs") == 1.0
        amount = 0.0 if (rain.get("amount") or {}).get("trace") else _value(rain, "amount")
        if hourly and amount == amount:
            result.add("total_precipitation", amount / 1_000.0)
            break


def _wind(result: ReportValues, speed: float, direction: float) -> None:
    if direction != direction:
        result.add("10m_wind_speed", speed)
        return
    u, v = wind_components(np.array([speed]), np.array([direction]))
    result.add("10m_u_component_of_wind", float(u[0]))
    result.add("10m_v_component_of_wind", float(v[0]))


def decode_metar(
    report: BulletinReport, clock: BulletinClock, places: Mapping[str, StationSite]
) -> ReportValues | None:
    """Return the values of a METAR or SPECI; None for NIL.

    QNH is the sea level pressure of the standard atmosphere that has the aerodrome's pressure at its
    height, rounded down to whole hPa. The station pressure is computed from it, half a hPa too low on
    average.

    Raises:
        DecodeError: With a reason.
    """
    marked = any(map(CORRECTED.fullmatch, report.words[:4]))
    if "NIL" in report.words and not (report.corrects or marked):
        return None
    from metar import Metar  # noqa: PLC0415 (used for text only)

    words = [w for w in report.words if w != "NIL" and not CORRECTED.fullmatch(w)]
    day_hour = next((w for w in words if len(w) == 7 and w.endswith("Z") and w[:6].isdigit()), "")
    if not day_hour:
        raise DecodeError(
            "Expected a METAR with day and time (171220Z); got none.", reason="no_time"
        )
    time = clock.time(int(day_hour[:2]), int(day_hour[2:4]), int(day_hour[4:6]))
    if time is None:
        raise no_time(day_hour)
    place_of_time = words.index(day_hour)
    words[place_of_time] = f"{time:%d%H%M}Z"  # the library rejects reports at 24:00
    wind = _take_wind(words, place_of_time)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Metar.Metar(
                " ".join(("METAR", *words)), month=time.month, year=time.year, strict=False
            )
    except Exception as error:  # the library raises many types
        raise DecodeError(f"METAR: {error}", reason="undecodable") from error
    station = found.station_id or "unknown"
    place = places.get(station) or airport(station)
    if place is None:
        raise DecodeError(
            f"Expected a known airport; '{station}' is neither in the list of stations nor in that of "
            "airports.",
            reason="no_position",
        )
    result = ReportValues("synop", station, time, place, correction=marked)
    _aviation(found, result)
    _aviation_wind(wind, result)
    return result


def _take_wind(words: list[str], after: int) -> str:
    """Remove the wind group of a METAR and that of its range, and return the former, "" if absent.

    It precedes trends and remarks. The letter O is read as 0 in it.
    """
    for place in range(after + 1, len(words)):
        group = words[place].replace("O", "0")
        if words[place] in _TREND:
            break
        if _METAR_WIND.fullmatch(group):
            ranged = words[place + 1 : place + 2]
            last = place + 1 + any(map(_WIND_RANGE.fullmatch, ranged))
            del words[place:last]
            return group
    return ""


def _aviation_wind(group: str, result: ReportValues) -> None:
    """Add the wind of `dddff(f)Gff(f)KT`.

    `P99KT` is a lower bound, and a speed without a unit is ambiguous: neither is used. `000` is valid as
    a direction only in calm.
    """
    found = _METAR_WIND.fullmatch(group)
    if found is None or not found.group(2).strip("/"):
        return
    digits, unit = found.group(2), found.group(3)
    reason = "bound" if digits[0] == "P" else "" if unit else "no_unit"
    direction = float(found.group(1)) if found.group(1).isdigit() else NAN
    if not reason and direction > 360.0:
        reason = "direction"
    if reason:
        result.set_aside[f"{reason} 10m_wind_speed"] += 1
        return
    speed = float(digits) * _SPEED_UNITS[unit]
    if speed == 0.0:
        direction = 0.0
    elif direction == 0.0:
        direction = NAN
    _wind(result, speed, direction)


def _aviation(found: Any, result: ReportValues) -> None:
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
        known = None if found.press is None else found.press.value("HPA")
        result.add("mean_sea_level_pressure", 100.0 * _with_hundreds(found.press_sea_level, known))


def _with_hundreds(pressure: Any, known: float | None) -> float:
    """Return the sea level pressure in hPa of `SLPppp`, which omits the hundreds.

    The value nearest to QNH is taken; without QNH, the one between 950 and 1050.
    """
    given = float(pressure.value("HPA"))
    if known is None:
        return given
    return min((given - 100.0, given, given + 100.0), key=lambda p: abs(p - known))
