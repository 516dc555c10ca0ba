"""Variables of the state at a pressure: log-pressure between levels, bilinear between cells."""

from collections.abc import Mapping

from torch import Tensor

from model.domain.variables import ATMOSPHERIC
from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import place
from model.operators.vertical import pressure_stencil

__all__ = ["VECTORS", "PressureLevelFamily"]

VECTORS = frozenset({"u_component_of_wind", "v_component_of_wind"})


class PressureLevelFamily:
    """Temperature, wind components, geopotential and humidity at a pressure."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Upper-air variables of the state."""
        return variable in ATMOSPHERIC and vertical_kind == "pressure"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
        levels = pressure_stencil(domain, variable, points.vertical)
        if levels is None:
            return None
        channel, weight, reached = levels
        return place(
            points,
            domain,
            channel[:, None],
            weight[:, None],
            vector=variable in VECTORS,
            accepted=reached,
        )

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See :class:`model.operators.base.OperatorFamily`."""
        return ingredients[..., 0]
