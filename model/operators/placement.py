"""Placing points among the states: the time and cell parts that all families share."""

import numpy as np
from numpy.typing import NDArray

from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.horizontal import bilinear
from model.operators.stencil import Stencil
from model.operators.temporal import linear_in_time

__all__ = ["channels_of", "place", "positioned"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def positioned(points: Points) -> tuple[Float, Float, NDArray[np.bool_]]:
    """Latitude and longitude fit for computing, and which of them are possible."""
    possible = (np.abs(points.lat) <= 90.0) & np.isfinite(points.lon)
    return np.where(possible, points.lat, 0.0), np.where(possible, points.lon, 0.0), possible


def channels_of(indices: list[int], count: int) -> tuple[Int, Float]:
    """One channel for each ingredient, the same for all points: (n, K, 1) indices and weights."""
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
) -> Built:
    """The whole stencil, from its channel part (n, K, P)."""
    lat, lon, possible = positioned(points)
    cell, cell_weight = bilinear(domain.grid, lat, lon, vector=vector)
    time, time_weight, reached = linear_in_time(points.hours, domain.length)
    inside = possible & reached
    if accepted is not None:
        inside &= accepted
    stencil = Stencil(time, time_weight, channel, channel_weight, cell, cell_weight)
    return Built(stencil, inside, parameters or {})
