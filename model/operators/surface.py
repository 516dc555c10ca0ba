r"""Observe surface variables at a point, and station pressure.

* 2 m temperature is adjusted from the model's ground to the station's height with 6.5 K per km
  where both heights are known (a constant offset: the operator is affine).
* Sea surface temperature is interpolated from sea cells only, where the land-sea mask is known;
  a point without any is outside the domain.
* Precipitation is the accumulation of the state's own hour.
* Station pressure follows from mean sea level pressure and 2 m temperature, in Pa,

  .. math:: p_s = p_{msl} \left(1 - \frac{\Gamma z_o}{T_0}\right)^{g / (R \Gamma)},
            \qquad T_0 = T_{2m} + \Gamma z_m

  with the lapse rate :math:`\Gamma` of 6.5 K per km, the barometer's height :math:`z_o` and the
  height of the model's ground :math:`z_m` (:math:`z_o` where unknown). It is the reduction to sea
  level of WMO-No. 8 and of the IFS (FULL-POS, "PPPMER"), inverted, without their corrections for very
  warm and very cold ground.
* Humidity at 2 m, as dewpoint or relative humidity over water: the air at a station holds the
  specific humidity of the model's column at the station's pressure, linear in ln p between levels
  and constant below the lowest (the surface layer is taken as well mixed). The pressure is that of
  the standard atmosphere at the station's height, so a station above the model's ground reads
  the drier air up there; 20 hPa of weather change the vapour pressure by 2 %. The temperature
  that relative humidity refers to is that at 2 m, adjusted to the station's height as above; for
  states without it, that of the column.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.domain.grids import bilinear, interpolate
from model.domain.physics import (
    SATURATION_AT_FREEZING,
    STANDARD_LAPSE_RATE,
    dewpoint_of_log_ratio,
    height_of_pressure,
    pressure_after_rise,
    pressure_at_height,
    saturation_vapour_pressure,
    vapour_pressure,
)
from model.domain.variables import SURFACE
from model.operators.base import FamilyStencil, ModelDomain, Points
from model.operators.placement import channels_of, place, positioned, pressure_stencil

__all__ = [
    "SurfaceDewpointFamily",
    "SurfaceFamily",
    "SurfaceHumidityFamily",
    "SurfacePressureFamily",
    "model_height",
]

Float = NDArray[np.float64]

VECTORS = frozenset({"10m_u_component_of_wind", "10m_v_component_of_wind"})
LAND = 0.5


def model_height(points: Points, domain: ModelDomain) -> Float:
    """Return the height of the model's ground in m at points (n,); NaN where the orography is unknown."""
    if domain.statics.orography is None:
        return np.full(len(points), np.nan)
    lat, lon, _ = positioned(points)
    return interpolate(domain.statics.orography, *bilinear(domain.grid, lat, lon))


class SurfaceFamily:
    """Observe a surface variable by interpolating its channel."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept the surface variables of the state."""
        return variable in SURFACE and vertical_kind == "surface"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
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
        return ingredients[..., 0] + parameters["offset"]


def _keep_sea(built: FamilyStencil, land_sea_mask: Float) -> None:
    """Take the weight from land cells and share it among sea cells, in place."""
    weights = built.stencil.cell_weight
    weights *= land_sea_mask.reshape(-1)[built.stencil.cell] < LAND
    total = weights.sum(axis=1)
    built.accepted[:] &= total > 1e-6
    weights /= np.where(total > 1e-6, total, 1.0)[:, None]


COLDEST = 150.0
"""K; keeps the power defined for the unphysical states of early diffusion steps."""


class SurfacePressureFamily:
    """Observe station pressure by the hypsometric equation from sea level."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Accept `surface_pressure` at the height of a station."""
        return variable == "surface_pressure" and vertical_kind == "surface"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
        msl = domain.surface_channel("mean_sea_level_pressure")
        t2m = domain.surface_channel("2m_temperature")
        if msl is None or t2m is None:
            return None
        known = np.isfinite(points.elevation) & (np.abs(points.elevation) < 9_000.0)
        station = np.where(known, points.elevation, 0.0)
        ground = model_height(points, domain)
        parameters = {"station": station, "ground": np.where(np.isnan(ground), station, ground)}
        channel, weight = channels_of([msl, t2m], len(points))
        return place(points, domain, channel, weight, accepted=known, parameters=parameters)

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        warm = ingredients[..., 1] + STANDARD_LAPSE_RATE * parameters["ground"]
        warm = warm.clamp(min=COLDEST)
        pressure: Tensor = pressure_after_rise(ingredients[..., 0], warm, parameters["station"])
        return pressure


Int = NDArray[np.int64]
WARMEST = 373.0
"""K; with `COLDEST` keeps the saturation pressure finite for unphysical states."""
LARGEST_HUMIDITY = 0.5
DRIEST = 1.0
"""Pa of vapour, a dewpoint of -62 degrees C; below it the logarithm is continued by its tangent."""


def _station_pressure(points: Points, domain: ModelDomain) -> Float:
    """Return the standard pressure in Pa at the stations (n,), at the ground where height is unknown."""
    ground = model_height(points, domain)
    height = np.where(np.isfinite(points.elevation), points.elevation, ground)
    return pressure_at_height(np.nan_to_num(height, nan=0.0))


def _near_ground(
    domain: ModelDomain, variable: str, pressure: Float
) -> tuple[Int, Float, Float] | None:
    """Return channels and weights (n, 2) of a variable at pressures (n,) in Pa, and the pressures read.

    Below the lowest level its value holds down to the ground.
    """
    _, levels = domain.column(variable)
    if not len(levels):
        return None
    read = np.minimum(pressure, levels[-1])
    found = pressure_stencil(domain, variable, read)
    return None if found is None else (found[0], found[1], read)


def _vapour(humidity: Tensor, pressure: Tensor) -> Tensor:
    """Return the vapour pressure in Pa, finite for unphysical states."""
    possible = humidity.clamp(min=-LARGEST_HUMIDITY, max=LARGEST_HUMIDITY)
    vapour: Tensor = vapour_pressure(possible, pressure)
    return vapour


class SurfaceHumidityFamily:
    """Observe relative humidity at 2 m, vapour pressure over that of saturation."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Return whether the variable is `2m_relative_humidity` at the surface."""
        return variable == "2m_relative_humidity" and vertical_kind == "surface"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
        pressure = _station_pressure(points, domain)
        humidity = _near_ground(domain, "specific_humidity", pressure)
        temperature = self._temperature(points, domain, pressure)
        if humidity is None or temperature is None:
            return None
        channel, weight, offset = temperature
        return place(
            points,
            domain,
            np.stack((humidity[0], channel), axis=1),
            np.stack((humidity[1], weight), axis=1),
            parameters={"pressure": pressure, "offset": offset},
        )

    @staticmethod
    def _temperature(
        points: Points, domain: ModelDomain, pressure: Float
    ) -> tuple[Int, Float, Float] | None:
        """Return channels and weights (n, 2), and the offset in K to the station's height (n,)."""
        index = domain.surface_channel("2m_temperature")
        if index is None:
            found = _near_ground(domain, "temperature", pressure)
            if found is None:
                return None
            climb = height_of_pressure(pressure) - height_of_pressure(found[2])
            return found[0], found[1], -STANDARD_LAPSE_RATE * climb
        climb = points.elevation - model_height(points, domain)
        offset = np.nan_to_num(-STANDARD_LAPSE_RATE * climb, nan=0.0)
        channel = np.full((len(points), 2), index, dtype=np.int64)
        return channel, np.tile([1.0, 0.0], (len(points), 1)), offset

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        humidity, temperature = ingredients.unbind(dim=-1)
        air = (temperature + parameters["offset"]).clamp(min=COLDEST, max=WARMEST)
        saturation: Tensor = saturation_vapour_pressure(air, torch.exp)
        return _vapour(humidity, parameters["pressure"]) / saturation


class SurfaceDewpointFamily:
    """Observe the dewpoint at 2 m, at which the vapour of the column would saturate."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Return whether the variable is `2m_dewpoint_temperature` at the surface."""
        return variable == "2m_dewpoint_temperature" and vertical_kind == "surface"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> FamilyStencil | None:
        pressure = _station_pressure(points, domain)
        humidity = _near_ground(domain, "specific_humidity", pressure)
        if humidity is None:
            return None
        return place(
            points,
            domain,
            humidity[0][:, None],
            humidity[1][:, None],
            parameters={"pressure": pressure},
        )

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        vapour = _vapour(ingredients[..., 0], parameters["pressure"])
        moist = vapour.clamp(min=DRIEST)
        ratio = (moist / SATURATION_AT_FREEZING).log() + (vapour - moist) / DRIEST
        dewpoint: Tensor = dewpoint_of_log_ratio(ratio)
        return dewpoint
