"""NetCDF-4 files of a result, chunked by field, compressed after bit rounding, and read back."""

from functools import partial
from pathlib import Path
from typing import Any

import netCDF4
import xarray as xr

from worker.outputs.dataset import FILL, round_dataset, to_dataset
from worker.outputs.files import product_file, put_file
from worker.outputs.product import Product, Written
from worker.outputs.verify import recorded, same_dataset

__all__ = ["encoding", "write_netcdf", "write_product"]


def encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """One chunk for each horizontal field, shuffled and deflated; the rest as it is.

    Deflate rather than zstd: every NetCDF reader has it, zstd needs a plugin in many.
    """
    fields = {
        n: v for n, v in dataset.data_vars.items() if {"latitude", "longitude"} <= set(v.dims)
    }
    return {
        str(name): {
            "_FillValue": FILL,
            "zlib": True,
            "complevel": 4,
            "shuffle": True,
            "chunksizes": (1,) * (array.ndim - 2) + array.shape[-2:],
        }
        for name, array in fields.items()
    }


def _check(wanted: xr.Dataset, path: Path) -> None:
    with xr.open_dataset(path, engine="netcdf4") as found:
        same_dataset(wanted, found)


def _write(dataset: xr.Dataset, path: Path) -> None:
    dataset.to_netcdf(path, engine="netcdf4", format="NETCDF4", encoding=encoding(dataset))


def write_netcdf(dataset: xr.Dataset, path: Path) -> Path:
    """Writes a dataset of `to_dataset` with bit rounding; the file appears complete or not at all.

    Raises:
        StorageError: If what is read back differs.
        OSError: If the disk is full.
    """
    rounded = round_dataset(dataset)
    rounded.attrs["netcdf_library"] = str(netCDF4.__netcdf4libversion__)
    wanted = recorded(dataset, rounded)
    return put_file(path, partial(_write, rounded), partial(_check, wanted))


def write_product(product: Product, folder: Path) -> Written:
    """One file with all members and times, mean and spread."""
    path = write_netcdf(to_dataset(product), product_file(product, folder, "nc"))
    return [(path, "data")]
