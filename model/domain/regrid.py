"""Read fields on rectilinear grids of files: interpolate, average conservatively, find cells.

These grids have any rows and columns and need not be global. The model's own grids, which are
global, are interpolated by `model.domain.grids`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.domain.grids import Grid

__all__ = ["cell_index", "conservative", "interpolate_rectilinear", "regrid_rows"]

Array = NDArray[Any]


def _cyclic(longitude: Array) -> bool:
    """Return whether equally spaced longitudes cover the full circle."""
    step = np.diff(longitude).mean() if len(longitude) > 1 else 360.0
    return bool(abs(step * len(longitude) - 360.0) < 0.5 * abs(step))


def interpolate_rectilinear(
    field: Array, latitude: Array, longitude: Array, lat: Array, lon: Array
) -> NDArray[np.float64]:
    """Return a field at scattered points, linear in latitude and in longitude.

    Poleward of the outermost row the row itself is used, within one spacing of it; elsewhere
    outside the grid the result is NaN.

    Arguments:
        field: Values with shape (nlat, nlon).
        latitude: Degrees north, monotonic, with shape (nlat,).
        longitude: Degrees east, ascending, with shape (nlon,).
        lat: Degrees north of the points.
        lon: Degrees east of the points, in any convention.

    Returns:
        Values with the shape of `lat`.
    """
    if latitude[0] > latitude[-1]:
        latitude, field = latitude[::-1], field[::-1]
    spacing = float(np.abs(np.diff(latitude)).max())
    inside = (lat >= latitude[0] - spacing) & (lat <= latitude[-1] + spacing)
    lat = np.clip(lat, latitude[0], latitude[-1])
    j = np.clip(np.searchsorted(latitude, lat, side="right") - 1, 0, len(latitude) - 2)
    wj = (lat - latitude[j]) / (latitude[j + 1] - latitude[j])
    east = np.mod(lon - longitude[0], 360.0)
    offset = longitude - longitude[0]
    if _cyclic(longitude):
        offset = np.append(offset, 360.0)
        field = np.concatenate([field, field[:, :1]], axis=1)
    else:
        inside = inside & (east <= offset[-1])
    i = np.clip(np.searchsorted(offset, east, side="right") - 1, 0, len(offset) - 2)
    wi = np.clip((east - offset[i]) / (offset[i + 1] - offset[i]), 0.0, 1.0)
    low = field[j, i] * (1 - wi) + field[j, i + 1] * wi
    high = field[j + 1, i] * (1 - wi) + field[j + 1, i + 1] * wi
    return np.where(inside, low * (1 - wj) + high * wj, np.nan)


def cell_index(latitude: Array, nlon: int, lat: Array, lon: Array) -> NDArray[np.int64]:
    """Return the row-major number of the grid cell (bounded by mid-points) that holds each point.

    Arguments:
        latitude: Rows of the grid, degrees north, descending, with shape (nlat,).
        nlon: Columns; column 0 is centred on longitude 0.
        lat: Degrees north of the points.
        lon: Degrees east of the points.
    """
    edges = (latitude[1:] + latitude[:-1]) / 2
    row = np.searchsorted(-edges, -np.asarray(lat))
    column = np.floor(np.mod(lon, 360.0) / (360.0 / nlon) + 0.5).astype(np.int64) % nlon
    return row.astype(np.int64) * nlon + column


def _bounds(centres: Array, low: float, high: float) -> NDArray[np.float64]:
    return np.concatenate([[low], (centres[1:] + centres[:-1]) / 2, [high]])


def _overlap(source: Array, target: Array) -> NDArray[np.float64]:
    """Return the length shared by each target interval and each source interval, (targets, sources)."""
    low = np.maximum(target[:-1, None], source[None, :-1])
    high = np.minimum(target[1:, None], source[None, 1:])
    shared: NDArray[np.float64] = np.maximum(high - low, 0.0)
    return shared


def conservative(
    field: Array,
    latitude: Array,
    longitude: Array,
    target_latitude: Array,
    target_longitude: Array,
) -> NDArray[np.float64]:
    """Average a global field conservatively, to first order, onto a coarser global grid.

    Cells are bounded by mid-points; overlaps are exact in sine of latitude and in longitude, so
    the global mean is kept. Cells without a value (NaN) are left out of the averages.

    Arguments:
        field: Values with shape (nlat, nlon).
        latitude: Rows of the field in degrees north, monotonic.
        longitude: Columns of the field in degrees east, monotonic, covering the full circle.
        target_latitude: Rows of the result in degrees north.
        target_longitude: Columns of the result in degrees east.

    Returns:
        Values with shape (targets north-south, targets east-west); NaN where no source has one.
    """
    flip = latitude[0] > latitude[-1]
    rows = _overlap(
        np.sin(np.deg2rad(_bounds(latitude[::-1] if flip else latitude, -90.0, 90.0))),
        np.sin(np.deg2rad(_bounds(np.sort(target_latitude), -90.0, 90.0))),
    )
    rows = rows[:, ::-1] if flip else rows
    rows = rows[::-1] if target_latitude[0] > target_latitude[-1] else rows
    columns = _cyclic_overlap(longitude, target_longitude)
    valid = np.isfinite(field)
    total = rows @ np.where(valid, field, 0.0) @ columns.T
    weight = rows @ valid.astype(np.float64) @ columns.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0.0, total / weight, np.nan)


def _cyclic_overlap(source: Array, target: Array) -> NDArray[np.float64]:
    half_source, half_target = 180.0 / len(source), 180.0 / len(target)
    centres = np.arange(len(source)) * 2 * half_source + source[0]
    first = np.arange(len(target)) * 2 * half_target + target[0]
    total = np.zeros((len(target), len(source)))
    for turn in (-720.0, -360.0, 0.0, 360.0, 720.0):
        low = np.maximum((first - half_target)[:, None], (centres - half_source + turn)[None, :])
        high = np.minimum((first + half_target)[:, None], (centres + half_source + turn)[None, :])
        total += np.maximum(high - low, 0.0)
    return total


def regrid_rows(field: Array, rows: Array, columns: Array, grid: Grid) -> NDArray[np.float64]:
    """Bring a rectilinear field to a grid: averaged where it is finer and global, else interpolated.

    A field on the grid itself keeps its values: coordinates in files are rounded, and interpolating
    over a thousandth of a degree would mix neighbours.

    Arguments:
        field: Values with shape (rows, columns).
        rows: Degrees north, ascending.
        columns: Degrees east in [0, 360), ascending.
        grid: The grid of the result.

    Returns:
        Values with shape (nlat, nlon); NaN where the field has none.
    """
    if (
        field.shape == grid.shape
        and _near(rows[::-1], grid.latitude)
        and _near(columns, grid.longitude)
    ):
        return np.array(field[::-1], dtype=np.float64)
    if len(rows) > grid.nlat and _global(rows, columns):
        return conservative(field, rows, columns, grid.latitude, grid.longitude)
    lat, lon = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return interpolate_rectilinear(field, rows, columns, lat, lon)


def _near(a: Array, b: Array) -> bool:
    return bool(np.allclose(a, b, rtol=0.0, atol=1e-3))


def _global(rows: Array, columns: Array) -> bool:
    step = 360.0 / len(columns)
    around = np.allclose(np.diff(columns), step, atol=0.01 * step)
    spacing = float(np.diff(rows).max())
    return bool(around and rows[0] - spacing <= -90.0 and rows[-1] + spacing >= 90.0)
