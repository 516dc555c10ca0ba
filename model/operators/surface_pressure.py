r"""Station pressure from mean sea level pressure and 2 m temperature, in Pa.

.. math:: p_s = p_{msl} \left(1 - \frac{\Gamma z_o}{T_0}\right)^{g / (R \Gamma)},
          \qquad T_0 = T_{2m} + \Gamma z_m

with the lapse rate :math:`\Gamma` of 6.5 K per km, the barometer's height :math:`z_o` and the
height of the model's ground :math:`z_m` (:math:`z_o` where unknown). It is the reduction to sea
level of WMO-No. 8 and of the IFS (FULL-POS, "PPPMER"), read the other way, without their
corrections for very warm and very cold ground.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from model.constants import GAS_CONSTANT_DRY, GRAVITY, STANDARD_LAPSE_RATE
from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import channels_of, place
from model.operators.surface import model_height

__all__ = ["SurfacePressureFamily"]

EXPONENT = GRAVITY / (GAS_CONSTANT_DRY * STANDARD_LAPSE_RATE)
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
        ratio = 1.0 - STANDARD_LAPSE_RATE * parameters["station"] / warm.clamp(min=COLDEST)
        return ingredients[..., 0] * ratio**EXPONENT
