"""States from a zarr store in the layout of WeatherBench2: ERA5 or a nature run alike.

Stores differ in the order of latitude and of dimensions and in the levels they hold; what leaves
this file is always (time, channel, latitude north to south, longitude from 0 eastward) in SI units.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import Channel

__all__ = ["StateStore"]

STATIC_NAMES = {
    "orography": ("geopotential_at_surface", 1.0 / 9.80665),
    "land_sea_mask": ("land_sea_mask", 1.0),
}
"""Our static field: the store's name and the factor to our unit (m for orography)."""


class StateStore:
    """Reads states of given channels from a store.

    Arguments:
        url: Anything xarray opens as zarr, a zarr store in a zip file, or a NetCDF file.
        channels: Which channels, in which order.

    Raises:
        InvalidInput: If the store is not a store, or lacks a variable, level or dimension; all
            that is missing is named.
    """

    def __init__(self, url: str, channels: Sequence[Channel]) -> None:
        self.url = url
        self.channels = tuple(channels)
        self.dataset = _open(url)
        self._check()
        latitude = self.dataset["latitude"].values
        self._flip = bool(latitude[0] < latitude[-1])
        self.latitude: NDArray[np.float64] = latitude[::-1] if self._flip else latitude
        self.times: NDArray[np.datetime64] = np.atleast_1d(self.dataset["time"].values)

    def __len__(self) -> int:
        return len(self.times)

    def _check(self) -> None:
        needed = {c.variable for c in self.channels}
        missing = sorted(needed - set(self.dataset.data_vars))
        absent = [d for d in ("time", "latitude", "longitude") if d not in self.dataset.coords]
        levels = {c.level for c in self.channels if c.level is not None}
        have = {int(v) for v in self.dataset["level"].values} if "level" in self.dataset else set()
        lacking = sorted(levels - have)
        if missing or absent or lacking:
            raise InvalidInput(
                f"Expected a WeatherBench2-layout store with all channels in {self.url}; missing "
                f"variables: {', '.join(missing) or 'none'}; missing levels (hPa): "
                f"{', '.join(map(str, lacking)) or 'none'}; missing coordinates: "
                f"{', '.join(absent) or 'none'}.",
                file=self.url,
                variables=missing,
                levels=lacking,
            )

    def check_grid(self, grid: Grid) -> None:
        """
        Raises:
            InvalidInput: If the store's rows or columns differ from the grid's by more than
                a thousandth of a degree.
        """
        longitude = self.dataset["longitude"].values
        same = (
            self.latitude.shape == grid.latitude.shape
            and longitude.shape == grid.longitude.shape
            and np.allclose(self.latitude, grid.latitude, atol=1e-3)
            and np.allclose(longitude, grid.longitude, atol=1e-3)
        )
        if not same:
            raise InvalidInput(
                f"Expected the grid '{grid.name}' ({grid.kind}, {grid.nlat} x {grid.nlon}) in "
                f"{self.url}; got {len(self.latitude)} x {len(longitude)} from "
                f"{self.latitude[0]:.3f} to {self.latitude[-1]:.3f} degrees north.",
                file=self.url,
            )

    def between(self, start: str, end: str) -> range:
        """Indices of the times in [start, end)."""
        first, last = np.searchsorted(self.times, [np.datetime64(start), np.datetime64(end)])
        return range(int(first), int(last))

    def within(self, bounds: Sequence[tuple[str, str]]) -> list[range]:
        """Indices of the times in each [start, end), one range for each."""
        return [self.between(start, end) for start, end in bounds]

    def read(self, index: slice | Sequence[int]) -> NDArray[np.float32]:
        """
        Arguments:
            index: Positions along time.

        Returns:
            Physical states with shape (N, C, Y, X); NaN where the store has none.
        """
        part = self.dataset
        if "time" in part.dims:
            part = part.isel(time=index)
        else:
            part = part.expand_dims("time")
        layers: dict[str, NDArray[np.float32]] = {}
        fields = []
        for channel in self.channels:
            if channel.variable not in layers:
                layers[channel.variable] = self._load(part[channel.variable])
            array = layers[channel.variable]
            if channel.level is None:
                fields.append(array)
            else:
                level = list(map(int, part["level"].values)).index(channel.level)
                fields.append(array[:, level])
        return np.stack(fields, axis=1)

    def _load(self, variable: xr.DataArray) -> NDArray[np.float32]:
        dims = [d for d in ("time", "level", "latitude", "longitude") if d in variable.dims]
        array = variable.transpose(*dims).values.astype(np.float32, copy=False)
        return array[..., ::-1, :] if self._flip else array

    def static(self) -> dict[str, NDArray[np.float32]]:
        """Orography [m] and land-sea mask [0-1] with shape (Y, X), where the store has them."""
        found = {}
        for name, (foreign, factor) in STATIC_NAMES.items():
            if foreign in self.dataset:
                found[name] = self._load(self.dataset[foreign]) * np.float32(factor)
        return found


def _open(url: str) -> xr.Dataset:
    try:
        if url.endswith(".nc"):
            # netCDF4 reads classic files too; letting xarray guess imports every backend.
            return xr.open_dataset(url, engine="netcdf4", chunks=None)
        if url.endswith(".zip"):
            return xr.open_zarr(ZipStore(url, mode="r"), chunks=None, consolidated=False)
        return xr.open_zarr(url, chunks=None)
    except (OSError, KeyError, ValueError) as error:
        raise InvalidInput(
            f"Expected a zarr store or NetCDF file at {url}; {error}.", file=url
        ) from error
