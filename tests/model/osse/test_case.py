"""The truth that ships: what is read back is what was written, within the stated rounding."""

import numpy as np
import xarray as xr

from lab.osse.cases import MANTISSA_BITS, STEPS_PER_STD, write_case
from lab.training.datasets import StateStore
from model.domain.grids import Grid
from model.domain.variables import ATMOSPHERIC, SURFACE, channels

LEVELS = (500, 850)
GRID = Grid("tiny", "gaussian", 8, 16)


def truth(hours: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(hours, 2, 8, 16)).cumsum(0)
    surface, upper = ("time", "latitude", "longitude"), ("time", "level", "latitude", "longitude")
    data = {name: (surface, (280 + walk[:, 0]).astype(np.float32)) for name in SURFACE}
    data |= {name: (upper, (280 + walk).astype(np.float32)) for name in ATMOSPHERIC}
    data["total_precipitation"] = (surface, np.abs(walk[:, 0] * 1e-4).astype(np.float32))
    data["specific_humidity"] = (upper, np.abs(walk * 1e-5).astype(np.float32))
    data["sea_surface_temperature"][1][:, :, :4] = np.nan
    data["geopotential_at_surface"] = (surface[1:], walk[0, 0].astype(np.float32))
    times = np.datetime64("2006-01-01", "ns") + np.arange(hours).astype("timedelta64[h]")
    coords = {"time": times, "level": list(LEVELS)}
    coords |= {"latitude": GRID.latitude, "longitude": GRID.longitude}
    return xr.Dataset(data, coords, {"title": "SIMULATED"})


def test_a_case_is_read_back_within_its_rounding(tmp_path):
    source = truth(30)
    path = tmp_path / "case.zarr.zip"
    write_case(source, SURFACE + ATMOSPHERIC, LEVELS, path)
    reader = StateStore(str(path), channels(LEVELS))
    reader.check_grid(GRID)
    assert reader.dataset.attrs["title"] == "SIMULATED"
    np.testing.assert_array_equal(reader.times, source.time.values)
    states = reader.read(slice(0, 30))
    for c, channel in enumerate(reader.channels):
        expected = source[channel.variable]
        if channel.level is not None:
            expected = expected.sel(level=channel.level)
        expected = expected.values
        if channel.variable in ("specific_humidity", "total_precipitation"):
            np.testing.assert_allclose(states[:, c], expected, rtol=2.0 ** -(MANTISSA_BITS + 1))
        elif channel.variable == "sea_surface_temperature":
            np.testing.assert_array_equal(states[:, c], expected)
        else:
            step = source[channel.variable].values.std() / STEPS_PER_STD
            assert np.abs(states[:, c] - expected).max() < step
    assert set(reader.static()) == {"orography"}
