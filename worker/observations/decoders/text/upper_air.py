"""Decode TEMP and PILOT, parts A to D (WMO Manual on Codes, volume I.1, FM 32 to FM 38).

Part A and C hold standard levels, B and D significant ones; A and B reach up to 100 hPa. Groups of a
level: pressure and height `PPhhh`, temperature and dewpoint depression `TTTaDD`, wind `dddff`. Heights
lose their leading digits, pressures of parts C and D count tenths of hPa, the sign of a temperature
is the parity of its tenths, and hundreds of the wind speed stand in the last digit of the direction.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from model.domain.errors import DecodeError
from model.domain.physics import (
    GRAVITY,
    KNOT,
    ZERO_CELSIUS,
    specific_humidity_from_dewpoint,
)
from worker.observations.decoders.text.bulletins import BulletinClock, BulletinReport
from worker.observations.decoders.text.surface import (
    NAN,
    ReportValues,
    find_place,
    no_time,
    without_marks,
)
from worker.observations.stations import StationSite
from worker.observations.units import wind_components

__all__ = ["decode_upper_air"]

_LOW = {"00": 1000, "92": 925, "85": 850, "70": 700, "50": 500, "40": 400, "30": 300, "25": 250,
        "20": 200, "15": 150, "10": 100}  # fmt: skip
_HIGH = {"70": 70, "50": 50, "30": 30, "20": 20, "10": 10, "07": 7, "05": 5, "03": 3, "02": 2,
         "01": 1}  # fmt: skip
_LAST_WIND = {"1": 100, "2": 200, "3": 300, "4": 400, "5": 500, "7": 700, "8": 850, "9": 925,
              "0": 1000}  # fmt: skip
_THOUSANDS = {925: 0, 850: 1_000, 250: 10_000, 200: 10_000, 150: 10_000, 100: 10_000, 70: 10_000,
              50: 20_000, 30: 20_000, 20: 20_000, 10: 30_000}  # fmt: skip
_LOWER_THOUSANDS = (250, 50, 10)
"""Levels whose height has ambiguous leading digits: the nearest value is chosen."""
_SECTIONS = ("21212", "31313", "41414", "51515", "52525", "53535", "54545", "55555", "61616")
_SURFACE, _TROPOPAUSE, _MAXIMUM = "99", "88", ("77", "66")
_MAST_UNITS = {"9": 300.0, "8": 500.0}
_KNOTS = 50
_MISSING_LEVEL = "999"


class _Groups:
    """Iterator over the groups of a report."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words, self.at = list(words), 0

    def next(self) -> str:
        """Return the next group, "" at the end or before another section."""
        if self.at >= len(self.words) or self.words[self.at] in _SECTIONS:
            return ""
        self.at += 1
        return self.words[self.at - 1]

    def wind_before_level(self) -> bool:
        """Return whether a wind stands before the group of 1000 hPa: 925 hPa follows that by two groups.

        Where no winds are reported a surface wind may still be, and calm looks like 1000 hPa.
        """
        heads = [word[:2] for word in self.words[self.at : self.at + 4]]
        return heads[1:2] == ["00"] and heads[2:3] != ["92"] and heads[3:4] == ["92"]

    def section(self, name: str) -> "_Groups":
        """Return the groups of a section, none if there is no such section."""
        if name not in self.words:
            return _Groups(())
        return _Groups(self.words[self.words.index(name) + 1 :])


def decode_upper_air(
    report: BulletinReport, clock: BulletinClock, places: Mapping[str, StationSite]
) -> ReportValues | None:
    """Return the levels of one part of an ascent; None for NIL.

    Raises:
        DecodeError: With a reason.
    """
    if "NIL" in report.words:
        return None
    kept, marked = without_marks(report.words)
    words = list(kept)
    ship = report.code[0] in "UQ"
    station = words.pop(0) if ship and words else ""
    if not words or len(words[0]) != 5 or not words[0][:4].isdigit():
        raise DecodeError(f"Expected {report.code} with day and hour.", reason="no_time")
    day, hour, last = int(words[0][:2]), int(words[0][2:4]), words[0][4]
    knots = day > _KNOTS
    time = clock.time(day - _KNOTS if knots else day, hour)
    if time is None:
        raise no_time(words[0])
    if ship:
        place, taken = _ship_place(words[1:]), 4
    else:
        station, taken = words[1] if len(words) > 1 else "", 2
        place = find_place(station, places)
    network = "temp" if report.code[0] in "TU" else "pilot"
    result = ReportValues(network, station, time, place, correction=marked, profile=True)
    groups = _Groups(words[taken:])
    speed_unit = KNOT if knots else 1.0
    part = report.code[2]
    if network == "temp":
        (_standard if part in "AC" else _significant)(groups, part, last, speed_unit, result)
    else:
        (_pilot_standard if part in "AC" else _pilot_heights)(groups, part, speed_unit, result)
    return result


def _ship_place(words: Sequence[str]) -> StationSite:
    """Return the place of a ship from `99LaLaLa QcLoLoLoLo`; balloons start at sea level."""
    if len(words) < 2 or not (words[0][:2] == "99" and words[0].isdigit() and words[1].isdigit()):
        raise DecodeError("Expected the position of a ship (99LLL QLLLL).", reason="no_position")
    lat, lon, quadrant = int(words[0][2:]) / 10.0, int(words[1][1:]) / 10.0, words[1][0]
    if quadrant not in "1357":
        raise DecodeError(f"Expected quadrant 1, 3, 5 or 7; got {quadrant}.", reason="no_position")
    if lat > 90.0 or lon > 180.0:
        raise DecodeError(
            f"Expected at most 90 and 180 degrees; got {words[0]} {words[1]}.", reason="no_position"
        )
    return StationSite(
        -lat if quadrant in "35" else lat, -lon if quadrant in "57" else lon, 0.0, 0.0
    )


def _standard(groups: _Groups, part: str, last: str, unit: float, result: ReportValues) -> None:
    """Add the surface, standard levels, tropopause and wind maxima of part A or C."""
    names, factor = (_LOW, 1.0) if part == "A" else (_HIGH, 0.1)
    lowest = _LAST_WIND.get(last)
    top = None if lowest is None else lowest * (1.0 if part == "A" else 0.1)
    before = np.inf
    while group := groups.next():
        head = group[:2]
        if head == _SURFACE and part == "A":
            pressure = _pressure(group[2:], 1.0)
            _temperature_group(groups.next(), pressure, result)
            if last != "/" or groups.wind_before_level():
                _wind_group(groups.next(), pressure, unit, result)
        elif head in names and names[head] < before:
            # Levels come in order, each once: other groups with the same first digits are not levels.
            pressure = before = float(names[head])
            height = _height(group[2:], names[head])
            if pressure and height == height:
                result.add("geopotential", height * GRAVITY, "pressure", pressure * 100.0)
            _level(groups, pressure, unit, result, wind=top is not None and pressure >= top)
        elif head == _TROPOPAUSE:
            if group[2:] != _MISSING_LEVEL:
                _level(groups, _pressure(group[2:], factor), unit, result, wind=last != "/")
        elif head in _MAXIMUM and group[2:] != _MISSING_LEVEL:
            _wind_group(groups.next(), _pressure(group[2:], factor), unit, result)
        # The shear of a maximum, 4vbvb, has no variable.


def _pressure(digits: str, factor: float) -> float:
    """Return hPa of three digits; thousands are left out at the surface."""
    if not digits.isdigit():
        return NAN
    number = int(digits)
    if factor == 1.0:
        return float(number + 1_000 if number < 100 else number)
    return number * factor


def _height(digits: str, level: int) -> float:
    """Return the height in gpm of a standard level from its last three digits."""
    if not digits.isdigit():
        return NAN
    number = int(digits)
    if level == 1_000:
        return float(500 - number if number >= 500 else number)
    if level in (925, 850):
        return float(_THOUSANDS[level] + number)
    if level == 700:
        return float(number + (2_000 if number >= 500 else 3_000))
    if level >= 300:
        return number * 10.0
    base = _THOUSANDS.get(level)
    if base is None:
        return NAN
    found = number * 10.0 + base
    # 250 hPa lies at 9 to 11 km, 50 hPa at 18 to 21 km, 10 hPa at 27 to 32 km.
    return found - 10_000.0 if level in _LOWER_THOUSANDS and number >= 500 else found


def _level(
    groups: _Groups, pressure: float, unit: float, result: ReportValues, *, wind: bool
) -> None:
    """Take the temperature and wind groups of a level."""
    _temperature_group(groups.next(), pressure, result)
    if wind:
        _wind_group(groups.next(), pressure, unit, result)


def _temperature_group(group: str, pressure: float, result: ReportValues) -> None:
    if len(group) != 5 or not group[:3].isdigit() or not pressure > 0:
        return
    temperature = int(group[:3]) / 10.0
    temperature = (-temperature if int(group[2]) % 2 else temperature) + ZERO_CELSIUS
    result.add("temperature", temperature, "pressure", pressure * 100.0)
    if group[3:].isdigit():
        number = int(group[3:])
        if 50 < number < 56:  # not used (code table 0777)
            result.set_aside["code specific_humidity"] += 1
            return
        depression = number / 10.0 if number <= 50 else number - 50.0
        q = specific_humidity_from_dewpoint(
            np.array(temperature - depression), np.array(pressure * 100.0)
        )
        result.add("specific_humidity", float(q), "pressure", pressure * 100.0)


def _wind(group: str, unit: float) -> tuple[float, float]:
    """Return the wind components of `dddff`, NaN where missing or impossible."""
    if len(group) != 5 or not group.isdigit():
        return NAN, NAN
    direction, speed = int(group[:3]), int(group[3:])
    hundreds = direction % 5
    speed += 100 * hundreds
    direction -= hundreds
    if direction > 360 or (direction == 0 and speed > 0):  # 0 is calm, 360 north
        return NAN, NAN
    u, v = wind_components(np.array([speed * unit]), np.array([float(direction)]))
    return float(u[0]), float(v[0])


def _wind_group(
    group: str, at: float, unit: float, result: ReportValues, kind: str = "pressure"
) -> None:
    u, v = _wind(group, unit)
    if u != u and len(group) == 5 and group.isdigit():
        result.set_aside["direction wind"] += 1
    vertical = at * 100.0 if kind == "pressure" else at
    if vertical == vertical:
        result.add("u_component_of_wind", u, kind, vertical)
        result.add("v_component_of_wind", v, kind, vertical)


def _significant(groups: _Groups, part: str, last: str, unit: float, result: ReportValues) -> None:
    """Add the significant levels of temperature, then of wind (section 21212), of part B or D."""
    factor = 1.0 if part == "B" else 0.1
    for pressure, group in _numbered(groups, factor):
        _temperature_group(group, pressure, result)
    for pressure, group in _numbered(groups.section("21212"), factor):
        _wind_group(group, pressure, unit, result)


def _numbered(groups: _Groups, factor: float) -> Iterator[tuple[float, str]]:
    """Yield the pressure and the group of levels numbered 00, 11, 22, …; 51 to 59 are cloud and wind."""
    while group := groups.next():
        if len(group) == 5 and group[0] == group[1]:
            yield _pressure(group[2:], factor), groups.next()


def _pilot_standard(groups: _Groups, part: str, unit: float, result: ReportValues) -> None:
    """Add the winds at standard pressures: `55nPP`, then n groups from level PP upwards."""
    levels = list((_LOW if part == "A" else _HIGH).items())
    names = [name for name, _ in levels]
    while group := groups.next():
        if group[:2] in ("44", "55") and group[2:].isdigit() and group[3:] in names:
            first = names.index(group[3:])
            for _, pressure in levels[first : first + int(group[2])]:
                _wind_group(groups.next(), float(pressure), unit, result)
        elif group[:2] in _MAXIMUM and group[2:] != _MISSING_LEVEL:
            _wind_group(
                groups.next(), _pressure(group[2:], 1.0 if part == "A" else 0.1), unit, result
            )


def _pilot_heights(groups: _Groups, part: str, unit: float, result: ReportValues) -> None:
    """Add the winds at heights: `9tuuu`, tens and three units of 300 m (`8`: 500 m) for three groups.

    Height 0 is the surface; levels by pressure (section 21212) follow as in TEMP.
    """
    while group := groups.next():
        step = _MAST_UNITS.get(group[0])
        if step is None or len(group) != 5 or not group[1].isdigit():
            continue
        for unit_digit in group[2:]:
            if not unit_digit.isdigit():
                continue
            tens = int(group[1]) * 10 + int(unit_digit)
            height = tens * step if tens else result.place.elevation
            _wind_group(groups.next(), height, unit, result, "height")
    for pressure, group in _numbered(groups.section("21212"), 1.0 if part == "B" else 0.1):
        _wind_group(group, pressure, unit, result)
