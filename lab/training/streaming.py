"""Read states as training draws them, ahead of the step that needs them.

A year of states at 0.25° takes 2.6 TB in single precision, so a period is not cached: each state is read
from the store when it is needed. Every epoch deals all states of a period to the ranks in its own random
order, so that no two ranks read the same state and none is read twice. The states of a step follow from
its number, so a resumed run needs no record of what was read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lab.training.datasets import (
    ArrayCache,
    ChannelStatistics,
    Splits,
    StateStore,
    build_cache,
    channel_statistics,
)
from lab.training.loop import built_once
from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import channels

__all__ = [
    "DataConfig",
    "GridConfig",
    "StateStream",
    "StandardisedStates",
    "batch_positions",
    "spread",
    "states_of_part",
]


class StandardisedStates(Protocol):
    """Standardised states of a period: a stream, or a cache."""

    def __len__(self) -> int:
        """Return N, how many there are."""

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the states at positions (B,), with shape (B, C, Y, X); missing values are 0."""


@dataclass(frozen=True, eq=False)
class StateStream:
    """States that are read from the store and standardised on access.

    Attributes:
        store: The store.
        statistics: To standardise with.
        indices: Of the states along the store's time, with shape (N,).
    """

    store: StateStore
    statistics: ChannelStatistics
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the states at positions (B,), with shape (B, C, Y, X); missing values are 0."""
        return self.statistics.standardise(self.store.read(self.indices[positions].tolist()))

    def read_part(self, part: range) -> NDArray[np.float32]:
        """Return the states at consecutive positions."""
        return self.read(np.arange(part.start, part.stop))


def spread(states: StandardisedStates, most: int) -> Iterator[NDArray[np.float32]]:
    """Yield at most `most` states (1, C, Y, X), evenly spread over the period, one by one."""
    for position in np.linspace(0, len(states) - 1, min(most, len(states))).astype(np.int64):
        yield states.read(position[None])


def batch_positions(
    number: int, batch: int, count: int, seed: int, rank: int = 0, world: int = 1
) -> NDArray[np.int64]:
    """Return the positions (batch,), ascending, of the states of one batch of one rank.

    Arguments:
        number: Of the batch, from the beginning of the run.
        batch: States of a batch.
        count: N, the number of states to draw from.
        seed: Of the run.
        rank: Of this process.
        world: How many there are.
    """
    place = (number * world + rank) * batch + np.arange(batch)
    drawn = [_order(seed, int(p) // count, count)[int(p) % count] for p in place]
    return np.sort(np.array(drawn, np.int64))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


class GridConfig(BaseModel):
    """The grid by name, kind and size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    nlat: int
    nlon: int

    def build(self) -> Grid:
        """Return the grid that is described."""
        return Grid(self.name, self.kind, self.nlat, self.nlon)  # type: ignore[arg-type]


class DataConfig(BaseModel):
    """Where training states come from and where they are cached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    cache: Path
    grid: GridConfig
    levels: tuple[int, ...]
    splits: Splits
    every_hours: int = 5
    """Training states are taken this far apart; 5 visits every hour of the day."""
    cached: bool = False
    """Whether the states of whole periods are cached on disk, beside the statistics, instead of read
    from the store when they are needed."""
    ahead: Annotated[int, Field(ge=0)] = 2
    """Number of batches that are prefetched."""
    sample_states: Annotated[int, Field(gt=0)] = 400
    """States that statistics, principal components and spectra are taken from, at most."""
    storage_options: dict[str, Any] | None = None
    """Of the file system of the store, such as credentials; public buckets need none."""

    def open(self) -> StateStore:
        """Return the store, checked against the grid."""
        store = StateStore(self.store, channels(self.levels), self.storage_options)
        store.check_grid(self.grid.build())
        return store

    def statistics(self, store: StateStore) -> ChannelStatistics:
        """Compute the statistics of the training period once; keep them beside the caches."""
        path = self.cache / "statistics.json"

        def build() -> None:
            self.cache.mkdir(parents=True, exist_ok=True)
            indices = list(chain(*store.within(self.splits.bounds("train"))))
            grid, count = self.grid.build(), self.sample_states
            channel_statistics(store, indices, grid, count).save(path)

        built_once(path, build)
        return ChannelStatistics.load(path)

    def indices(self, store: StateStore, split: str, every_hours: int) -> NDArray[np.int64]:
        """Return indices of a split along the store's time, `every_hours` apart, in order."""
        runs = [run[::every_hours] for run in store.within(self.splits.bounds(split))]
        found = np.array(list(chain(*runs)), np.int64)
        if not len(found):
            raise InvalidInput(f"Expected states of the {split} period in {self.store}; none are.")
        return found

    def source(self, store: StateStore, split: str, every_hours: int) -> StandardisedStates:
        """Return the standardised states of a split, from the store or, where asked, a cache."""
        if self.cached:
            return self.states(store, split, every_hours)
        indices = self.indices(store, split, every_hours)
        return StateStream(store, self.statistics(store), indices)

    def states(self, store: StateStore, split: str, every_hours: int) -> ArrayCache:
        """Cache the standardised states of a split, `every_hours` apart."""
        indices = self.indices(store, split, every_hours)
        stream = StateStream(store, self.statistics(store), indices)
        item = (len(store.channels), *self.grid.build().shape)
        folder, times = self.cache / f"{split}-{every_hours}h", store.times[indices]
        return build_cache(folder, times, item, states_of_part(item), stream.read_part)


def states_of_part(item: tuple[int, ...]) -> int:
    """Return how many states of a shape are read at once: a few days, but no more than 512 MB."""
    return max(1, min(96, (1 << 29) // (4 * math.prod(item))))
