"""Relate noise levels to time: sigma(t) of diffusion time t in [0, 1], with alpha(t) = 1.

All are azula `Schedule`s, so azula's samplers run with them. azula has the log-linear one
(`VESchedule`). It lacks the other two in this form: its `RectifiedSchedule` scales the signal
instead (same ratio sigma / alpha), and it has no log-logit schedule. It also lacks the inverse,
the time of a noise level, which a warm start needs.

Times are often float32 while sigma spans six decades, so everything is computed in float64 and
returned in the type of the argument; no difference of nearly equal numbers is formed near t = 1.
"""

import abc
import math
from collections.abc import Callable

import torch
from azula.noise import Schedule, VESchedule
from torch import Tensor

from model.domain.registry import Registry

__all__ = [
    "LogLinearSchedule",
    "LogLogitSchedule",
    "NoiseSchedule",
    "RectifiedSchedule",
    "SCHEDULES",
]


class NoiseSchedule(Schedule):  # type: ignore[misc]  # azula has no types
    """A schedule with alpha(t) = 1 and an invertible sigma(t).

    Arguments:
        sigma_min: Noise level near t = 0.
        sigma_max: Noise level near t = 1.
    """

    def __init__(self, sigma_min: float = 1e-3, sigma_max: float = 1e3) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha(t) = 1 and sigma(t), both with the shape and type of `t`."""
        return torch.ones_like(t), self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time `t`, with the shape and type of `t`."""
        return self._sigma(t.to(torch.float64)).to(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is `sigma`, with its shape and type."""
        return self._time(sigma.to(torch.float64)).to(sigma)

    @abc.abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _time(self, sigma: Tensor) -> Tensor: ...


class RectifiedSchedule(NoiseSchedule):
    r"""The schedule of the release.

    .. math:: \sigma_t = \frac{t + (1 - t) \sigma_\min}{(1 - t) + t / \sigma_\max}

    References:
        | Flow Straight and Fast (Liu et al., 2022)
        | https://arxiv.org/abs/2209.03003
    """

    def _sigma(self, t: Tensor) -> Tensor:
        return (t + (1 - t) * self.sigma_min) / ((1 - t) + t / self.sigma_max)

    def _time(self, sigma: Tensor) -> Tensor:
        rise = sigma - self.sigma_min
        return rise / (rise + (1 - sigma / self.sigma_max))


class LogLinearSchedule(NoiseSchedule):
    r"""log sigma is linear in t; azula's variance-exploding schedule.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
    """

    def _sigma(self, t: Tensor) -> Tensor:
        level: Tensor = VESchedule(self.sigma_min, self.sigma_max).sigma(t)
        return level

    def _time(self, sigma: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (torch.log(sigma) - low) / (high - low)


class LogLogitSchedule(NoiseSchedule):
    r"""log sigma follows the logit of t, which spends more steps near the middle noise level.

    .. math::
        \log \sigma_t = \tfrac{1}{2} \log (\sigma_\min \sigma_\max)
            + s \, \mathrm{logit}(\epsilon + t (1 - 2 \epsilon)), \quad
        \epsilon = (\sigma_\min / \sigma_\max)^{1 / (2 s)}

    The end points are :math:`\sigma_\max (1 - \epsilon)^s` and its mirror image, a little inside
    the nominal ones.

    Arguments:
        spread: s.
    """

    def __init__(
        self, sigma_min: float = 1e-3, sigma_max: float = 1e3, spread: float = 2.0
    ) -> None:
        super().__init__(sigma_min, sigma_max)
        self.spread = spread
        self.eps = (sigma_min / sigma_max) ** (0.5 / spread)
        self.log_middle = math.log(sigma_min * sigma_max) / 2

    def _sigma(self, t: Tensor) -> Tensor:
        inner = self.eps + t * (1 - 2 * self.eps)
        return torch.exp(self.spread * torch.logit(inner) + self.log_middle)

    def _time(self, sigma: Tensor) -> Tensor:
        inner = torch.sigmoid((torch.log(sigma) - self.log_middle) / self.spread)
        time: Tensor = (inner - self.eps) / (1 - 2 * self.eps)
        return time


SCHEDULES: Registry[Callable[..., NoiseSchedule]] = Registry(
    "noise schedule",
    rectified=RectifiedSchedule,
    loglinear=LogLinearSchedule,
    loglogit=LogLogitSchedule,
)
