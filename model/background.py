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

P says how errors grow on average. Those of today grow with the flow: `Propagation` has the forecast's own
tangent carry errors of the analysed states into the new hours, which makes of the analysis a
four-dimensional variational one whose model is the network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.forecast import expected_states, forecast_mean
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import Denoise
from model.guidance.solvers import Tangent
from model.latent_model import LatentModel
from model.unequal_noise import forecast_profile

__all__ = [
    "Around",
    "BackgroundPrior",
    "Propagation",
    "around_forecast",
    "propagate_errors",
    "shifted_forecast",
]

EXACT = 0.02
"""Noise, far below any error of an analysis, at which the regression on analysed states is taken."""


class Propagation:
    r"""Let errors of the analysed states grow into the new hours with the flow.

    With :math:`\delta \sim \mathcal{N}(0, P)` parted into that of the analysed states and that of the new
    ones, A the regression of the second on the first under P, and F the tangent of the forecast at
    the analysed states,

    .. math:: T \delta = (\delta_a, \; F \delta_a + \rho \, (\delta_n - A \delta_a))

    has the covariance :math:`T P T^\top`: errors of the analysis as on average, their growth as of
    today, and :math:`\rho` times what they do not explain for what the forecast errs by itself
    (weak-constraint 4D-Var; Trémolet 2006, https://doi.org/10.1256/qj.05.224).

    Arguments:
        tangent: Of :math:`F - \rho A` at the analysed states, with shape (1, k, c, h, w), to (1, n).
        known: k.
        remainder: :math:`\rho`.
    """

    def __init__(self, tangent: Tangent, known: int, remainder: float) -> None:
        self.tangent, self.known, self.remainder = tangent, known, remainder

    def push(self, x: Tensor) -> Tensor:
        """Return T x for a blanket (1, K, c, h, w)."""
        analysed, new = x[:, : self.known], self.remainder * x[:, self.known :]
        return torch.cat([analysed, new + self.tangent.push(analysed.contiguous()).view_as(new)], 1)

    def pull(self, x: Tensor) -> Tensor:
        """Return the product of the transpose of T with a blanket (1, K, c, h, w)."""
        analysed, new = x[:, : self.known], x[:, self.known :]
        return torch.cat([analysed + self.tangent.pull(new.flatten(1)), self.remainder * new], 1)


@dataclass(frozen=True)
class BackgroundPrior:
    """A Gaussian around a background; follows `model.guidance.prior_covariance.GaussianPrior`.

    Attributes:
        background: x_b, with shape (K, c, h, w).
        errors: Of backgrounds: their mean b by season and hour of day, and their covariance P.
        propagation: How errors of the analysed states grow in the analysis of the mean; None as on
            average. Members deviate from it by draws of P: their spread is what it is on average.
        spread: Factor on these deviations.
    """

    background: Tensor
    errors: ZonalGaussianPrior
    propagation: Propagation | None = None
    spread: float = 1.0

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
        analysed, date = analysed.to(model.dtype).to(model.device), date.to(model.device)
        background = shifted_forecast(forecast, analysed, date, known.sigma)
        if known.remainder is None:
            return BackgroundPrior(background, errors, spread=known.spread)
        propagation = propagate_errors(
            forecast, errors, analysed, date, known.sigma, known.remainder
        )
        return BackgroundPrior(background, errors, propagation, known.spread)

    return around


def propagate_errors(
    denoise: Denoise,
    errors: ZonalGaussianPrior,
    analysed: Tensor,
    date: Tensor,
    sigma: float,
    remainder: float,
) -> Propagation:
    """Return how errors of analysed states grow in the forecast from them.

    Arguments:
        denoise: A denoiser of blankets whose states carry different noise, differentiable twice.
        errors: Of backgrounds on average.
        analysed: The first states of the window, with shape (k, c, h, w), k < K.
        date: Dates of all its states, with shape (K, 4).
        sigma: Noise level that the analysed states are taken to have in the forecast.
        remainder: See `Propagation`.
    """
    known, size = len(analysed), len(date)
    regression = errors.given(forecast_profile(size, known, EXACT).to(analysed.device))

    def grown(states: Tensor) -> Tensor:
        blanket = torch.cat([states, states.new_zeros(1, size - known, *states.shape[2:])], 1)
        follows = regression.gain(blanket)[:, known:]
        return (expected_states(denoise, states, date, sigma) - remainder * follows).flatten(1)

    # What is compiled has first derivatives only.
    with torch.compiler.set_stance("force_eager"):
        return Propagation(Tangent(grown, analysed[None]), known, remainder)


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
