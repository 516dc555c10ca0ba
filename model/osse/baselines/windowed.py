r"""Windowed optimal interpolation: the exact analysis of a window under a Gaussian prior.

With a prior :math:`\mathcal{N}(\mu, \Sigma)` over blankets of latents and the observations of all
their times, in units of the observation error (:math:`f = R^{-1/2} H \circ \mathrm{decode}`,
:math:`J = f'(x)`), the analysis :math:`x_a = \mu + \delta` solves

.. math:: (\Sigma^{-1} + J^\top J) \, \delta = J^\top \left(R^{-1/2} y - f(x) + J (x - \mu)\right)

by conjugate gradients; a nonlinear decoder or operator takes a few outer (Gauss-Newton)
iterations around the last analysis. The prior knows its eigenvalues :math:`\lambda`, so the system
is preconditioned by :math:`(\Sigma^{-1} + \kappa I)^{-1}`, with :math:`\kappa` the mean information
of the observations, :math:`\mathrm{tr}(J^\top J) / n`. What is left of the condition number is how
unevenly the observations are spread; without it, tens of thousands of observations of a smooth
field take many hundred iterations.

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

__all__ = ["GaussianPrior", "WindowedAnalysis", "conjugate_gradients", "windowed_analysis"]

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


def conjugate_gradients(
    system: Map, right: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """Solves batches of symmetric positive definite systems.

    azula's `linalg.solve.cg` runs all its iterations; this one stops.

    Arguments:
        system: Maps (B, *) to (B, *).
        right: With shape (B, *).
        iterations: At most.
        tolerance: Of the residual's norm, relative to the right-hand side.

    Returns:
        The solution (B, *) and the number of iterations.
    """
    axes = tuple(range(1, right.ndim))
    x = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    square = residual.double().square().sum(axes, keepdim=True)
    goal = tolerance**2 * square
    for i in range(iterations):
        if bool((square <= goal).all()):
            return x, i
        image = system(direction)
        curvature = (direction.double() * image.double()).sum(axes, keepdim=True)
        step = torch.where(square > goal, square / curvature.clamp(min=1e-300), 0.0).to(right)
        x = x + step * direction
        residual = residual - step * image
        last, square = square, residual.double().square().sum(axes, keepdim=True)
        direction = residual + (square / last.clamp(min=1e-300)).to(right) * direction
    return x, iterations


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


def _information(push: Map, like: Tensor) -> float:
    """Estimate of tr(JᵀJ) / n from one random vector; the draw is always the same."""
    draw = torch.Generator().manual_seed(0)
    probe = torch.randn(like.shape, generator=draw).to(like)
    return float(push(probe).double().square().sum() / probe.numel())


def _increment(
    prior: GaussianPrior, push: Map, pull: Map, right: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """δ of the equation above, for the innovation `right` (B, N)."""
    like = pull(torch.zeros_like(right))
    kappa = max(SHARE * _information(push, like), 1e-12)

    def half(x: Tensor) -> Tensor:
        return prior.filter(x, lambda v: (v / (1.0 + v * kappa)).sqrt())

    def system(x: Tensor) -> Tensor:
        return half(pull(push(half(x)))) + prior.filter(x, lambda v: 1.0 / (1.0 + v * kappa))

    solution, steps = conjugate_gradients(system, half(pull(right)), iterations, tolerance)
    return half(solution), steps


SHARE = 0.1
"""Information that the preconditioner reckons with, over the mean; places without observations
converge faster with less, those with many faster with more."""


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
    iterations: int = 100,
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
        increment, steps = _increment(prior, push, pull, right, iterations, tolerance)
        x, total = mean + increment, total + steps
    left = observations.values / unit - observe(x)
    return WindowedAnalysis(x, total, float(left.square().mean().sqrt()))
