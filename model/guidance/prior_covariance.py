r"""Guidance with the covariance of a closed-form prior instead of the network's Jacobian.

With :math:`\Sigma_\sigma = (C^{-1} + \sigma^{-2} I)^{-1}` the covariance of a state given its noisy
version under a Gaussian prior of covariance :math:`C`,

.. math:: x_{k+1} = \hat{x} + \Sigma_\sigma H_k^\top (R + H_k \Sigma_\sigma H_k^\top)^{-1}
    \left( y - H(x_k) + H_k (x_k - \hat{x}) \right), \qquad x_0 = \hat{x} = d(x_t)

which is the Gauss-Newton iteration of the variational analysis around the denoised state. It is
exact for a Gaussian prior and a linear operator, needs no derivative of the denoiser, and is solved
in state space with the prior's own eigenvectors for preconditioner (`model.variational_solve`).
MMPS (`mmps.py`) takes the covariance from the denoiser itself: it knows the flow, and costs an
adjoint of the network in every iteration.
"""

__all__ = [
    "Analysed",
    "PriorCovariance",
    "PriorCovarianceSettings",
    "Tangent",
    "build_prior_covariance",
    "gauss_newton",
]

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from model.domain.errors import ConfigurationError
from model.guidance.base import (
    BlanketRows,
    CovarianceFilter,
    Denoise,
    Observed,
    ObservedBlankets,
)
from model.guidance.conditions import Conditions
from model.guidance.fit import Fit, FitReport
from model.variational_solve import Filter, variational_increment


@dataclass(frozen=True)
class PriorCovarianceSettings:
    """How the system is solved.

    Attributes:
        iterations: The largest number of conjugate gradients per Gauss-Newton step.
        steps: Gauss-Newton steps; more than one where the operator or the decoder bends.
        tolerance: Stop a row when its residual is below this fraction of the right-hand side.
        scale: Factor on the covariance: a network knows more than the Gaussian prior.
    """

    method: ClassVar[str] = "prior_covariance"

    iterations: int = 20
    steps: int = 1
    tolerance: float = 0.05
    scale: float = 1.0


class PriorCovariance:
    """The guidance.

    Arguments:
        observations: The observations of the trajectory, through the true decoder.
        tangent: The same observations through a decoder that is cheap to differentiate.
        covariance: Of the prior given the noisy state.
        settings: How to solve.
        report: Collects the fit to the observations at each noise level.
    """

    def __init__(
        self,
        observations: ObservedBlankets,
        tangent: ObservedBlankets,
        covariance: CovarianceFilter,
        settings: PriorCovarianceSettings | None = None,
        report: FitReport | None = None,
    ) -> None:
        self.observations = observations
        self.tangent = tangent
        self.covariance = covariance
        self.settings = settings or PriorCovarianceSettings()
        self.report = report

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """See :class:`model.guidance.base.Guidance`."""
        x_hat = denoise(x_t, sigma, date)
        seen = self.observations.select(rows, x_t)
        tangent = self.tangent.select(rows, x_t)
        if seen is None or tangent is None:
            return x_hat
        scale = self.settings.scale
        found = gauss_newton(
            x_hat,
            seen,
            tangent,
            lambda x, gain: self.covariance(x, sigma, lambda v: gain(scale * v)),
            self.settings,
        )
        if self.report is not None:
            fit = Fit.of(seen, found.before, found.after, found.iterations)
            self.report.add(float(sigma), fit)
        return found.x


@dataclass(frozen=True)
class Analysed:
    """A solution of the variational problem.

    Attributes:
        x: The state, with shape (B, K, c, h, w).
        before: Innovations of the first guess in units of the error, with shape (B, N).
        after: Those of the solution, to first order.
        iterations: Conjugate gradients of the last Gauss-Newton step.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    iterations: int


def gauss_newton(
    x_hat: Tensor,
    seen: Observed,
    tangent: Observed,
    covariance: Filter,
    settings: PriorCovarianceSettings,
    first: Tensor | None = None,
) -> Analysed:
    """Minimises the distance from `x_hat` under the covariance plus that from the observations.

    Arguments:
        x_hat: The centre of the prior, with shape (B, K, c, h, w).
        seen: The observations.
        tangent: The same through a decoder that is cheap to differentiate.
        covariance: Of the prior.
        settings: How to solve.
        first: A guess of the solution, with the shape of `x_hat`, to start from and to linearise
            at; None for `x_hat`.
    """
    x, before, after, iterations = x_hat if first is None else first, None, None, 0
    guess = None if first is None else first - x_hat
    for _ in range(settings.steps):
        innovation = torch.where(
            seen.present, (seen.values - seen.predict(x)) / seen.error_std, 0.0
        )
        before = innovation if before is None else before
        point = Tangent(tangent, x)
        right = innovation + point.forward(x - x_hat)
        increment, iterations = variational_increment(
            covariance,
            point.forward,
            point.adjoint,
            right,
            iterations=settings.iterations,
            tolerance=settings.tolerance,
            first=guess,
        )
        guess = increment
        x, after = x_hat + increment, right - point.forward(increment)
    return Analysed(x, before, after, iterations)


def build_prior_covariance(
    conditions: Conditions, settings: PriorCovarianceSettings
) -> PriorCovariance:
    """The guidance of a model with a closed-form prior.

    Raises:
        ConfigurationError: If the model has none.
    """
    if conditions.covariance is None:
        raise ConfigurationError(
            "Expected a checkpoint with a closed-form prior for the guidance 'prior_covariance'; "
            "this one has none. Use 'mmps'."
        )
    return PriorCovariance(
        conditions.observations(),
        conditions.through(conditions.tangent),
        conditions.covariance,
        settings,
        conditions.report,
    )


class Tangent:
    """Derivative of the whitened equivalents at a state, by reverse mode both ways.

    The derivative of the adjoint with respect to its argument is the forward derivative, so no
    forward mode is needed.
    """

    def __init__(self, seen: Observed, x: Tensor) -> None:
        with torch.enable_grad():
            self._x = x.detach().clone().requires_grad_()
            self._y = seen.predict(self._x) / seen.error_std
            self._v = torch.zeros_like(self._y).requires_grad_()
            (self._adjoint,) = torch.autograd.grad(self._y, self._x, self._v, create_graph=True)

    def adjoint(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self._y, self._x, v, retain_graph=True)[0]

    def forward(self, u: Tensor) -> Tensor:
        return torch.autograd.grad(self._adjoint, self._v, u, retain_graph=True)[0]
