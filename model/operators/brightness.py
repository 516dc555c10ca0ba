"""Brightness temperature as a weighted mean of the temperature profile.

The weights of each channel come with the statics; they are a linear stand-in for radiative
transfer, good for channels in the 60 GHz oxygen band (W. P. Menzel and J. Susskind treat
weighting functions in any remote-sensing text; the AMSU-A ones are near Gaussian in ln p).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.operators.base import Built
from model.operators.domain import ModelDomain, Points
from model.operators.placement import place

__all__ = ["BrightnessFamily", "gaussian_weighting"]

Float = NDArray[np.float64]


def gaussian_weighting(levels: Float, peak: float, width: float = 0.6) -> Float:
    """Weights (L,) that sum to 1 for a weighting function that is Gaussian in ln p.

    Arguments:
        levels: Pa, ascending, with shape (L,).
        peak: Pressure of the maximum in Pa.
        width: Standard deviation in ln p.
    """
    x = np.log(levels)
    share = np.exp(-0.5 * ((x - np.log(peak)) / width) ** 2) * np.abs(np.gradient(x))
    return share / share.sum()


class BrightnessFamily:
    """Sum of weights times temperatures; the vertical coordinate is the channel number."""

    linear = True

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """`brightness_temperature` of a channel."""
        return variable == "brightness_temperature" and vertical_kind == "channel"

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """See :class:`model.operators.base.OperatorFamily`."""
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
        """See :class:`model.operators.base.OperatorFamily`."""
        return ingredients[..., 0]
