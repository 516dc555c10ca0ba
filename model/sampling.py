"""Which sampler, how many steps, from which noise level: from noise to a clean trajectory."""

__all__ = ["SAMPLERS", "SamplerSettings", "sample", "time_grid"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from azula.denoise import Denoiser
from azula.sample import (
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
from model.noise import Noise
from model.progress import OnStep, no_progress
from model.samplers.control import Control, Controlled
from model.samplers.ddim import DDIM, RewindDDIM
from model.samplers.ddpm import DDPM
from model.samplers.predictor_corrector import PredictorCorrector


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

Build = Callable[[Denoiser, SamplerSettings, Control], Sampler]


def _multistep(cls: Any) -> Build:
    return lambda denoiser, s, control: cls(denoiser, order=s.order, control=control)


SAMPLERS: Registry[Build] = Registry(
    "sampler",
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
    """Diffusion times from `start` to `stop`, equally spaced, with shape (steps + 1,)."""
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
    """Runs the reverse process.

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
    control = Control(grid, noise, on_step, offset, total)
    return SAMPLERS[settings.name](denoiser, settings, control)(x_t)
