"""Write the CF dataset as NetCDF-4 or Zarr, compressed after bit rounding, and read it back.

NetCDF files have one unlimited dimension and no 64-bit integers, which older readers do not know, in
the format NETCDF4: the library crashes when the disk fills while it writes NETCDF4_CLASSIC. Time is
the unlimited dimension, along which ncrcat and ncra join and average files.

A Zarr store is one zip archive: a file with a hash, still read chunk by chunk. It has format 2,
which every Zarr reader knows, with consolidated metadata. The archive holds it uncompressed (the
chunks are compressed already), metadata first.
"""

import zipfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numcodecs import Blosc
from zarr.storage import ZipStore

from model.domain.errors import StorageError
from worker.results.outputs.dataset import FILL, round_dataset, to_dataset
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.product import Product, Written

__all__ = [
    "encoding",
    "recorded",
    "same_dataset",
    "write_netcdf",
    "write_netcdf_product",
    "write_zarr",
    "write_zarr_product",
]


def _fail(name: str, what: str) -> None:
    raise StorageError(
        f"Expected to read back what was written; variable '{name}': {what}. The file was not "
        "published; check the disk and try again.",
        variable=name,
    )


def _compare(name: str, wanted: xr.Variable, found: xr.Variable) -> None:
    if wanted.dims != found.dims or wanted.shape != found.shape:
        _fail(name, f"expected {wanted.dims} {wanted.shape}, got {found.dims} {found.shape}")
    a, b = np.asarray(wanted.values), np.asarray(found.values)
    if a.dtype.kind == "M":  # a time of arrival has fractions that float64 holds to 0.2 us
        if (np.abs(a - b) > np.timedelta64(1, "us")).any():
            _fail(name, "other times")
        return
    if a.dtype.kind != "f":
        if not np.array_equal(a, b):
            _fail(name, "other values")
        return
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        _fail(name, "other missing values")
    allowed = np.asarray(wanted.attrs.get("bit_rounding_max_error", 0.0), dtype=np.float64)
    if allowed.size > 1:
        allowed = allowed[:, None, None]
    error = np.nan_to_num(np.abs(a - b, dtype=np.float64))
    if (error > allowed).any():
        _fail(name, f"differs by {error.max():g}, more than the recorded rounding")


def recorded(dataset: xr.Dataset, rounded: xr.Dataset) -> xr.Dataset:
    """Return the exact values with the attributes of the rounded ones, to compare a file with."""
    return dataset.assign(
        {n: (v.dims, v.values, rounded[n].attrs) for n, v in dataset.data_vars.items()}
    )


def same_dataset(wanted: xr.Dataset, found: xr.Dataset) -> None:
    """Compare dimensions, coordinates, missing values and values.

    Arguments:
        wanted: Before rounding, with the attributes of the rounded one.
        found: As read from the file.

    Raises:
        StorageError: Naming the first variable that differs.
    """
    for name in wanted.variables:
        if name not in found.variables:
            _fail(str(name), "absent")
        _compare(str(name), wanted[name].variable, found[name].variable)


def encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return the encoding: a chunk for each horizontal field, shuffled and deflated.

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


def _check_netcdf(wanted: xr.Dataset, path: Path) -> None:
    with xr.open_dataset(path, engine="netcdf4") as found:
        same_dataset(wanted, found)


def _write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    _without_int64(dataset).to_netcdf(
        path,
        engine="netcdf4",
        format="NETCDF4",
        encoding=encoding(dataset),
        unlimited_dims=["time"],
    )


def _without_int64(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with 32-bit integers in variables and attributes."""
    whole = {n: v.astype("int32") for n, v in dataset.variables.items() if v.dtype == "int64"}
    narrow = dataset.assign(whole)
    holders: list[Any] = [narrow, *narrow.variables.values()]
    for holder in holders:
        whole_numbers = {k: v for k, v in holder.attrs.items() if isinstance(v, int | np.integer)}
        holder.attrs.update({k: np.int32(v) for k, v in whole_numbers.items()})
    return narrow


def write_netcdf(dataset: xr.Dataset, path: Path) -> Path:
    """Write a dataset of `to_dataset` with bit rounding; the file appears complete or not at all.

    Raises:
        StorageError: If what is read back differs.
        OSError: If the disk is full.
    """
    rounded = round_dataset(dataset)
    rounded.attrs["netcdf_library"] = str(netCDF4.__netcdf4libversion__)
    wanted = recorded(dataset, rounded)
    return put_file(path, partial(_write_netcdf, rounded), partial(_check_netcdf, wanted))


def write_netcdf_product(product: Product, folder: Path) -> Written:
    """Write one file with all members and times, mean and spread."""
    path = write_netcdf(to_dataset(product), product_file(product, folder, "nc"))
    return [(path, "data")]


_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every entry: the same store gives the same bytes."""


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    codec = Blosc("zstd", clevel=5, shuffle=Blosc.SHUFFLE)
    return {
        str(name): {
            "_FillValue": FILL,
            "compressors": (codec,),
            "chunks": (1,) * (array.ndim - 2) + array.shape[-2:],
        }
        for name, array in dataset.data_vars.items()
        if {"latitude", "longitude"} <= set(array.dims)
    }


def _order(folder: Path, path: Path) -> tuple[bool, bool, str]:
    """Sort consolidated metadata before other metadata, and these before chunks."""
    name = path.relative_to(folder).as_posix()
    return name != ".zmetadata", not path.name.startswith(".z"), name


def _write_zarr(dataset: xr.Dataset, path: Path) -> None:
    with TemporaryDirectory(prefix=".part-", dir=path.parent) as name:
        folder = Path(name)
        dataset.to_zarr(
            folder, mode="w", zarr_format=2, consolidated=True, encoding=_encoding(dataset)
        )
        files = [file for file in folder.rglob("*") if file.is_file()]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(files, key=partial(_order, folder)):
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
                archive.writestr(entry, file.read_bytes())


def _check_zarr(wanted: xr.Dataset, path: Path) -> None:
    store = ZipStore(path, mode="r")
    with xr.open_zarr(store, consolidated=True, chunks=None) as found:
        same_dataset(wanted, found)
    store.close()


def write_zarr(dataset: xr.Dataset, path: Path) -> Path:
    """Write a dataset of `to_dataset` with bit rounding; the file appears complete or not at all.

    Raises:
        StorageError: If what is read back differs.
        OSError: If the disk is full.
    """
    rounded = round_dataset(dataset)
    wanted = recorded(dataset, rounded)
    return put_file(path, partial(_write_zarr, rounded), partial(_check_zarr, wanted))


def write_zarr_product(product: Product, folder: Path) -> Written:
    """Write one archive with all members and times, mean and spread."""
    path = write_zarr(to_dataset(product), product_file(product, folder, "zarr.zip"))
    return [(path, "data")]
