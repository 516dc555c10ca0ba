"""Decode upper-air reports: sondes and pilot balloons, wind profilers, aircraft, satellite winds.

Sondes: 309052, 309057, 309050 ff., 309053 and older ones. A level begins at its pressure
0 07 004; its position and time are those of the launch plus the drift (0 05 015, 0 06 015,
0 04 086), where reported. Levels without pressure (pilot balloons) keep their height.

Profilers and radar winds: 309020, 321021/321022 and older layouts by height. A level begins at
its height: 0 07 007 above mean sea level or 0 07 006 above the station.

Aircraft: AMDAR (311010, 311001, 311005), ACARS, Mode-S and MRAR. Flight level 0 07 010 and
height 0 07 002 are pressure altitudes, turned into pressure by the ICAO standard atmosphere.
Later blocks of 311010 (icing, turbulence, other positions, winds in knots 0 11 084) repeat
elements; only the main report counts, but a wind given in knots only is used.

Atmospheric motion vectors: 310077 (2018 on), 310014, 310195. Only the first pressure, wind and
position count: later ones are intermediate vectors, alternative heights and the model's first
guess. The quality indicator (QI) without forecast is preferred.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np

from model.domain.physics import (
    GRAVITY,
    KNOT,
    specific_humidity_from_dewpoint,
    specific_humidity_from_mixing_ratio,
)
from worker.observations.decoders.bufr.block import Block
from worker.observations.decoders.bufr.identity import (
    aircraft_id,
    observation_time,
    satellite_id,
    seconds_after,
    station_id,
)
from worker.observations.decoders.bufr.reports import Reports, Values
from worker.observations.units import pressure_from_flight_level, wind_components

__all__ = [
    "AMV_METHODS",
    "LOWEST_QI",
    "STANDARD_LEVELS",
    "decode_aircraft",
    "decode_amv",
    "decode_profiler",
    "decode_temp",
]

STANDARD_LEVELS = (1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100, 70, 50, 30, 20, 10)
"""Pressures in hPa at which the geopotential becomes a row: between them it follows from
temperature and humidity and would count the same information twice."""

Levels = Callable[..., np.ndarray]
"""From elements to the position of the first of them in each level, or -1, shape (K,)."""


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
    anchors = _anchors(block)
    lat, lon = block.first(5_001, 5_002), block.first(6_001, 6_002)
    time = observation_time(block)

    def levels(*codes: int) -> np.ndarray:
        return layout.after_each(anchors, *codes)

    shift = layout.before_each(anchors, 4_086, 4_016)
    drift: Drift = {
        "lat": lat[:, None] + _carried(block.at_each(levels(5_015))),
        "lon": lon[:, None] + _carried(block.at_each(levels(6_015))),
        "time": seconds_after(time[:, None], block.at_each(shift)),
    }
    pressure, height = _pressure_and_height(block, anchors)
    values = _thermal(block, levels, pressure, drift) + _sonde_wind(
        block, levels, pressure, height, drift
    )
    standard = np.isin(np.round(pressure / 100.0, 2), STANDARD_LEVELS)
    geopotential = np.where(standard, height * GRAVITY, np.nan)
    values.append(Values("geopotential", geopotential, "pressure", pressure, **drift))
    return Reports(
        _network(block),
        station_id(block),
        time,
        lat,
        lon,
        block.first(7_030, 7_001),
        values,
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


def _anchors(block: Block) -> np.ndarray:
    """Return the positions at which levels begin: pressures, or heights where no pressure is reported."""
    for code in (7_004, 7_009, 7_007, 7_002):
        found = block.layout.where(code)
        if found.size:
            return found
    return np.empty(0, dtype=np.int64)


def _pressure_and_height(block: Block, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pressure in Pa and geopotential height in m of each level, NaN where missing."""
    if not anchors.size:
        empty = np.empty((len(block), 0))
        return empty, empty
    layout = block.layout
    anchor = block.at_each(anchors)
    if layout.codes[anchors[0]] != 7_004:
        return np.full_like(anchor, np.nan), anchor
    height = block.at_each(layout.after_each(anchors, 10_009))
    geopotential = block.at_each(layout.after_each(anchors, 10_003, 10_008))
    return anchor, np.where(np.isnan(height), geopotential / GRAVITY, height)


def _thermal(block: Block, levels: Levels, pressure: np.ndarray, drift: Drift) -> list[Values]:
    at, dew_at = levels(12_101, 12_001), levels(12_103, 12_003)
    humidity = specific_humidity_from_dewpoint(block.at_each(dew_at), pressure)
    suspect, dew_suspect = block.suspect(at), block.suspect(dew_at)
    return [
        Values(
            "temperature", block.at_each(at), "pressure", pressure, preqc=suspect, **drift
        ),
        Values(
            "specific_humidity", humidity, "pressure", pressure, preqc=dew_suspect, **drift
        ),
    ]  # fmt: skip


def _sonde_wind(
    block: Block, levels: Levels, pressure: np.ndarray, height: np.ndarray, drift: Drift
) -> list[Values]:
    speed_at, direction_at = levels(11_002), levels(11_001)
    u, v = wind_components(block.at_each(speed_at), block.at_each(direction_at))
    suspect = block.suspect(speed_at) | block.suspect(direction_at)
    found = []
    for name, component in (("u_component_of_wind", u), ("v_component_of_wind", v)):
        found.append(Values(name, component, "pressure", pressure, preqc=suspect, **drift))
        by_height = np.where(np.isnan(pressure), component, np.nan)
        found.append(Values(name, by_height, "height", height, preqc=suspect, **drift))
    return found


def decode_profiler(block: Block) -> Reports:
    """Return the wind components by height in m above mean sea level."""
    elevation = block.first(7_030, 7_001)
    anchors, height = _heights(block, elevation)
    layout = block.layout
    speed_at, direction_at = (layout.after_each(anchors, c) for c in (11_002, 11_001))
    u, v = wind_components(block.at_each(speed_at), block.at_each(direction_at))
    u_at, v_at = (layout.after_each(anchors, c) for c in (11_003, 11_004))
    u = np.where(np.isnan(u), block.at_each(u_at), u)
    v = np.where(np.isnan(v), block.at_each(v_at), v)
    suspect = np.logical_or.reduce(
        [block.suspect(at) for at in (speed_at, direction_at, u_at, v_at)]
    )
    return Reports(
        "profiler",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        elevation,
        [
            Values("u_component_of_wind", u, "height", height, preqc=suspect),
            Values("v_component_of_wind", v, "height", height, preqc=suspect),
        ],
        profile=True,
    )


def _heights(block: Block, elevation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions at which levels begin and their heights above mean sea level, (K,) and (N, K)."""
    for code in (7_007, 7_006, 7_009, 10_007, 7_003):
        anchors = block.layout.where(code)
        if not anchors.size:
            continue
        height = block.at_each(anchors)
        if code == 7_006:
            height = height + elevation[:, None]
        return anchors, height / GRAVITY if code == 7_003 else height
    return np.empty(0, dtype=np.int64), np.empty((len(block), 0))


_STEEP_ROLL = 1


def decode_aircraft(block: Block) -> Reports:
    """Return temperature, wind and humidity at the aircraft's position."""
    pressure = _aircraft_pressure(block)
    return Reports(
        "aircraft",
        aircraft_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.full(len(block), np.nan),
        [
            *_aircraft_wind(block, pressure),
            *_aircraft_temperature(block, pressure),
            *_aircraft_humidity(block, pressure),
        ],
        platform=_phase(block),
    )


def _aircraft_pressure(block: Block) -> np.ndarray:
    altitude = block.first(7_010, 10_070, 7_002)
    pressure = block.first(7_004)
    return np.where(np.isnan(pressure), pressure_from_flight_level(altitude), pressure)


def _flag(block: Block, *codes: int) -> np.ndarray:
    positions = np.array([block.layout.first(code) for code in codes])
    return np.asarray(block.suspect(positions).any(axis=1))


def _aircraft_temperature(block: Block, pressure: np.ndarray) -> list[Values]:
    value = block.first(12_101, 12_001)
    preqc = _flag(block, 12_101, 12_001)
    return [Values("temperature", value, "pressure", pressure, preqc=preqc)]


def _aircraft_wind(block: Block, pressure: np.ndarray) -> list[Values]:
    speed = block.first(11_002)
    speed = np.where(np.isnan(speed), block.first(11_084) * KNOT, speed)
    u, v = wind_components(speed, block.first(11_001))
    # Roll angles of 5 degrees and more spoil the wind (code table 0 02 064).
    preqc = _flag(block, 11_001, 11_002) | (block.first(2_064) == _STEEP_ROLL)
    return [
        Values("u_component_of_wind", u, "pressure", pressure, preqc=preqc),
        Values("v_component_of_wind", v, "pressure", pressure, preqc=preqc),
    ]


def _aircraft_humidity(block: Block, pressure: np.ndarray) -> list[Values]:
    """Return specific humidity from the mixing ratio, else the dewpoint; else the relative humidity."""
    q = specific_humidity_from_mixing_ratio(block.first(13_002))
    from_dewpoint = specific_humidity_from_dewpoint(block.first(12_103, 12_003), pressure)
    q = np.where(np.isnan(q), from_dewpoint, q)
    relative = np.where(np.isnan(q), block.first(13_003) / 100.0, np.nan)
    preqc = _flag(block, 13_002, 12_103)
    return [
        Values("specific_humidity", q, "pressure", pressure, preqc=preqc),
        Values("relative_humidity", relative, "pressure", pressure, preqc=_flag(block, 13_003)),
    ]


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


LOWEST_QI = 60.0
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
    at = block.layout.first(11_003), block.layout.first(11_004)
    u = np.where(np.isnan(u), block.at(at[0]), u)
    v = np.where(np.isnan(v), block.at(at[1]), v)
    pressure = block.at(block.layout.first(7_004))
    poor = quality(block) < LOWEST_QI
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
