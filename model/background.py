r"""Build the prior of a cycle: a Gaussian around the forecast from the last analysis.

A cold window has no information but its own observations. A cycle also has the last analysis, which
holds the information of everything observed before. The states of that analysis that lie in the new
window, and a forecast of the others, are the background :math:`x_b`. Errors of backgrounds,
:math:`x - x_b`, were collected from cycles in a simulated world and fitted by a Gaussian of the same
form as the climatological one (`model.gaussian_prior`), so that

.. math:: x \sim \mathcal{N}(x_b + b, P)

replaces the climatological prior, and only observations that the last analysis has not used are
assimilated. A P of errors that are white in time would be far too confident: errors of neighbouring
hours are nearly the same. With a P that was not estimated from the cycle's own errors, a chain of
analyses drifts away from the truth.

P describes how errors grow on average; on a given day their growth depends on the flow. `Propagation`
therefore carries errors of the analysed states into the new hours by the tangent-linear forecast, which
makes the analysis a 4D-Var whose forecast model is the network.

The analysis is linear in its innovations, and `innovation_weights` says by its adjoint what each of
them did to model equivalents elsewhere.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from model.domain.windows import HOUR
from model.forecast import expected_states, forecast_mean
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import Denoise, Observed
from model.guidance.prior_covariance import GaussianPrior, PriorStartSettings, whitened
from model.guidance.solvers import Tangent, variational_increment
from model.latent_model import LatentModel
from model.unequal_noise import forecast_profile

__all__ = [
    "Around",
    "BackgroundPrior",
    "Propagation",
    "around_forecast",
    "continued_ages",
    "innovation_weights",
    "propagate_errors",
    "shifted_forecast",
]

EXACT = 0.02
"""Noise level of the analysed states in the regression on them; far below any analysis error."""


class Propagation:
    r"""Propagate errors of the analysed states to the new hours by the tangent-linear forecast.

    With :math:`\delta \sim \mathcal{N}(0, P)` split into the errors of the analysed states
    :math:`\delta_a` and of the new ones :math:`\delta_n`, A the regression of :math:`\delta_n` on
    :math:`\delta_a` under P, and F the tangent linear of the forecast at the analysed states,

    .. math:: T \delta = (\delta_a, \; F \delta_a + \rho \, (\delta_n - A \delta_a))

    has the covariance :math:`T P T^\top`: average errors of the analysis, flow-dependent growth, and
    as model error :math:`\rho` times the part of :math:`\delta_n` that :math:`\delta_a` does not
    explain (weak-constraint 4D-Var; Trémolet 2006, https://doi.org/10.1256/qj.05.224).

    Arguments:
        tangent: Tangent linear of :math:`F - \rho A`, from (1, k, c, h, w) to (1, n).
        background: The states that F was linearised along: k analysed ones and their forecast, with
            shape (K, c, h, w).
        remainder: :math:`\rho`, the factor on the model error.
    """

    def __init__(self, tangent: Tangent, background: Tensor, remainder: float) -> None:
        self.tangent, self.background, self.remainder = tangent, background, remainder
        self.known = tangent.x.shape[1]

    def jvp(self, x: Tensor) -> Tensor:
        """Return T x for a blanket (1, K, c, h, w)."""
        analysed, new = x[:, : self.known], self.remainder * x[:, self.known :]
        return torch.cat([analysed, new + self.tangent.jvp(analysed.contiguous()).view_as(new)], 1)

    def vjp(self, x: Tensor) -> Tensor:
        """Return the product of the transpose of T with a blanket (1, K, c, h, w)."""
        analysed, new = x[:, : self.known], x[:, self.known :]
        return torch.cat([analysed + self.tangent.vjp(new.flatten(1)), self.remainder * new], 1)


@dataclass(frozen=True)
class BackgroundPrior:
    """A Gaussian around a background; implements `model.guidance.prior_covariance.GaussianPrior`.

    Attributes:
        background: x_b, with shape (K, c, h, w).
        errors: Background errors: their mean b by season and hour of day, and their covariance P.
        propagation: Flow-dependent growth of errors in the analysis of the mean; None for the
            average growth that P describes. Deviations of members from the mean always follow P.
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
"""The mean of the first states of a window (k, c, h, w), and dates of all of them (K, 4) -> the
prior of the window."""


def around_forecast(model: LatentModel) -> Around | None:
    """Return the function that builds the prior of a continued cycle from the last analysis.

    None if the checkpoint has no statistics of background errors.
    """
    errors, known = model.background_errors, model.card.background
    if errors is None or known is None:
        return None
    # A network with one noise level for the whole blanket cannot take known and unknown states.
    forecast = model.denoise if model.card.backbone.noise_per_state else model.denoise.base

    def around(analysed: Tensor, date: Tensor) -> BackgroundPrior:
        analysed, date = analysed.to(model.dtype).to(model.device), date.to(model.device)
        if known.remainder is None:
            background = shifted_forecast(forecast, analysed, date, known.sigma)
            return BackgroundPrior(background, errors, spread=known.spread)
        propagation = propagate_errors(
            forecast, errors, analysed, date, known.sigma, known.remainder
        )
        return BackgroundPrior(propagation.background, errors, propagation, known.spread)

    return around


def propagate_errors(
    denoise: Denoise,
    errors: ZonalGaussianPrior,
    analysed: Tensor,
    date: Tensor,
    sigma: float,
    remainder: float,
) -> Propagation:
    """Linearise the forecast from analysed states to propagate their errors.

    Arguments:
        denoise: A denoiser of blankets whose states carry different noise, differentiable twice.
        errors: Average background errors.
        analysed: The first states of the window, with shape (k, c, h, w), k < K.
        date: Dates of all its states, with shape (K, 4).
        sigma: Noise level that the analysed states are taken to have in the forecast.
        remainder: See `Propagation`.
    """
    known, size = len(analysed), len(date)
    regression = errors.given(forecast_profile(size, known, EXACT).to(analysed.device))

    def follows(states: Tensor) -> Tensor:
        blanket = torch.cat([states, states.new_zeros(1, size - known, *states.shape[2:])], 1)
        return regression.gain(blanket)[:, known:]

    def grown(states: Tensor) -> Tensor:
        expected = expected_states(denoise, states, date, sigma)
        return (expected - remainder * follows(states)).flatten(1)

    with _uncompiled():
        tangent = Tangent(grown, analysed[None])
    average = remainder * follows(tangent.x)
    forecast = tangent.y.view_as(average) + average  # known by now: not evaluated again
    return Propagation(tangent, torch.cat([analysed, forecast[0]]), remainder)


def _uncompiled() -> AbstractContextManager[object]:
    """Evaluate functions without compilation: compiled ones have first derivatives only.

    Where the compiler is not loaded, nothing is compiled: to load it takes a second and 70 MB.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def continued_ages(hours: int) -> tuple[tuple[timedelta, timedelta], ...]:
    """Return the least and greatest ages of analyses that are continued, the preferred ones first.

    An older analysis is preferred to one that is younger than in the card: its window holds more
    observations. A younger one serves while there is no other, at the beginning of a chain.

    Arguments:
        hours: Age in the card of the model.
    """
    age, half = hours * HOUR, hours // 2 * HOUR
    older, younger = (age, age + half), (half, age)
    return (older, younger) if half else (older,)


@torch.no_grad()
def shifted_forecast(denoise: Denoise, analysed: Tensor, date: Tensor, sigma: float) -> Tensor:
    """Return the background of a window: its analysed states, and a forecast of the others.

    Arguments:
        denoise: A denoiser of blankets whose states carry different noise.
        analysed: The first states of the window, with shape (k, c, h, w), k < K.
        date: Dates of all its states, with shape (K, 4).
        sigma: Noise level that the analysed states are taken to have.

    Returns:
        With shape (K, c, h, w).
    """
    return torch.cat([analysed, forecast_mean(denoise, analysed[None], date, sigma)[0]])


@torch.no_grad()
def innovation_weights(
    prior: GaussianPrior,
    used: Observed,
    verified: Observed,
    analysed: Tensor,
    sensitivity: Tensor,
    settings: PriorStartSettings,
) -> Tensor:
    r"""Return what one unit of each innovation does to a weighted sum of model equivalents.

    With J and :math:`J_v` the model equivalents of the observations in use and of the verified ones,
    each in units of their errors, and d the innovations, the posterior mean is
    :math:`x_a = x_b + K d` with :math:`K = P J^\top (J P J^\top + I)^{-1}`, so that

    .. math:: s^\top J_v (x_a - x_b) = \sum_i v_i d_i, \qquad
              v = K^\top J_v^\top s = (J P J^\top + I)^{-1} J P J_v^\top s

    This is the adjoint of the analysis (R. H. Langland and N. L. Baker, "Estimation of observation
    impact using the NRL atmospheric variational data assimilation adjoint system", Tellus A 56, 2004).

    Arguments:
        prior: Provides P; errors grow as on average where they are propagated with the flow.
        used: The observations in use, of one blanket.
        verified: The observations at which the analysis is verified, of the same blanket.
        analysed: The posterior mean, with shape (1, K, c, h, w), at which both are linearised.
        sensitivity: s, with shape (1, N_v).
        settings: How the system is solved: as that of a member's deviation.

    Returns:
        v, with shape (1, N).
    """
    seen, there = whitened(used, analysed), whitened(verified, analysed)
    reached = seen.jvp(prior.filter(there.vjp(sensitivity), lambda variance: variance))
    explained, _ = variational_increment(
        prior.filter,
        seen.jvp,
        seen.vjp,
        reached,
        iterations=settings.member_iterations,
        tolerance=settings.member_tolerance,
    )
    return reached - seen.jvp(explained)
