"""Decode upper-air reports: sondes and pilot balloons, wind profilers, aircraft, satellite winds.

Sondes: 309052, 309057, 309050 ff., 309053 and older ones. A level begins at its pressure
0 07 004; its position and time are those of the launch plus the drift (0 05 015, 0 06 015,
0 04 086), where reported. Levels without pressure (pilot balloons, sondes without a barometer,
309055) keep their height. Humidity comes as dewpoint, or as relative humidity (309060).

Profilers and radar winds: 309020, 321021/321022 and older layouts by height. A level begins at
its height: 0 07 007 above mean sea level or 0 07 006 above the station.

Aircraft: AMDAR (311010, 311001, 311005), ACARS, Mode-S and MRAR. Flight level 0 07 010 and
height 0 07 002 are pressure altitudes, turned into pressure by the ICAO standard atmosphere.
Profiles (311008, 311009, 311012) have many levels, some with a position or time of their own.
Later blocks of 311010 (icing, turbulence, other positions, winds in knots 0 11 084) repeat
elements; only the main report counts, but a wind given in knots only is used.

Atmospheric motion vectors: 310077 (2018 on), 310014, 310195. Only the first pressure, wind and
position count: later ones are intermediate vectors, alternative heights and the model's first
guess. The quality indicator (QI) without forecast is preferred.
"""

from typing import TypedDict

import numpy as np

from model.domain.physics import GRAVITY
from worker.observations.decoders.bufr.block import Block
from worker.observations.decoders.bufr.identity import (
    aircraft_id,
    observation_time,
    satellite_id,
    seconds_after,
    station_id,
)
from worker.observations.decoders.bufr.layout import ReportLayout
from worker.observations.decoders.bufr.levels import (
    MEASURED,
    Levels,
    by_level,
    find_anchors,
    humidity,
    wind,
)
from worker.observations.decoders.bufr.reports import Reports, Values
from worker.observations.units import pressure_from_flight_level, wind_components

__all__ = [
    "AMV_METHODS",
    "MIN_QI",
    "STANDARD_LEVELS",
    "decode_aircraft",
    "decode_amv",
    "decode_profiler",
    "decode_temp",
]

STANDARD_LEVELS = (1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100, 70, 50, 30, 20, 10)
"""Pressures in hPa at which the geopotential is used: between them it follows from temperature and
humidity, and would count the same information twice."""


class Drift(TypedDict):
    """Position and time of the levels of an ascent, each (N, K)."""

    lat: np.ndarray
    lon: np.ndarray
    time: np.ndarray


_DROP_TEMPLATES = {309_053}
_DROP_SUBCATEGORY = 7


def decode_temp(block: Block) -> Reports:
    """Return temperature, humidity, wind and geopotential of all levels."""
    layout = block.layout
    anchors = find_anchors(layout, (7_004, 7_009, 7_007, 7_002))
    levels = Levels(block, anchors)
    time = observation_time(block)
    header = block.first(5_001, 5_002), block.first(6_001, 6_002)
    lat, lon = levels.place(*header)
    base = levels.times(time)
    shift = layout.before_each(anchors, 4_086, 4_016)
    drift: Drift = {
        "lat": lat + _carried(levels.get(5_015)),
        "lon": lon + _carried(levels.get(6_015)),
        "time": seconds_after(time[:, None] if base is None else base, block.at_each(shift)),
    }
    pressure, height = _pressure_and_height(levels)
    temperature_at = levels.where(12_101, 12_001)
    temperature, suspect = block.at_each(temperature_at), block.suspect(temperature_at)
    standard = np.isin(np.round(pressure / 100.0, 2), STANDARD_LEVELS)
    geopotential = np.where(standard, height * GRAVITY, np.nan)
    return Reports(
        _network(block),
        station_id(block),
        time,
        levels.report(header[0], lat),
        levels.report(header[1], lon),
        block.first(7_030, 7_001),
        [
            *by_level("temperature", temperature, pressure, height, suspect, **drift),
            *humidity(levels, temperature, pressure, height, **drift),
            *wind(levels, pressure, height, **drift),
            Values("geopotential", geopotential, "pressure", pressure, **drift),
        ],
        profile=True,
    )


def _carried(displacement: np.ndarray) -> np.ndarray:
    """Return the displacements (N, K) with gaps filled by the level before; 0 before the first."""
    last = np.maximum.accumulate(
        np.where(np.isnan(displacement), -1, np.arange(displacement.shape[1])), axis=1
    )
    filled = np.take_along_axis(displacement, np.maximum(last, 0), axis=1)
    return np.where(last >= 0, filled, 0.0)


def _network(block: Block) -> str:
    drop = block.header.subcategory == _DROP_SUBCATEGORY
    if drop or not _DROP_TEMPLATES.isdisjoint(block.header.descriptors):
        return "dropsonde"
    return "temp" if block.layout.has(12_101, 12_001) else "pilot"


def _pressure_and_height(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """Return pressure in Pa and geopotential height in m of each level, NaN where missing."""
    block = levels.block
    pressure = block.at_each(levels.own(7_004))
    height_at = levels.where(10_009)
    height = block.either(height_at, *(levels.own(code) for code in (7_009, 7_007, 7_002, 10_007)))
    geopotential_at = levels.where(10_003, 10_008)
    # Between the standard levels a height beside a pressure gives no row.
    unused = np.isfinite(pressure) & ~np.isin(np.round(pressure / 100.0, 2), STANDARD_LEVELS)
    block.usage.leave(height_at, unused)
    if (geopotential_at >= 0).any():
        geopotential = block.at_each(geopotential_at)
        block.usage.leave(geopotential_at, unused | ~np.isnan(height))
        height = np.where(np.isnan(height), geopotential / GRAVITY, height)
    return pressure, height


def decode_profiler(block: Block) -> Reports:
    """Return the wind components by height in m above mean sea level."""
    elevation = block.first(7_030, 7_001)
    levels = Levels(block, find_anchors(block.layout, tuple(_HEIGHT_SCALES)))
    height = _heights(levels, elevation)
    return Reports(
        "profiler",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        elevation,
        wind(levels, np.full_like(height, np.nan), height),
        profile=True,
    )


_HEIGHT_SCALES = {7_007: 1.0, 7_006: 1.0, 7_009: 1.0, 10_007: 1.0, 7_003: 1.0 / GRAVITY}
_ABOVE_STATION = 7_006


def _heights(levels: Levels, elevation: np.ndarray) -> np.ndarray:
    """Return the heights of the levels above mean sea level in m, (N, K)."""
    height = np.full((len(levels.block), len(levels.anchors)), np.nan)
    for code, scale in _HEIGHT_SCALES.items():
        at = levels.own(code)
        if (at < 0).all():
            continue
        given = levels.block.at_each(at) * scale
        if code == _ABOVE_STATION:
            given = given + elevation[:, None]
        levels.block.usage.leave(at, ~np.isnan(height))
        height = np.where(np.isnan(height), given, height)
    return height


_STEEP_ROLL = 1
_ALTITUDES = (7_010, 10_070, 7_002)
"""Pressure altitudes in m, by preference."""


def decode_aircraft(block: Block) -> Reports:
    """Return temperature, wind and humidity along the aircraft's path, level by level."""
    anchors = _path_anchors(block.layout)
    levels = Levels(block, anchors, whole=True)
    time = observation_time(block)
    header = block.first(5_001, 5_002), block.first(6_001, 6_002)
    lat, lon = levels.place(*header)
    pressure = _aircraft_pressure(levels)
    height = block.at_each(levels.own(7_007))
    path = {"lat": lat, "lon": lon, "time": levels.times(time)}
    temperature_at = levels.where(12_101, 12_001)
    temperature, suspect = block.at_each(temperature_at), block.suspect(temperature_at)
    # Roll angles of 5 degrees and more degrade the wind (code table 0 02 064).
    steep = levels.get(2_064) == _STEEP_ROLL
    return Reports(
        "aircraft",
        aircraft_id(block),
        time,
        levels.report(header[0], lat),
        levels.report(header[1], lon),
        np.full(len(block), np.nan),
        [
            *wind(levels, pressure, height, steep, **path),
            *by_level("temperature", temperature, pressure, height, suspect, **path),
            *humidity(levels, temperature, pressure, height, **path),
        ],
        platform=_phase(block),
        profile=len(anchors) > 1,
    )


def _path_anchors(layout: ReportLayout) -> np.ndarray:
    """Return where levels begin: at each altitude of the kind that precedes the first observed element.

    Blocks of another kind after the main report are not its levels.
    """
    codes = (*_ALTITUDES, 7_004, 7_007)
    observed = [at for code in MEASURED if (at := layout.first(code)) >= 0]
    last = {layout.before(min(observed), code): code for code in codes} if observed else {}
    nearest = max(last, default=-1)
    return layout.where(last[nearest]) if nearest >= 0 else find_anchors(layout, codes)


def _aircraft_pressure(levels: Levels) -> np.ndarray:
    """Return the pressure of each level in Pa, as given or from its flight level, (N, K)."""
    pressure = levels.get(7_004)
    altitude = levels.get(*_ALTITUDES)
    return np.where(np.isnan(pressure), pressure_from_flight_level(altitude), pressure)


def _phase(block: Block) -> list[str] | str:
    """Return ascent, descent or level flight of each report (code tables 0 08 009 and 0 08 004)."""
    detailed, simple = block.first(8_009), block.first(8_004)
    names = {3: "level", 4: "level", 5: "ascent", 6: "descent"}
    names_detailed = {0: "level", 1: "level", 2: "unsteady", 3: "level", 4: "level",
                      5: "ascent", 6: "descent", 7: "ascent", 8: "ascent", 9: "ascent",
                      10: "ascent", 11: "descent", 12: "descent", 13: "descent", 14: "descent"}  # fmt: skip
    return [
        names_detailed.get(d, "") if d == d else names.get(s, "")
        for d, s in zip(detailed.tolist(), simple.tolist(), strict=True)
    ]


MIN_QI = 60.0
"""Vectors below this quality in percent are flagged (EUMETSAT: Best practice for AMV users)."""

AMV_METHODS = {
    1: "infrared",
    2: "visible",
    3: "water-vapour-cloud",
    4: "combined",
    5: "water-vapour-clear",
    6: "ozone",
    7: "water-vapour",
}
_WITHOUT_FORECAST, _WITH_FORECAST = (5, 2), (6, 1)


def decode_amv(block: Block) -> Reports:
    """Return the wind components at the assigned pressure."""
    u, v = wind_components(block.first(11_002), block.first(11_001))
    given = np.array([block.layout.first(code) for code in (11_002, 11_001)])
    block.usage.leave(given, np.repeat(np.isnan(u)[:, None], 2, axis=1))
    at = block.layout.first(11_003), block.layout.first(11_004)
    u = np.where(np.isnan(u), block.at(at[0]), u)
    v = np.where(np.isnan(v), block.at(at[1]), v)
    pressure = block.at(block.layout.first(7_004))
    poor = quality(block) < MIN_QI
    methods = block.first(2_023)
    return Reports(
        "amv",
        satellite_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.full(len(block), np.nan),
        [
            Values("u_component_of_wind", u, "pressure", pressure, preqc=poor),
            Values("v_component_of_wind", v, "pressure", pressure, preqc=poor),
        ],
        platform=[AMV_METHODS.get(m, "") for m in methods.tolist()],
    )


def quality(block: Block) -> np.ndarray:
    """Return the quality indicator in percent, shape (N,); NaN where none is given."""
    inside = block.layout.where(33_007)
    if inside.size:
        return _by_application(block, inside)
    # Older layouts describe chosen elements after 2 22 000; direction and speed come first.
    after = np.flatnonzero(block.layout.all_codes == 33_007)
    return block.at(int(after[0])) if after.size else np.full(len(block), np.nan)


def _by_application(block: Block, positions: np.ndarray) -> np.ndarray:
    result = np.full(len(block), np.nan)
    given = [(block.effective(int(at), 1_044), block.at(int(at))) for at in positions]
    for wanted in (*_WITHOUT_FORECAST, *_WITH_FORECAST):
        for application, percent in given:
            result = np.where(np.isnan(result) & (application == wanted), percent, result)
    return np.where(np.isnan(result), given[0][1], result)
