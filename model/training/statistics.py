"""Mean and standard deviation of each channel over the training period, weighted by area."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.training.datasets import StateStore

__all__ = ["ChannelStatistics", "channel_statistics"]


@dataclass(frozen=True)
class ChannelStatistics:
    """Per channel, in SI units, with shape (C,) each."""

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def standardise(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Physical states (N, C, Y, X) to standardised ones; missing values become 0."""
        z = (states - self.mean[:, None, None]) / self.std[:, None, None]
        return np.nan_to_num(z, nan=0.0, copy=False).astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes JSON."""
        values = {"names": self.names, "mean": self.mean.tolist(), "std": self.std.tolist()}
        path.write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, path: Path) -> "ChannelStatistics":
        """Reads what `save` wrote."""
        values = json.loads(path.read_text())
        return cls(tuple(values["names"]), np.array(values["mean"]), np.array(values["std"]))


def channel_statistics(
    store: StateStore, indices: Sequence[int], grid: Grid, count: int = 400
) -> ChannelStatistics:
    """Statistics from `count` states spread evenly over `indices`.

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
