r"""Members of the posterior under a closed-form prior, from which sampling can start.

A draw :math:`x_b` of the prior and perturbed observations :math:`y + \epsilon` give

.. math:: x = x_b + C H^\top (H C H^\top + R)^{-1} \left( y + \epsilon - H(x_b) \right)

which is a draw of the posterior where the operator is linear. With the posterior mean
:math:`\bar x` and :math:`p = x_b - \mu` it is, by the same linearity,

.. math:: x = \bar x + p + C H^\top (H C H^\top + R)^{-1} \left( \epsilon - H p \right)

so the mean, which every member shares, is solved once and well, the deviations in fewer
iterations, and for a pair of members of opposite noise once: their mean is the posterior mean.
Noise of an intermediate level is then added and the network takes over: it need not find again
what linear algebra knows.

References:
    | Randomize-Then-Optimize: A Method for Sampling from Posterior Distributions in Nonlinear
      Inverse Problems (Bardsley et al., 2014)
    | https://doi.org/10.1137/140964023
"""

__all__ = ["PriorStart", "PriorStartSettings"]

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import BlanketRows, Denoise, Observed
from model.guidance.conditions import Conditions
from model.guidance.prior_covariance import PriorCovarianceSettings, Tangent, gauss_newton
from model.noise import mirror
from model.variational_solve import variational_increment


@dataclass(frozen=True)
class PriorStartSettings:
    """How the systems are solved.

    Attributes:
        iterations: The largest number of conjugate gradients for the posterior mean.
        tolerance: Of its residual, relative to the right-hand side.
        steps: Gauss-Newton steps of the mean.
        guessed_steps: The same from a first guess, which is nearer than climatology.
        member_iterations: The largest number for the deviation of a member from the mean.
        member_tolerance: Of that residual: an error here is an error of the spread alone.
        tied_iterations: The largest number where each member is tied to states of its own.
        tied_tolerance: Of that residual.
        mirrored: Whether members come in pairs of opposite noise.
    """

    iterations: int = 60
    tolerance: float = 0.003
    steps: int = 2
    guessed_steps: int = 1
    member_iterations: int = 25
    member_tolerance: float = 0.03
    tied_iterations: int = 30
    tied_tolerance: float = 0.005
    mirrored: bool = True

    def mean(self, guessed: bool) -> PriorCovarianceSettings:
        """For the posterior mean, from a first guess or from climatology."""
        steps = self.guessed_steps if guessed else self.steps
        return PriorCovarianceSettings(self.iterations, steps, self.tolerance)

    @property
    def tied(self) -> PriorCovarianceSettings:
        """For members tied to states of their own; latents are linear in themselves."""
        return PriorCovarianceSettings(self.tied_iterations, 1, self.tied_tolerance)


class PriorStart:
    """Maps white noise to members of the posterior; a `Guidance` that uses no denoiser.

    Arguments:
        prior: The closed-form prior.
        conditions: The observations.
        seed: Of the perturbations of the observations.
        members: Number of each member.
        settings: How the systems are solved.
        guess: A first guess of the posterior mean of each blanket, with shape (blankets, K, c, h,
            w), such as the mean of an analysis an hour ago: it saves iterations and changes
            nothing else. None for climatology.
        first: Number of the first of those blankets; a rank has its own ones only.
    """

    def __init__(
        self,
        prior: ZonalGaussianPrior,
        conditions: Conditions,
        seed: int,
        members: tuple[int, ...],
        settings: PriorStartSettings,
        guess: Tensor | None = None,
        first: int = 0,
    ) -> None:
        self.prior = prior
        self.observations = conditions.observations()
        self.tangent = conditions.through(conditions.tangent)
        self.seed = seed
        self.members = members
        self.settings = settings
        self.guess = guess
        self.first = first
        self._means: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """White noise (B, K, c, h, w) to members with the same shape."""
        mean = self.prior.climatology(date).to(x_t)
        seen = self.tangent.select(rows, x_t)
        if seen is None:
            return mean + self.prior.filter(x_t, torch.sqrt)
        if not _alike(seen, rows):
            return self._one_by_one(mean, x_t, rows)
        for i, blanket in enumerate(rows.blanket.tolist()):
            if blanket not in self._means:
                row = BlanketRows(rows.blanket[i : i + 1], rows.member[i : i + 1])
                self._means[blanket] = self._mean(mean[i : i + 1], row)
        analysed = torch.cat([self._means[b] for b in rows.blanket.tolist()])
        return analysed + self._deviations(analysed, x_t, rows)

    def _mean(self, climate: Tensor, row: BlanketRows) -> Tensor:
        """The posterior mean of one blanket, with shape (1, K, c, h, w)."""
        seen = cast(Observed, self.observations.select(row, climate))
        tangent = cast(Observed, self.tangent.select(row, climate))
        first = None if self.guess is None else self.guess[row.blanket - self.first].to(climate)
        settings = self.settings.mean(first is not None)
        return gauss_newton(climate, seen, tangent, self.prior.filter, settings, first).x

    def _deviations(self, analysed: Tensor, white: Tensor, rows: BlanketRows) -> Tensor:
        """Deviations of members from the posterior mean, with the shape of `white`."""
        numbers = [self.members[m] for m in rows.member.tolist()]
        pairs = [mirror(n, self.settings.mirrored) for n in numbers]
        keys = list(zip(rows.blanket.tolist(), (twin for twin, _ in pairs), strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        chosen = torch.tensor(sorted(first.values()))
        part = BlanketRows(rows.blanket[chosen], rows.member[chosen])
        drawn = self.prior.filter(white[chosen], torch.sqrt)
        tangent = cast(Observed, self.tangent.select(part, white))
        point = Tangent(tangent, analysed[chosen])
        increment, _ = variational_increment(
            self.prior.filter,
            point.forward,
            point.adjoint,
            self._noise(tangent, part) - point.forward(drawn),
            iterations=self.settings.member_iterations,
            tolerance=self.settings.member_tolerance,
        )
        place = {int(row): i for i, row in enumerate(chosen.tolist())}
        signs = [pairs[i][1] * pairs[first[key]][1] for i, key in enumerate(keys)]
        index = torch.tensor([place[first[key]] for key in keys])
        sign = torch.tensor(signs).to(white).reshape(-1, *(1,) * (white.ndim - 1))
        return sign * (drawn + increment)[index]

    def _one_by_one(self, mean: Tensor, white: Tensor, rows: BlanketRows) -> Tensor:
        """Members that are tied to states of their own share no mean: each is solved alone."""
        drawn = mean + self.prior.filter(white, torch.sqrt)
        seen = cast(Observed, self.observations.select(rows, white))
        tangent = cast(Observed, self.tangent.select(rows, white))
        seen = replace(seen, values=seen.values + seen.error_std * self._noise(seen, rows))
        return gauss_newton(drawn, seen, tangent, self.prior.filter, self.settings.tied).x

    def _noise(self, seen: Observed, rows: BlanketRows) -> Tensor:
        """Perturbations that depend on the seed, the member and the blanket alone."""
        draws = []
        for member, blanket in zip(rows.member.tolist(), rows.blanket.tolist(), strict=True):
            number, sign = mirror(self.members[member], self.settings.mirrored)
            words = [self.seed % 2**64, number % 2**64, blanket]
            key = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(key) >> 1)
            draws.append(sign * torch.randn(seen.values.shape[1], generator=generator))
        return torch.stack(draws).to(seen.values) * seen.present


def _alike(seen: Observed, rows: BlanketRows) -> bool:
    """Whether all rows of a blanket have the same observed values."""
    for blanket in torch.unique(rows.blanket):
        values = seen.values[rows.blanket == blanket]
        if not torch.equal(values, values[:1].expand_as(values)):
            return False
    return True
