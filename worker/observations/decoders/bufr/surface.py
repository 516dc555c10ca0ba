"""Decode surface reports: land stations, ships, buoys, ground-based GNSS and scatterometer winds.

Land stations: SYNOP (307080 to 307096, with WIGOS prefix or national additions), older ECMWF and
METAR layouts (307001 ff.). Ships: 308009 and older layouts with a call sign (0 01 011). Moored
and drifting buoys: 315008, 315009, 308003 and sub-surface layouts with a surface value; drifting
buoys report two date groups, of the nominal time and of the last known position. GNSS receivers:
307022, 307024, integrated water vapour of the column. Scatterometers: 312061 (ASCAT), 312028 and
relatives; a cell holds several wind solutions, 0 21 102 is the number of the selected one, from
1, and the model wind 0 11 081/0 11 082 in the same report is no observation.

Pitfalls (WMO templates 307080 ff., 308009, 315008/9): 0 07 004 is the standard isobaric surface of
0 10 009, the station pressure is 0 10 004; first-order statistics (0 08 023) repeat elements as
standard deviations, so the first occurrence without it counts; sensor heights 0 07 032 hold for
the group that follows, and of several sensors (ground, screen, mast) the one nearest to the height
of the variable counts; precipitation counts only with a period of one hour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.observations.decoders.bufr.block import Block
from worker.observations.decoders.bufr.identity import observation_time, satellite_id, station_id
from worker.observations.decoders.bufr.reports import Reports, Values
from worker.observations.units import no_direction, wind_components

__all__ = [
    "ElementOccurrence",
    "bad_location",
    "choose",
    "decode_buoy",
    "decode_gnss",
    "decode_scatterometer",
    "decode_ship",
    "decode_synop",
    "merged",
    "plain",
    "surface_values",
]

_TEMPERATURE = (12_101, 12_001, 12_004)
_DEWPOINT = (12_103, 12_003, 12_006)
_HUMIDITY = (13_003, 13_009)
_SEA_TEMPERATURE = (22_049, 22_043, 22_045, 22_042)
_HEIGHTS = (7_032, 7_006)
_DEPTHS = (7_063, 7_062)
_BY_DEFINITION = {12_004: 2.0, 12_006: 2.0, 11_012: 10.0}
"""Elements whose height in m is part of their definition."""
_MAX_DEPTH = 10.0
_SCREEN, _SCREEN_HEIGHT = 2.0, (0.5, 10.0)
_MAST, _MAST_HEIGHT = 10.0, (5.0, 25.0)
_UNKNOWN, _OUTSIDE = 100.0, 1_000.0
"""Distance in m assumed for an unknown height, and penalty added for one outside the limits."""
_MAX_SENSORS = 32
_DUBIOUS = 2


@dataclass(frozen=True)
class ElementOccurrence:
    """One occurrence of an element in the reports.

    Attributes:
        at: Its position.
        chosen: Whether it is the one that counts, (N,).
        height: Height (or depth) in effect in m, NaN where not given, (N,).
    """

    at: int
    chosen: np.ndarray
    height: np.ndarray


def plain(block: Block, *codes: int) -> int:
    """Return the position of the first occurrence that is not a first-order statistic, or -1."""
    for code in codes:
        for at in block.layout.where(code)[:8]:
            if np.isnan(block.effective(int(at), 8_023)).all():
                return int(at)
    return -1


def surface_values(block: Block, at_sea: bool) -> list[Values]:
    """Return all surface quantities of a block of reports.

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


def _one(block: Block, variable: str, at: int, elevation: np.ndarray | None = None) -> list[Values]:
    """Return the element at a position as it is, with its associated flag."""
    if at < 0:
        return []
    preqc = block.suspect(np.array([at]))[:, 0]
    return [Values(variable, block.at(at), preqc=preqc, elevation=elevation)]


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


def _distance(
    nominal: float, limits: tuple[float, float]
) -> Callable[[np.ndarray], np.ndarray]:  # fmt: skip
    """Return a function that ranks sensors by height: near first, then unknown, then outside."""

    def rank(height: np.ndarray) -> np.ndarray:
        distance = np.abs(height - nominal) + _OUTSIDE * _outside(height, limits)
        return np.where(np.isnan(height), _UNKNOWN, distance)

    return rank


def _shallow(depth: np.ndarray) -> np.ndarray:
    """Return the rank of sensors in water: shallow first, none below `_MAX_DEPTH`."""
    with np.errstate(invalid="ignore"):
        return np.where(depth > _MAX_DEPTH, np.inf, np.nan_to_num(depth))


def choose(
    block: Block,
    codes: Sequence[int],
    coordinates: tuple[int, ...],
    rank: Callable[[np.ndarray], np.ndarray],
) -> list[ElementOccurrence]:
    """Return the occurrences of a quantity, and the one chosen for each report.

    The lowest finite rank is chosen, the first of equal ranks; statistics and repeated values at one
    height are ignored.

    Arguments:
        block: The reports.
        codes: Elements in order of preference.
        coordinates: Elements that give height or depth.
        rank: From heights (N,) to ranks (N,).
    """
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for code in codes:
        earlier: list[np.ndarray] = []
        for at in block.layout.where(code)[:_MAX_SENSORS].tolist():
            place = block.layout.before(at, *coordinates)
            real = np.isnan(block.effective(at, 8_023))
            if not real.any():
                continue
            height = block.at(place)
            if code in _BY_DEFINITION:
                height = np.full(len(block), _BY_DEFINITION[code])
            repeated = [np.isclose(height, known, equal_nan=True) for known in earlier]
            earlier.append(height)
            ranks = np.where(np.isnan(block.values[:, at]) | ~real, np.inf, rank(height))
            found.append((at, np.where(np.any(repeated, axis=0), np.inf, ranks), height))
    if not found:
        return []
    ranks = np.array([ranks for _, ranks, _ in found])
    best = np.where(np.isfinite(ranks.min(axis=0)), ranks.argmin(axis=0), -1)
    sensors = [ElementOccurrence(at, best == n, height) for n, (at, _, height) in enumerate(found)]
    for sensor in sensors:
        block.usage.take(sensor.at, sensor.chosen)
    return sensors


def merged(sensors: list[ElementOccurrence], columns: list[np.ndarray]) -> np.ndarray:
    """Return for each report the entry of the chosen sensor, (N,); NaN or false if there is none."""
    empty = (
        np.zeros_like(columns[0]) if columns[0].dtype == bool else np.full_like(columns[0], np.nan)
    )
    return np.select([sensor.chosen for sensor in sensors], columns, empty)


def _screen(block: Block, at_sea: bool) -> list[Values]:
    found: list[Values] = []
    for variable, codes, divisor in (
        ("2m_temperature", _TEMPERATURE, 1.0),
        ("2m_dewpoint_temperature", _DEWPOINT, 1.0),
        ("2m_relative_humidity", _HUMIDITY, 100.0),
    ):
        sensors = choose(block, codes, _HEIGHTS, _distance(_SCREEN, _SCREEN_HEIGHT))
        if not sensors:
            continue
        positions = np.array([sensor.at for sensor in sensors])
        value = merged(sensors, list(block.values[:, positions].T))
        height = merged(sensors, [sensor.height for sensor in sensors])
        found.append(
            Values(
                variable,
                value / divisor,
                preqc=merged(sensors, list(block.suspect(positions).T)),
                domain=None if at_sea else _outside(height, _SCREEN_HEIGHT),
            )
        )
    return found


def _wind(block: Block, at_sea: bool) -> list[Values]:
    sensors = choose(block, (11_002, 11_012), _HEIGHTS, _distance(_MAST, _MAST_HEIGHT))
    if not sensors:
        return []
    positions = np.array([sensor.at for sensor in sensors])
    directions = np.array([_direction_of(block, int(at)) for at in positions])
    for at, sensor in zip(directions.tolist(), sensors, strict=True):
        real = ~no_direction(block.values[:, at]) & (block.values[:, sensor.at] >= 0.0)
        block.usage.take(at, sensor.chosen & real)
    speed = merged(sensors, list(block.values[:, positions].T))
    given = [block.values[:, at] if at >= 0 else np.full(len(block), np.nan) for at in directions]
    direction = merged(sensors, given)
    # Light and variable (note 180 to table B): north is 360, 0 belongs to calm.
    direction = np.where((direction == 0.0) & (speed > 0.0), np.nan, direction)
    u, v = wind_components(speed, direction)
    flags = block.suspect(positions) | block.suspect(directions)
    suspect = merged(sensors, list(flags.T))
    domain = None
    if not at_sea:
        height = merged(sensors, [sensor.height for sensor in sensors])
        domain = _outside(height, _MAST_HEIGHT)
    return [
        Values("10m_u_component_of_wind", u, preqc=suspect, domain=domain),
        Values("10m_v_component_of_wind", v, preqc=suspect, domain=domain),
        # Direction missing or variable: the speed is still an observation.
        Values(
            "10m_wind_speed", np.where(np.isnan(u), speed, np.nan), preqc=suspect, domain=domain
        ),
    ]


def _direction_of(block: Block, speed_at: int) -> int:
    """Return the position of the wind direction that goes with a speed, or -1."""
    layout = block.layout
    code = 11_011 if layout.codes[speed_at] == 11_012 else 11_001
    speeds = layout.where(int(layout.codes[speed_at]))
    before = layout.before_each(speeds, code)
    found = before if before[0] >= 0 else layout.after_each(speeds, code)
    return int(found[np.searchsorted(speeds, speed_at)])


def _rain(block: Block) -> list[Values]:
    """Return the precipitation of the hour before the report, from kg m-2 to m; trace (-0.1) as 0."""
    amount = np.full(len(block), np.nan)
    for at in block.layout.where(13_011)[:12].tolist():
        period_at = block.layout.before(at, 4_024, 4_025)
        if period_at < 0:
            continue
        hours = 1.0 if block.layout.codes[period_at] == 4_024 else 60.0
        hourly = np.isnan(amount) & (block.at(period_at) == -hours)
        block.usage.take(at, hourly)
        amount = np.where(hourly, block.values[:, at], amount)
    past_hour = block.layout.first(13_019)
    if past_hour >= 0:
        block.usage.take(past_hour, np.isnan(amount))
        amount = np.where(np.isnan(amount), block.values[:, past_hour], amount)
    return [Values("total_precipitation", np.maximum(amount, 0.0) / 1_000.0)]


def _sea(block: Block) -> list[Values]:
    sensors = choose(block, _SEA_TEMPERATURE, _DEPTHS, _shallow)
    if not sensors:
        return []
    positions = np.array([sensor.at for sensor in sensors])
    value = merged(sensors, list(block.values[:, positions].T))
    preqc = merged(sensors, list(block.suspect(positions).T))
    return [Values("sea_surface_temperature", value, preqc=preqc)]


def bad_location(block: Block) -> np.ndarray:
    """Return whether the quality of each buoy's location (0 33 023) is dubious."""
    return np.asarray(block.first(33_023) == _DUBIOUS)


def decode_synop(block: Block) -> Reports:
    """Return surface values of fixed land stations."""
    return Reports(
        "synop",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        block.first(7_030, 7_001),
        surface_values(block, at_sea=False),
    )


def decode_ship(block: Block) -> Reports:
    """Return surface values of ships; the platform stands at sea level unless it says otherwise."""
    return Reports(
        "ship",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.nan_to_num(block.first(7_030, 7_001)),
        surface_values(block, at_sea=True),
    )


def decode_buoy(block: Block) -> Reports:
    """Return surface values of buoys; rows of a dubious location are flagged."""
    values = surface_values(block, at_sea=True)
    dubious = bad_location(block)
    for item in values:
        item.preqc = dubious if item.preqc is None else item.preqc | dubious
    drifting = block.header.descriptors[0] == 315_009 or block.layout.has(22_060, 33_022, 1_012)
    return Reports(
        "drifter" if drifting else "buoy",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.nan_to_num(block.first(7_030, 7_001)),
        values,
    )


def decode_gnss(block: Block) -> Reports:
    """Return precipitable water 0 13 016, a column value in kg m-2."""
    return Reports(
        "gnss",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        block.first(7_030, 7_001),
        [Values("total_column_water_vapour", block.first(13_016), "column")],
    )


_REJECTING_BITS = (17, 15, 14, 13)
"""Bits of 0 21 155 counted from the lowest (KNMI): quality control failed, land, ice, no
inversion."""


def decode_scatterometer(block: Block) -> Reports:
    """Return the wind at 10 m of the selected solution."""
    u, v = wind_components(selected(block, 11_012), selected(block, 11_011))
    flags = np.nan_to_num(block.first(21_155)).astype(np.int64)
    bad = (flags & sum(1 << bit for bit in _REJECTING_BITS)) != 0
    return Reports(
        "scatterometer",
        satellite_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.zeros(len(block)),
        [
            Values("10m_u_component_of_wind", u, preqc=bad),
            Values("10m_v_component_of_wind", v, preqc=bad),
        ],
    )


def selected(block: Block, code: int) -> np.ndarray:
    """Return the element of the selected solution, shape (N,); NaN where none is selected."""
    index_at = block.layout.first(21_102)
    positions = block.layout.where(code)
    positions = positions[positions > index_at]
    solutions = block.at_each(positions)
    number = np.nan_to_num(block.at(index_at)).astype(np.int64)
    valid = (number >= 1) & (number <= solutions.shape[1])
    others = np.arange(solutions.shape[1]) != np.where(valid, number - 1, -1)[:, None]
    impossible = no_direction(solutions) & (code == 11_011)
    block.usage.leave(positions, others | impossible)
    picked = (
        solutions[np.arange(len(block)), np.where(valid, number - 1, 0)]
        if len(solutions.T)
        else np.full(len(block), np.nan)
    )
    return np.where(valid, picked, np.nan)
