"""Read orography and land-sea mask from a file of ERA5, on the grid of a model.

NetCDF, GRIB 1 or 2, and zarr (also in a zip file), on any global rectilinear grid: finer fields
are averaged over the model's cells, coarser ones interpolated. Surface geopotential becomes height
by division by standard gravity; a percentage becomes a fraction.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import eccodes
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from zarr.storage import ZipStore

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.physics import GRAVITY
from model.domain.regrid import regrid_rows

__all__ = ["NAMES", "read_static"]

Float = NDArray[np.float64]

NAMES: Mapping[str, tuple[str, ...]] = {
    "orography": ("geopotential_at_surface", "z", "geopotential", "orog", "orography"),
    "land_sea_mask": ("land_sea_mask", "lsm", "sftlf"),
}
"""Our field and its names in files, the clearest first."""

_LIMITS = {"orography": (-600.0, 9000.0), "land_sea_mask": (-0.01, 1.01)}
_UNITS = {"orography": "height in m or geopotential in m2 s-2", "land_sea_mask": "fraction or %"}
_GEOPOTENTIAL = {"m2s-2", "m^2s^-2", "m**2s**-2", "m2/s2", "m^2/s^2", "m**2/s**2"}
_LATITUDES, _LONGITUDES = ("latitude", "lat"), ("longitude", "lon")


@dataclass(frozen=True, eq=False)
class _Plane:
    """A field as a file holds it: its name and units there, values at points (n,), degrees."""

    name: str
    units: str
    values: Float
    latitude: Float
    longitude: Float


def read_static(path: Path, grid: Grid) -> dict[str, Tensor]:
    """Return what a file holds of the unchanging fields.

    Arguments:
        path: NetCDF, GRIB or zarr.
        grid: Grid of the model.

    Returns:
        `orography` in m and `land_sea_mask` as a fraction, or one of them, each with shape
        (nlat, nlon), latitude north to south, float32.

    Raises:
        InvalidInput: If the file is none of these, has neither field, or one does not cover the
            sphere or is out of range.
    """
    found: dict[str, _Plane] = {}
    for plane in _planes(path):
        ours = next(ours for ours, names in NAMES.items() if plane.name in names)
        other = found.get(ours)
        names = NAMES[ours]
        if other is None or names.index(plane.name) < names.index(other.name):
            found[ours] = plane
    if not found:
        wanted = "; ".join(f"{ours}: {', '.join(names)}" for ours, names in NAMES.items())
        raise InvalidInput(
            f"Expected a surface field in {path} ({wanted}); got none of them.", file=str(path)
        )
    return {ours: _on_grid(ours, plane, grid, path) for ours, plane in found.items()}


def _on_grid(ours: str, plane: _Plane, grid: Grid, path: Path) -> Tensor:
    values = _in_our_unit(ours, plane)
    longitude = np.round(plane.longitude % 360.0, 6) % 360.0
    latitude = np.round(plane.latitude, 6)
    rows, columns = np.unique(latitude), np.unique(longitude)
    if min(len(rows), len(columns)) < 2 or len(rows) * len(columns) > len(values):
        raise InvalidInput(
            f"Expected '{plane.name}' on rows of latitude and columns of longitude in {path}; got "
            f"{len(values)} points on {len(rows)} latitudes. Interpolate it to such a grid first.",
            file=str(path),
        )
    field = np.full((len(rows), len(columns)), np.nan)
    field[np.searchsorted(rows, latitude), np.searchsorted(columns, longitude)] = values
    result = regrid_rows(field, rows, columns, grid)
    low, high = _LIMITS[ours]
    # Written so that a missing value is out of range as well.
    outside = ~((result >= low) & (result <= high))
    if outside.any():
        raise InvalidInput(
            f"Expected {ours} ({_UNITS[ours]}) over the whole globe in {path}; '{plane.name}' "
            f"[{plane.units or 'no units'}] gives {float(result[outside][0]):g} in "
            f"{int(outside.sum())} of {result.size} cells, outside {low:g} to {high:g}.",
            file=str(path),
        )
    if ours == "land_sea_mask":
        result = np.clip(result, 0.0, 1.0)
    return torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32))


def _in_our_unit(ours: str, plane: _Plane) -> Float:
    units = plane.units.replace(" ", "")
    if ours == "land_sea_mask":
        return plane.values / 100.0 if units == "%" else plane.values
    geopotential = units in _GEOPOTENTIAL or (not units and not plane.name.startswith("orog"))
    return plane.values / GRAVITY if geopotential else plane.values


def _planes(path: Path) -> Iterator[_Plane]:
    if path.is_dir() or path.suffix == ".zip":
        yield from _of_dataset(path, zarr=True)
        return
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GRIB":
        yield from _of_grib(path)
    elif start[:3] == b"CDF" or start == b"\x89HDF":
        yield from _of_dataset(path, zarr=False)
    else:
        raise InvalidInput(
            f"Expected NetCDF, GRIB or zarr at {path}; it begins with {start!r}.", file=str(path)
        )


def _of_dataset(path: Path, *, zarr: bool) -> Iterator[_Plane]:
    try:
        if zarr:
            store = ZipStore(path, mode="r") if path.is_file() else path
            dataset = xr.open_zarr(store, chunks=None, consolidated=None, decode_times=False)
        else:
            dataset = xr.open_dataset(path, engine="netcdf4", chunks=None, decode_times=False)
    except (OSError, KeyError, ValueError) as error:
        raise InvalidInput(
            f"Expected NetCDF or zarr at {path}; {error}.", file=str(path)
        ) from error
    with dataset:
        lat = next((n for n in _LATITUDES if n in dataset.coords), None)
        lon = next((n for n in _LONGITUDES if n in dataset.coords), None)
        for name in (n for names in NAMES.values() for n in names if n in dataset):
            field = dataset[name]
            if "time" in field.dims:
                field = field.isel(time=0)
            field = field.squeeze(drop=True)
            if lat is None or lon is None or set(field.dims) != {lat, lon}:
                continue  # on levels: not the ground
            j, i = np.meshgrid(dataset[lat].values, dataset[lon].values, indexing="ij")
            values = field.transpose(lat, lon).values
            points = (np.asarray(x, dtype=np.float64).ravel() for x in (values, j, i))
            yield _Plane(name, str(field.attrs.get("units", "")), *points)


def _of_grib(path: Path) -> Iterator[_Plane]:
    known = {n for names in NAMES.values() for n in names}
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            try:
                name = str(eccodes.codes_get(handle, "shortName"))
                if name in known and not eccodes.codes_get(handle, "typeOfLevel").startswith("iso"):
                    eccodes.codes_set(handle, "missingValue", -1e30)
                    arrays = (
                        np.asarray(eccodes.codes_get_array(handle, key), dtype=np.float64)
                        for key in ("values", "latitudes", "longitudes")
                    )
                    yield _Plane(name, str(eccodes.codes_get(handle, "units")), *arrays)
            finally:
                eccodes.codes_release(handle)
