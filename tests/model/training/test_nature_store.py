"""The store of a nature run, read back with xarray as any user would."""

from datetime import datetime

import numpy as np
import pytest
import xarray as xr

from lab.training.nature_store import LEVELS, STATIC, VARIABLES, NatureStore

LATITUDE = np.array([60.0, 0.0, -60.0])
LONGITUDE = np.array([0.0, 90.0, 180.0, 270.0])


def block(days, value):
    """Constant fields of ``days`` days; the first hour differs by one."""
    out = {}
    for name, spec in VARIABLES.items():
        levels = (len(LEVELS),) if spec.levels else ()
        out[name] = np.full((24 * days, *levels, 3, 4), value, np.float32)
        out[name][0] += 1
    return out


@pytest.fixture
def store(tmp_path):
    made = NatureStore(tmp_path / "n.zarr", datetime(2000, 2, 28))
    static = {name: np.full((3, 4), 7.0) for name in STATIC}
    made.create(LATITUDE, LONGITUDE, static, {"seed": 3})
    return made


def read(store):
    return xr.open_zarr(store.path, consolidated=True, chunks=None)


def test_a_new_store_is_empty_and_says_that_it_is_simulated(store):
    found = read(store)
    assert found.sizes == {"time": 0, "level": 8, "latitude": 3, "longitude": 4}
    assert "SIMULATED" in found.attrs["title"]
    assert "simulated" in found.attrs["source"]
    assert found.attrs["seed"] == 3
    np.testing.assert_array_equal(found.longitude, LONGITUDE)
    np.testing.assert_array_equal(found.level, LEVELS)
    assert (found.land_sea_mask == 7).all()


def test_blocks_follow_one_another_over_a_leap_day(store):
    store.write(0, block(1, 10.0))
    store.write(1, block(2, 20.0))
    found = read(store)
    expected = np.datetime64("2000-02-28T00") + np.arange(72) * np.timedelta64(1, "h")
    np.testing.assert_array_equal(found.time, expected)
    assert found.temperature.dims == ("time", "level", "latitude", "longitude")
    assert found["2m_temperature"].dims == ("time", "latitude", "longitude")
    day = found.geopotential.isel(level=0, latitude=0, longitude=0)
    np.testing.assert_array_equal(day.sel(time="2000-02-29T00"), 21.0)
    np.testing.assert_array_equal(day.sel(time="2000-02-29T01"), 20.0)
    assert found.specific_humidity.attrs["units"] == "kg kg**-1"


def test_what_a_killed_write_left_is_not_seen_and_is_overwritten(store):
    store.write(0, block(1, 10.0))
    # Killed after one variable of the next day, before the time axis and the metadata.
    array = store.group["geopotential"]
    array.resize((48, *array.shape[1:]))
    array[24:] = 99.0
    assert read(store).sizes["time"] == 24
    again = NatureStore(store.path, datetime(2000, 2, 28))
    again.write(1, block(1, 20.0))
    found = read(again)
    assert found.sizes["time"] == 48
    assert float(found.geopotential[25].max()) == 20.0


def test_not_a_number_stays_so(store):
    values = block(1, 280.0)
    values["sea_surface_temperature"][:, 0] = np.nan
    store.write(0, values)
    sea = read(store).sea_surface_temperature
    assert np.isnan(sea[:, 0]).all()
    assert np.isfinite(sea[:, 1:]).all()
