r"""Observe integrals over a column: total water vapour, thickness and brightness temperature.

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
come with the statics; they are a linear stand-in for radiative transfer, good for channels in the
60 GHz oxygen band (W. P. Menzel and J. Susskind treat weighting functions in any remote-sensing
text; the AMSU-A ones are near Gaussian in ln p).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.domain.physics import GRAVITY, pressure_at_height
from model.operators.base import Built, ModelDomain, Points
from model.operators.placement import place, pressure_stencil
from model.operators.surface import model_height

__all__ = [
    "BrightnessFamily",
    "ColumnFamily",
    "ThicknessFamily",
    "column_weights",
    "gaussian_weighting",
]

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

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
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

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
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

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        indices, _ = domain.column("temperature")
        functions = domain.statics.weighting_functions
        if not len(indices) or not functions:
            return None
        weight = np.zeros((len(points), 1, len(indices)))
        known = np.zeros(len(points), dtype=bool)
        for number, weights in functions.items():
            here = points.vertical == number
            weight[here, 0] = weights
            known |= here
        channel = np.broadcast_to(indices, weight.shape)
        built = place(points, domain, channel, weight, accepted=known)
        return Built(built.stencil, built.accepted, reason="operator_failed")

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return ingredients[..., 0]
