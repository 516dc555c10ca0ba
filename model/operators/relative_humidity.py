r"""Relative humidity over water aloft, as a fraction, from specific humidity and temperature.

.. math:: r = \frac{e}{e_s(T)}, \quad e = \frac{q p}{\varepsilon + (1 - \varepsilon) q},
          \quad e_s = 611.2 \exp\!\left(\frac{17.67\,(T - 273.15)}{T - 29.65}\right)

D. Bolton, "The computation of equivalent potential temperature", Mon. Wea. Rev. 108, 1980,
equation 10. Radiosondes report humidity over water at all temperatures. A humidity at a height is
read at the pressure of that height in the standard atmosphere.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from model.constants import EPSILON
from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import place
from model.operators.standard_atmosphere import pressure_at_height
from model.operators.vertical import pressure_stencil

__all__ = ["RelativeHumidityFamily", "saturation_pressure"]

COLDEST = 130.0
"""K; keeps the exponential finite for the wild states of early diffusion steps."""
WARMEST = 373.0


def saturation_pressure(temperature: Tensor) -> Tensor:
    """Saturation vapour pressure over water in Pa of temperatures in K; same shape."""
    kelvin = temperature.clamp(min=COLDEST, max=WARMEST)
    return 611.2 * (17.67 * (kelvin - 273.15) / (kelvin - 29.65)).exp()


class RelativeHumidityFamily:
    """Vapour pressure over saturation vapour pressure."""

    linear = False

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """`relative_humidity` at a pressure or height."""
        return variable == "relative_humidity" and vertical_kind in ("pressure", "height")

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
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
        """See :class:`model.operators.base.OperatorFamily`."""
        q, temperature = ingredients.unbind(dim=-1)
        vapour = q * parameters["pressure"] / (EPSILON + (1.0 - EPSILON) * q)
        return vapour / saturation_pressure(temperature)
