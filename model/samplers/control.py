"""What every sampler here adds to azula's: progress, cancelling, a float64 clock, seeded noise.

azula's `Sampler` shows a progress bar, draws from torch's global generator and makes its time grid
in one go from `start`, `stop` and `steps`. All three are attributes or methods, so a mixin is
enough; the steps themselves stay azula's.
"""

__all__ = ["Control", "Controlled"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.noise import Noise
from model.progress import OnStep, no_progress


@dataclass(frozen=True)
class Control:
    """How a sampler is run.

    Attributes:
        times: Diffusion times from noisy to clean, with shape (steps + 1,). Near t = 1 the noise
            level loses its digits in float32, hence float64.
        noise: Source of the noise of stochastic samplers.
        on_step: Called before every step.
        offset: Steps of the same job done before these.
        total: Steps of the whole job; None for these alone.
    """

    times: Tensor
    noise: Noise
    on_step: OnStep = no_progress
    offset: int = 0
    total: int | None = None


class Controlled:
    """Mixin for azula samplers; comes first among the bases.

    Arguments:
        control: How the sampler is run.
        arguments: Those of the sampler.
    """

    def __init__(self, *args: Any, control: Control, **kwargs: Any) -> None:
        steps = len(control.times) - 1
        super().__init__(*args, steps=steps, silent=True, dtype=control.times.dtype, **kwargs)
        self.control = control

    @property
    def timesteps(self) -> Tensor:
        """The time grid, with shape (steps + 1,)."""
        return self.control.times

    def progress_bar(self, it: Any) -> Iterator[Any]:
        """Iterates over steps, telling `on_step` before each."""
        items = it.unbind() if torch.is_tensor(it) else list(it)
        total = self.control.total or len(items)
        for i, item in enumerate(items):
            self.control.on_step(self.control.offset + i, total)
            yield item
