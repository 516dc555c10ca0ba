"""Zarr stores of a result, each as one zip archive: a file with a hash, still read chunk by chunk.

The store has format 2, which every Zarr reader knows, with consolidated metadata. The archive
holds it uncompressed (the chunks are compressed already), metadata first.
"""

import zipfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xarray as xr
from numcodecs import Blosc
from zarr.storage import ZipStore

from worker.outputs.dataset import FILL, round_dataset, to_dataset
from worker.outputs.files import product_file, put_file
from worker.outputs.product import Product, Written
from worker.outputs.verify import recorded, same_dataset

__all__ = ["write_product", "write_zarr"]

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
    """Consolidated metadata, other metadata, chunks."""
    name = path.relative_to(folder).as_posix()
    return name != ".zmetadata", not path.name.startswith(".z"), name


def _write(dataset: xr.Dataset, path: Path) -> None:
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


def _check(wanted: xr.Dataset, path: Path) -> None:
    store = ZipStore(path, mode="r")
    with xr.open_zarr(store, consolidated=True, chunks=None) as found:
        same_dataset(wanted, found)
    store.close()


def write_zarr(dataset: xr.Dataset, path: Path) -> Path:
    """Writes a dataset of `to_dataset` with bit rounding; the file appears complete or not at all.

    Raises:
        StorageError: If what is read back differs.
        OSError: If the disk is full.
    """
    rounded = round_dataset(dataset)
    wanted = recorded(dataset, rounded)
    return put_file(path, partial(_write, rounded), partial(_check, wanted))


def write_product(product: Product, folder: Path) -> Written:
    """One archive with all members and times, mean and spread."""
    path = write_zarr(to_dataset(product), product_file(product, folder, "zarr.zip"))
    return [(path, "data")]
