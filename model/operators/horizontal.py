"""Bilinear interpolation on the sphere: periodic in longitude, continued across the poles.

A Gaussian grid has no row at the pole. Between its last row, at colatitude a, and the pole, a
point is interpolated along its meridian between the last row and the same row on the other side
of the pole (longitude + 180 degrees), 2a away. Components of vectors change sign on that way,
because east and north turn by 180 degrees across the pole. On a regular grid, whose last rows are
the poles, this never happens.
"""

import numpy as np
from numpy.typing import NDArray

from model.domain.grids import Grid

__all__ = ["bilinear", "sample"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def _meridian_legs(grid: Grid, lat: Float) -> tuple[Int, Int, Float, NDArray[np.bool_]]:
    """Upper row, lower row, weight of the lower one, and whether it lies across the pole."""
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
    """Cells and weights of points.

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


def sample(field: Float, cells: Int, weights: Float) -> Float:
    """Values of a field (nlat, nlon) at points, with shape (n,)."""
    return np.einsum("nb,nb->n", field.reshape(-1)[cells], weights)
