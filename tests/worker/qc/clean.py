"""A physically generated day: stations, ships, aircraft and balanced ascents without a fault."""

import numpy as np
import pyarrow as pa

from tests.worker.tables import make_table

RD, GRAVITY = 287.0597, 9.80665
HOURS = np.datetime64("2024-01-01T00:00", "ns") + np.arange(12) * np.timedelta64(1, "h")
LEVELS = np.array([1000, 925, 850, 700, 500, 400, 300, 250, 200, 150, 100, 70, 50], float) * 100


def stations(count: int = 6) -> pa.Table:
    """Hourly temperature and pressure with a diurnal cycle."""
    hour, station = (a.ravel() for a in np.meshgrid(np.arange(12), np.arange(count)))
    shape = {
        "station_id": [f"{i:05d}" for i in station],
        "time": HOURS[hour],
        "lat": 40.0 + station,
        "lon": 5.0 + 2.0 * station,
        "elevation": 10.0 * station,
    }
    temperature = 283.0 + 4.0 * np.sin(hour / 24 * 2 * np.pi) + station * 0.3
    pressure = 101325.0 * (1 - 2.25577e-5 * 10.0 * station) ** 5.25588 + 40.0 * hour
    t = make_table(len(hour), variable="2m_temperature", obs_value=temperature, **shape)
    p = make_table(len(hour), variable="surface_pressure", obs_value=pressure, **shape)
    return join(t, p)


def ship() -> pa.Table:
    """A ship going north at 8 m/s."""
    degrees = 8.0 * 3600 * np.arange(12) / 6_371_229.0 * 180 / np.pi
    return make_table(
        12,
        report_type="ship",
        station_id="ABCD",
        time=HOURS,
        lat=30.0 + degrees,
        lon=-40.0,
        variable="mean_sea_level_pressure",
        obs_value=101300.0 + 50.0 * np.arange(12),
    )


def aircraft() -> pa.Table:
    """An aircraft going east along 50N at 240 m/s, a report every ten minutes."""
    n = 12
    degrees = 240.0 * 600 * np.arange(n) / (6_371_229.0 * np.cos(np.pi * 50 / 180)) * 180 / np.pi
    return make_table(
        n,
        report_type="aircraft",
        station_id="EU1234",
        lat=50.0,
        lon=-20.0 + degrees,
        time=np.datetime64("2024-01-01T06:00", "ns") + np.arange(n) * np.timedelta64(10, "m"),
        vertical_kind="pressure",
        vertical=25000.0,
        variable="temperature",
        obs_value=221.0 + 0.1 * np.arange(n),
    )


def temperature_profile(pressure: np.ndarray) -> np.ndarray:
    """Linear in ln p down to the tropopause, isothermal above."""
    return np.maximum(288.0 + 48.0 * np.log(pressure / 1e5), 215.0)


def sonde(pressure: np.ndarray = LEVELS, *, profile_id: int = 1, **columns) -> pa.Table:
    """Temperature and geopotential in hydrostatic balance, integrated on a fine grid."""
    fine = np.exp(np.linspace(np.log(1e5), np.log(pressure.min()), 20001))
    t = temperature_profile(fine)
    layers = RD * (t[1:] + t[:-1]) / 2 * np.log(fine[:-1] / fine[1:])
    phi = 1000.0 + np.concatenate([[0.0], np.cumsum(layers)])
    geopotential = np.interp(-np.log(pressure), -np.log(fine), phi)
    shape = {
        "report_type": "temp",
        "station_id": f"s{profile_id}",
        "vertical_kind": "pressure",
        "vertical": pressure,
        "profile_id": profile_id,
        "lat": 45.0,
        "lon": 8.0,
        **columns,
    }
    n = len(pressure)
    parts = [
        make_table(n, variable="temperature", obs_value=temperature_profile(pressure), **shape),
        make_table(n, variable="geopotential", obs_value=geopotential, **shape),
    ]
    return join(*parts)


def join(*tables: pa.Table) -> pa.Table:
    """Tables one after another, numbered anew."""
    table = pa.concat_tables(tables).unify_dictionaries()
    ids = pa.array(np.arange(len(table)))
    return table.set_column(0, table.schema.field(0), ids)


def clean_day() -> pa.Table:
    """All of it."""
    return join(stations(), ship(), aircraft(), sonde(), sonde(profile_id=2, lat=50.0))


def change(table: pa.Table, column: str, row: int, value) -> pa.Table:
    """The table with one value replaced."""
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(column)
    return table.set_column(
        table.schema.get_field_index(column), field, pa.array(values).cast(field.type)
    )
