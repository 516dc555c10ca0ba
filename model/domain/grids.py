"""Horizontal grids: latitude north to south, longitude eastward from 0 degrees.

A grid is data, not code: a checkpoint's card names its kind and size, and everything else follows.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.domain.errors import InvalidInput

__all__ = ["Grid"]

GridKind = Literal["regular", "gaussian"]


@dataclass(frozen=True)
class Grid:
    """A global latitude-longitude grid.

    Attributes:
        name: For example `era5-0p25` or `t31`.
        kind: `regular` has rows at both poles with equal spacing; `gaussian` has rows at the
            zeros of the Legendre polynomial P_nlat.
        nlat: Rows, north to south.
        nlon: Columns; column 0 lies at longitude 0 and the spacing is 360/nlon degrees.
    """

    name: str
    kind: GridKind
    nlat: int
    nlon: int

    def __post_init__(self) -> None:
        if self.kind not in ("regular", "gaussian"):
            raise InvalidInput(
                f"Expected grid kind 'regular' or 'gaussian'; got '{self.kind}' for grid '{self.name}'."
            )
        if self.nlat < 2 or self.nlon < 2:
            raise InvalidInput(
                f"Expected at least 2 rows and 2 columns; got {self.nlat} x {self.nlon} for grid "
                f"'{self.name}'."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(nlat, nlon)."""
        return self.nlat, self.nlon

    @cached_property
    def latitude(self) -> NDArray[np.float64]:
        """Degrees north, descending, with shape (nlat,)."""
        if self.kind == "regular":
            return np.linspace(90.0, -90.0, self.nlat)
        nodes, _ = np.polynomial.legendre.leggauss(self.nlat)
        rows: NDArray[np.float64] = np.rad2deg(np.arcsin(nodes[::-1]))
        return rows

    @cached_property
    def longitude(self) -> NDArray[np.float64]:
        """Degrees east in [0, 360), with shape (nlon,)."""
        return np.linspace(0.0, 360.0, self.nlon, endpoint=False)

    @cached_property
    def area_weights(self) -> NDArray[np.float64]:
        """Share of the sphere of each row, with shape (nlat,); sums to 1.

        Gaussian quadrature weights on a Gaussian grid; on a regular grid the exact area of the
        band between mid-latitudes, so that the pole rows are caps and do not vanish.
        """
        if self.kind == "gaussian":
            _, weights = np.polynomial.legendre.leggauss(self.nlat)
            return weights[::-1] / 2.0
        edges = np.concatenate(([90.0], (self.latitude[1:] + self.latitude[:-1]) / 2, [-90.0]))
        area: NDArray[np.float64] = -np.diff(np.sin(np.deg2rad(edges))) / 2.0
        return area
