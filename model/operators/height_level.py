"""Variables of the state at a geopotential height, read in the model's own column.

The heights of the levels come from the state's geopotential, so the operator is nonlinear and an
observation at a height also informs the geopotential. Between levels the variable is linear in
height. Beyond them it stays constant; whether a point is in reach (half a layer, as for pressure)
is judged once with the standard atmosphere, so that it does not depend on the state.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.constants import GRAVITY
from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import channels_of, place
from model.operators.pressure_level import VECTORS
from model.operators.standard_atmosphere import pressure_at_height
from model.operators.vertical import log_pressure

__all__ = ["HeightLevelFamily"]

VARIABLES = ("temperature", "u_component_of_wind", "v_component_of_wind", "specific_humidity")
THINNEST = 1.0
"""m; keeps the division defined for the wild states of early diffusion steps."""


class HeightLevelFamily:
    """Temperature, wind components and humidity at a height above mean sea level."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Upper-air variables but geopotential, at a height."""
        return variable in VARIABLES and vertical_kind == "height"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
        geopotential, levels = domain.column("geopotential")
        values, value_levels = domain.column(variable)
        if len(levels) < 2 or not np.array_equal(levels, value_levels):
            return None
        height = np.nan_to_num(points.vertical, nan=-1e6)
        _, _, reached = log_pressure(levels, pressure_at_height(np.clip(height, -2e3, 6e4)))
        reached &= (height > -2e3) & (height < 6e4)
        channel, weight = channels_of([*geopotential, *values], len(points))
        # The geopotential is no vector: its weights keep their sign across the pole.
        sign = self._pole_sign(points, domain) if variable in VECTORS else np.ones(len(points))
        return place(
            points,
            domain,
            channel,
            weight,
            accepted=reached & (sign > 0),
            parameters={"height": height},
        )

    @staticmethod
    def _pole_sign(points: Points, domain: ModelDomain) -> np.ndarray:
        inside = np.abs(points.lat) <= np.abs(domain.grid.latitude).max() + 1e-9
        return np.where(inside, 1.0, -1.0)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See :class:`model.operators.base.OperatorFamily`."""
        geopotential, value = ingredients.chunk(2, dim=-1)
        height = geopotential / GRAVITY
        target = parameters["height"].expand(height.shape[:-1]).unsqueeze(-1)
        # Levels run from the top down: the number of levels above the target is the lower one.
        lower = (height > target).sum(dim=-1, keepdim=True).clamp(1, height.shape[-1] - 1)
        h_low, h_up = height.gather(-1, lower), height.gather(-1, lower - 1)
        v_low, v_up = value.gather(-1, lower), value.gather(-1, lower - 1)
        share = ((target - h_low) / (h_up - h_low).clamp(min=THINNEST)).clamp(0.0, 1.0)
        return torch.lerp(v_low, v_up, share).squeeze(-1)
