"""Describe horizontal grids, and interpolate bilinearly on them.

Latitudes run north to south, longitudes eastward from 0 degrees. A grid is data, not code: a
checkpoint's card names its kind and size, and everything else follows.

Interpolation is periodic in longitude and continued across the poles. A Gaussian grid has no
row at the pole. Between its last row, at colatitude a, and the pole, a point is interpolated
along its meridian between the last row and the same row on the other side of the pole
(longitude + 180 degrees), 2a away. Vector components change sign there, because east and north
turn by 180 degrees across the pole. On a regular grid, whose last rows are the poles, this
never happens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.domain.errors import InvalidInput

__all__ = ["Grid", "bilinear", "interpolate", "unit_vectors"]

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
        """Return the numbers of rows and columns, (nlat, nlon)."""
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


Float = NDArray[np.float64]
Int = NDArray[np.int64]


def _meridian_legs(grid: Grid, lat: Float) -> tuple[Int, Int, Float, NDArray[np.bool_]]:
    """Return the upper row, lower row, weight of the lower one, and whether it lies across the pole."""
    rows = grid.latitude
    upper = np.searchsorted(-rows, -lat, side="right") - 1
    north, south = upper < 0, (upper >= grid.nlat - 1) & (lat < rows[-1])
    upper = np.clip(upper, 0, grid.nlat - 2)
    weight = (rows[upper] - lat) / (rows[upper] - rows[upper + 1])
    lower = upper + 1
    for cap, row, pole in ((north, 0, 90.0), (south, grid.nlat - 1, -90.0)):
        if cap.any():
            upper[cap] = lower[cap] = row
            edge = abs(pole - rows[row])
            weight[cap] = (edge - np.abs(pole - lat[cap])) / (2.0 * edge)
    return upper, lower, weight, north | south


def bilinear(grid: Grid, lat: Float, lon: Float, *, vector: bool = False) -> tuple[Int, Float]:
    """Return the cells around points of the sphere and their weights.

    Arguments:
        grid: Horizontal grid.
        lat: Degrees north in [-90, 90], with shape (n,).
        lon: Degrees east, any range, with shape (n,).
        vector: Whether the field is a component of a vector.

    Returns:
        Flat indices in (nlat, nlon) and weights, each with shape (n, 4). Weights sum to 1, except
        for vectors across a pole.
    """
    upper, lower, weight, across = _meridian_legs(grid, lat)
    column = np.mod(lon, 360.0) * (grid.nlon / 360.0)
    opposite = np.where(across, column + grid.nlon / 2.0, column)
    cells = np.empty((len(lat), 4), dtype=np.int64)
    weights = np.empty((len(lat), 4))
    sign = np.where(across, -1.0, 1.0) if vector else 1.0
    legs = ((upper, column, 1.0 - weight), (lower, opposite, weight * sign))
    for leg, (row, position, share) in enumerate(legs):
        west = np.floor(position)
        east_share = position - west
        first = west.astype(np.int64) % grid.nlon
        cells[:, 2 * leg] = row * grid.nlon + first
        cells[:, 2 * leg + 1] = row * grid.nlon + (first + 1) % grid.nlon
        weights[:, 2 * leg] = share * (1.0 - east_share)
        weights[:, 2 * leg + 1] = share * east_share
    return cells, weights


def interpolate(field: Float, cells: Int, weights: Float) -> Float:
    """Return a field (nlat, nlon) at points (n,), given the cells and weights of `bilinear`."""
    values: Float = np.einsum("nb,nb->n", field.reshape(-1)[cells], weights)
    return values


def unit_vectors(lat: Float, lon: Float) -> Float:
    """Return the points on the unit sphere, with shape (*, 3), of degrees with shape (*)."""
    phi, lam = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)
