"""Place observations among the states of a window: in time, between levels, and between cells.

Hourly states are interpolated linearly in time. Up to half an hour before the first and after the
last state, the nearest state stands for the observation's time; further out there is no model
equivalent.

Pressure levels are interpolated linearly in the logarithm of pressure. Beyond the highest and
lowest level a value is extrapolated over half the thickness (in ln p) of the outermost layer and no
further: constant for most variables, along the slope of the outermost layer for geopotential,
which is close to linear in ln p.
"""

import numpy as np
from numpy.typing import NDArray

from model.domain.grids import bilinear
from model.operators.base import FamilyStencil, ModelDomain, Points, Stencil

__all__ = [
    "channels_of",
    "linear_in_time",
    "log_pressure",
    "place",
    "positioned",
    "pressure_stencil",
]

Float = NDArray[np.float64]

REACH = 0.5
"""Hours beyond the first and last state."""

FULL_HOUR = 1e-6
"""Hours; a time this close to a state belongs to it alone."""


def linear_in_time(hours: Float, length: int) -> tuple[NDArray[np.int64], Float, NDArray[np.bool_]]:
    """Return the two states around each time and their weights.

    Arguments:
        hours: Hours since the first state, with shape (n,).
        length: Number of hourly states.

    Returns:
        State numbers (n, 2), weights (n, 2) that sum to 1, and which times are in reach (n,).
    """
    known = np.isfinite(hours)
    hours = np.where(known, hours, 0.0)
    reached = known & (hours >= -REACH - FULL_HOUR) & (hours <= length - 1 + REACH + FULL_HOUR)
    position = np.clip(hours, 0.0, length - 1.0)
    nearest = np.rint(position)
    position = np.where(np.abs(position - nearest) < FULL_HOUR, nearest, position)
    first = np.floor(position).astype(np.int64)
    later = position - first
    second = np.minimum(first + 1, length - 1)
    return np.stack((first, second), 1), np.stack((1.0 - later, later), 1), reached


Int = NDArray[np.int64]

SLOPED = frozenset({"geopotential"})
"""Variables extrapolated along the slope of the outermost layer."""

SINGLE_LEVEL_REACH = 0.05
"""Largest distance in ln p to the level, for variables that are on one level only."""


def log_pressure(
    levels: Float, pressure: Float, *, sloped: bool = False
) -> tuple[Int, Float, NDArray[np.bool_]]:
    """Return the two levels around each pressure and their weights.

    Arguments:
        levels: Pa, ascending, with shape (L,).
        pressure: Pa, with shape (n,).
        sloped: Whether to follow the outermost layer's slope beyond the levels.

    Returns:
        Level numbers (n, 2), weights (n, 2) that sum to 1, and which points are in reach (n,).
    """
    known = np.isfinite(pressure) & (pressure > 0)
    x = np.log(np.where(known, pressure, levels[0]))
    nodes = np.log(levels)
    if len(levels) == 1:
        pair = np.zeros((len(x), 2), dtype=np.int64)
        weights = np.tile([1.0, 0.0], (len(x), 1))
        return pair, weights, known & (np.abs(x - nodes[0]) <= SINGLE_LEVEL_REACH)
    upper = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2)
    share = (x - nodes[upper]) / (nodes[upper + 1] - nodes[upper])
    reached = known & (share >= -0.5 - 1e-9) & (share <= 1.5 + 1e-9)
    if not sloped:
        share = np.clip(share, 0.0, 1.0)
    return np.stack((upper, upper + 1), 1), np.stack((1.0 - share, share), 1), reached


def pressure_stencil(
    domain: ModelDomain, variable: str, pressure: Float
) -> tuple[Int, Float, NDArray[np.bool_]] | None:
    """Return channels and weights (n, 2) of a variable at pressures (n,) in Pa, and what is in reach.

    Returns:
        None if the states lack the variable.
    """
    indices, levels = domain.column(variable)
    if not len(indices):
        return None
    pair, weights, reached = log_pressure(levels, pressure, sloped=variable in SLOPED)
    return indices[pair], weights, reached


def positioned(points: Points) -> tuple[Float, Float, NDArray[np.bool_]]:
    """Return latitude and longitude fit for computing, and which of them are possible."""
    possible = (np.abs(points.lat) <= 90.0) & np.isfinite(points.lon)
    return np.where(possible, points.lat, 0.0), np.where(possible, points.lon, 0.0), possible


def channels_of(indices: list[int], count: int) -> tuple[Int, Float]:
    """Return one channel for each ingredient, the same for all points: (n, K, 1) indices and weights."""
    shape = (count, len(indices), 1)
    return np.broadcast_to(np.array(indices, dtype=np.int64)[:, None], shape), np.ones(shape)


def place(
    points: Points,
    domain: ModelDomain,
    channel: Int,
    channel_weight: Float,
    *,
    vector: bool = False,
    accepted: NDArray[np.bool_] | None = None,
    parameters: dict[str, Float] | None = None,
) -> FamilyStencil:
    """Complete a stencil, given its channel part (n, K, P): add weights in time and between cells."""
    lat, lon, possible = positioned(points)
    cell, cell_weight = bilinear(domain.grid, lat, lon, vector=vector)
    time, time_weight, reached = linear_in_time(points.hours, domain.length)
    inside = possible & reached
    if accepted is not None:
        inside &= accepted
    stencil = Stencil(time, time_weight, channel, channel_weight, cell, cell_weight)
    return FamilyStencil(stencil, inside, parameters or {})
