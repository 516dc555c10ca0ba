r"""Resample fields from the result's grid to a view: a latitude-longitude box or a polar plane.

A global view holds values of the grid itself, subsampled in rows and columns where there are too
many. Polar views are interpolated bilinearly to a stereographic plane that touches the pole of a
sphere of radius R,

.. math:: r = 2 R \tan\frac{90° - \varphi}{2}

(J. P. Snyder, "Map projections: a working manual", USGS Professional Paper 1395, 1987, equation 21-5,
https://doi.org/10.3133/pp1395).
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.errors import InvalidInput, StorageError
from model.domain.grids import Grid, bilinear
from model.domain.physics import EARTH_RADIUS
from service.maps.answers import GridInfo
from service.maps.requests import MapView

__all__ = ["Placed", "grid_of", "nearest", "place", "sample", "sample_lattice"]

Float = NDArray[np.float64]

LONGLAT = f"+proj=longlat +R={EARTH_RADIUS:.0f} +no_defs"


@dataclass(frozen=True, eq=False)
class Placed:
    """A field in a view.

    Attributes:
        values: float32 (rows, columns), NaN where undefined.
        grid: Where they lie.
    """

    values: NDArray[np.float32]
    grid: GridInfo


def grid_of(dataset: xr.Dataset) -> Grid:
    """Return the grid of a result's file.

    Raises:
        StorageError: If its rows and columns are those of no grid known here.
    """
    latitude, longitude = dataset["latitude"].values, dataset["longitude"].values
    for kind in ("regular", "gaussian"):
        grid = Grid("file", kind, len(latitude), len(longitude))
        if np.allclose(grid.latitude, latitude, atol=1e-3) and np.allclose(
            grid.longitude, longitude, atol=1e-3
        ):
            return grid
    raise StorageError(
        f"Expected a global regular or Gaussian grid, north to south and east from 0; got "
        f"{len(latitude)} rows from {latitude[0]} and {len(longitude)} columns from {longitude[0]}."
    )


def sample(
    field: NDArray[Any], grid: Grid, lat: Float, lon: Float, *, vector: bool = False
) -> Float:
    """Return a field at points, bilinearly; undefined where the nearest cell is.

    Arguments:
        field: With shape (Y, X).
        grid: Grid of the field.
        lat: Degrees north, with shape (n,).
        lon: Degrees east, with shape (n,).
        vector: Whether it is a component of a vector, which turns at a pole.
    """
    cells, weights = bilinear(grid, lat, lon, vector=vector)
    values = field.reshape(-1)[cells].astype(np.float64)
    defined = np.isfinite(values)
    if defined.all():
        return np.asarray(np.einsum("nb,nb->n", values, weights))
    share = np.where(defined, np.abs(weights), 0.0).sum(axis=1)
    total = np.einsum("nb,nb->n", np.where(defined, values, 0.0), weights)
    closest = np.take_along_axis(defined, np.abs(weights).argmax(axis=1)[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(closest, total / share, np.nan)


def sample_lattice(
    field: NDArray[Any], grid: Grid, lat: Float, lon: Float, *, vector: bool = False
) -> Float:
    """Return a field where parallels cross meridians, with shape (H, W), as `sample` does.

    Columns are interpolated first, of the rows that are needed, then rows, which reads and multiplies
    far less than four cells a point.

    Arguments:
        field: With shape (Y, X).
        grid: Grid of the field.
        lat: Degrees north, with shape (H,).
        lon: Degrees east, with shape (W,).
        vector: Whether it is a component of a vector, which turns at a pole.
    """
    cells, shares = bilinear(grid, lat, np.zeros_like(lat), vector=vector)
    upper, lower = cells[:, 0] // grid.nlon, cells[:, 2] // grid.nlon
    top, bottom = min(upper.min(), lower.min()), max(upper.max(), lower.max()) + 1
    column = np.mod(lon, 360.0) * (grid.nlon / 360.0)
    west = np.floor(column)
    first, part = west.astype(np.int64) % grid.nlon, column - west
    part = part.astype(np.float32)
    band = field[top:bottom]
    lines = band.take(first, axis=1) * (1.0 - part)
    lines += band.take((first + 1) % grid.nlon, axis=1) * part
    found = lines.take(upper - top, axis=0) * shares[:, :1]
    found += lines.take(lower - top, axis=0) * (shares[:, 2:3] + shares[:, 3:])
    gaps = ~np.isfinite(found)
    gaps[cells[:, 2] % grid.nlon > 0] = True  # beyond a pole: half a turn further east
    if gaps.any():
        rows, columns = np.nonzero(gaps)
        found[gaps] = sample(field, grid, lat[rows], lon[columns], vector=vector)
    return np.asarray(found)


def nearest(grid: Grid, lat: Float, lon: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the nearest cell of each point, with the shape of the points."""
    edges = (grid.latitude[1:] + grid.latitude[:-1]) / 2.0
    rows = np.searchsorted(-edges, -np.asarray(lat), side="right")
    columns = np.floor(np.mod(lon, 360.0) * grid.nlon / 360.0 + 0.5).astype(np.int64) % grid.nlon
    return rows.astype(np.int64), columns


def place(field: NDArray[Any], grid: Grid, view: MapView, *, vector: bool = False) -> Placed:
    """Return a field (Y, X) in a view."""
    if view.name == "global":
        return _cylindrical(field, grid, view)
    return _polar(field, grid, view, vector)


def _cylindrical(field: NDArray[Any], grid: Grid, view: MapView) -> Placed:
    step = 360.0 / grid.nlon
    west, south, east, north = view.box or (-180.0, -90.0, 180.0 - step, 90.0)
    east += 360.0 * (east < west)
    rows = np.flatnonzero(_within(grid.latitude, south, north))
    first, last = ceil(west / step - 1.0), int(np.floor(east / step + 1.0))
    if view.box is None:
        first, last = first + 1, last - 1
    columns = np.arange(first, min(last, first + grid.nlon - 1) + 1)
    stride = max(1, ceil(len(rows) / view.height), ceil(len(columns) / view.width))
    while len(columns) == grid.nlon and grid.nlon % stride:
        stride += 1  # so that the last column is as far from the first as any two
    rows, columns = rows[::stride], columns[::stride]
    values = field[np.ix_(rows, columns % grid.nlon)].astype(np.float32)
    latitude, longitude = grid.latitude[rows], columns * step
    half = step * stride / 2.0
    tall = np.abs(np.diff(latitude)).max() / 2.0 if len(rows) > 1 else 90.0 / grid.nlat
    top, bottom = min(90.0, latitude[0] + tall), max(-90.0, latitude[-1] - tall)
    return Placed(
        values,
        GridInfo(
            view="global",
            rows=len(rows),
            columns=len(columns),
            native_rows=grid.nlat,
            native_columns=grid.nlon,
            stride=stride,
            latitude=np.round(latitude, 6).tolist(),
            longitude=np.round(longitude, 6).tolist(),
            extent=[longitude[0] - half, bottom, longitude[-1] + half, top],
            projection=LONGLAT,
        ),
    )


def _within(latitude: Float, south: float, north: float) -> NDArray[np.bool_]:
    """Return the rows between two latitudes, and the next beyond each."""
    inside = (latitude <= north) & (latitude >= south)
    above = np.flatnonzero(latitude > north)[-1:]
    below = np.flatnonzero(latitude < south)[:1]
    inside[above], inside[below] = True, True
    return inside


def polar_points(view: MapView, size: int) -> tuple[Float, Float]:
    """Return latitudes and longitudes of a polar view, each with shape (size, size)."""
    half = half_width(view)
    centres = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    x, y = np.meshgrid(centres * half, -centres * half)
    colatitude = 2.0 * np.rad2deg(np.arctan(np.hypot(x, y) / (2.0 * EARTH_RADIUS)))
    north = view.name == "north"
    longitude = np.rad2deg(np.arctan2(x, -y if north else y)) + view.centre
    return (90.0 - colatitude) if north else (colatitude - 90.0), longitude


def half_width(view: MapView) -> float:
    """Return half the width of a polar view in metres.

    Raises:
        InvalidInput: If the edge is no latitude of a hemisphere's map.
    """
    edge = abs(view.edge)
    if not 0.0 <= edge <= 85.0:
        raise InvalidInput(
            f"Expected 'edge' between 0 and 85 degrees of latitude; got {view.edge}.", field="edge"
        )
    return float(2.0 * EARTH_RADIUS * np.tan(np.deg2rad(90.0 - edge) / 2.0))


def _polar(field: NDArray[Any], grid: Grid, view: MapView, vector: bool) -> Placed:
    size = min(view.width, view.height)
    latitude, longitude = polar_points(view, size)
    values = sample(field, grid, latitude.ravel(), longitude.ravel(), vector=vector)
    half = half_width(view)
    pole = 90 if view.name == "north" else -90
    return Placed(
        values.reshape(size, size).astype(np.float32),
        GridInfo(
            view=view.name,
            rows=size,
            columns=size,
            native_rows=grid.nlat,
            native_columns=grid.nlon,
            stride=0,
            latitude=None,
            longitude=None,
            extent=[-half, -half, half, half],
            projection=(
                f"+proj=stere +lat_0={pole} +lon_0={view.centre:g} +k=1 +x_0=0 +y_0=0 "
                f"+R={EARTH_RADIUS:.0f} +units=m +no_defs"
            ),
        ),
    )
