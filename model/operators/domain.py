"""What operators are built from: the points of the observations, and the model's own domain."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.domain.grids import Grid
from model.domain.variables import Channel

__all__ = ["ModelDomain", "Points", "Statics"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Statics:
    """Fields that do not change, and instrument descriptions.

    Attributes:
        orography: Height of the model's ground above mean sea level in m, with shape
            (nlat, nlon), or None where unknown.
        land_sea_mask: Land fraction in [0, 1], with shape (nlat, nlon), or None.
        weighting_functions: For brightness temperatures: channel number to the weights of the
            temperatures on the model's levels, from the top down; weights may sum to less than 1.
        residual: What the model cannot represent of each channel, 1 standard deviation in SI
            units with shape (C, nlat), or None; see `model.operators.representativeness`.
        typical: A typical value of each channel with shape (C,); goes with `residual`.
    """

    orography: Float | None = None
    land_sea_mask: Float | None = None
    weighting_functions: Mapping[int, Float] = field(default_factory=dict)
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
    """

    hours: Float
    lat: Float
    lon: Float
    elevation: Float
    vertical_kind: str
    vertical: Float
    vertical_top: Float

    def __len__(self) -> int:
        return len(self.hours)

    def at_pressure(self, pressure: Float) -> "Points":
        """The same points with a pressure in Pa for vertical coordinate."""
        return replace(self, vertical_kind="pressure", vertical=pressure)


@dataclass(frozen=True)
class ModelDomain:
    """The states that operators read.

    Attributes:
        grid: Horizontal grid.
        channels: Channel order of the states; C of them.
        length: T, the number of hourly states.
        statics: Unchanging fields.
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
        """(T, C, Y, X)."""
        return self.length, len(self.channels), *self.grid.shape

    def surface_channel(self, variable: str) -> int | None:
        """Index of a surface variable, or None if the states lack it."""
        return self._index.get(Channel(variable))

    def column(self, variable: str) -> tuple[NDArray[np.int64], Float]:
        """Channel indices of a variable on levels, and the levels in Pa; from the top down."""
        found = [(c.level, i) for c, i in self._index.items() if c.variable == variable and c.level]
        found.sort()
        indices = np.array([i for _, i in found], dtype=np.int64)
        return indices, np.array([100.0 * (level or 0) for level, _ in found])
