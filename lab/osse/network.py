"""Simulate the reports of a synthetic network as an observation table.

The network has surface stations, radiosondes, aircraft, a scatterometer and one polar-orbiting
sounder. Positions, times and errors come first; values are read from the truth. Errors are
Gaussian and independent. Humidity errors are a fraction of the true value, and values that they
make negative are set to zero, as a retrieval would: at 30 % that happens to one value in 2300,
and biases it by less than 0.1 % of its error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from lab.osse.places import Places, Swath, land_stations, sea_stations, sounder_swath
from model.domain.grids import Grid, bilinear, interpolate
from model.domain.observations import OBSERVATION_SCHEMA, station_draw, validate_table
from model.domain.variables import Channel
from model.operators.base import Statics
from model.operators.observation_set import (
    ObservationSet,
    build_observation_set,
    column_codes,
    with_rejections,
)
from model.operators.upper_air import gaussian_weighting
from model.operators.weighting import PEAKS

__all__ = [
    "ERRORS",
    "Network",
    "SyntheticReports",
    "network_reports",
    "reports_table",
    "simulate_fields",
    "simulate_observations",
    "simulate_radiances",
    "withhold_stations",
]

Float = NDArray[np.float64]

BATCH = "osse"


@dataclass(frozen=True)
class SyntheticReports:
    """Values of one variable by one network; arrays with shape (n,), NaN where not applicable.

    Attributes:
        report_type, variable, vertical_kind: As in the observation table.
        vertical: Pa.
        seconds: Valid time since 1970-01-01 UTC.
        lat, lon, elevation: Degrees and m.
        station: Number of the station in its network.
        error: Observation error, the same for all.
    """

    report_type: str
    variable: str
    vertical_kind: str
    vertical: Float
    seconds: Float
    lat: Float
    lon: Float
    elevation: Float
    station: NDArray[np.int64]
    error: float


def _constant(value: str | None, count: int) -> pa.Array:
    codes = np.zeros(count, dtype=np.int32)
    mask = np.full(count, value is None)
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, mask=mask), pa.array([value or ""], pa.string())
    )


def _part(reports: SyntheticReports) -> pa.Table:
    count = len(reports.lat)
    numbers, first, station = np.unique(reports.station, return_index=True, return_inverse=True)
    names = [_name(reports, int(row), int(n)) for row, n in zip(first, numbers, strict=True)]
    time = pa.array((reports.seconds * 1e9).round().astype("datetime64[ns]"))
    columns: dict[str, pa.Array] = {
        "observation_id": pa.array(np.arange(count)),
        "batch_id": _constant(BATCH, count),
        "report_type": _constant(reports.report_type, count),
        "station_id": pa.DictionaryArray.from_arrays(
            pa.array(station.astype(np.int32)), pa.array(names, pa.string())
        ),
        "platform": _constant("simulated", count),
        "time": time,
        "received_time": time,
        "lat": pa.array(reports.lat),
        "lon": pa.array(reports.lon),
        "elevation": pa.array(reports.elevation, from_pandas=True),
        "vertical_kind": _constant(reports.vertical_kind, count),
        "vertical": pa.array(reports.vertical, from_pandas=True),
        "variable": _constant(reports.variable, count),
        "obs_value": pa.array(np.zeros(count)),
        "obs_error": pa.array(np.full(count, reports.error)),
        "rejected_by": _constant(None, count),
        "qc_flag": pa.array(np.zeros(count, dtype=np.uint8)),
    }
    arrays = [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type)
        for f in OBSERVATION_SCHEMA
    ]
    return pa.table(arrays, schema=OBSERVATION_SCHEMA)


def _name(reports: SyntheticReports, row: int, number: int) -> str:
    """Return the name of the station that reports in a row.

    Each aircraft reports once. Its name encodes the hour, so that aircraft of different hours do not
    share a name and look like one track, and has at most the characters of a tail number in BUFR.
    """
    if reports.report_type != "aircraft":
        return f"{reports.report_type}-{number:04d}"
    end = datetime.fromtimestamp(-(-reports.seconds[row] // 3600) * 3600, UTC)
    return f"{'ABCDEFGHIJKLMNOPQRSTUVWX'[end.hour]}{end.day:02d}{number:05d}"


def reports_table(parts: Sequence[SyntheticReports]) -> pa.Table:
    """Return one observation table, with values of zero, in order of time."""
    table = validate_table(pa.concat_tables([_part(p) for p in parts]).unify_dictionaries())
    order = pc.sort_indices(table, [("time", "ascending"), ("observation_id", "ascending")])
    return table.take(order)


def withhold_stations(
    table: pa.Table,
    share: float,
    seed: int,
    report_types: Sequence[str] = ("synop", "ship", "temp"),
) -> pa.Table:
    """Return the table with a share of the stations rejected by `withheld`, for verification.

    All rows of a station go together, so that nothing of it leaks into the analysis, and the same
    stations go whatever else is in the table.
    """
    codes, names = column_codes(table, "station_id")
    kinds, kind_names = column_codes(table, "report_type")
    chosen = np.array([station_draw(name, str(seed)) < share for name in names], dtype=bool)
    rows = chosen[codes] & np.isin(np.array(kind_names)[kinds], report_types)
    rows &= table["rejected_by"].is_null().to_numpy()
    return with_rejections(table, {"withheld": np.flatnonzero(rows)})


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
    """Size of the simulated observing network.

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
) -> list[SyntheticReports]:
    """Return all reports of a network for states at `times` (UTC) with `levels` (hPa, ascending)."""
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
) -> list[SyntheticReports]:
    """Return reports of every variable of a network, at all places and times, at one level."""
    count = len(places) * len(seconds)
    parts = []
    for variable, error in ERRORS[report_type].items():
        if variable == "specific_humidity" and (pressure or 0.0) < LOWEST_HUMID_PRESSURE:
            continue
        parts.append(
            SyntheticReports(
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
) -> list[SyntheticReports]:
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
) -> list[SyntheticReports]:
    places = land_stations(network.sondes, grid, statics, network.seed + 1)
    launches = _seconds([t for t in times if t.hour in (0, 12)])
    inside = [p for p in MANDATORY if levels[0] <= p <= levels[-1]]
    return [part for p in inside for part in _at("temp", places, launches, "pressure", 100.0 * p)]


def _aircraft_reports(
    network: Network, times: Sequence[datetime], levels: Sequence[int]
) -> list[SyntheticReports]:
    """Return reports scattered in place, time and level, most of them at cruising heights."""
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
        SyntheticReports(
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
) -> list[SyntheticReports]:
    if not network.scatterometer_lines:
        return []
    hours = _seconds(times)
    step = 3600.0 / network.scatterometer_lines
    first = np.ceil((hours[0] - 1800.0) / step) * step
    # Half an orbit behind the sounder.
    swath = sounder_swath(np.arange(first, hours[-1] + 1.0, step) + 3_040.0)
    keep = np.abs(swath.lat) < 65.0
    if statics.land_sea_mask is not None:
        mask = interpolate(statics.land_sea_mask, *bilinear(grid, swath.lat, swath.lon))
        keep &= mask < 1e-3
    count = int(keep.sum())
    return [
        SyntheticReports(
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


def _sounder_swath(scan_lines: int, times: Sequence[datetime]) -> Swath:
    hours = _seconds(times)
    step = 3600.0 / scan_lines
    first = np.ceil((hours[0] - 1800.0) / step) * step
    return sounder_swath(np.arange(first, hours[-1] + 1.0, step))


def _sounder_reports(
    network: Network, times: Sequence[datetime], levels: Sequence[int]
) -> list[SyntheticReports]:
    swath = _sounder_swath(network.scan_lines, times)
    parts = []
    for level in levels:
        for variable, error in ERRORS["satellite"].items():
            if variable == "specific_humidity" and 100.0 * level < LOWEST_HUMID_PRESSURE:
                continue
            parts.append(
                SyntheticReports(
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


AMSU_PEAKS = {channel: peak for channel, peak in PEAKS["amsu-a"].items() if peak > 80.0}
"""Channels of AMSU-A below the stratosphere, and the peaks of their weighting functions in hPa."""

AMSU_ERROR = 0.3


def simulate_radiances(
    truth: Tensor,
    grid: Grid,
    channels: Sequence[Channel],
    times: Sequence[datetime],
    seed: int,
    scan_lines: int,
) -> pa.Table:
    """Return brightness temperatures of a truth as AMSU-A would see them, with random errors.

    Weights are Gaussian in the logarithm of pressure and so differ from those of
    `model.operators.weighting` with the same peaks: the operator of the assimilation has errors. Scan
    lines are those of the sounder's retrievals. Arguments as in `simulate_observations`; `scan_lines`
    are lines an hour.
    """
    levels = sorted({c.level for c in channels if c.variable == "temperature" and c.level})
    swath = _sounder_swath(scan_lines, times)
    parts = [
        SyntheticReports(
            report_type="satellite",
            variable="brightness_temperature",
            vertical_kind="channel",
            vertical=np.full(len(swath.lat), float(channel)),
            seconds=swath.seconds,
            lat=swath.lat,
            lon=swath.lon,
            elevation=np.full(len(swath.lat), np.nan),
            station=np.zeros(len(swath.lat), dtype=np.int64),
            error=AMSU_ERROR,
        )
        for channel in AMSU_PEAKS
    ]
    pressures = 100.0 * np.array(levels, dtype=np.float64)
    weights: dict[int | tuple[str, int], NDArray[np.float64]] = {
        n: gaussian_weighting(pressures, 100.0 * peak) for n, peak in AMSU_PEAKS.items()
    }
    statics = Statics(weighting_functions=weights)
    seen, table = build_observation_set(reports_table(parts), grid, channels, times, statics)
    return _with_errors(table.take(pa.array(seen.rows)), seen, truth, np.random.default_rng(seed))


_FIELD_LAT, _FIELD_LON = np.arange(80.0, -81.0, -10.0), np.arange(-180.0, 180.0, 10.0)
_FIELD_LEVELS = (500, 850)
_FIELD_ERROR = 1.0
"""K."""


def simulate_fields(
    truth: Tensor, grid: Grid, channels: Sequence[Channel], times: Sequence[datetime], seed: int
) -> pa.Table:
    """Return temperatures at the last time as the analysis of another centre gives them on a grid of 10
    degrees: at 2 m, 500 hPa and 850 hPa, with random errors. Arguments as in `simulate_observations`.
    """
    lat, lon = (part.ravel() for part in np.meshgrid(_FIELD_LAT, _FIELD_LON, indexing="ij"))
    known = {c.level for c in channels if c.variable == "temperature"}
    levels = [None, *(level for level in _FIELD_LEVELS if level in known)]
    parts = [
        SyntheticReports(
            report_type="gridded",
            variable="2m_temperature" if level is None else "temperature",
            vertical_kind="surface" if level is None else "pressure",
            vertical=np.full(len(lat), np.nan if level is None else 100.0 * level),
            seconds=np.repeat(_seconds(times[-1:]), len(lat)),
            lat=lat,
            lon=lon,
            elevation=np.full(len(lat), np.nan),
            station=np.zeros(len(lat), dtype=np.int64),
            error=_FIELD_ERROR,
        )
        for level in levels
    ]
    seen, table = build_observation_set(reports_table(parts), grid, channels, times, Statics())
    return _with_errors(table.take(pa.array(seen.rows)), seen, truth, np.random.default_rng(seed))


DRIEST = 1e-5
"""Smallest humidity error, kg kg-1."""


def simulate_observations(
    truth: Tensor,
    grid: Grid,
    channels: Sequence[Channel],
    times: Sequence[datetime],
    seed: int,
    *,
    statics: Statics | None = None,
    network: Network | None = None,
) -> pa.Table:
    """Return observations of a truth with random errors.

    Surface reports are on the hour, radiosondes at 00 and 12 UTC, the sounder's lines evenly in
    time from half an hour before the first state to the last state: nothing comes from the future
    of the last state.

    Arguments:
        truth: Physical states in SI units, with shape (T, C, Y, X).
        grid: Their grid.
        channels: Their channels.
        times: Their valid times, UTC.
        seed: Of the errors.
        statics: Orography and land-sea mask.
        network: The simulated observing network.

    Returns:
        An observation table; `obs_error` holds the standard deviation that was used. Places
        outside the model's domain do not report.
    """
    statics, network = statics or Statics(), network or Network()
    levels = sorted({c.level for c in channels if c.level is not None})
    parts = network_reports(network, grid, statics, times, levels)
    # The truth is observed exactly: representativeness is no error of the simulated instruments.
    statics = replace(statics, residual=None)
    table = reports_table(parts)
    observations, table = build_observation_set(table, grid, channels, times, statics)
    table = table.take(pa.array(observations.rows))
    return _with_errors(table, observations, truth, np.random.default_rng(seed))


def _with_errors(
    table: pa.Table, observations: ObservationSet, truth: Tensor, rng: np.random.Generator
) -> pa.Table:
    exact = observations.operator(truth.double()).cpu().numpy()
    variables = np.array(table["variable"].to_pylist())
    error = np.asarray(observations.obs_errors)
    humid = variables == "specific_humidity"
    error = np.where(humid, np.maximum(error * np.abs(exact), DRIEST), error)
    value = exact + error * rng.standard_normal(len(exact))
    value = np.where(humid, np.maximum(value, 0.0), value)
    for name, numbers in (
        ("obs_value", value),
        ("obs_error", error.astype(np.float32)),
        ("observation_id", np.arange(len(value))),
    ):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(numbers))
    return table
