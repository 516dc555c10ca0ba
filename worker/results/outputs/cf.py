"""Write the CF dataset as NetCDF-4 or Zarr, compressed after bit rounding, and read it back.

A file is written and read back hour by hour, because a result may be larger than the memory. The number
of bits to keep is determined first, from rows of all hours.

NetCDF files have one unlimited dimension and no 64-bit integers, which older readers do not support,
but the format NETCDF4: the library crashes if the disk fills while it writes NETCDF4_CLASSIC. Time is
the unlimited dimension, along which ncrcat and ncra join and average files. The NetCDF library creates
the file without hours; chunks compressed on all cores by the same filters are then written through
HDF5, so that readers need nothing special.

A Zarr store is one zip archive: a file with a hash, still read chunk by chunk. It has format 2,
which every Zarr reader knows, with consolidated metadata. The archive holds it uncompressed (the
chunks are compressed already), metadata first.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Hashable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import netCDF4
import numpy as np
import xarray as xr
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.storage import ZipStore

from worker.results.outputs.dataset import FILL
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.hours import RoundedHours
from worker.results.outputs.product import Product, Written

__all__ = [
    "encoding",
    "write_netcdf",
    "write_netcdf_product",
    "write_zarr_product",
]


LEVEL = 4
"""Compression level of deflate, from 1 (fast) to 9 (small)."""


def encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return the encoding: a chunk for each horizontal field, shuffled and deflated.

    Deflate rather than zstd, because every NetCDF reader supports it, and many need a plugin for zstd.
    """
    fields = {
        n: v for n, v in dataset.variables.items() if {"latitude", "longitude"} <= set(v.dims)
    }
    return {
        str(name): {
            "_FillValue": FILL,
            "zlib": True,
            "complevel": LEVEL,
            "shuffle": True,
            "chunksizes": (1,) * (array.ndim - 2) + array.shape[-2:],
        }
        for name, array in fields.items()
    }


def _lay_out(hour: xr.Dataset, path: Path, hours: int) -> None:
    """Write everything but the values of the hours.

    All variables are defined before anything is written: xarray, which defines and writes them one by
    one, takes three times as long.
    """
    empty = _without_int64(hour.isel(time=slice(0, 0)))
    for name, chosen in encoding(hour).items():
        empty.variables[name].encoding |= chosen
    for array in empty.variables.values():
        if array.dims == ("time",):
            array.encoding["chunksizes"] = (hours,)
    storage = {name: dict(array.encoding) for name, array in empty.variables.items()}
    encoded = xr.conventions.cf_encoder(*xr.conventions.encode_dataset_coordinates(empty))
    variables: dict[str, xr.Variable] = encoded[0]
    sizes = {str(dim): size for v in variables.values() for dim, size in v.sizes.items()}
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts(encoded[1])
        for dim, size in {"time": 0, **sizes}.items():
            file.createDimension(dim, size or None)
        for name, array in variables.items():
            _define(file, name, array, storage[name])
        for name, array in variables.items():
            if "time" not in array.dims:
                file[name][...] = array.values


_STORED = ("zlib", "complevel", "shuffle", "chunksizes")


def _define(
    file: netCDF4.Dataset, name: str, array: xr.Variable, storage: Mapping[str, Any]
) -> None:
    attributes = dict(array.attrs)
    chosen = {key: storage[key] for key in _STORED if key in storage}
    fill = attributes.pop("_FillValue", None)
    dims = tuple(str(dim) for dim in array.dims)
    made = file.createVariable(name, array.dtype, dims, fill_value=fill, **chosen)
    made.setncatts(attributes)


def _without_int64(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with 32-bit integers in variables and attributes."""
    whole = {n: v.astype("int32") for n, v in dataset.variables.items() if v.dtype == "int64"}
    narrow = dataset.assign(whole)
    holders: list[Any] = [narrow, *narrow.variables.values()]
    for holder in holders:
        whole_numbers = {k: v for k, v in holder.attrs.items() if isinstance(v, int | np.integer)}
        holder.attrs.update({k: np.int32(v) for k, v in whole_numbers.items()})
    return narrow


def _put_hour(file: h5py.File, t: int, hour: xr.Dataset, pool: Executor) -> None:
    """Write the values of hour number `t`."""
    planes: list[tuple[h5py.Dataset, tuple[int, ...], Future[bytes]]] = []
    for name, array in hour.variables.items():
        if "time" not in array.dims:
            continue
        stored = file[str(name)]
        stored.resize(t + 1, axis=0)
        if not {"latitude", "longitude"} <= set(array.dims):
            stored[t] = xr.conventions.encode_cf_variable(array, name=name).values[0]
            continue
        values = np.where(np.isnan(array.values), FILL, array.values)
        for place in np.ndindex(values.shape[1:-2]):
            packed = pool.submit(_compressed, values[0][place])
            planes.append((stored, (t, *place, 0, 0), packed))
    for stored, offset, packed in planes:
        stored.id.write_direct_chunk(offset, packed.result())


def _compressed(plane: NDArray[np.float32]) -> bytes:
    """Return a chunk after HDF5's filters shuffle and deflate."""
    return zlib.compress(np.ascontiguousarray(plane.reshape(-1, 1).view(np.uint8).T).data, LEVEL)


def _write_netcdf(hours: RoundedHours, path: Path) -> None:
    def put(t: int, hour: xr.Dataset) -> None:
        if not t:
            told = hour.assign_attrs(netcdf_library=str(netCDF4.__netcdf4libversion__))
            _lay_out(told, path, len(hours.product.times))
        with h5py.File(path, "r+") as file:
            _put_hour(file, t, hour, pool)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        hours.each(put)
    if len(hours.product.times) > 1:  # the first hour's were written with the layout
        with netCDF4.Dataset(path, "a") as file:
            for name, notes in hours.notes.items():
                file[name].setncatts(notes)


def _check_netcdf(hours: RoundedHours, path: Path) -> None:
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        hours.check(partial(_read_hour, file))


def _read_hour(file: netCDF4.Dataset, t: int) -> dict[Hashable, xr.Variable]:
    """Return the variables of hour `t` as stored; only those that are not fields are decoded."""
    fields: dict[Hashable, xr.Variable] = {}
    others: dict[Hashable, xr.Variable] = {}
    for name, stored in file.variables.items():
        dims = stored.dimensions
        values = stored[t : t + 1] if "time" in dims else stored[...]
        if {"latitude", "longitude"} <= set(dims):
            fields[name] = xr.Variable(dims, np.where(values == FILL, np.float32(np.nan), values))
        else:
            about = {key: stored.getncattr(key) for key in stored.ncattrs()}
            others[name] = xr.Variable(dims, values, about)
    return {**fields, **xr.decode_cf(xr.Dataset(others)).variables}


def write_netcdf(product: Product, path: Path, **attributes: str) -> Path:
    """Write a product with bit rounding; the file is written atomically.

    Arguments:
        product: The product.
        path: Path of the file.
        attributes: Global attributes that replace the product's own.

    Raises:
        StorageError: If the content read back differs.
        OSError: If the disk is full.
    """
    hours = RoundedHours(product, attributes)
    return put_file(path, partial(_write_netcdf, hours), partial(_check_netcdf, hours))


def write_netcdf_product(product: Product, folder: Path) -> Written:
    """Write one file with all members and times, mean and spread."""
    return [(write_netcdf(product, product_file(product, folder, "nc")), "data")]


_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Fixed time of all entries, so that equal stores give equal bytes."""


def _encoding(hour: xr.Dataset) -> dict[str, dict[str, Any]]:
    codec = Blosc("zstd", clevel=5, shuffle=Blosc.SHUFFLE)
    return {
        str(name): {
            "_FillValue": FILL,
            "compressors": (codec,),
            "chunks": (1,) * (array.ndim - 2) + array.shape[-2:],
        }
        for name, array in hour.data_vars.items()
        if {"latitude", "longitude"} <= set(array.dims)
    }


def _put_zarr(folder: Path, hours: int, t: int, hour: xr.Dataset) -> None:
    """Write hour `t` of `hours`; coordinates over all hours are one chunk."""
    timed = {n: array for n, array in hour.variables.items() if "time" in array.dims}
    if not t:
        for array in timed.values():
            if "latitude" not in array.dims:
                array.encoding["chunks"] = (hours, *array.shape[1:])
        hour.to_zarr(folder, mode="w", zarr_format=2, consolidated=False, encoding=_encoding(hour))
        return
    group = zarr.open_group(folder, mode="r+", zarr_format=2)
    for name, array in timed.items():
        stored: Any = group[str(name)]
        stored.resize((t + 1, *array.shape[1:]))
        stored[t:] = xr.conventions.encode_cf_variable(array, name=name).values


def _order(folder: Path, path: Path) -> tuple[bool, bool, str]:
    """Return the sort key: consolidated metadata, other metadata, chunks."""
    name = path.relative_to(folder).as_posix()
    return name != ".zmetadata", not path.name.startswith(".z"), name


def _write_zarr(hours: RoundedHours, path: Path) -> None:
    # If the disk is full, other threads of zarr may still write while the folder is removed.
    with TemporaryDirectory(prefix=".part-", dir=path.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        hours.each(partial(_put_zarr, folder, len(hours.product.times)))
        group = zarr.open_group(folder, mode="r+", zarr_format=2)
        for variable, notes in hours.notes.items():
            group[variable].update_attributes({k: v.tolist() for k, v in notes.items()})
        zarr.consolidate_metadata(folder, zarr_format=2)
        files = [file for file in folder.rglob("*") if file.is_file()]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(files, key=partial(_order, folder)):
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
                with archive.open(entry, "w") as into, file.open("rb") as source:
                    shutil.copyfileobj(source, into)


def _check_zarr(hours: RoundedHours, path: Path) -> None:
    store: Any = ZipStore(path, mode="r")
    with xr.open_dataset(store, engine="zarr", consolidated=True, cache=False) as found:
        hours.check(lambda t: found.isel(time=slice(t, t + 1)).variables)
    store.close()


def write_zarr_product(product: Product, folder: Path) -> Written:
    """Write one archive with all members and times, mean and spread.

    Raises:
        StorageError: If what is read back differs.
        OSError: If the disk is full.
    """
    hours, path = RoundedHours(product), product_file(product, folder, "zarr.zip")
    put_file(path, partial(_write_zarr, hours), partial(_check_zarr, hours))
    return [(path, "data")]
