"""Surface variables of the state at a point.

* 2 m temperature is carried from the model's ground to the station's height with 6.5 K per km
  where both heights are known (a constant offset: the operator is affine).
* Sea surface temperature is interpolated from sea cells only, where the land-sea mask is known;
  a point without any is outside the domain.
* Precipitation is the accumulation of the state's own hour.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.constants import STANDARD_LAPSE_RATE
from model.domain.variables import SURFACE
from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.horizontal import bilinear, sample
from model.operators.placement import channels_of, place, positioned

__all__ = ["SurfaceFamily", "model_height"]

Float = NDArray[np.float64]

VECTORS = frozenset({"10m_u_component_of_wind", "10m_v_component_of_wind"})
LAND = 0.5


def model_height(points: Points, domain: ModelDomain) -> Float:
    """Height of the model's ground in m at points (n,); NaN where the orography is unknown."""
    if domain.statics.orography is None:
        return np.full(len(points), np.nan)
    lat, lon, _ = positioned(points)
    return sample(domain.statics.orography, *bilinear(domain.grid, lat, lon))


class SurfaceFamily:
    """Interpolates a surface channel."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Surface variables of the state."""
        return variable in SURFACE and vertical_kind == "surface"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
        index = domain.surface_channel(variable)
        if index is None:
            return None
        offset = np.zeros(len(points))
        if variable == "2m_temperature":
            climb = points.elevation - model_height(points, domain)
            offset = np.nan_to_num(-STANDARD_LAPSE_RATE * climb, nan=0.0)
        channel, weight = channels_of([index], len(points))
        built = place(
            points,
            domain,
            channel,
            weight,
            vector=variable in VECTORS,
            parameters={"offset": offset},
        )
        if variable == "sea_surface_temperature" and domain.statics.land_sea_mask is not None:
            _keep_sea(built, domain.statics.land_sea_mask)
        return built

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See :class:`model.operators.base.OperatorFamily`."""
        return ingredients[..., 0] + parameters["offset"]


def _keep_sea(built: Built, land_sea_mask: Float) -> None:
    """Takes the weight from land cells and shares it among sea cells, in place."""
    weights = built.stencil.cell_weight
    weights *= land_sea_mask.reshape(-1)[built.stencil.cell] < LAND
    total = weights.sum(axis=1)
    built.accepted[:] &= total > 1e-6
    weights /= np.where(total > 1e-6, total, 1.0)[:, None]
