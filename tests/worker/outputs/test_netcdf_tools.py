"""NetCDF files in the hands of CDO and NCO, and by the classic model."""

import shutil
import subprocess
from datetime import timedelta

import netCDF4
import numpy as np
import pytest
import xarray as xr

from tests.worker.outputs.products import NOON, TINY, make_product
from worker.results.outputs.cf import write_netcdf_product

tools = pytest.mark.skipif(
    not all(map(shutil.which, ("cdo", "ncra", "ncwa"))), reason="cdo or nco is not installed"
)
MEMBERS = 3


def run(*command):
    """Standard output; warnings count as failures."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module", params=["filtering", "forecast"])
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    cut_off = NOON + timedelta(microseconds=123_457)
    spec = {"observations": {"cut_off": cut_off}} if request.param == "filtering" else {}
    product = make_product(TINY, kind=request.param, times=2, members=MEMBERS, spec=spec)
    [(path, _)] = write_netcdf_product(product, folder)
    return path


def test_what_the_classic_model_has_with_unlimited_time_and_no_int64(path):
    with netCDF4.Dataset(path) as file:
        assert file.data_model == "NETCDF4"
        assert [n for n, d in file.dimensions.items() if d.isunlimited()] == ["time"]
        assert file["t2m"].dimensions == ("time", "realization", "latitude", "longitude")
        assert file["time"].dtype == file["time_bnds"].dtype == np.float64
        values = [v.getncattr(a) for v in (file, *file.variables.values()) for a in v.ncattrs()]
        kinds = {np.asarray(v).dtype for v in values} | {v.dtype for v in file.variables.values()}
        assert np.dtype("int64") not in kinds
        expected = (NOON - timedelta(0)).timestamp()
        assert expected in file["time"][:] or expected + 3600 in file["time"][:]


@tools
def test_cdo_reads_the_members_of_every_surface_variable(path):
    listed, _ = run("cdo", "-s", "showname", path)
    names = set(listed.split())
    assert {"t2m", "u10", "v10", "msl", "sst", "tp", "t_mean", "t_spread", "q_mean"} <= names
    found, _ = run("cdo", "-s", "outputf,%.4f,1", "-fldmean", "-selname,t2m", path)
    assert len(found.split()) == 2 * MEMBERS  # one for each time and member


@tools
def test_cdo_reads_one_member_aloft(path, tmp_path):
    """CDO takes four dimensions at most: a member is cut out first, as the documentation says."""
    one = tmp_path / "member.nc"
    run("ncwa", "-O", "-a", "realization", "-d", "realization,1", path, one)
    listed, errors = run("cdo", "-s", "showname", one)
    assert {"t", "u", "v", "z", "q", "t2m"} <= set(listed.split()) and "skipped" not in errors
    with xr.open_dataset(one) as found, xr.open_dataset(path) as whole:
        np.testing.assert_array_equal(found["t"], whole["t"].isel(realization=1))


@tools
def test_nco_joins_and_averages_along_time(path, tmp_path):
    joined, mean = tmp_path / "joined.nc", tmp_path / "mean.nc"
    run("ncrcat", "-O", path, path, joined)
    run("ncra", "-O", path, mean)
    with xr.open_dataset(path) as one, xr.open_dataset(joined) as both:
        assert both.sizes["time"] == 2 * one.sizes["time"]
    with xr.open_dataset(path) as one, xr.open_dataset(mean) as found:
        np.testing.assert_allclose(found["t"][0], one["t"].mean("time"), rtol=1e-5)
