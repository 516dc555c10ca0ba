"""Opening a published file as a data set: lazily, in pieces of some megabytes, one reader at a time.

HDF5 as in the netCDF4 wheel is not safe in threads: every open, read and close of this process
happens under `HDF5_LOCK`. Values are left as they are in the file, so that attributes, fill values
and types reach the client unchanged; `decoded` gives the CF view of the same data.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import netCDF4
import xarray as xr
from xpublish.utils.api import DATASET_ID_ATTR_KEY
from zarr.storage import ZipStore

from model.domain.errors import StorageError

HDF5_LOCK = threading.RLock()
"""Reentrant, for opening reads coordinates."""

PIECE_BYTES = 4 << 20
"""Aimed size of a chunk: few requests for small grids, one field a chunk for large ones."""

_VALUE_BYTES = 4
_ORDER = ("air_pressure", "realization", "time")
_HORIZONTAL = ("latitude", "longitude")


def chunk_plan(sizes: Mapping[str, int]) -> dict[str, int]:
    """Chunk lengths: whole horizontal fields, then levels, members and times while there is room."""
    size = _VALUE_BYTES
    for dim in _HORIZONTAL:
        size *= sizes.get(dim, 1)
    plan = {dim: sizes[dim] for dim in _HORIZONTAL if dim in sizes}
    for dim in _ORDER:
        if dim in sizes:
            plan[dim] = max(1, min(sizes[dim], PIECE_BYTES // max(1, size)))
            size *= plan[dim]
    return plan


@dataclass(eq=False)
class OpenDataset:
    """A published file, open.

    Attributes:
        raw: Values and attributes as in the file, lazily read.
        close: Releases the file; reading again opens it again.
        views: What plugins made of it; they go with it.
    """

    raw: xr.Dataset
    close: Callable[[], None]
    views: dict[str, xr.Dataset] = field(default_factory=dict)

    @cached_property
    def decoded(self) -> xr.Dataset:
        """Times as times, missing values as NaN, coordinates known as such."""
        # Not under the lock: times are read here, by threads that need it.
        return xr.decode_cf(self.raw, decode_timedelta=False)


def open_file(path: Path, analysis_id: str) -> OpenDataset:
    """Opens a NetCDF file or a zipped zarr store.

    Raises:
        StorageError: If it cannot be read.
    """
    try:
        opened = _open_zarr(path) if path.name.endswith(".zarr.zip") else _open_netcdf(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(
            f"Expected a readable data set in '{path.name}' of '{analysis_id}'; {error}.",
            analysis_id=analysis_id,
            file=path.name,
        ) from error
    # The plugins keep what they derive from a data set under this name.
    raw = opened.raw.assign_attrs({DATASET_ID_ATTR_KEY: analysis_id})
    return OpenDataset(raw, opened.close)


def _open_netcdf(path: Path) -> OpenDataset:
    with HDF5_LOCK:
        with netCDF4.Dataset(path) as file:
            plan = chunk_plan({name: len(dim) for name, dim in file.dimensions.items()})
        raw = xr.open_dataset(
            path, engine="netcdf4", decode_cf=False, chunks=plan, lock=HDF5_LOCK, cache=False
        )

    def close() -> None:
        with HDF5_LOCK:
            raw.close()

    return OpenDataset(_bare(raw), close)


def _open_zarr(path: Path) -> OpenDataset:
    store = ZipStore(path, mode="r")
    peek = xr.open_zarr(store, consolidated=True, decode_cf=False, chunks=None)
    plan = chunk_plan({str(name): size for name, size in peek.sizes.items()})
    raw = xr.open_zarr(store, consolidated=True, decode_cf=False, chunks=plan)
    return OpenDataset(_bare(raw), store.close)


def _bare(dataset: xr.Dataset) -> xr.Dataset:
    """Without the storage settings of the file, which are not those of a zarr store."""
    return dataset.drop_encoding()
