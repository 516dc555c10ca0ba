"""The synthetic network: how much it observes, where, and with what errors."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from lab.osse.network import simulate_observations, withhold_stations
from lab.osse.places import land_stations, sea_stations, sounder_swath
from model.domain.grids import Grid
from model.domain.observations import validate_table
from model.domain.variables import LEVELS_T31, channels
from model.operators.base import Statics
from model.operators.observation_set import build_observation_set

GRID = Grid("t31", "gaussian", 48, 96)
CHANNELS = channels(LEVELS_T31)
TIMES = tuple(datetime(2006, 1, 1, 22, tzinfo=UTC) + timedelta(hours=i) for i in range(4))


def statics():
    """One continent, 100 degrees wide, 500 m high."""
    land = (GRID.longitude < 100.0) & np.ones(GRID.shape, dtype=bool)
    return Statics(orography=500.0 * land, land_sea_mask=land.astype(float))


@pytest.fixture(scope="module")
def world():
    names = [c.name for c in CHANNELS]
    truth = torch.zeros(len(TIMES), len(CHANNELS), *GRID.shape)
    truth[:, [i for i, n in enumerate(names) if "temperature" in n]] = 280.0
    truth[:, [i for i, n in enumerate(names) if "humidity" in n]] = 0.004
    truth[:, names.index("mean_sea_level_pressure")] = 101_325.0
    table = simulate_observations(truth, GRID, CHANNELS, TIMES, seed=1, statics=statics())
    return truth, table


def rows(table, report_type, variable):
    return table.filter(
        pc.and_(
            pc.equal(table["report_type"].cast("string"), report_type),
            pc.equal(table["variable"].cast("string"), variable),
        )
    )


def test_counts(world):
    _, table = world
    validate_table(table)
    assert len(rows(table, "synop", "2m_temperature")) == 640 * 4
    assert len(rows(table, "ship", "mean_sea_level_pressure")) == 60 * 4
    # One launch time (00 UTC), mandatory levels from 925 to 50 hPa; humidity up to 300 hPa.
    assert len(rows(table, "temp", "u_component_of_wind")) == 80 * 11
    assert len(rows(table, "temp", "specific_humidity")) == 80 * 6
    # Three hours and a half of a line a minute, 8 footprints, 8 levels.
    assert len(rows(table, "satellite", "temperature")) == 211 * 8 * 8


def test_errors_are_those_promised(world):
    _, table = world
    for report_type, variable, exact, error in (
        ("synop", "2m_temperature", 280.0, 1.5),
        ("synop", "mean_sea_level_pressure", 101_325.0, 120.0),
        ("satellite", "temperature", 280.0, 1.5),
        ("satellite", "specific_humidity", 0.004, 0.0012),
    ):
        part = rows(table, report_type, variable)
        departure = part["obs_value"].to_numpy() - exact
        # The standard error of a standard deviation from n draws is 1 / sqrt(2 n).
        assert departure.std() == pytest.approx(error, rel=4 / np.sqrt(2 * len(part)))
        assert abs(departure.mean()) < 4 * error / np.sqrt(len(part))
        np.testing.assert_allclose(part["obs_error"].to_numpy(), error, rtol=1e-4)
    assert pc.min(rows(table, "satellite", "specific_humidity")["obs_value"]).as_py() >= 0


def test_the_same_seed_gives_the_same_observations(world):
    truth, table = world
    again = simulate_observations(truth, GRID, CHANNELS, TIMES, seed=1, statics=statics())
    other = simulate_observations(truth, GRID, CHANNELS, TIMES, seed=2, statics=statics())
    assert again.equals(table)
    assert other.drop_columns(["obs_value"]).equals(table.drop_columns(["obs_value"]))
    assert not other["obs_value"].equals(table["obs_value"])


def test_nothing_is_from_the_future_and_all_is_used(world):
    _, table = world
    stamps = table["time"].to_numpy()
    assert stamps.max() == np.datetime64(TIMES[-1].replace(tzinfo=None))
    chosen, after = build_observation_set(table, GRID, CHANNELS, TIMES, statics())
    assert len(chosen) == table.num_rows
    assert after["rejected_by"].null_count == table.num_rows


def test_stations_stand_on_land_and_ships_at_sea():
    land = land_stations(300, GRID, statics())
    assert ((land.lon > -4) & (land.lon < 104)).all()
    assert land.elevation.mean() == pytest.approx(500.0, abs=20)
    north = ((land.lat > 30) & (land.lat < 60)).sum()
    assert north > 2 * ((land.lat < -30) & (land.lat > -60)).sum()
    sea = sea_stations(50, GRID, statics())
    assert ((sea.lon > 95) | (sea.lon < 0)).all()


def test_a_polar_orbit():
    # The track reaches 180 - 98.7 degrees; the Earth turns by 25 degrees per orbit.
    period = 6_080.0
    track = sounder_swath(np.linspace(0, period, 721), period=period, reach=0.0, spots=1)
    assert track.lat.max() == pytest.approx(81.3, abs=0.01)
    assert track.lat[0] == pytest.approx(0.0, abs=1e-9)
    assert track.lat[1] > 0
    assert track.lon[-1] == pytest.approx(-360 * period / 86_164.1, abs=1e-6)
    wide = sounder_swath(np.zeros(1), reach=9.0, spots=3)
    cosine = np.cos(np.deg2rad(wide.lat)) * np.cos(np.deg2rad(wide.lon))
    np.testing.assert_allclose(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))), [9, 0, 9], atol=1e-6)


def test_withheld_stations_go_as_a_whole(world):
    _, table = world
    after = withhold_stations(table, 0.2, seed=3)
    frame = after.select(["report_type", "station_id", "rejected_by"]).to_pandas()
    assert frame[frame["report_type"] == "satellite"]["rejected_by"].isna().all()
    frame = frame[frame["report_type"].isin(["synop", "temp"])]
    frame["out"] = frame["rejected_by"].notna()
    by_station = frame.groupby("station_id", observed=True)["out"].agg(["min", "max"])
    assert (by_station["min"] == by_station["max"]).all()
    assert by_station["max"].mean() == pytest.approx(0.2, abs=0.05)
    assert set(frame["rejected_by"].dropna()) == {"withheld"}
