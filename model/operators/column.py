r"""Total column water vapour, in kg m-2.

.. math:: W = \frac{1}{g} \int_0^{p_s} q \, dp

with the specific humidity linear in pressure between levels, constant above the highest level
and constant from the lowest level down to the ground. The ground's pressure :math:`p_s` is that
of the standard atmosphere at the station's height, else at the model's ground, else at sea level:
fixed, so that the operator stays linear; 20 hPa of weather on 1013 change the lowest layer's
share by about 2 %.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.constants import GRAVITY
from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import place
from model.operators.standard_atmosphere import pressure_at_height
from model.operators.surface import model_height

__all__ = ["ColumnFamily", "column_weights"]

Float = NDArray[np.float64]


def column_weights(levels: Float, surface_pressure: Float) -> Float:
    """Weights (n, L) in Pa whose sum with values on levels (L,) is the integral from 0 to p_s (n,).

    Rows sum to the surface pressure.
    """
    weights = np.zeros((len(surface_pressure), len(levels)))
    weights[:, 0] = np.minimum(surface_pressure, levels[0])
    for k, (top, bottom) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        depth = np.clip(surface_pressure, top, bottom) - top
        lower = depth**2 / (2.0 * (bottom - top))
        weights[:, k] += depth - lower
        weights[:, k + 1] += lower
    weights[:, -1] += np.maximum(surface_pressure - levels[-1], 0.0)
    return weights


class ColumnFamily:
    """Mass-weighted integral of specific humidity."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """`total_column_water_vapour`."""
        return variable == "total_column_water_vapour" and vertical_kind in ("column", "surface")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
        indices, levels = domain.column("specific_humidity")
        if not len(indices):
            return None
        ground = np.where(
            np.isfinite(points.elevation), points.elevation, model_height(points, domain)
        )
        pressure = pressure_at_height(np.nan_to_num(ground, nan=0.0))
        weight = column_weights(levels, pressure)[:, None] / GRAVITY
        return place(points, domain, np.broadcast_to(indices, weight.shape), weight)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See :class:`model.operators.base.OperatorFamily`."""
        return ingredients[..., 0]
