"""Zarr archives: opened by xarray where they lie, equal to the NetCDF file, metadata first."""

import zipfile

import numpy as np
import pytest
import xarray as xr
from zarr.storage import ZipStore

from tests.worker.outputs.products import TINY, make_product
from worker.results.outputs import cf


@pytest.mark.parametrize("kind", ["filtering", "forecast"])
def test_the_archive_holds_what_the_netcdf_file_holds(tmp_path, kind):
    product = make_product(TINY, kind=kind, times=2, members=3)
    [(path, role)] = cf.write_zarr_product(product, tmp_path)
    assert role == "data" and path.name.endswith("Z_v1.zarr.zip")
    [(other, _)] = cf.write_netcdf_product(product, tmp_path)
    with (
        xr.open_zarr(ZipStore(path, mode="r"), chunks=None) as a,
        xr.open_dataset(other, engine="netcdf4") as b,
    ):
        assert set(a.variables) == set(b.variables)
        for name in b.variables:
            np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))
            assert a[name].dims == b[name].dims
            for key in ("standard_name", "units", "cell_methods"):
                assert a[name].attrs.get(key) == b[name].attrs.get(key)
        assert a.attrs["checkpoint_sha256"] == b.attrs["checkpoint_sha256"]
    assert {p.name for p in tmp_path.iterdir()} == {path.name, other.name}


def test_metadata_come_first_and_each_field_is_one_entry(tmp_path):
    [(path, _)] = cf.write_zarr_product(make_product(TINY, members=2), tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert names[0] == ".zmetadata"
    first_chunk = next(i for i, n in enumerate(names) if not n.split("/")[-1].startswith("."))
    assert all(not n.split("/")[-1].startswith(".") for n in names[first_chunk:])
    assert len([n for n in names if n.startswith("t/") and "." not in n[2:3]]) == 2 * 8


def test_the_same_result_gives_the_same_bytes(tmp_path, monkeypatch):
    product = make_product(TINY, members=2, times=2)
    monkeypatch.setattr("worker.results.outputs.product.utc_now", lambda: product.times[0])
    written = []
    for name in "ab":
        (tmp_path / name).mkdir()
        [(path, _)] = cf.write_zarr_product(product, tmp_path / name)
        written.append(path.read_bytes())
    assert written[0] == written[1]
