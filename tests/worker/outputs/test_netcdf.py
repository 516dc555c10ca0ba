"""NetCDF files: read back by xarray, judged by the compliance checker, whole or absent."""

import errno
import warnings

import netCDF4
import numpy as np
import pytest
import xarray as xr

from model.domain.errors import StorageError
from tests.worker.outputs.products import TINY, make_product
from worker.results.outputs.cf import write_netcdf, write_netcdf_product
from worker.results.outputs.dataset import round_dataset, to_dataset
from worker.results.outputs.formats import put_file
from worker.results.outputs.hours import same_dataset


@pytest.mark.parametrize("kind", ["filtering", "forecast"])
def test_values_are_those_of_the_model_within_the_recorded_rounding(tmp_path, kind):
    product = make_product(kind=kind, times=2)
    [(path, role)] = write_netcdf_product(product, tmp_path)
    assert role == "data"
    assert (
        path.name == {"filtering": "appa_an", "forecast": "appa_fc"}[kind] + "_20250320T12Z_v1.nc"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_dataset(path, engine="netcdf4", decode_cf=True)
    place = {c.name: i for i, c in enumerate(product.channels)}
    with ds:
        states = product.states[:, :, place["temperature_500hPa"]]
        found = ds["t"].sel(air_pressure=50000.0).transpose("realization", ...)
        assert found.dtype == np.float32
        level = list(ds["air_pressure"].values).index(50000.0)
        error = np.abs(found.values.astype(np.float64) - states).max()
        assert 0 < error <= ds["t"].attrs["bit_rounding_max_error"][level] < 0.05
        sst = product.states[:, :, place["sea_surface_temperature"]]
        np.testing.assert_array_equal(
            np.isnan(ds["sst"].transpose("realization", ...)), np.isnan(sst)
        )
        assert ds["q"].min() >= 0 and ds["tp"].min() >= 0


def test_fields_are_chunked_and_smaller_than_raw(tmp_path):
    product = make_product(spec={"fields": "members"})
    [(path, _)] = write_netcdf_product(product, tmp_path)
    assert path.stat().st_size < 0.6 * product.states.nbytes
    with netCDF4.Dataset(path) as file:
        assert file["t"].chunking() == [1, 1, 1, 48, 96]
        assert file["t"].filters()["zlib"]
        assert file["t2m"].coordinates == "height_2m"
        assert file["t"]._FillValue == netCDF4.default_fillvals["f4"]
        assert "coordinates" not in file["t"].ncattrs() and "coordinates" not in file.ncattrs()


def _problems(path, names):
    from compliance_checker.base import BaseCheck
    from compliance_checker.runner import CheckSuite

    CheckSuite.load_all_available_checkers()
    suite = CheckSuite()
    with suite.load_dataset(str(path)) as file:
        results, errors = suite.run_all(file, names)[names[0]]
    assert not errors
    failed = [
        r
        for r in results
        if r.value is False or (isinstance(r.value, tuple) and r.value[0] < r.value[1])
    ]
    return [(r.name, r.msgs) for r in failed if r.weight >= BaseCheck.HIGH]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["filtering", "forecast"])
@pytest.mark.parametrize("version", ["cf:1.11"])
def test_the_compliance_checker_finds_no_error(tmp_path, kind, version):
    [(path, _)] = write_netcdf_product(make_product(TINY, kind=kind, times=2, members=2), tmp_path)
    assert _problems(path, [version]) == []


def test_what_differs_from_what_was_to_be_written_is_noticed(tmp_path):
    product = make_product(TINY, members=2)
    dataset = to_dataset(product)
    path = write_netcdf(product, tmp_path / "a.nc")
    with netCDF4.Dataset(path, "a") as file:
        file["t"][0, 0, 3, 2, 5] += 1.0
    with xr.open_dataset(path, engine="netcdf4") as found, pytest.raises(StorageError, match="'t'"):
        same_dataset(round_dataset(dataset), found)


def test_a_full_disk_leaves_nothing(tmp_path):
    def write(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        put_file(tmp_path / "a.nc", write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_its_check_is_not_published(tmp_path):
    def check(path):
        raise StorageError("other values")

    with pytest.raises(StorageError):
        put_file(tmp_path / "a.nc", lambda path: path.write_bytes(b"bad"), check)
    assert list(tmp_path.iterdir()) == []
