"""Wind speed, at 10 m or aloft: the length of the interpolated wind vector.

The gradient at calm is taken as 0 (a subgradient), so that nothing divides by zero. A speed at a
height is read at the pressure of that height in the standard atmosphere.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import channels_of, place
from model.operators.standard_atmosphere import pressure_at_height
from model.operators.vertical import pressure_stencil

__all__ = ["WindSpeedFamily"]


class WindSpeedFamily:
    """Square root of u² + v²."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """`10m_wind_speed`, and `wind_speed` at a pressure or height."""
        if variable == "10m_wind_speed":
            return vertical_kind == "surface"
        return variable == "wind_speed" and vertical_kind in ("pressure", "height")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
        if variable == "10m_wind_speed":
            return self._near_surface(points, domain)
        if points.vertical_kind == "height":
            points = points.at_pressure(pressure_at_height(points.vertical))
        parts = [
            pressure_stencil(domain, component, points.vertical)
            for component in ("u_component_of_wind", "v_component_of_wind")
        ]
        if parts[0] is None or parts[1] is None:
            return None
        channel = np.stack((parts[0][0], parts[1][0]), axis=1)
        weight = np.stack((parts[0][1], parts[1][1]), axis=1)
        return place(points, domain, channel, weight, vector=True, accepted=parts[0][2])

    def _near_surface(self, points: Points, domain: ModelDomain) -> Built | None:
        u = domain.surface_channel("10m_u_component_of_wind")
        v = domain.surface_channel("10m_v_component_of_wind")
        if u is None or v is None:
            return None
        return place(points, domain, *channels_of([u, v], len(points)), vector=True)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See :class:`model.operators.base.OperatorFamily`."""
        square = ingredients.square().sum(dim=-1)
        moving = square > 0
        return torch.where(moving, torch.where(moving, square, 1.0).sqrt(), 0.0)
