"""Interpolation between pressure levels, linear in the logarithm of pressure.

Beyond the highest and lowest level a value is carried on for half the thickness (in ln p) of the
outermost layer and no further: constant for most variables, along the slope of the outermost
layer for geopotential, which is close to linear in ln p.
"""

import numpy as np
from numpy.typing import NDArray

from model.operators.domain import ModelDomain

__all__ = ["log_pressure", "pressure_stencil"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

SLOPED = frozenset({"geopotential"})
"""Variables carried on along their slope."""

SINGLE_LEVEL_REACH = 0.05
"""How far in ln p one level alone represents the air around it."""


def log_pressure(
    levels: Float, pressure: Float, *, sloped: bool = False
) -> tuple[Int, Float, NDArray[np.bool_]]:
    """Pairs of levels and their weights.

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
    """Channels and weights (n, 2) of a variable at pressures (n,) in Pa, and what is in reach.

    Returns:
        None if the states lack the variable.
    """
    indices, levels = domain.column(variable)
    if not len(indices):
        return None
    pair, weights, reached = log_pressure(levels, pressure, sloped=variable in SLOPED)
    return indices[pair], weights, reached
