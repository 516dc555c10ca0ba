r"""Forecast with a denoiser that takes a noise level per state: the past is known, the future is not.

A blanket whose first states carry the noise of an analysis, :math:`\sigma_a`, and whose others carry so
much noise that they hold no information, is a forecast: its denoised future is the conditional mean
:math:`\mathbb{E}[x_{k:} \mid x_{:k}]` (diffusion forcing, arXiv 2407.01392). One evaluation gives all
hours of a blanket; longer forecasts continue from its last states.

A member is the mean given its own past states plus a deviation, drawn from the conditional covariance of
the closed form under the same noise,

.. math:: \delta = s - \Sigma (\Sigma + N)^{-1} (s + N^{1/2} \epsilon), \qquad s \sim \mathcal{N}(0, \Sigma)

times a factor, because the network's forecast has other errors than the closed form's. Antithetic pairs
have opposite draws, so that their mean is that of their two forecasts.
"""

import torch
from torch import Tensor

from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import Denoise
from model.unequal_noise import forecast_profile

__all__ = ["expected_states", "forecast_deviations", "forecast_mean"]


def expected_states(denoise: Denoise, known: Tensor, date: Tensor, sigma: float) -> Tensor:
    """Return the expected states after known ones, differentiable in the known states.

    Arguments:
        denoise: A denoiser of blankets whose states carry different noise.
        known: The first states of a blanket, with shape (M, k, c, h, w), k < K.
        date: Dates of all its states, with shape (K, 4).
        sigma: Noise level that the known states are taken to have.

    Returns:
        The states after them, with shape (M, K - k, c, h, w).
    """
    members, count = known.shape[:2]
    size = len(date)
    profile = forecast_profile(size, count, sigma).to(known.device)
    unknown = known.new_zeros(members, size - count, *known.shape[2:])
    blankets, dates = torch.cat([known, unknown], 1), date.expand(members, -1, -1)
    return denoise(blankets, profile.expand(members, -1), dates)[:, count:].to(known)


@torch.no_grad()
def forecast_mean(denoise: Denoise, known: Tensor, date: Tensor, sigma: float) -> Tensor:
    """Return the result of `expected_states` without gradient."""
    return expected_states(denoise, known, date, sigma)


@torch.no_grad()
def forecast_deviations(
    prior: ZonalGaussianPrior, known: int, sigma: float, white: Tensor, noise: Tensor
) -> Tensor:
    """Draw forecast errors from the conditional covariance of the closed form.

    Arguments:
        prior: The closed form.
        known: k, the number of known states.
        sigma: Noise level that they are taken to have.
        white: Standard normal numbers for the draws of the prior, with shape (M, K, c, h, w).
        noise: Independent ones for the noise of the states, with the same shape.

    Returns:
        Deviations of the states after the known ones, with shape (M, K - k, c, h, w).
    """
    profile = forecast_profile(prior.blanket_size, known, sigma).to(white.device)
    drawn = prior.filter(white, torch.sqrt)
    noisy = drawn + profile.reshape(1, -1, 1, 1, 1) * noise
    return (drawn - prior.given(profile).gain(noisy))[:, known:]
