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

Integrals over a column:

Total column water vapour, in kg m-2, is

.. math:: W = \frac{1}{g} \int_0^{p_s} q \, dp

with the specific humidity linear in pressure between levels, constant above the highest level
and constant from the lowest level down to the ground. The ground's pressure :math:`p_s` is that
of the standard atmosphere at the station's height, else at the model's ground, else at sea level:
fixed, so that the operator stays linear; 20 hPa of weather on 1013 change the lowest layer's
share by about 2 %.

Thickness is the geopotential of the top of a layer between two pressures minus that of its
bottom, in m2 s-2.

Brightness temperature is a weighted mean of the temperature profile. The weights of each channel
come with the statics; they are a linear approximation of radiative transfer, good for channels in the
60 GHz oxygen band (W. P. Menzel and J. Susskind treat weighting functions in any remote-sensing
text; the AMSU-A ones are near Gaussian in ln p).
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.domain.physics import (
    GRAVITY,
    pressure_at_height,
    saturation_vapour_pressure,
    vapour_pressure,
)
from model.domain.variables import ATMOSPHERIC
from model.operators.base import FamilyStencil, ModelDomain, Points
from model.operators.placement import channels_of, log_pressure, place, pressure_stencil
from model.operators.surface import model_height

__all__ = [
    "BrightnessFamily",
    "ColumnFamily",
    "HeightLevelFamily",
    "PressureLevelFamily",
    "RelativeHumidityFamily",
    "ThicknessFamily",
    "VECTORS",
    "WindSpeedFamily",
    "column_weights",
    "gaussian_weighting",
]

VECTORS = frozenset({"u_component_of_wind", "v_component_of_wind"})


class PressureLevelFamily:
    """Observe temperature, wind components, geopotential and humidity at a pressure."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept upper-air variables of the state at a pressure."""
        return variable in ATMOSPHERIC and vertical_kind == "pressure"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
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
"""m; keeps the division defined for the unphysical states of early diffusion steps."""


class HeightLevelFamily:
    """Observe temperature, wind components and humidity at a height above mean sea level."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept upper-air variables but geopotential, at a height."""
        return variable in VARIABLES and vertical_kind == "height"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
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
"""K; keeps the exponential finite for the unphysical states of early diffusion steps."""
WARMEST = 373.0


class RelativeHumidityFamily:
    """Observe relative humidity, vapour pressure over that of saturation."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `relative_humidity` at a pressure or height."""
        return variable == "relative_humidity" and vertical_kind in ("pressure", "height")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
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

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
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

    def _near_surface(self, points: Points, domain: ModelDomain) -> FamilyStencil | None:
        u = domain.surface_channel("10m_u_component_of_wind")
        v = domain.surface_channel("10m_v_component_of_wind")
        if u is None or v is None:
            return None
        return place(points, domain, *channels_of([u, v], len(points)), vector=True)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        square = ingredients.square().sum(dim=-1)
        moving = square > 0
        return torch.where(moving, torch.where(moving, square, 1.0).sqrt(), 0.0)


Float = NDArray[np.float64]


def column_weights(levels: Float, surface_pressure: Float) -> Float:
    """Return weights (n, L) in Pa whose sum with values on levels (L,) is the integral from 0 to p_s (n,).

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
    """Observe total column water vapour, the mass-weighted integral of specific humidity."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `total_column_water_vapour` of the column above a place."""
        return variable == "total_column_water_vapour" and vertical_kind in ("column", "surface")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
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
        return ingredients[..., 0]


class ThicknessFamily:
    """Observe thickness, the difference of the geopotentials of two pressures."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `geopotential_thickness` of a layer between two pressures."""
        return variable == "geopotential_thickness" and vertical_kind == "layer"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
        bottom = pressure_stencil(domain, "geopotential", points.vertical)
        top = pressure_stencil(domain, "geopotential", points.vertical_top)
        if bottom is None or top is None:
            return None
        channel = np.concatenate((top[0], bottom[0]), axis=1)[:, None]
        weight = np.concatenate((top[1], -bottom[1]), axis=1)[:, None]
        reached = top[2] & bottom[2] & (points.vertical_top < points.vertical)
        return place(points, domain, channel, weight, accepted=reached)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return ingredients[..., 0]


def gaussian_weighting(levels: Float, peak: float, width: float = 0.6) -> Float:
    """Return weights (L,) that sum to 1 for a weighting function that is Gaussian in ln p.

    Arguments:
        levels: Pa, ascending, with shape (L,).
        peak: Pressure of the maximum in Pa.
        width: Standard deviation in ln p.
    """
    x = np.log(levels)
    share = np.exp(-0.5 * ((x - np.log(peak)) / width) ** 2) * np.abs(np.gradient(x))
    weights: Float = share / share.sum()
    return weights


class BrightnessFamily:
    """Sum of weights times temperatures; the vertical coordinate is the channel number."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `brightness_temperature` of an instrument channel."""
        return variable == "brightness_temperature" and vertical_kind == "channel"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
        indices, _ = domain.column("temperature")
        functions = domain.statics.weighting_functions
        if not len(indices) or not functions:
            return None
        weight = np.zeros((len(points), 1, len(indices)))
        known = np.zeros(len(points), dtype=bool)
        # Weights for any sensor come first, so that those of a named sensor replace them.
        for name, weights in sorted(functions.items(), key=lambda item: isinstance(item[0], tuple)):
            sensor, number = name if isinstance(name, tuple) else ("", name)
            here = points.vertical == number
            if sensor:
                here &= np.isin(
                    points.sensor, [i for i, s in enumerate(points.sensors) if s == sensor]
                )
            weight[here, 0] = weights
            known |= here
        channel = np.broadcast_to(indices, weight.shape)
        built = place(points, domain, channel, weight, accepted=known)
        return FamilyStencil(built.stencil, built.accepted, reason="operator_failed")

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return ingredients[..., 0]
