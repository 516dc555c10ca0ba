"""Read states to train on: from a zarr store, split into periods, standardised and cached.

Stores have the layout of WeatherBench2: ERA5 or a nature run alike. They differ in the order of
latitude and of dimensions and in the levels they hold; this module always returns (time, channel,
latitude north to south, longitude from 0 eastward) in SI units.

Training, validation and test periods never overlap and are separated by gaps. Statistics are the mean
and standard deviation of each channel over the training period, weighted by area.

Standardised states (where asked) and latents are cached on disk as one half-precision array, read by
memory map. Decompressing a store again for every epoch can cost more than a training step; a flat
float16 array costs a page fault. Rounding is 2^-11 relative, far below the autoencoder's error. All
ranks build a cache together, on a file system that they share; an interrupted build is resumed. If a
period takes terabytes, its states are read as they are drawn instead (`lab.training.streaming`).
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from zarr.storage import ZipStore

from lab.training.loop import prefetched, rank_and_world, wait_for_file
from model.domain.errors import ConfigurationError, InvalidInput
from model.domain.files import write_atomic
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
"""Static fields by name: the variable in the store, and the factor to our unit (m for orography)."""


class StateStore:
    """Read states of given channels from a store.

    Arguments:
        url: Anything xarray opens as zarr (`gs://`, `s3://` and whatever else fsspec reads, too), a
            zarr store in a zip file, or a NetCDF file.
        channels: Which channels, in which order.
        options: Of the file system; None for anonymous reading of public buckets.

    Raises:
        InvalidInput: If there is no store, or it lacks variables, levels or dimensions, which are
            named.
        ConfigurationError: If reading it needs a package that is not installed.
    """

    def __init__(
        self, url: str, channels: Sequence[Channel], options: dict[str, Any] | None = None
    ) -> None:
        self.url = url
        self.channels = tuple(channels)
        self.dataset = _open(url, options)
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
        """Check that the store is on a grid.

        Raises:
            InvalidInput: If the store's rows or columns differ from the grid's by more than a
                thousandth of a degree.
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
        size = part.sizes
        shape = size["time"], len(self.channels), size["latitude"], size["longitude"]
        states = np.empty(shape, np.float32)
        places: dict[str, list[int]] = {}
        for place, channel in enumerate(self.channels):
            places.setdefault(channel.variable, []).append(place)
        # One variable at a time, and only the levels needed, to limit the memory beside the states.
        for name, own in places.items():
            variable = part[name]
            if "level" in variable.dims:
                known = list(map(int, part["level"].values))
                wanted = [known.index(self.channels[place].level or 0) for place in own]
                states[:, own] = self._load(variable.isel(level=wanted)).swapaxes(0, 1)
            else:
                states[:, own[0]] = self._load(variable)
        return states

    def _load(self, variable: xr.DataArray) -> NDArray[np.float32]:
        dims = [d for d in ("level", "time", "latitude", "longitude") if d in variable.dims]
        array = variable.transpose(*dims).values.astype(np.float32, copy=False)
        return array[..., ::-1, :] if self._flip else array

    def static(self) -> dict[str, NDArray[np.float32]]:
        """Return orography [m] and land-sea mask [0-1] with shape (Y, X), where the store has them."""
        found = {}
        for name, (foreign, factor) in STATIC_NAMES.items():
            if foreign in self.dataset:
                found[name] = self._load(self.dataset[foreign]) * np.float32(factor)
        return found


_ANONYMOUS: dict[str, dict[str, Any]] = {"gs": {"token": "anon"}, "s3": {"anon": True}}


def _open(url: str, options: dict[str, Any] | None = None) -> xr.Dataset:
    scheme, remote, _ = url.partition("://")
    try:
        if remote:
            options = _ANONYMOUS.get(scheme) if options is None else options
            far: xr.Dataset = xr.open_zarr(url, chunks=None, storage_options=options)
            return far
        if url.endswith(".nc"):
            # netCDF4 reads classic files too; letting xarray guess imports every backend.
            return xr.open_dataset(url, engine="netcdf4", chunks=None)
        if url.endswith(".zip"):
            store = ZipStore(url, mode="r")
            zipped: xr.Dataset = xr.open_zarr(store, chunks=None, consolidated=False)
            return zipped
        opened: xr.Dataset = xr.open_zarr(url, chunks=None)
        return opened
    except ImportError as error:
        raise ConfigurationError(
            f"Reading {scheme}:// needs a package that is not installed ({error}); gs:// and s3:// "
            "come with the extra 'archives': pip install 'appa-service[archives]'."
        ) from error
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
        z = np.empty(states.shape, np.float32)
        for c in range(states.shape[1]):  # in double precision, of one channel at a time
            z[:, c] = np.nan_to_num((states[:, c] - self.mean[c]) / self.std[c], nan=0.0)
        return z

    def save(self, path: Path) -> None:
        """Write the statistics as a JSON file."""
        values = {"names": self.names, "mean": self.mean.tolist(), "std": self.std.tolist()}
        write_atomic(path, json.dumps(values, indent=1))

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

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the items at positions, with shape (B, ...)."""
        return np.asarray(self.array[positions], np.float32)

    def windows(self, length: int) -> NDArray[np.int64]:
        """Return the first positions of all runs of `length` consecutive hourly times."""
        starts = np.arange(max(len(self.times) - length + 1, 0))
        span = self.times[starts + length - 1] - self.times[starts]
        whole: NDArray[np.int64] = starts[span == np.timedelta64(length - 1, "h")]
        return whole


def build_cache(
    folder: Path,
    times: NDArray[np.datetime64],
    item: tuple[int, ...],
    size: int,
    read: Callable[[range], NDArray[np.float32]],
    convert: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda values: values,
) -> ArrayCache:
    """Write items of shape `item` for `times`, unless the cache is finished already.

    Every rank does its share. The index is written last, so a cache is never half read; an interrupted
    build resumes with the missing parts, with any number of ranks.

    Arguments:
        folder: On a file system that all ranks share.
        times: Valid times, ascending, with shape (N,).
        item: Shape of an item.
        size: Items of a part; three parts are in memory at once.
        read: Returns the input for the items at some positions; called from other threads.
        convert: Converts that input to the items.
    """
    index = folder / "index.json"
    if index.exists():
        return ArrayCache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = rank_and_world()
    parts = [range(i, min(i + size, len(times))) for i in range(0, len(times), size)]
    marks, array = folder / f"done-{size}.u8", folder / "array.f16"
    _lengthen(array, 2 * len(times) * int(np.prod(item)))
    _lengthen(marks, len(parts))
    done = np.fromfile(marks, np.uint8)
    mine = [number for number in range(rank, len(parts), world) if not done[number]]
    made = prefetched(lambda number: read(parts[number]), mine)
    for number, values in zip(mine, made, strict=True):
        first = parts[number].start * 2 * int(np.prod(item))
        _write_at(array, first, convert(values).astype(np.float16).tobytes())
        _write_at(marks, number, b"\x01")
    if rank == 0:
        while not np.fromfile(marks, np.uint8).all():
            time.sleep(0.1)
        np.save(folder / "times.npy", times.astype("datetime64[h]"))
        write_atomic(index, json.dumps({"shape": [len(times), *item]}))
        marks.unlink()
    wait_for_file(index)
    return ArrayCache(folder)


def _lengthen(path: Path, size: int) -> None:
    """Extend a file to a size in bytes, unless it has it; several ranks may do so at once."""
    with path.open("ab") as file:
        file.truncate(size)


def _write_at(path: Path, first: int, content: bytes) -> None:
    """Write into a file and flush it; a memory map could undo what other machines write nearby."""
    with path.open("r+b") as file:
        file.seek(first)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
