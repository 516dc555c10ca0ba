"""Separable stencils: weights in time, channel and cell, expanded into one sparse matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Stencil", "assemble"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


LARGEST_MAP = 1 << 27
"""State values; above this, distinct indices are found by sorting."""


@dataclass(frozen=True)
class Stencil:
    """Points in the states that each observation reads, as a product of three small stencils.

    Ingredient k of observation i is the sum over a, p, b of
    `time_weight[i, a] * channel_weight[i, k, p] * cell_weight[i, b]` times the state at
    `time[i, a], channel[i, k, p], cell[i, b]`.

    Attributes:
        time: Index of the state, with shape (n, 2).
        time_weight: Rows sum to 1, with shape (n, 2).
        channel: Channel index, with shape (n, K, P).
        channel_weight: With shape (n, K, P).
        cell: Flat index of the cell in (Y, X), with shape (n, 4).
        cell_weight: With shape (n, 4); rows sum to 1 but for vector components beyond the last
            row, which change sign across the pole.
    """

    time: Int
    time_weight: Float
    channel: Int
    channel_weight: Float
    cell: Int
    cell_weight: Float

    def __len__(self) -> int:
        return len(self.time)

    @property
    def ingredients(self) -> int:
        """K, the number of ingredients of each observation."""
        return self.channel.shape[1]

    @property
    def first_time(self) -> Int:
        """Earliest state with a weight, with shape (n,)."""
        return np.where(self.time_weight[:, 0] != 0, self.time[:, 0], self.time[:, 1])

    @property
    def last_time(self) -> Int:
        """Latest state with a weight, with shape (n,)."""
        return np.where(self.time_weight[:, 1] != 0, self.time[:, 1], self.time[:, 0])

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Stencil":
        """The observations at `index`."""
        return Stencil(
            self.time[index],
            self.time_weight[index],
            self.channel[index],
            self.channel_weight[index],
            self.cell[index],
            self.cell_weight[index],
        )

    def shifted(self, hours: int) -> "Stencil":
        """The stencil on states numbered from `hours`; indices without weight are kept valid."""
        first, last = self.first_time - hours, self.last_time - hours
        return replace(self, time=np.stack((first, last), axis=1), time_weight=self._clean_weights)

    @property
    def _clean_weights(self) -> Float:
        # With one state only, both entries point at it; all weight goes to the first.
        one = self.first_time == self.last_time
        weights = self.time_weight.copy()
        weights[one] = (1.0, 0.0)
        return weights

    def expand(self, channels: int, cells: int) -> tuple[Int, Float]:
        """Flat state indices and weights, each with shape (n * K, 2 P * 4)."""
        plane = self.time[:, None, None, :] * channels + self.channel[:, :, :, None]
        index = plane[..., None] * cells + self.cell[:, None, None, None, :]
        weight = (
            self.time_weight[:, None, None, :, None]
            * self.channel_weight[:, :, :, None, None]
            * self.cell_weight[:, None, None, None, :]
        )
        width = index.shape[2] * index.shape[3] * index.shape[4]
        rows = len(self) * self.ingredients
        return index.reshape(rows, width), weight.reshape(rows, width)


def assemble(
    stencils: Sequence[Stencil], channels: int, cells: int
) -> tuple[sparse.csr_array, Int]:
    """One sparse matrix for all stencils, over the state values that any of them reads.

    Arguments:
        stencils: Their ingredients follow one another, observation by observation.
        channels: C.
        cells: Y * X.

    Returns:
        The matrix with shape (sum of n * K, U), and the U flat indices in (T, C, Y, X), ascending.
    """
    indices, weights, counts = [], [], []
    for stencil in stencils:
        index, weight = stencil.expand(channels, cells)
        used = weight != 0
        counts.append(np.count_nonzero(used, axis=1))
        indices.append(index[used])
        weights.append(weight[used])
    columns, position = _compress(np.concatenate(indices))
    start = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    matrix = sparse.csr_array(
        (np.concatenate(weights), position, start), shape=(len(start) - 1, len(columns))
    )
    return matrix, columns


def _compress(index: Int) -> tuple[Int, Int]:
    """Distinct values, ascending, and the number of each entry's value among them."""
    span = int(index.max()) + 1 if len(index) else 0
    if span > LARGEST_MAP:
        return np.unique(index, return_inverse=True)
    # Marking beats sorting by a factor of ten where a map of all state values fits in memory.
    seen = np.zeros(span, dtype=bool)
    seen[index] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[index]
