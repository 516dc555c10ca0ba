"""Results are written hour by hour, with the values they have when written whole."""

import errno
import tracemalloc
from dataclasses import replace

import netCDF4
import numpy as np
import pytest
import xarray as xr
from zarr.storage import ZipStore

from benchmarks.host_memory import peak_of_hour
from model.domain.grids import Grid
from tests.worker.outputs.products import TINY, make_product
from worker.results.outputs import cf
from worker.results.outputs.background import write_product as write_background
from worker.results.outputs.dataset import round_dataset, to_dataset
from worker.results.outputs.hours import bits_of_result
from worker.results.outputs.product import Product
from worker.results.outputs.states import StateFile

CASES = {
    "members_and_mean": {"members": 4},
    "mean": {"members": 4, "spec": {"fields": "mean"}},
    "members": {"members": 3, "spec": {"fields": "members"}},
    "one_member": {"members": 1},
    "pairs": {"members": 4, "mirrored": True},
}


def filed(product: Product, folder) -> Product:
    """The same product with its states in a scratch file."""
    states = StateFile(folder, product.states.shape)
    for m, t in np.ndindex(states.shape[:2]):
        states[m, t] = product.states[m, t]
    return replace(product, states=states)


def dried(product: Product) -> Product:
    """Rain of one hour in one row alone, which a sample of rows misses."""
    states = product.states.copy()
    rain = [c.variable for c in product.channels].index("total_precipitation")
    states[:, :, rain] = 0.0
    states[0, 1, rain, 1] = np.linspace(1e-4, 3e-3, states.shape[-1])
    return replace(product, states=states)


@pytest.mark.parametrize("case", CASES)
def test_values_and_rounding_are_those_of_the_whole(tmp_path, case):
    product = dried(make_product(TINY, times=3, **CASES[case]))
    whole = round_dataset(to_dataset(product))
    if "q" in whole:
        assert whole["q"].attrs["clipped_cells"] > 0
    for name, bits in bits_of_result(product).items():
        assert bits == whole[name].attrs["bit_rounding_keepbits"].tolist(), name
    later = filed(product, tmp_path)
    [(netcdf, _)] = cf.write_netcdf_product(later, tmp_path)
    [(archive, _)] = cf.write_zarr_product(later, tmp_path)
    with (
        xr.open_dataset(netcdf) as found,
        xr.open_zarr(ZipStore(archive, mode="r"), chunks=None) as other,
    ):
        for name, wanted in whole.variables.items():
            for file in (found, other):
                np.testing.assert_array_equal(file[name].values, wanted.values, err_msg=str(name))
                for key, value in wanted.attrs.items():
                    np.testing.assert_array_equal(file[name].attrs[key], value, err_msg=key)
        assert set(found.variables) == set(other.variables) == set(whole.variables)


def test_other_readers_find_standard_filters_and_one_record_dimension(tmp_path):
    [(path, _)] = cf.write_netcdf_product(make_product(TINY, times=3, members=2), tmp_path)
    with netCDF4.Dataset(path) as file:
        assert file.data_model == "NETCDF4"
        assert file.dimensions["time"].isunlimited() and file.dimensions["time"].size == 3
        filters = file["t"].filters()
        assert {k for k, v in filters.items() if v is True} == {"zlib", "shuffle"}
        assert file["t"].shape[0] == file["time"].shape[0] == file["time_bnds"].shape[0] == 3


def test_the_background_is_written_likewise(tmp_path):
    product = make_product(TINY, times=2, members=4)
    first_guess = filed(replace(product, states=product.background), tmp_path).states
    [(path, _)] = write_background(replace(product, background=first_guess), tmp_path)
    with xr.open_dataset(path) as found:
        assert found.attrs["title"].startswith("Background of the analysis of 2025-03-20")
        mean = found["t2m_mean"].values
    error = np.abs(mean - product.background[:, :, 0].mean(axis=0, dtype=np.float64))
    assert 0 < error.max() < 0.1


def test_a_writer_may_take_all_states_at_once(tmp_path):
    product = make_product(TINY, times=2, members=3)
    states = filed(product, tmp_path).states
    np.testing.assert_array_equal(np.asarray(states), product.states)
    np.testing.assert_array_equal(states[:, -1, 2:4], product.states[:, -1, 2:4])
    assert np.nanmean(states) == np.nanmean(product.states)


def test_a_full_disk_ends_in_an_error_and_not_in_a_signal(tmp_path, monkeypatch):
    states = StateFile(tmp_path, (1, 1, 2, 3, 4))

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="no space left"):
        states[0, 0] = np.zeros((2, 3, 4))


@pytest.mark.parametrize("write", [cf.write_netcdf_product, cf.write_zarr_product])
def test_memory_does_not_grow_with_the_hours(tmp_path, write):
    grid, levels = Grid("small", "gaussian", 64, 128), (850,)  # few chunks, and large ones

    def peak(hours: int) -> int:
        product = filed(make_product(grid, times=hours, members=4, levels=levels), tmp_path)
        tracemalloc.start()
        try:
            write(product, tmp_path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # modules and caches
    two, five = peak(2), peak(5)
    assert five < 1.15 * two
    product = make_product(grid, members=4, levels=levels)
    assert five < 1.15 * peak_of_hour(4, len(product.channels), grid.shape)
