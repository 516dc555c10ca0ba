"""What the synthetic network reports, and when: positions, times and errors, not yet values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from model.domain.grids import Grid
from model.operators.domain import Statics
from model.operators.horizontal import bilinear, sample
from model.osse.places import Places, land_stations, sea_stations, sounder_swath
from model.osse.table import Reports

__all__ = ["ERRORS", "Network", "network_reports"]

Float = NDArray[np.float64]

ERRORS: dict[str, dict[str, float]] = {
    "synop": {
        "2m_temperature": 1.5,
        "10m_u_component_of_wind": 2.0,
        "10m_v_component_of_wind": 2.0,
        "mean_sea_level_pressure": 120.0,
    },
    "temp": {
        "temperature": 1.0,
        "u_component_of_wind": 2.2,
        "v_component_of_wind": 2.2,
        "specific_humidity": 0.20,
    },
    "satellite": {"temperature": 1.5, "specific_humidity": 0.30},
    "aircraft": {
        "temperature": 1.0,
        "u_component_of_wind": 2.5,
        "v_component_of_wind": 2.5,
    },
    "scatterometer": {"10m_u_component_of_wind": 2.0, "10m_v_component_of_wind": 2.0},
}
"""One standard deviation in SI units; for specific humidity a fraction of the true value."""

ERRORS["ship"] = ERRORS["synop"]

LOWEST_HUMID_PRESSURE = 30_000.0
"""Pa; humidity is not observed above."""

MANDATORY = (1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100, 50)
"""Levels that a radiosonde reports, hPa."""


@dataclass(frozen=True)
class Network:
    """How much of what observes.

    Attributes:
        stations: Surface stations on land, hourly.
        ships: Ships and buoys, hourly.
        sondes: Radiosonde stations, at 00 and 12 UTC.
        scan_lines: Lines per hour of the sounder, each of 8 footprints.
        aircraft: Aircraft reports per hour, each at a place and level of its own.
        scatterometer_lines: Lines per hour of a scatterometer, used over the sea.
        seed: Of the places (the draw of the errors has its own).
    """

    stations: int = 640
    ships: int = 60
    sondes: int = 80
    scan_lines: int = 60
    aircraft: int = 0
    scatterometer_lines: int = 0
    seed: int = 0


def network_reports(
    network: Network,
    grid: Grid,
    statics: Statics,
    times: Sequence[datetime],
    levels: Sequence[int],
) -> list[Reports]:
    """All reports of a network for states at `times` (UTC) with `levels` (hPa, ascending)."""
    return [
        *_surface_reports(network, grid, statics, times),
        *_sonde_reports(network, grid, statics, times, levels),
        *_sounder_reports(network, times, levels),
        *_aircraft_reports(network, times, levels),
        *_scatterometer_reports(network, grid, statics, times),
    ]


def _seconds(times: Sequence[datetime]) -> Float:
    return np.array([t.astimezone(UTC).timestamp() for t in times])


def _at(
    report_type: str, places: Places, seconds: Float, kind: str, pressure: float | None
) -> list[Reports]:
    """Reports of every variable of a network, at all places and times, at one level."""
    count = len(places) * len(seconds)
    parts = []
    for variable, error in ERRORS[report_type].items():
        if variable == "specific_humidity" and (pressure or 0.0) < LOWEST_HUMID_PRESSURE:
            continue
        parts.append(
            Reports(
                report_type=report_type,
                variable=variable,
                vertical_kind=kind,
                vertical=np.full(count, np.nan if pressure is None else pressure),
                seconds=np.repeat(seconds, len(places)),
                lat=np.tile(places.lat, len(seconds)),
                lon=np.tile(places.lon, len(seconds)),
                elevation=np.tile(places.elevation, len(seconds)),
                station=np.tile(np.arange(len(places)), len(seconds)),
                error=error,
            )
        )
    return parts


def _surface_reports(
    network: Network, grid: Grid, statics: Statics, times: Sequence[datetime]
) -> list[Reports]:
    land = land_stations(network.stations, grid, statics, network.seed)
    sea = sea_stations(network.ships, grid, statics, network.seed)
    hours = _seconds(times)
    return _at("synop", land, hours, "surface", None) + _at("ship", sea, hours, "surface", None)


def _sonde_reports(
    network: Network,
    grid: Grid,
    statics: Statics,
    times: Sequence[datetime],
    levels: Sequence[int],
) -> list[Reports]:
    places = land_stations(network.sondes, grid, statics, network.seed + 1)
    launches = _seconds([t for t in times if t.hour in (0, 12)])
    inside = [p for p in MANDATORY if levels[0] <= p <= levels[-1]]
    return [part for p in inside for part in _at("temp", places, launches, "pressure", 100.0 * p)]


def _aircraft_reports(
    network: Network, times: Sequence[datetime], levels: Sequence[int]
) -> list[Reports]:
    """Reports scattered in place, time and level, most of them at cruising heights."""
    count = network.aircraft * len(times)
    if not count:
        return []
    rng = np.random.default_rng(network.seed + 2)
    lat = np.clip(rng.normal(40.0, 20.0, count), -60.0, 75.0)
    lon = rng.uniform(-180.0, 180.0, count)
    seconds = np.repeat(_seconds(times), network.aircraft) - rng.uniform(0.0, 1800.0, count)
    share = np.array([3.0 if 200 <= level <= 300 else 1.0 for level in levels])
    share[np.array(levels) < 200] = 0.0
    level = rng.choice(np.array(levels), count, p=share / share.sum())
    return [
        Reports(
            report_type="aircraft",
            variable=variable,
            vertical_kind="pressure",
            vertical=100.0 * level,
            seconds=seconds,
            lat=lat,
            lon=lon,
            elevation=np.full(count, np.nan),
            station=np.arange(count),
            error=error,
        )
        for variable, error in ERRORS["aircraft"].items()
    ]


def _scatterometer_reports(
    network: Network, grid: Grid, statics: Statics, times: Sequence[datetime]
) -> list[Reports]:
    if not network.scatterometer_lines:
        return []
    hours = _seconds(times)
    step = 3600.0 / network.scatterometer_lines
    first = np.ceil((hours[0] - 1800.0) / step) * step
    # Half an orbit behind the sounder.
    swath = sounder_swath(np.arange(first, hours[-1] + 1.0, step) + 3_040.0)
    keep = np.abs(swath.lat) < 65.0
    if statics.land_sea_mask is not None:
        mask = sample(statics.land_sea_mask, *bilinear(grid, swath.lat, swath.lon))
        keep &= mask < 1e-3
    count = int(keep.sum())
    return [
        Reports(
            report_type="scatterometer",
            variable=variable,
            vertical_kind="surface",
            vertical=np.full(count, np.nan),
            seconds=swath.seconds[keep] - 3_040.0,
            lat=swath.lat[keep],
            lon=swath.lon[keep],
            elevation=np.full(count, np.nan),
            station=np.zeros(count, dtype=np.int64),
            error=error,
        )
        for variable, error in ERRORS["scatterometer"].items()
    ]


def _sounder_reports(
    network: Network, times: Sequence[datetime], levels: Sequence[int]
) -> list[Reports]:
    hours = _seconds(times)
    step = 3600.0 / network.scan_lines
    first = np.ceil((hours[0] - 1800.0) / step) * step
    swath = sounder_swath(np.arange(first, hours[-1] + 1.0, step))
    parts = []
    for level in levels:
        for variable, error in ERRORS["satellite"].items():
            if variable == "specific_humidity" and 100.0 * level < LOWEST_HUMID_PRESSURE:
                continue
            parts.append(
                Reports(
                    report_type="satellite",
                    variable=variable,
                    vertical_kind="pressure",
                    vertical=np.full(len(swath.lat), 100.0 * level),
                    seconds=swath.seconds,
                    lat=swath.lat,
                    lon=swath.lon,
                    elevation=np.full(len(swath.lat), np.nan),
                    station=np.zeros(len(swath.lat), dtype=np.int64),
                    error=error,
                )
            )
    return parts
