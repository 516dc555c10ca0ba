r"""Members of the posterior under a closed-form prior, from which sampling can start.

A draw :math:`x_b` of the prior and perturbed observations :math:`y + \epsilon` give

.. math:: x = x_b + C H^\top (H C H^\top + R)^{-1} \left( y + \epsilon - H(x_b) \right)

which is a draw of the posterior where the operator is linear. Noise of an intermediate level is
then added and the network takes over: it need not find again what linear algebra knows.

References:
    | Randomize-Then-Optimize: A Method for Sampling from Posterior Distributions in Nonlinear
      Inverse Problems (Bardsley et al., 2014)
    | https://doi.org/10.1137/140964023
"""

__all__ = ["PriorStart"]

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import BlanketRows, Denoise, Observed
from model.guidance.conditions import Conditions
from model.guidance.prior_covariance import PriorCovarianceSettings, gauss_newton


class PriorStart:
    """Maps white noise to members of the posterior; a `Guidance` that uses no denoiser.

    Arguments:
        prior: The closed-form prior.
        conditions: The observations.
        seed: Of the perturbations of the observations.
        members: Number of each member.
        settings: How the system is solved.
    """

    def __init__(
        self,
        prior: ZonalGaussianPrior,
        conditions: Conditions,
        seed: int,
        members: tuple[int, ...],
        settings: PriorCovarianceSettings,
    ) -> None:
        self.prior = prior
        self.observations = conditions.observations()
        self.tangent = conditions.through(conditions.tangent)
        self.seed = seed
        self.members = members
        self.settings = settings

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """White noise (B, K, c, h, w) to members with the same shape."""
        mean = self.prior.climatology(date).to(x_t)
        drawn = mean + self.prior.filter(x_t, torch.sqrt)
        seen = self.observations.select(rows, x_t)
        tangent = self.tangent.select(rows, x_t)
        if seen is None or tangent is None:
            return drawn
        seen = replace(seen, values=seen.values + seen.error_std * self._noise(seen, rows))
        found = gauss_newton(drawn, seen, tangent, self.prior.filter, self.settings)
        return found.x

    def _noise(self, seen: Observed, rows: BlanketRows) -> Tensor:
        """Perturbations that depend on the seed, the member and the blanket alone."""
        draws = []
        for member, blanket in zip(rows.member.tolist(), rows.blanket.tolist(), strict=True):
            words = [self.seed % 2**64, self.members[member] % 2**64, blanket]
            key = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(key) >> 1)
            draws.append(torch.randn(seen.values.shape[1], generator=generator))
        return torch.stack(draws).to(seen.values) * seen.present
