r"""Observe surface variables at a point, and station pressure.

* 2 m temperature is carried from the model's ground to the station's height with 6.5 K per km
  where both heights are known (a constant offset: the operator is affine).
* Sea surface temperature is interpolated from sea cells only, where the land-sea mask is known;
  a point without any is outside the domain.
* Precipitation is the accumulation of the state's own hour.
* Station pressure follows from mean sea level pressure and 2 m temperature, in Pa,

  .. math:: p_s = p_{msl} \left(1 - \frac{\Gamma z_o}{T_0}\right)^{g / (R \Gamma)},
            \qquad T_0 = T_{2m} + \Gamma z_m

  with the lapse rate :math:`\Gamma` of 6.5 K per km, the barometer's height :math:`z_o` and the
  height of the model's ground :math:`z_m` (:math:`z_o` where unknown). It is the reduction to sea
  level of WMO-No. 8 and of the IFS (FULL-POS, "PPPMER"), read the other way, without their
  corrections for very warm and very cold ground.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.domain.grids import bilinear, interpolate
from model.domain.physics import STANDARD_LAPSE_RATE, pressure_after_rise
from model.domain.variables import SURFACE
from model.operators.base import Built, ModelDomain, Points
from model.operators.placement import channels_of, place, positioned

__all__ = ["SurfaceFamily", "SurfacePressureFamily", "model_height"]

Float = NDArray[np.float64]

VECTORS = frozenset({"10m_u_component_of_wind", "10m_v_component_of_wind"})
LAND = 0.5


def model_height(points: Points, domain: ModelDomain) -> Float:
    """Height of the model's ground in m at points (n,); NaN where the orography is unknown."""
    if domain.statics.orography is None:
        return np.full(len(points), np.nan)
    lat, lon, _ = positioned(points)
    return interpolate(domain.statics.orography, *bilinear(domain.grid, lat, lon))


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


COLDEST = 150.0
"""K; keeps the power defined for the wild states of early diffusion steps."""


class SurfacePressureFamily:
    """Hypsometric equation from sea level to the barometer."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """`surface_pressure`."""
        return variable == "surface_pressure" and vertical_kind == "surface"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
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
        """See :class:`model.operators.base.OperatorFamily`."""
        warm = ingredients[..., 1] + STANDARD_LAPSE_RATE * parameters["ground"]
        warm = warm.clamp(min=COLDEST)
        pressure: Tensor = pressure_after_rise(ingredients[..., 0], warm, parameters["station"])
        return pressure
