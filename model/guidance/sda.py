r"""Score-based data assimilation (SDA) guidance of blankets, the cheap alternative.

.. math:: E[x \mid x_t, y] \approx \hat{x}
    + \sigma_t^2 J^\top H^\top (R + \Gamma_t)^{-1} (y - H(\hat{x}))

One forward and one adjoint evaluation and no solve: the covariance of the denoised state seen by
the observations is replaced by a constant :math:`\Gamma_t`.

References:
    | Score-based Data Assimilation (Rozet and Louppe, 2023)
    | https://arxiv.org/abs/2306.10574
"""

__all__ = ["SDA", "SDASettings"]

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.guidance.base import BlanketRows, Denoise, ObservedBlankets
from model.guidance.fit import Fit, FitReport
from model.guidance.linearisation import Linearisation


@dataclass(frozen=True)
class SDASettings:
    """How SDA widens the observation error variance R.

    Attributes:
        gamma: The assumed variance of the denoised state in observation space.
        relative: If true the widened variance is R (1 + gamma s), s = sigma^2 / (1 + sigma^2):
            `gamma` is the ratio of prior to observation error variance, whatever the units.
            Otherwise it is R + gamma s in squared units of the observation, as released, which
            makes sense for standardised observations only.
    """

    gamma: float = 100.0
    relative: bool = True
    method: Literal["sda"] = "sda"

    def widened(self, variance: Tensor, sigma: Tensor) -> Tensor:
        """The variance (B, N) that divides the innovation."""
        level = sigma**2 / (1 + sigma**2)
        if self.relative:
            return variance * (1 + self.gamma * level)
        return variance + self.gamma * level


class SDA:
    """SDA guidance.

    Arguments:
        observations: The observations of the trajectory.
        settings: The constant.
        report: Collects the fit to the observations at each noise level.
    """

    def __init__(
        self,
        observations: ObservedBlankets,
        settings: SDASettings | None = None,
        report: FitReport | None = None,
    ) -> None:
        self.observations = observations
        self.settings = settings or SDASettings()
        self.report = report

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """See :class:`model.guidance.base.Guidance`."""
        seen = self.observations.select(rows, x_t)
        if seen is None:
            return denoise(x_t, sigma, date)
        point = Linearisation(denoise, seen.predict, x_t, sigma, date)
        innovation = seen.values - point.y_hat
        level = sigma.to(x_t)
        weighted = innovation / self.settings.widened(seen.error_std**2, level)
        if self.report is not None:
            before = innovation / seen.error_std
            self.report.add(float(sigma), Fit.of(seen, before, before, 0))
        return point.x_hat + level**2 * point.denoise_vjp(point.observe_vjp(weighted))
