r"""Continue from the last analysis: a Gaussian prior around its forecast, with the errors these make.

A cold window knows of the past what its own observations say. A cycle knows more: the last analysis
holds everything observed before. Its states that lie in the new window, and a forecast of those that
do not, are the background :math:`x_b`. What cycles in a simulated world have erred by,
:math:`x - x_b`, is fitted by a Gaussian of the same form as the climatological one
(`model.gaussian_prior`), so that

.. math:: x \sim \mathcal{N}(x_b + b, P)

takes the place of the climatological prior, and only observations that the last analysis has not
seen are assimilated. With errors of white noise, P is far too confident: errors of neighbouring
hours are nearly the same. A P that does not come from the cycle's own errors lets the cycle slide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.forecast import forecast_mean
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import Denoise
from model.latent_model import LatentModel

__all__ = ["Around", "BackgroundPrior", "around_forecast", "shifted_forecast"]


@dataclass(frozen=True)
class BackgroundPrior:
    """A Gaussian around a background; follows `model.guidance.prior_covariance.GaussianPrior`.

    Attributes:
        background: x_b, with shape (K, c, h, w).
        errors: Of backgrounds: their mean b by season and hour of day, and their covariance P.
    """

    background: Tensor
    errors: ZonalGaussianPrior

    def climatology(self, date: Tensor) -> Tensor:
        """Return the centre of the prior at dates (B, K, 4), with shape (B, K, c, h, w)."""
        return self.background.float() + self.errors.climatology(date)

    def filter(self, x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function of P to blankets (B, K, c, h, w); see `ZonalGaussianPrior.filter`."""
        return self.errors.filter(x, gain)


Around = Callable[[Tensor, Tensor], BackgroundPrior]
"""The mean of the first states of a window (k, c, h, w), and dates of all of them (K, 4) -> what is
known of the window."""


def around_forecast(model: LatentModel) -> Around | None:
    """Return how a checkpoint continues an analysis; None if it does not know its errors."""
    errors, known = model.background_errors, model.card.background
    if errors is None or known is None:
        return None
    # A network for one noise level knows nothing of a blanket of which a part is known.
    forecast = model.denoise if model.card.backbone.noise_per_state else model.denoise.base

    def around(analysed: Tensor, date: Tensor) -> BackgroundPrior:
        analysed = analysed.to(model.dtype).to(model.device)
        background = shifted_forecast(forecast, analysed, date.to(model.device), known.sigma)
        return BackgroundPrior(background, errors)

    return around


@torch.no_grad()
def shifted_forecast(denoise: Denoise, analysed: Tensor, date: Tensor, sigma: float) -> Tensor:
    """Return the background of a window: what was analysed of it, and a forecast of the rest.

    Arguments:
        denoise: A denoiser of blankets whose states carry different noise.
        analysed: The first states of the window, with shape (k, c, h, w), k < K.
        date: Dates of all its states, with shape (K, 4).
        sigma: Noise level that the analysed states are taken to have.

    Returns:
        With shape (K, c, h, w).
    """
    return torch.cat([analysed, forecast_mean(denoise, analysed[None], date, sigma)[0]])
