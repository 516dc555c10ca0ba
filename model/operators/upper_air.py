r"""Observe variables aloft: at a pressure, at a height, as relative humidity, or as wind speed.

* At a pressure: linear in log-pressure between levels, bilinear between cells.
* At a geopotential height, read in the model's own column. The heights of the levels come from
  the state's geopotential, so the operator is nonlinear and an observation at a height also
  informs the geopotential. Between levels the variable is linear in height. Beyond them it stays
  constant; whether a point is in reach (half a layer, as for pressure) is judged once with the
  standard atmosphere, so that it does not depend on the state.
* Relative humidity over water, as a fraction: the vapour pressure of the specific humidity over
  that of saturation at the temperature (`model.domain.physics`). A humidity at a height is read
  at the pressure of that height in the standard atmosphere.
* Wind speed, at 10 m or aloft: the length of the interpolated wind vector. The gradient at calm is
  taken as 0 (a subgradient), so that nothing divides by zero. A speed at a height is read at the
  pressure of that height in the standard atmosphere.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.domain.physics import (
    GRAVITY,
    pressure_at_height,
    saturation_vapour_pressure,
    vapour_pressure,
)
from model.domain.variables import ATMOSPHERIC
from model.operators.base import Built, ModelDomain, Points
from model.operators.placement import channels_of, log_pressure, place, pressure_stencil

__all__ = [
    "HeightLevelFamily",
    "PressureLevelFamily",
    "RelativeHumidityFamily",
    "VECTORS",
    "WindSpeedFamily",
]

VECTORS = frozenset({"u_component_of_wind", "v_component_of_wind"})


class PressureLevelFamily:
    """Observe temperature, wind components, geopotential and humidity at a pressure."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept upper-air variables of the state at a pressure."""
        return variable in ATMOSPHERIC and vertical_kind == "pressure"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
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
        return ingredients[..., 0]


VARIABLES = ("temperature", "u_component_of_wind", "v_component_of_wind", "specific_humidity")
THINNEST = 1.0
"""m; keeps the division defined for the wild states of early diffusion steps."""


class HeightLevelFamily:
    """Observe temperature, wind components and humidity at a height above mean sea level."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept upper-air variables but geopotential, at a height."""
        return variable in VARIABLES and vertical_kind == "height"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
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
        geopotential, value = ingredients.chunk(2, dim=-1)
        height = geopotential / GRAVITY
        target = parameters["height"].expand(height.shape[:-1]).unsqueeze(-1)
        # Levels run from the top down: the number of levels above the target is the lower one.
        lower = (height > target).sum(dim=-1, keepdim=True).clamp(1, height.shape[-1] - 1)
        h_low, h_up = height.gather(-1, lower), height.gather(-1, lower - 1)
        v_low, v_up = value.gather(-1, lower), value.gather(-1, lower - 1)
        share = ((target - h_low) / (h_up - h_low).clamp(min=THINNEST)).clamp(0.0, 1.0)
        return torch.lerp(v_low, v_up, share).squeeze(-1)


COLDEST = 130.0
"""K; keeps the exponential finite for the wild states of early diffusion steps."""
WARMEST = 373.0


class RelativeHumidityFamily:
    """Observe relative humidity, vapour pressure over that of saturation."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `relative_humidity` at a pressure or height."""
        return variable == "relative_humidity" and vertical_kind in ("pressure", "height")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        if points.vertical_kind == "height":
            points = points.at_pressure(pressure_at_height(points.vertical))
        humidity = pressure_stencil(domain, "specific_humidity", points.vertical)
        temperature = pressure_stencil(domain, "temperature", points.vertical)
        if humidity is None or temperature is None:
            return None
        return place(
            points,
            domain,
            np.stack((humidity[0], temperature[0]), axis=1),
            np.stack((humidity[1], temperature[1]), axis=1),
            accepted=humidity[2] & temperature[2],
            parameters={"pressure": np.nan_to_num(points.vertical)},
        )

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        q, temperature = ingredients.unbind(dim=-1)
        possible = temperature.clamp(min=COLDEST, max=WARMEST)
        saturation: Tensor = saturation_vapour_pressure(possible, torch.exp)
        vapour: Tensor = vapour_pressure(q, parameters["pressure"])
        return vapour / saturation


class WindSpeedFamily:
    """Observe wind speed, the square root of u² + v²."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `10m_wind_speed`, and `wind_speed` at a pressure or height."""
        if variable == "10m_wind_speed":
            return vertical_kind == "surface"
        return variable == "wind_speed" and vertical_kind in ("pressure", "height")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
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
        square = ingredients.square().sum(dim=-1)
        moving = square > 0
        return torch.where(moving, torch.where(moving, square, 1.0).sqrt(), 0.0)
