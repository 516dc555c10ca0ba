r"""Windowed optimal interpolation: the exact analysis of a window under a Gaussian prior.

With a prior :math:`\mathcal{N}(\mu, \Sigma)` over blankets of latents and the observations of all
their times, in units of the observation error (:math:`f = R^{-1/2} H \circ \mathrm{decode}`,
:math:`J = f'(x)`), the analysis :math:`x_a = \mu + \delta` solves

.. math:: (\Sigma^{-1} + J^\top J) \, \delta = J^\top \left(R^{-1/2} y - f(x) + J (x - \mu)\right)

by preconditioned conjugate gradients (`model.variational_solve`); a nonlinear decoder or operator
takes a few outer (Gauss-Newton) iterations around the last analysis.

Members of the posterior come from the same system with a prior sample for :math:`\mu` and
perturbed observations, which is exact for linear f (J. M. Bardsley et al.,
"Randomize-then-optimize", SIAM J. Sci. Comput. 36, 2014).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.operators.observation_set import ObservationSet
from model.variational_solve import variational_increment

__all__ = ["GaussianPrior", "WindowedAnalysis", "windowed_analysis"]

Map = Callable[[Tensor], Tensor]


class GaussianPrior(Protocol):
    """A Gaussian over blankets (B, K, c, h, w); see `model.gaussian_prior`."""

    def climatology(self, date: Tensor) -> Tensor:
        """The mean at dates (B, K, 4)."""

    def filter(self, x: Tensor, gain: Map) -> Tensor:
        """U g(Λ) U* x, with the eigenvectors U and the variances Λ of the covariance."""

    def sample(self, date: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws at dates (B, K, 4)."""


@dataclass(frozen=True)
class WindowedAnalysis:
    """An analysis of a window.

    Attributes:
        latents: Posterior mean, or members, with shape (B, K, c, h, w).
        iterations: Conjugate gradient iterations in all.
        fit: Root mean square of observation minus analysis in units of the observation error.
    """

    latents: Tensor
    iterations: int
    fit: float


def _linearise(f: Map, x: Tensor) -> tuple[Tensor, Map, Map]:
    """f(x), and products with its Jacobian and its transpose, from one kept graph."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = f(x)
        probe = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, probe, create_graph=True)

    def push(v: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(pulled, probe, v, retain_graph=True)
        return out

    def pull(w: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(y, x, w, retain_graph=True)
        return out

    return y.detach(), push, pull


@torch.no_grad()
def windowed_analysis(
    prior: GaussianPrior,
    decode: Map,
    observations: ObservationSet,
    date: Tensor,
    *,
    members: int = 0,
    generator: torch.Generator | None = None,
    outer: int = 1,
    iterations: int = 60,
    tolerance: float = 1e-2,
) -> WindowedAnalysis:
    """Posterior mean or members of a window.

    Arguments:
        prior: Over blankets of K states.
        decode: From latents (n, c, h, w) to physical states (n, C, Y, X), differentiable.
        observations: On trajectories of K states; their errors should include what the decoder
            cannot represent, see :meth:`ObservationSet.with_representativeness`.
        date: Year, month, day, hour of the states, with shape (K, 4).
        members: How many members to draw; 0 gives the posterior mean.
        generator: Source of the draws.
        outer: Gauss-Newton iterations; 1 suffices when decoder and operators are linear.
        iterations: Of each conjugate gradient solve, at most.
        tolerance: Of each solve, relative.
    """
    dates = date.expand(max(members, 1), *date.shape)
    mean = prior.sample(dates, generator) if members else prior.climatology(dates)
    if not len(observations):
        return WindowedAnalysis(mean, 0, 0.0)
    unit = observations.error_std
    target = (observations.values / unit).expand(len(dates), -1)
    if members:
        target = target + torch.randn(target.shape, generator=generator).to(target)

    def observe(x: Tensor) -> Tensor:
        states = decode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return observations.operator(states) / unit

    x, total = mean, 0
    for _ in range(outer):
        y, push, pull = _linearise(observe, x)
        right = target - y + push(x - mean)
        increment, steps = variational_increment(
            prior.filter, push, pull, right, iterations=iterations, tolerance=tolerance
        )
        x, total = mean + increment, total + steps
    left = observations.values / unit - observe(x)
    return WindowedAnalysis(x, total, float(left.square().mean().sqrt()))
