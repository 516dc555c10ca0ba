"""Read states to train on: from a zarr store, split into periods, standardised and cached.

Stores have the layout of WeatherBench2: ERA5 or a nature run alike. They differ in the order of
latitude and of dimensions and in the levels they hold; what leaves this file is always (time,
channel, latitude north to south, longitude from 0 eastward) in SI units.

Training, validation and test periods never overlap and lie apart by a gap. Statistics are the mean
and standard deviation of each channel over the training period, weighted by area.

Standardised states (or latents) are cached on disk as one half-precision array, read by memory
map. Decompressing a store again for every epoch costs more than a training step; a flat float16
array costs a page fault. Rounding is 2^-11 relative, far below the autoencoder's error.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from zarr.storage import ZipStore

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.physics import GRAVITY
from model.domain.variables import Channel

__all__ = [
    "ArrayCache",
    "ChannelStatistics",
    "Period",
    "Periods",
    "Splits",
    "StateStore",
    "build_cache",
    "channel_statistics",
]


class Period(BaseModel):
    """A half-open interval [start, end) of valid times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: datetime
    end: datetime

    @model_validator(mode="after")
    def _ordered(self) -> "Period":
        if self.end <= self.start:
            raise ValueError(f"expected an end after {self.start}; got {self.end}")
        return self

    @property
    def bounds(self) -> tuple[str, str]:
        """Start and end in the form numpy reads."""
        return self.start.isoformat(), self.end.isoformat()


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


Periods = Annotated[tuple[Period, ...], BeforeValidator(_listed), Field(min_length=1)]
"""One period or several in order, as on both sides of a test year."""


class Splits(BaseModel):
    """The periods of each split and the smallest allowed gap between two splits in days."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Periods
    validation: Periods
    test: Periods
    gap_days: Annotated[float, Field(ge=0)] = 10.0

    @model_validator(mode="after")
    def _apart(self) -> "Splits":
        named = sorted(
            (
                (period.start, period.end, name)
                for name in ("train", "validation", "test")
                for period in self.of(name)
            ),
            key=lambda x: x[0],
        )
        for (_, end, before), (start, _, after) in zip(named, named[1:], strict=False):
            gap = self.gap_days if before != after else 0.0
            if start - end < timedelta(days=gap):
                raise InvalidInput(
                    f"Expected at least {gap} days between the {before} and {after} periods; "
                    f"{before} ends {end}, {after} starts {start}."
                )
        return self

    def of(self, split: str) -> tuple[Period, ...]:
        """Return the periods of `train`, `validation` or `test`."""
        periods: tuple[Period, ...] = getattr(self, split)
        return periods

    def bounds(self, split: str) -> list[tuple[str, str]]:
        """Return the start and end of each of those periods, in the form numpy reads."""
        return [period.bounds for period in self.of(split)]


STATIC_NAMES = {
    "orography": ("geopotential_at_surface", 1.0 / GRAVITY),
    "land_sea_mask": ("land_sea_mask", 1.0),
}
"""Our static field: the store's name and the factor to our unit (m for orography)."""


class StateStore:
    """Read states of given channels from a store.

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
        """Raises:
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
        """Return indices of the times in [start, end)."""
        first, last = np.searchsorted(self.times, [np.datetime64(start), np.datetime64(end)])
        return range(int(first), int(last))

    def within(self, bounds: Sequence[tuple[str, str]]) -> list[range]:
        """Return indices of the times in each [start, end), one range for each."""
        return [self.between(start, end) for start, end in bounds]

    def read(self, index: slice | Sequence[int]) -> NDArray[np.float32]:
        """Arguments:
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
        """Return orography [m] and land-sea mask [0-1] with shape (Y, X), where the store has them."""
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
            store = ZipStore(url, mode="r")
            zipped: xr.Dataset = xr.open_zarr(store, chunks=None, consolidated=False)
            return zipped
        opened: xr.Dataset = xr.open_zarr(url, chunks=None)
        return opened
    except (OSError, KeyError, ValueError) as error:
        raise InvalidInput(
            f"Expected a zarr store or NetCDF file at {url}; {error}.", file=url
        ) from error


@dataclass(frozen=True)
class ChannelStatistics:
    """Per channel, in SI units, with shape (C,) each."""

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def standardise(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise physical states (N, C, Y, X); missing values become 0."""
        z = (states - self.mean[:, None, None]) / self.std[:, None, None]
        return np.nan_to_num(z, nan=0.0, copy=False).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the statistics as a JSON file."""
        values = {"names": self.names, "mean": self.mean.tolist(), "std": self.std.tolist()}
        path.write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, path: Path) -> "ChannelStatistics":
        """Read the statistics of a file that `save` wrote."""
        values = json.loads(path.read_text())
        return cls(tuple(values["names"]), np.array(values["mean"]), np.array(values["std"]))


def channel_statistics(
    store: StateStore, indices: Sequence[int], grid: Grid, count: int = 400
) -> ChannelStatistics:
    """Return statistics from `count` states spread evenly over `indices`.

    Missing values (sea surface temperature on land) do not count.

    Raises:
        InvalidInput: If `indices` is empty.
    """
    if not len(indices):
        raise InvalidInput(f"Expected states in the period asked for; {store.url} has none there.")
    positions = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)
    chosen = [indices[position] for position in positions]
    weight = np.broadcast_to(grid.area_weights[:, None], grid.shape)
    total = np.zeros(len(store.channels))
    first, second = np.zeros_like(total), np.zeros_like(total)
    for index in chosen:
        state = store.read([int(index)])[0].astype(np.float64)
        valid = np.isfinite(state) * weight
        state = np.nan_to_num(state)
        total += valid.sum((1, 2))
        first += (valid * state).sum((1, 2))
        second += (valid * state**2).sum((1, 2))
    mean = first / total
    std = np.sqrt(np.maximum(second / total - mean**2, 0.0))
    return ChannelStatistics(tuple(c.name for c in store.channels), mean, std)


Chunk = tuple[NDArray[np.float32], NDArray[np.datetime64]]


class ArrayCache:
    """A (N, ...) float16 array beside its valid times.

    Attributes:
        array: Memory map with shape (N, ...).
        times: Valid times, ascending, with shape (N,).
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "index.json"
        if not index.exists():
            raise InvalidInput(f"Expected a finished cache in {folder}; build it first.")
        meta = json.loads(index.read_text())
        self.array = np.memmap(
            folder / "array.f16", np.float16, mode="r", shape=tuple(meta["shape"])
        )
        self.times = np.load(folder / "times.npy")

    def __len__(self) -> int:
        return len(self.array)

    def windows(self, length: int) -> NDArray[np.int64]:
        """Return the first positions of all runs of `length` consecutive hourly times."""
        starts = np.arange(max(len(self.times) - length + 1, 0))
        span = self.times[starts + length - 1] - self.times[starts]
        whole: NDArray[np.int64] = starts[span == np.timedelta64(length - 1, "h")]
        return whole


def build_cache(
    folder: Path, chunks: Callable[[], Iterator[Chunk]], count: int, item: tuple[int, ...]
) -> ArrayCache:
    """Write `count` items of shape `item` from `chunks()`; a finished cache is left as it is.

    The index is written last, so an interrupted build is built again and never half read.
    """
    if (folder / "index.json").exists():
        return ArrayCache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    array = np.memmap(folder / "array.f16", np.float16, mode="w+", shape=(count, *item))
    times = np.empty(count, "datetime64[h]")
    done = 0
    for values, when in chunks():
        array[done : done + len(values)] = values
        times[done : done + len(values)] = when
        done += len(values)
    array.flush()
    if done != count:
        raise InvalidInput(f"Expected {count} items for the cache {folder}; got {done}.")
    np.save(folder / "times.npy", times)
    (folder / "index.json").write_text(json.dumps({"shape": [count, *item]}))
    return ArrayCache(folder)
