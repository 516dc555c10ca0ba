"""GRIB2 files read back by cfgrib and by their keys."""

import cfgrib
import eccodes
import numpy as np
import pytest

from tests.worker.outputs.products import T31, TINY, make_product
from worker.results.outputs.grib2 import write_product

LEVELS = (300, 500)


def _product(grid=T31, **options):
    return make_product(grid, levels=LEVELS, **options)


def _open(path):
    """Variables by their names, from all hypercubes of the file."""
    found = {}
    for ds in cfgrib.open_datasets(str(path), indexpath="", errors="raise"):
        for name, array in ds.data_vars.items():
            found[name] = array.load()
        ds.close()
    return found


@pytest.mark.parametrize(("grid", "times"), [(T31, 1), (TINY, 2)])
def test_cfgrib_reads_every_field_of_an_analysis(tmp_path, grid, times):
    product = _product(grid, members=2, times=times, spec={"fields": "members"})
    [(path, role)] = write_product(product, tmp_path)
    assert (path.name, role) == ("appa_an_20250320T12Z_v1.grib2", "data")
    found = _open(path)
    assert set(found) == {"t2m", "u10", "v10", "msl", "sst", "tp", "t", "u", "v", "z", "q"}
    place = {c.name: i for i, c in enumerate(product.channels)}
    t = found["t"]
    dims = ("number", "time", "isobaricInhPa", "latitude", "longitude")
    assert t.dims == (dims if times > 1 else (dims[0], *dims[2:]))
    np.testing.assert_allclose(t["latitude"], grid.latitude, atol=1e-5)
    np.testing.assert_allclose(t["longitude"], grid.longitude, atol=1e-5)
    np.testing.assert_array_equal(t["number"], [0, 1])
    wanted = product.states[:, :, place["temperature_500hPa"]]
    step = (wanted.max() - wanted.min()) / 2**16
    np.testing.assert_allclose(t.sel(isobaricInhPa=500), np.squeeze(wanted), atol=step)
    for name, channel in (("t2m", 0), ("u10", 1), ("v10", 2), ("msl", 3)):
        wanted = product.states[:, :, channel]
        np.testing.assert_allclose(found[name], np.squeeze(wanted), atol=np.ptp(wanted) / 2**15)
    assert found["t2m"].coords["heightAboveGround"] == 2.0
    assert "meanSea" in found["msl"].coords


@pytest.mark.parametrize(("mirrored", "divisor"), [(False, 3), (True, 4)])
def test_the_spread_of_four_members(tmp_path, mirrored, divisor):
    product = _product(TINY, members=4, mirrored=mirrored, spec={"fields": "mean"})
    path = next(p for p, _ in write_product(product, tmp_path) if "spread" in p.name)
    members = product.states[:, 0, 0].astype(np.float64)
    wanted = np.sqrt(((members - members.mean(0)) ** 2).sum(0) / divisor)
    np.testing.assert_allclose(_open(path)["t2m"], wanted, atol=wanted.max() / 2**15)


def test_missing_values_units_and_signs(tmp_path):
    product = _product(members=2, spec={"fields": "members"})
    found = _open(write_product(product, tmp_path)[0][0])
    np.testing.assert_array_equal(np.isnan(found["sst"]), np.isnan(product.states[:, 0, 4]))
    assert found["sst"].attrs["GRIB_units"] == "K"
    assert found["tp"].attrs["GRIB_units"] == "kg m**-2"
    assert found["tp"].min() == 0 and found["q"].min() == 0
    wanted = np.maximum(product.states[:, 0, 5], 0) * 1000.0  # a metre of water is 1000 kg m-2
    np.testing.assert_allclose(found["tp"], wanted, atol=wanted.max() / 2**15)


def test_precipitation_of_an_analysis_is_the_sum_of_the_hour_before(tmp_path):
    found = _open(write_product(_product(TINY, members=2), tmp_path)[0][0])
    assert found["tp"].attrs["GRIB_stepType"] == "accum"
    assert found["tp"]["valid_time"] == np.datetime64("2025-03-20T12:00")
    assert found["tp"]["step"] == np.timedelta64(1, "h")
    assert found["t2m"]["step"] == np.timedelta64(0, "h")
    assert found["t2m"]["valid_time"] == np.datetime64("2025-03-20T12:00")


def test_forecast_steps(tmp_path):
    product = _product(TINY, kind="forecast", times=3, members=2, spec={"fields": "members"})
    [(path, _)] = write_product(product, tmp_path)
    assert path.name == "appa_fc_20250320T12Z_v1.grib2"
    found = _open(path)
    for name in ("t", "tp"):
        assert found[name]["time"] == np.datetime64("2025-03-20T12:00")
        hours = found[name]["step"].values / np.timedelta64(1, "h")
        np.testing.assert_array_equal(hours, [1, 2, 3])
    ranges = _keys(path, "tp", "stepRange")
    assert sorted(set(ranges)) == ["0-1", "1-2", "2-3"]


def _keys(path, name, key):
    found = []
    with path.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            if eccodes.codes_get(handle, "shortName") == name:
                found.append(eccodes.codes_get(handle, key))
            eccodes.codes_release(handle)
    return found


def test_mean_and_spread_have_files_of_their_own(tmp_path):
    product = _product(TINY, members=3)
    paths = {path.name: path for path, _ in write_product(product, tmp_path)}
    assert list(paths) == [
        "appa_an_20250320T12Z_v1.grib2",
        "appa_an_20250320T12Z_v1.mean.grib2",
        "appa_an_20250320T12Z_v1.spread.grib2",
    ]
    members = product.states[:, 0, 3].astype(np.float64)
    for name, wanted, kind in (("mean", members.mean(0), 0), ("spread", members.std(0, ddof=1), 4)):
        path = paths[f"appa_an_20250320T12Z_v1.{name}.grib2"]
        found = _open(path)["msl"]
        assert "number" not in found.dims
        np.testing.assert_allclose(found, wanted, atol=np.ptp(wanted) / 2**14)
        assert set(_keys(path, "msl", "derivedForecast")) == {kind}


def test_members_are_numbered_of_how_many(tmp_path):
    path = write_product(_product(TINY, members=3), tmp_path)[0][0]
    assert _keys(path, "msl", "perturbationNumber") == [0, 1, 2]
    assert set(_keys(path, "2t", "numberOfForecastsInEnsemble")) == {3}
    assert set(_keys(path, "tp", "typeOfStatisticalProcessing")) == {1}
