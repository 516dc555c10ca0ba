"""Geopotential thickness of a layer between two pressures: top minus bottom, in m2 s-2."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import place
from model.operators.vertical import pressure_stencil

__all__ = ["ThicknessFamily"]


class ThicknessFamily:
    """Difference of two geopotentials."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """`geopotential_thickness` of a layer."""
        return variable == "geopotential_thickness" and vertical_kind == "layer"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
        bottom = pressure_stencil(domain, "geopotential", points.vertical)
        top = pressure_stencil(domain, "geopotential", points.vertical_top)
        if bottom is None or top is None:
            return None
        channel = np.concatenate((top[0], bottom[0]), axis=1)[:, None]
        weight = np.concatenate((top[1], -bottom[1]), axis=1)[:, None]
        reached = top[2] & bottom[2] & (points.vertical_top < points.vertical)
        return place(points, domain, channel, weight, accepted=reached)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See :class:`model.operators.base.OperatorFamily`."""
        return ingredients[..., 0]
