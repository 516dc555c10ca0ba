"""What land stations, ships and buoys share: pressure, temperature, humidity, wind, rain, sea.

Traps (WMO templates 307080 ff., 308009, 315008/9): 0 07 004 is the standard isobaric surface of
0 10 009, the station pressure is 0 10 004; first-order statistics (0 08 023) repeat elements as
standard deviations, so the first occurrence without it counts; sensor heights 0 07 032 hold for
the group that follows; precipitation counts only with a period of one hour.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Values
from worker.decoders.units import wind_components

__all__ = ["bad_location", "plain", "surface_values"]

_TEMPERATURE = (12_101, 12_001, 12_004)
_DEWPOINT = (12_103, 12_003, 12_006)
_SEA_TEMPERATURE = (22_049, 22_043, 22_045, 22_042)
_DEEPEST = 10.0
_SCREEN_HEIGHT = (0.5, 10.0)
_MAST_HEIGHT = (5.0, 25.0)
_DUBIOUS = 2


def plain(block: Block, *codes: int) -> int:
    """Position of the first occurrence that is no first-order statistic, or -1."""
    for code in codes:
        for at in block.layout.where(code)[:8]:
            if np.isnan(block.effective(int(at), 8_023)).all():
                return int(at)
    return -1


def surface_values(block: Block, at_sea: bool) -> list[Values]:
    """All surface quantities of a block of reports.

    Arguments:
        block: The reports.
        at_sea: Ships and buoys: sensor heights are not those of a land station and are accepted.
    """
    return [
        *_pressure(block),
        *_screen(block, at_sea),
        *_wind(block, at_sea),
        *_rain(block),
        *_sea(block),
    ]


def _one(block: Block, variable: str, at: int, **more: np.ndarray | None) -> list[Values]:
    """The element at a position as it is, with its associated flag."""
    if at < 0:
        return []
    preqc = block.suspect(np.array([at]))[:, 0]
    return [Values(variable, block.at(at), preqc=preqc, **more)]


def _pressure(block: Block) -> list[Values]:
    station = plain(block, 10_004)
    ground, barometer = block.first(7_030, 7_001), block.first(7_031)
    height = np.where(np.isnan(barometer), ground, barometer)
    above = block.effective(station, 7_006)
    if station >= 0 and np.isfinite(above).any():
        # METAR (307011): pressure at a height above the station, 0 for the station itself.
        height = np.where(np.isfinite(above), ground + above, height)
    return [
        *_one(block, "surface_pressure", station, elevation=height),
        *_one(block, "mean_sea_level_pressure", plain(block, 10_051)),
    ]


def _outside(height: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (height < limits[0]) | (height > limits[1])


def _screen(block: Block, at_sea: bool) -> list[Values]:
    found: list[Values] = []
    for variable, codes in (
        ("2m_temperature", _TEMPERATURE),
        ("2m_dewpoint_temperature", _DEWPOINT),
        ("2m_relative_humidity", (13_003,)),
    ):
        at = plain(block, *codes)
        for values in _one(block, variable, at):
            if variable == "2m_relative_humidity":
                values.value = values.value / 100.0
            if not at_sea:
                values.domain = _outside(block.effective(at, 7_032, 7_006), _SCREEN_HEIGHT)
            found.append(values)
    return found


def _wind(block: Block, at_sea: bool) -> list[Values]:
    speed_at = plain(block, 11_002, 11_012)
    direction_at = plain(block, 11_001, 11_011)
    if speed_at < 0:
        return []
    speed, direction = block.at(speed_at), block.at(direction_at)
    u, v = wind_components(speed, direction)
    suspect = block.suspect(np.array([speed_at, direction_at])).any(axis=1)
    domain = None
    if not at_sea and block.layout.codes[speed_at] == 11_002:
        domain = _outside(block.effective(speed_at, 7_032, 7_006), _MAST_HEIGHT)
    return [
        Values("10m_u_component_of_wind", u, preqc=suspect, domain=domain),
        Values("10m_v_component_of_wind", v, preqc=suspect, domain=domain),
        # Direction missing or variable: the speed is still an observation.
        Values("10m_wind_speed", np.where(np.isnan(u), speed, np.nan), preqc=suspect),
    ]


def _rain(block: Block) -> list[Values]:
    """Precipitation of the hour before the report, from kg m-2 to m; trace (-0.1) as 0."""
    amount = np.full(len(block), np.nan)
    for at in block.layout.where(13_011)[:12]:
        period_at = block.layout.before(int(at), 4_024, 4_025)
        if period_at < 0:
            continue
        hours = 1.0 if block.layout.codes[period_at] == 4_024 else 60.0
        hourly = block.at(period_at) == -hours
        amount = np.where(np.isnan(amount) & hourly, block.at(int(at)), amount)
    past_hour = block.layout.first(13_019)
    amount = np.where(np.isnan(amount), block.at(past_hour), amount)
    return [Values("total_precipitation", np.maximum(amount, 0.0) / 1_000.0)]


def _sea(block: Block) -> list[Values]:
    for code in _SEA_TEMPERATURE:
        at = plain(block, code)
        if at < 0:
            continue
        depth = block.effective(at, 7_063, 7_062)
        with np.errstate(invalid="ignore"):
            value = np.where(depth > _DEEPEST, np.nan, block.at(at))
        if np.isfinite(value).any():
            preqc = block.suspect(np.array([at]))[:, 0]
            return [Values("sea_surface_temperature", value, preqc=preqc)]
    return []


def bad_location(block: Block) -> np.ndarray:
    """Where the quality of a buoy's location (0 33 023) is dubious."""
    return block.first(33_023) == _DUBIOUS
