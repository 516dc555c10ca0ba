r"""Guide, and start, with the covariance of a closed-form prior instead of the network's Jacobian.

With :math:`\Sigma_\sigma = (C^{-1} + \sigma^{-2} I)^{-1}` the covariance of a state given its
noisy version under a Gaussian prior of covariance :math:`C`,

.. math:: x_{k+1} = \hat{x} + \Sigma_\sigma H_k^\top (R + H_k \Sigma_\sigma H_k^\top)^{-1}
    \left( y - H(x_k) + H_k (x_k - \hat{x}) \right), \qquad x_0 = \hat{x} = d(x_t)

which is the Gauss-Newton iteration of the variational analysis around the denoised state. It is
exact for a Gaussian prior and a linear operator, needs no derivative of the denoiser, and is
solved in state space with the prior's own eigenvectors as preconditioner
(`model.guidance.solvers`). MMPS (`model.guidance.jacobian`) takes the covariance from the denoiser
itself: it is flow-dependent, and costs an adjoint of the network in every iteration.

Sampling can start from members of the posterior under the same prior. A draw :math:`x_b` of the
prior and perturbed observations :math:`y + \epsilon` give

.. math:: x = x_b + C H^\top (H C H^\top + R)^{-1} \left( y + \epsilon - H(x_b) \right)

which is a draw of the posterior where the operator is linear. With the posterior mean
:math:`\bar x` and :math:`p = x_b - \mu` it is, by the same linearity,

.. math:: x = \bar x + p + C H^\top (H C H^\top + R)^{-1} \left( \epsilon - H p \right)

so the mean, which all members share, is solved once and accurately. The deviations need fewer
iterations, and one solve serves both members of an antithetic pair, whose mean is the posterior
mean. Then noise of an intermediate level is added, and sampling with the network starts from there
instead of pure noise.

References:
    | Randomize-Then-Optimize: A Method for Sampling from Posterior Distributions in Nonlinear
      Inverse Problems (Bardsley et al., 2014)
    | https://doi.org/10.1137/140964023
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from model.domain.ensembles import noise_source
from model.domain.errors import ConfigurationError
from model.guidance.base import (
    BlanketRows,
    Conditions,
    CovarianceFilter,
    Denoise,
    Fit,
    FitReport,
    Observed,
    ObservedBlankets,
)
from model.guidance.solvers import Filter, LinearMap, Tangent, variational_increment

__all__ = [
    "Analysed",
    "GaussianPrior",
    "PriorCovariance",
    "PriorCovarianceSettings",
    "PriorStart",
    "PriorStartSettings",
    "Transform",
    "build_prior_covariance",
    "gauss_newton",
    "whitened",
]


@dataclass(frozen=True)
class PriorCovarianceSettings:
    """How the system is solved.

    Attributes:
        iterations: The largest number of conjugate gradients per Gauss-Newton step.
        steps: Gauss-Newton steps; more than one where the operator or the decoder is nonlinear.
        tolerance: Stop a row when its residual is below this fraction of the right-hand side.
        scale: Factor on the covariance, as the network's errors are not those of the prior.
    """

    method: ClassVar[str] = "prior_covariance"
    needs_closed_form: ClassVar[bool] = True

    iterations: int = 20
    steps: int = 1
    tolerance: float = 0.05
    scale: float = 1.0


class PriorCovariance:
    """Guide with the covariance of a closed-form prior.

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


class Transform(Protocol):
    """A linear map T of blankets: with δ of covariance Σ, T δ has T Σ Tᵀ."""

    def jvp(self, x: Tensor) -> Tensor:
        """Return T x for blankets (B, K, c, h, w)."""

    def vjp(self, x: Tensor) -> Tensor:
        """Return the product of the transpose of T with blankets (B, K, c, h, w)."""


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
    transform: Transform | None = None,
) -> Analysed:
    """Minimise the distance from `x_hat` under the covariance plus that from the observations.

    Arguments:
        x_hat: The centre of the prior, with shape (B, K, c, h, w).
        seen: The observations.
        tangent: The same through a decoder that is cheap to differentiate.
        covariance: Of the prior.
        settings: How to solve.
        first: A guess of the solution, with the shape of `x_hat`, to start from and to linearise
            at; None for `x_hat`.
        transform: T, where the covariance of the prior is T Σ Tᵀ and `covariance` applies
            functions of Σ: the system is solved for what T maps to the increment.
    """
    x, iterations = x_hat if first is None else first, 0
    before: Tensor | None = None
    guess = None if first is None or transform is not None else first - x_hat
    for _ in range(settings.steps):
        innovation = torch.where(
            seen.present, (seen.values - seen.predict(x)) / seen.error_std, 0.0
        )
        before = innovation if before is None else before
        point = whitened(tangent, x)
        right = innovation + point.jvp(x - x_hat)
        jvp, vjp = _in_control_space(point, transform)
        guess, iterations = variational_increment(
            covariance,
            jvp,
            vjp,
            right,
            iterations=settings.iterations,
            tolerance=settings.tolerance,
            first=guess,
        )
        increment = guess if transform is None else transform.jvp(guess)
        x, after = x_hat + increment, right - point.jvp(increment)
    return Analysed(x, cast(Tensor, before), after, iterations)


def _in_control_space(point: Tangent, transform: Transform | None) -> tuple[LinearMap, LinearMap]:
    """Return J T and its transpose."""
    if transform is None:
        return point.jvp, point.vjp
    return (
        lambda x: point.jvp(transform.jvp(x)),
        lambda w: transform.vjp(point.vjp(w)),
    )


def build_prior_covariance(
    conditions: Conditions, settings: PriorCovarianceSettings
) -> PriorCovariance:
    """Return the guidance of a model with a closed-form prior.

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
        conditions.build_observations(conditions.tangent),
        conditions.covariance,
        settings,
        conditions.report,
    )


def whitened(seen: Observed, x: Tensor) -> Tangent:
    """Linearise the model equivalents at a state, in units of the observation error."""
    return Tangent(lambda z: seen.predict(z) / seen.error_std, x)


class GaussianPrior(Protocol):
    """A Gaussian over blankets (B, K, c, h, w), with eigenvectors U and variances Λ."""

    def climatology(self, date: Tensor) -> Tensor:
        """Return the mean at dates (B, K, 4)."""

    def filter(self, x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """Return U g(Λ) U* x, with g applied to each eigenvalue; x and the result have the same shape."""


@dataclass(frozen=True)
class PriorStartSettings:
    """How the systems are solved.

    Attributes:
        iterations: The largest number of conjugate gradients for the posterior mean.
        tolerance: Of its residual, relative to the right-hand side.
        steps: Gauss-Newton steps of the mean.
        guessed_steps: The same from a first guess or around a background, which are nearer than
            climatology.
        propagated_iterations: The largest number for the mean with flow-dependent errors: each takes
            two products with the tangent linear of the network.
        member_iterations: The largest number for the deviation of a member from the mean.
        member_tolerance: Of that residual: an error here is an error of the spread alone.
        tied_iterations: The largest number where each member is tied to states of its own.
        tied_tolerance: Of that residual.
        antithetic: Whether members come in antithetic pairs, of opposite noise.
    """

    iterations: int = 60
    tolerance: float = 0.003
    steps: int = 2
    guessed_steps: int = 1
    propagated_iterations: int = 12
    member_iterations: int = 12
    member_tolerance: float = 0.03
    tied_iterations: int = 30
    tied_tolerance: float = 0.005
    antithetic: bool = True

    def mean(self, guessed: bool, propagated: bool) -> PriorCovarianceSettings:
        """Return the settings for the posterior mean.

        Arguments:
            guessed: Whether it starts from a first guess instead of climatology.
            propagated: Whether errors are propagated by the tangent-linear forecast.
        """
        steps = self.guessed_steps if guessed or propagated else self.steps
        iterations = self.iterations
        if propagated:
            iterations = min(iterations, self.propagated_iterations)
        return PriorCovarianceSettings(iterations, steps, self.tolerance)

    @property
    def tied(self) -> PriorCovarianceSettings:
        """Settings for members tied to their own states: one step, as this observation is linear."""
        return PriorCovarianceSettings(self.tied_iterations, 1, self.tied_tolerance)


class PriorStart:
    """Map white noise to members of the posterior; a `Guidance` that uses no denoiser.

    Arguments:
        prior: The closed form, climatological or around a background.
        conditions: The observations.
        seed: Of the perturbations of the observations.
        members: Number of each member.
        settings: How the systems are solved.
        guess: A first guess of the posterior mean of each blanket, with shape (blankets, K, c, h,
            w), such as the mean of an analysis an hour ago: it saves iterations and changes
            nothing else. None for climatology.
        first: Number of the first of those blankets; a rank has its own ones only.
        transform: T, where the posterior mean is sought under T Σ Tᵀ with Σ that of the prior;
            deviations of members are drawn from Σ.
        spread: Factor on these deviations.
    """

    def __init__(
        self,
        prior: GaussianPrior,
        conditions: Conditions,
        seed: int,
        members: tuple[int, ...],
        settings: PriorStartSettings,
        guess: Tensor | None = None,
        first: int = 0,
        transform: Transform | None = None,
        spread: float = 1.0,
    ) -> None:
        self.prior = prior
        self.observations = conditions.observations()
        self.tangent = conditions.build_observations(conditions.tangent)
        self.seed = seed
        self.members = members
        self.settings = settings
        self.guess = guess
        self.first = first
        self.transform = transform
        self.spread = spread
        self._means: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """Map white noise (B, K, c, h, w) to members with the same shape."""
        mean = self.prior.climatology(date).to(x_t)
        seen = self.tangent.select(rows, x_t)
        if seen is None:
            return mean + self.spread * self.prior.filter(x_t, torch.sqrt)
        if not _same_observations(seen, rows):
            return self._one_by_one(mean, x_t, rows)
        for i, blanket in enumerate(rows.blanket.tolist()):
            if blanket not in self._means:
                row = BlanketRows(rows.blanket[i : i + 1], rows.member[i : i + 1])
                self._means[blanket] = self._mean(mean[i : i + 1], row)
        analysed = torch.cat([self._means[b] for b in rows.blanket.tolist()])
        return analysed + self.spread * self._deviations(analysed, x_t, rows)

    def _mean(self, climate: Tensor, row: BlanketRows) -> Tensor:
        """Return the posterior mean of one blanket, with shape (1, K, c, h, w)."""
        seen = cast(Observed, self.observations.select(row, climate))
        tangent = cast(Observed, self.tangent.select(row, climate))
        first = None if self.guess is None else self.guess[row.blanket - self.first].to(climate)
        settings = self.settings.mean(first is not None, self.transform is not None)
        solved = gauss_newton(
            climate, seen, tangent, self.prior.filter, settings, first, self.transform
        )
        return solved.x

    def _deviations(self, analysed: Tensor, white: Tensor, rows: BlanketRows) -> Tensor:
        """Return deviations of members from the posterior mean, with the shape of `white`."""
        numbers = [self.members[m] for m in rows.member.tolist()]
        pairs = [noise_source(n, self.settings.antithetic) for n in numbers]
        keys = list(zip(rows.blanket.tolist(), (source for source, _ in pairs), strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        chosen = torch.tensor(sorted(first.values()))
        part = BlanketRows(rows.blanket[chosen], rows.member[chosen])
        drawn = self.prior.filter(white[chosen], torch.sqrt)
        tangent = cast(Observed, self.tangent.select(part, white))
        point = whitened(tangent, analysed[chosen])
        increment, _ = variational_increment(
            self.prior.filter,
            point.jvp,
            point.vjp,
            self._noise(tangent, part) - point.jvp(drawn),
            iterations=self.settings.member_iterations,
            tolerance=self.settings.member_tolerance,
        )
        place = {int(row): i for i, row in enumerate(chosen.tolist())}
        signs = [pairs[i][1] * pairs[first[key]][1] for i, key in enumerate(keys)]
        index = torch.tensor([place[first[key]] for key in keys])
        sign = torch.tensor(signs).to(white).reshape(-1, *(1,) * (white.ndim - 1))
        return sign * (drawn + increment)[index]

    def _one_by_one(self, mean: Tensor, white: Tensor, rows: BlanketRows) -> Tensor:
        """Solve each member alone: those tied to states of their own share no mean."""
        drawn = mean + self.prior.filter(white, torch.sqrt)
        seen = cast(Observed, self.observations.select(rows, white))
        tangent = cast(Observed, self.tangent.select(rows, white))
        seen = replace(seen, values=seen.values + seen.error_std * self._noise(seen, rows))
        return gauss_newton(drawn, seen, tangent, self.prior.filter, self.settings.tied).x

    def _noise(self, seen: Observed, rows: BlanketRows) -> Tensor:
        """Return perturbations that depend on the seed, the member and the blanket alone."""
        draws = []
        for member, blanket in zip(rows.member.tolist(), rows.blanket.tolist(), strict=True):
            number, sign = noise_source(self.members[member], self.settings.antithetic)
            words = [self.seed % 2**64, number % 2**64, blanket]
            key = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(key) >> 1)
            draws.append(sign * torch.randn(seen.values.shape[1], generator=generator))
        return torch.stack(draws).to(seen.values) * seen.present


def _same_observations(seen: Observed, rows: BlanketRows) -> bool:
    """Return whether all rows of a blanket have the same observed values."""
    for blanket in torch.unique(rows.blanket):
        values = seen.values[rows.blanket == blanket]
        if not torch.equal(values, values[:1].expand_as(values)):
            return False
    return True
