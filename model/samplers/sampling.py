"""Sample a clean trajectory from noise: which sampler, how many steps, from which noise level.

Beside azula's own samplers there are deterministic sampling (DDIM) in increment form and its
rewinding variant, ancestral sampling (DDPM) with seeded noise, and the predictor-corrector of the
release: Langevin corrections, then a DDIM step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from azula.denoise import Denoiser
from azula.sample import (
    DDIMSampler,
    DDPMSampler,
    REABSampler,
    Sampler,
    vABSampler,
    xEABSampler,
    zABSampler,
    zEABSampler,
)
from torch import Tensor

from model.domain.errors import InvalidInput
from model.domain.registry import Registry
from model.execution import OnStep, no_progress
from model.samplers.control import Controlled, Noise, SamplerControl

__all__ = [
    "DDIM",
    "DDPM",
    "EntrySettings",
    "PredictorCorrector",
    "RewindDDIM",
    "SAMPLERS",
    "SamplerSettings",
    "sample",
    "time_grid",
]


class DDIM(Controlled, Sampler):  # type: ignore[misc]  # azula has no types
    r"""The Euler step :math:`x_s = x_t - (1 - \sigma_s / \sigma_t) (x_t - d(x_t))`, for alpha = 1.

    azula's `DDIMSampler` writes it as a sum of the denoised state and the shrunk noise. The
    increment form is the release's, and differs in the last digits of a float32 clock.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021)
        | https://arxiv.org/abs/2010.02502

    Arguments:
        denoiser: The denoiser.
        arguments: Those of :class:`Controlled`.
    """

    def __init__(self, denoiser: Denoiser, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.denoiser = denoiser

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """Map time t to s < t."""
        alpha_s, sigma_s = self.denoiser.schedule(s)
        alpha_t, sigma_t = self.denoiser.schedule(t)
        shrink = 1 - (sigma_s / alpha_s) / (sigma_t / alpha_t)
        x = self.denoiser(x_t, t, **kwargs).mean
        y = x_t / alpha_t
        x_s: Tensor = alpha_s * (y - shrink * (y - x))
        return x_s


class RewindDDIM(DDIM):
    r"""DDIM that denoises `rewind_after` steps of the grid ahead, then re-noises to the next one.

    Every noise level is so denoised from states that have already been at cleaner levels.

    Arguments:
        denoiser: The denoiser.
        rewind_after: How many steps of the grid are taken before going back; 1 is DDIM.
        jump: Take them as one long DDIM step, otherwise one by one.
        arguments: Those of :class:`Controlled`.
    """

    def __init__(
        self, denoiser: Denoiser, *, rewind_after: int = 2, jump: bool = True, **arguments: Any
    ) -> None:
        super().__init__(denoiser, **arguments)
        self.rewind_after = rewind_after
        self.jump = jump

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """Map time t to s < t, by way of cleaner ones."""
        grid = self.control.times.tolist()
        start = grid.index(float(t))
        stop = min(start + self.rewind_after, len(grid) - 1)
        path = [start, stop] if self.jump else list(range(start, stop + 1))
        x = x_t
        for i, j in zip(path[:-1], path[1:], strict=True):
            x = super().step(x, self.control.times[i], self.control.times[j], **kwargs)
        return self._back(x, self.control.times[stop], s)

    def _back(self, x: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Add noise, from a clean time back to a noisier one (or the same)."""
        alpha_c, sigma_c = self.denoiser.schedule(clean)
        alpha_n, sigma_n = self.denoiser.schedule(noisy)
        scale = alpha_n / alpha_c
        added = (sigma_n**2 - (scale * sigma_c) ** 2).clamp(min=0).sqrt()
        moved: Tensor = scale * x + added * self.control.noise(x)
        return moved


class DDPM(Controlled, DDPMSampler):  # type: ignore[misc]  # azula has no types
    """azula's DDPM step, but with noise from `control.noise` instead of the global generator."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """Map time t to s < t."""
        alpha_s, sigma_s = self.denoiser.schedule(s)
        alpha_t, sigma_t = self.denoiser.schedule(t)
        tau = 1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2
        x = self.denoiser(x_t, t, **kwargs).mean
        x_s = alpha_s * x + sigma_s * torch.sqrt(1 - tau) / sigma_t * (x_t - alpha_t * x)
        noisy: Tensor = x_s + sigma_s * torch.sqrt(tau) * self.control.noise(x_t)
        return noisy


class PredictorCorrector(Controlled, DDIMSampler):  # type: ignore[misc]  # azula has no types
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
        """Map time t to s < t."""
        alpha, sigma = self.denoiser.schedule(t)
        for _ in range(self.corrections):
            x = self.denoiser(x_t, t, **kwargs).mean
            x_t = (
                x_t
                + self.delta * (alpha * x - x_t)
                + sqrt(2 * self.delta) * sigma * self.control.noise(x_t)
            )
        x_s: Tensor = super().step(x_t, t, s, **kwargs)
        return x_s


@dataclass(frozen=True)
class SamplerSettings:
    """A sampler and its settings.

    Attributes:
        name: One of SAMPLERS.
        steps: Diffusion steps from `start` to `stop`.
        start: Diffusion time to start from; 1 is pure noise.
        stop: Diffusion time to stop at; 0 is (almost) clean.
        order: Order of the multi-step samplers.
        corrections: Corrections per step of the predictor-corrector sampler.
        delta: Their size.
        rewind_after: How far ahead the rewinding sampler goes before it comes back.
        jump: Whether it does so in one long step.
    """

    name: str = "zeab"
    steps: int = 16
    start: float = 1.0
    stop: float = 0.0
    order: int = 2
    corrections: int = 2
    delta: float = 0.1
    rewind_after: int = 2
    jump: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.stop < self.start <= 1:
            raise InvalidInput(
                "Expected at least one step from a time to an earlier one in [0, 1]; got "
                f"{self.steps} steps from {self.start} to {self.stop}."
            )


@dataclass(frozen=True)
class EntrySettings:
    """Noise level at which sampling starts when it does not start from pure noise.

    Attributes:
        sigma: Noise level that is added, in standard deviations of a latent.
        steps: Diffusion steps from there.
    """

    sigma: float = 1.0
    steps: int = 6

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.sigma > 0:
            raise InvalidInput(
                "Expected at least one step from a positive noise level; got "
                f"{self.steps} steps from {self.sigma}."
            )


def _controlled(cls: type[Sampler]) -> type[Sampler]:
    return type(cls.__name__, (Controlled, cls), {"__doc__": cls.__doc__})


_MULTISTEP = {
    # Linear multi-step in sigma: the release's "LMS".
    "lms": _controlled(zABSampler),
    "vab": _controlled(vABSampler),
    "zeab": _controlled(zEABSampler),
    "xeab": _controlled(xEABSampler),
    "reab": _controlled(REABSampler),
}

Build = Callable[[Denoiser, SamplerSettings, SamplerControl], Sampler]


def _multistep(cls: Any) -> Build:
    return lambda denoiser, s, control: cls(denoiser, order=s.order, control=control)


SAMPLERS: Registry[Build] = Registry(
    "sampler",
    "appa.samplers",
    Callable,
    ddpm=lambda denoiser, s, control: DDPM(denoiser, control=control),
    ddim=lambda denoiser, s, control: DDIM(denoiser, control=control),
    pc=lambda denoiser, s, control: PredictorCorrector(
        denoiser, corrections=s.corrections, delta=s.delta, control=control
    ),
    rewind=lambda denoiser, s, control: RewindDDIM(
        denoiser, rewind_after=s.rewind_after, jump=s.jump, control=control
    ),
    **{name: _multistep(cls) for name, cls in _MULTISTEP.items()},
)


def time_grid(settings: SamplerSettings, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return diffusion times from `start` to `stop`, equally spaced, with shape (steps + 1,)."""
    return torch.linspace(settings.start, settings.stop, settings.steps + 1, dtype=dtype)


def sample(
    denoiser: Denoiser,
    x_t: Tensor,
    settings: SamplerSettings,
    noise: Noise,
    *,
    on_step: OnStep = no_progress,
    offset: int = 0,
    total: int | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Run the reverse process.

    Arguments:
        denoiser: The denoiser, with its schedule.
        x_t: The noisy tensor at the time `settings.start`.
        settings: The sampler.
        noise: Source of the noise of stochastic samplers.
        on_step: Called with (i, n) before every step; may raise.
        offset: Steps of the same job done before these.
        total: Steps of the whole job; None for these alone.
        times: The time grid; None for equal steps in float64.

    Returns:
        The tensor at the time `settings.stop`, with the shape and type of `x_t`.
    """
    grid = (time_grid(settings) if times is None else times).to(x_t.device)
    control = SamplerControl(grid, noise, on_step, offset, total)
    drawn: Tensor = SAMPLERS[settings.name](denoiser, settings, control)(x_t)
    return drawn
