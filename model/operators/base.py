r"""Define observation operators, what they are built from, and how a family of them is described.

All of ours are built from one form. A state :math:`x` with shape :math:`(T, C, Y, X)` is sampled
at a few points per observation (time, channel and cell weights, a :class:`Stencil`), which gives
:math:`K` *ingredients* :math:`z = S x` per observation, and a pointwise function joins them,

.. math:: H(x) = f(S x; \theta),

with :math:`f` the identity for the linear operators. So a whole observation set costs one sparse
product, whatever the number of families, and its adjoint another. Stencils are separable: weights
in time, channel and cell are expanded into one sparse matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from model.domain.grids import Grid
from model.domain.variables import Channel

__all__ = [
    "FamilyStencil",
    "ModelDomain",
    "ObservationOperator",
    "OperatorFamily",
    "Points",
    "Statics",
    "Stencil",
    "expand_stencils",
]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Statics:
    """Fields that do not change in time, and weighting functions of instruments.

    Attributes:
        orography: Height of the model's ground above mean sea level in m, with shape
            (nlat, nlon), or None where unknown.
        land_sea_mask: Land fraction in [0, 1], with shape (nlat, nlon), or None.
        weighting_functions: For brightness temperatures: sensor and channel number to the weights
            of the temperatures on the model's levels, from the top down; weights may sum to less
            than 1. A number alone applies to any sensor without an entry of its own.
        residual: Reconstruction residual of each channel, 1 standard deviation in SI units with
            shape (C, nlat), or None; see `model.operators.composite`.
        typical: A typical value of each channel with shape (C,); goes with `residual`.
    """

    orography: Float | None = None
    land_sea_mask: Float | None = None
    weighting_functions: Mapping[int | tuple[str, int], Float] = field(default_factory=dict)
    residual: Float | None = None
    typical: Float | None = None


@dataclass(frozen=True)
class Points:
    """Where and when `n` values of one variable were observed; NaN where unknown.

    Attributes:
        hours: Hours since the first state, with shape (n,).
        lat: Degrees north, with shape (n,).
        lon: Degrees east, any range, with shape (n,).
        elevation: Station height above mean sea level in m, with shape (n,).
        vertical_kind: One of `VERTICAL_KINDS`.
        vertical: Vertical coordinate (lower bound of a layer), Pa, m or a number, with shape (n,).
        vertical_top: Upper bound of a layer in Pa, with shape (n,).
        sensor: Number of the sensor in `sensors`, -1 where unknown, with shape (n,).
        sensors: Names of sensors.
    """

    hours: Float
    lat: Float
    lon: Float
    elevation: Float
    vertical_kind: str
    vertical: Float
    vertical_top: Float
    sensor: NDArray[np.int64]
    sensors: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.hours)

    def at_pressure(self, pressure: Float) -> "Points":
        """Return the same points with a pressure in Pa for vertical coordinate."""
        return replace(self, vertical_kind="pressure", vertical=pressure)


@dataclass(frozen=True)
class ModelDomain:
    """The states that operators read.

    Attributes:
        grid: Horizontal grid.
        channels: Channel order of the states; C of them.
        length: T, the number of hourly states.
        statics: Static fields.
    """

    grid: Grid
    channels: tuple[Channel, ...]
    length: int
    statics: Statics = field(default_factory=Statics)

    @cached_property
    def _index(self) -> dict[Channel, int]:
        return {channel: i for i, channel in enumerate(self.channels)}

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape (T, C, Y, X) of the states that operators read."""
        return self.length, len(self.channels), *self.grid.shape

    def surface_channel(self, variable: str) -> int | None:
        """Return the index of a surface variable, or None if the states lack it."""
        return self._index.get(Channel(variable))

    def column(self, variable: str) -> tuple[NDArray[np.int64], Float]:
        """Return the channel indices of a variable on levels, and the levels in Pa; from the top down."""
        found = [(c.level, i) for c, i in self._index.items() if c.variable == variable and c.level]
        found.sort()
        indices = np.array([i for _, i in found], dtype=np.int64)
        return indices, np.array([100.0 * (level or 0) for level, _ in found])


Int = NDArray[np.int64]


LARGEST_MAP = 1 << 27
"""State values; above this, distinct indices are found by sorting."""
SPARSE = 20
"""State values for each index; above this, sorting the few indices costs less than a map."""


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
        return int(self.channel.shape[1])

    @property
    def first_time(self) -> Int:
        """Earliest state with a weight, with shape (n,)."""
        return np.where(self.time_weight[:, 0] != 0, self.time[:, 0], self.time[:, 1])

    @property
    def last_time(self) -> Int:
        """Latest state with a weight, with shape (n,)."""
        return np.where(self.time_weight[:, 1] != 0, self.time[:, 1], self.time[:, 0])

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Stencil":
        """Return the stencils of the observations at `index`."""
        return Stencil(
            self.time[index],
            self.time_weight[index],
            self.channel[index],
            self.channel_weight[index],
            self.cell[index],
            self.cell_weight[index],
        )

    def shifted(self, hours: int) -> "Stencil":
        """Return the stencil on states numbered from `hours`; indices without weight are kept valid."""
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
        """Return flat state indices and weights, each with shape (n * K, 2 P * 4)."""
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


def expand_stencils(
    stencils: Sequence[Stencil], channels: int, cells: int
) -> tuple[sparse.csr_array, Int]:
    """Return one sparse matrix for all stencils, over the state values that any of them reads.

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
    """Return distinct values, ascending, and the number of each entry's value among them."""
    span = int(index.max()) + 1 if len(index) else 0
    if span > min(LARGEST_MAP, SPARSE * len(index)):
        return np.unique(index, return_inverse=True)
    # Marking beats sorting by a factor of ten where a map of all state values fits in memory.
    seen = np.zeros(span, dtype=bool)
    seen[index] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[index]


@runtime_checkable
class ObservationOperator(Protocol):
    r"""Observation operator :math:`H`, from model states to observation space.

    Differentiable with respect to ``states``: guidance needs :math:`\mathbf{H}^\top w` (vjp), and
    :math:`\mathbf{H} v` (jvp) by double backward or in forward mode.
    """

    def __call__(self, states: Tensor) -> Tensor:
        r"""Arguments:
            states: Physical states in SI units, with shape :math:`(*, T, C, Y, X)`; hourly,
                latitude north to south, longitude eastward from 0.

        Returns:
            The model equivalents :math:`H(x)`, in the units of the observed variable, with shape
            :math:`(*, N)`.
        """


@dataclass(frozen=True)
class FamilyStencil:
    """The operator of one family for `n` points of one variable.

    Attributes:
        stencil: Where each of the `n` points takes its K ingredients.
        parameters: Other arguments of the pointwise function, each with shape `(n,)`.
        accepted: Points inside the model's domain; the others have arbitrary stencils.
        reason: Quality-control outcome of the points that are not accepted.
    """

    stencil: Stencil
    accepted: NDArray[np.bool_]
    parameters: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    reason: str = "domain"


@runtime_checkable
class OperatorFamily(Protocol):
    """One way to get from states to observations.

    Attributes:
        linear: Whether the operator is affine in the state.
    """

    linear: bool

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Return whether the family observes `variable` with that kind of vertical coordinate."""

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
        """Return stencils for points that all observe `variable`.

        Returns:
            None if the states lack a channel that is needed, which makes the points passive.
        """

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the pointwise function, from `(*, n, K)` to `(*, n)`; parameters have shape `(n,)`."""
