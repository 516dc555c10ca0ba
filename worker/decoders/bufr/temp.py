"""Radiosondes, pilot balloons and dropsondes: 309052, 309057, 309050 ff., 309053 and older ones.

A level begins at its pressure 0 07 004. Position and time of a level are those of the launch plus
the drift (0 05 015, 0 06 015, 0 04 086), where reported. Levels without pressure (pilot balloons)
keep their height.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Reports, Values
from worker.decoders.bufr.stations import station_id
from worker.decoders.bufr.times import observation_time, seconds_after
from worker.decoders.units import GRAVITY, specific_humidity_from_dewpoint, wind_components

__all__ = ["decode_temp"]

STANDARD_LEVELS = (1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100, 70, 50, 30, 20, 10)
"""Pressures in hPa at which the geopotential becomes a row: between them it follows from
temperature and humidity and would count the same information twice."""

_DROP_TEMPLATES = {309_053}
_DROP_SUBCATEGORY = 7


def decode_temp(block: Block) -> Reports:
    """Temperature, humidity, wind and geopotential of all levels."""
    layout = block.layout
    anchors = _anchors(block)
    lat, lon = block.first(5_001, 5_002), block.first(6_001, 6_002)
    time = observation_time(block)

    def levels(*codes: int) -> np.ndarray:
        return layout.after_each(anchors, *codes)

    shift = layout.before_each(anchors, 4_086, 4_016)
    drift = {
        "lat": lat[:, None] + _carried(block.at_each(levels(5_015))),
        "lon": lon[:, None] + _carried(block.at_each(levels(6_015))),
        "time": seconds_after(time[:, None], block.at_each(shift)),
    }
    pressure, height = _pressure_and_height(block, anchors)
    values = _thermal(block, levels, pressure, drift) + _wind(
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
    """Displacements (N, K) with gaps filled by the level before; 0 before the first."""
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
    """Positions at which levels begin: pressures, or heights where no pressure is reported."""
    for code in (7_004, 7_009, 7_007, 7_002):
        found = block.layout.where(code)
        if found.size:
            return found
    return np.empty(0, dtype=np.int64)


def _pressure_and_height(block: Block, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pressure in Pa and geopotential height in m of each level, NaN where missing."""
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


def _thermal(block: Block, levels: object, pressure: np.ndarray, drift: dict) -> list[Values]:
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


def _wind(
    block: Block, levels: object, pressure: np.ndarray, height: np.ndarray, drift: dict
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
