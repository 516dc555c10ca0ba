"""Aircraft: AMDAR (311010, 311001, 311005), ACARS, Mode-S and MRAR.

The vertical coordinate is pressure. Flight level 0 07 010 and height 0 07 002 are pressure
altitudes, turned into pressure by the ICAO standard atmosphere. Later blocks of 311010 (icing,
turbulence, other positions, winds in knots 0 11 084) repeat elements; only the main report counts,
but a wind given in knots only is used.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Reports, Values
from worker.decoders.bufr.stations import aircraft_id
from worker.decoders.bufr.times import observation_time
from worker.decoders.units import (
    KNOT,
    pressure_from_flight_level,
    specific_humidity_from_dewpoint,
    specific_humidity_from_mixing_ratio,
    wind_components,
)

__all__ = ["decode_aircraft"]

_STEEP_ROLL = 1


def decode_aircraft(block: Block) -> Reports:
    """Temperature, wind and humidity at the aircraft's position."""
    pressure = _pressure(block)
    return Reports(
        "aircraft",
        aircraft_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.full(len(block), np.nan),
        [*_wind(block, pressure), *_temperature(block, pressure), *_humidity(block, pressure)],
        platform=_phase(block),
    )


def _pressure(block: Block) -> np.ndarray:
    altitude = block.first(7_010, 10_070, 7_002)
    pressure = block.first(7_004)
    return np.where(np.isnan(pressure), pressure_from_flight_level(altitude), pressure)


def _flag(block: Block, *codes: int) -> np.ndarray:
    positions = np.array([block.layout.first(code) for code in codes])
    return block.suspect(positions).any(axis=1)


def _temperature(block: Block, pressure: np.ndarray) -> list[Values]:
    value = block.first(12_101, 12_001)
    preqc = _flag(block, 12_101, 12_001)
    return [Values("temperature", value, "pressure", pressure, preqc=preqc)]


def _wind(block: Block, pressure: np.ndarray) -> list[Values]:
    speed = block.first(11_002)
    speed = np.where(np.isnan(speed), block.first(11_084) * KNOT, speed)
    u, v = wind_components(speed, block.first(11_001))
    # Roll angles of 5 degrees and more spoil the wind (code table 0 02 064).
    preqc = _flag(block, 11_001, 11_002) | (block.first(2_064) == _STEEP_ROLL)
    return [
        Values("u_component_of_wind", u, "pressure", pressure, preqc=preqc),
        Values("v_component_of_wind", v, "pressure", pressure, preqc=preqc),
    ]


def _humidity(block: Block, pressure: np.ndarray) -> list[Values]:
    """Specific humidity from the mixing ratio, else the dewpoint; else the relative humidity."""
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
    """Ascending, descending or level flight (code tables 0 08 009 and 0 08 004)."""
    detailed, simple = block.first(8_009), block.first(8_004)
    names = {3: "level", 4: "level", 5: "ascent", 6: "descent"}
    names_detailed = {0: "level", 1: "level", 2: "unsteady", 3: "level", 4: "level",
                      5: "ascent", 6: "descent", 7: "ascent", 8: "ascent", 9: "ascent",
                      10: "ascent", 11: "descent", 12: "descent", 13: "descent", 14: "descent"}  # fmt: skip
    return [
        names_detailed.get(d, "") if d == d else names.get(s, "")
        for d, s in zip(detailed.tolist(), simple.tolist(), strict=True)
    ]
