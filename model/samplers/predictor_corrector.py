"""Predictor-corrector sampling as in the release: Langevin corrections, then a DDIM step."""

__all__ = ["PredictorCorrector"]

from math import sqrt
from typing import Any

from azula.denoise import Denoiser
from azula.sample import DDIMSampler
from torch import Tensor

from model.samplers.control import Controlled


class PredictorCorrector(Controlled, DDIMSampler):
    r"""Each step corrects at noise level sigma_t, then predicts with DDIM.

    A correction is a step of Langevin dynamics,
    :math:`x \gets x + \delta (d(x) - x) + \sqrt{2 \delta} \, \sigma_t \, \epsilon`. azula's
    `PCSampler` corrects in another way (it shrinks the noise by sqrt(1 - delta) and refreshes
    it), which has the same limit but not the same samples.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456

    Arguments:
        denoiser: The denoiser.
        corrections: Corrections per step.
        delta: Their size.
        arguments: Those of :class:`Controlled`.
    """

    def __init__(
        self, denoiser: Denoiser, *, corrections: int = 2, delta: float = 0.1, **arguments: Any
    ) -> None:
        super().__init__(denoiser, **arguments)
        self.corrections = corrections
        self.delta = delta

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """From time t to s < t."""
        alpha, sigma = self.denoiser.schedule(t)
        for _ in range(self.corrections):
            x = self.denoiser(x_t, t, **kwargs).mean
            x_t = (
                x_t
                + self.delta * (alpha * x - x_t)
                + sqrt(2 * self.delta) * sigma * self.control.noise(x_t)
            )
        return super().step(x_t, t, s, **kwargs)
