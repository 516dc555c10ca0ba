"""Add to azula's samplers what they lack: progress, cancellation, a float64 clock, seeded noise.

azula's `Sampler` shows a progress bar, draws from torch's global generator and makes its time
grid in one go from `start`, `stop` and `steps`. All three are attributes or methods, so a mixin is
enough; the steps themselves stay azula's.

The noise of an ensemble member does not depend on what else is computed, nor where. Every
normal number depends on the seed, the member's number, which draw of the sampler it belongs to
and the valid time of its state, and on nothing else: not on the number of members, the
sub-batches, the rank that holds the state, or states that were added only to fill a blanket.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.domain.ensembles import noise_source
from model.execution import OnStep, no_progress

__all__ = ["Controlled", "MemberNoise", "Noise", "RecordedNoise", "SamplerControl"]


class Noise(Protocol):
    """A source of standard normal numbers."""

    def __call__(self, like: Tensor) -> Tensor:
        """Return the next draw, with the shape, type and device of `like`."""


class MemberNoise:
    """Seeded noise of a trajectory of several members.

    Arguments:
        seed: The seed of the job.
        members: The number of each of the M members.
        hours: The valid time of each of the T states, in whole hours since an epoch.
        stream: Separates noises of one job that must differ, such as those of two passes of a
            forecast.
        antithetic: Whether each odd member has the noise of the even one before it with the sign
            changed: what is linear in the noise then cancels in the mean of a pair.
    """

    def __init__(
        self,
        seed: int,
        members: Sequence[int],
        hours: Sequence[int],
        stream: int = 0,
        antithetic: bool = False,
    ) -> None:
        self.seed = seed
        self.members = tuple(members)
        self.hours = tuple(hours)
        self.stream = stream
        self.antithetic = antithetic
        self.draws = 0

    def _state(self, member: int, hour: int, shape: Sequence[int]) -> Tensor:
        # SeedSequence wants non-negative words; hours before the epoch wrap.
        words = (self.seed, self.stream, member, self.draws, hour)
        key = np.random.SeedSequence([word % 2**64 for word in words])
        seed = int(key.generate_state(1, np.uint64)[0]) >> 1
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def __call__(self, like: Tensor) -> Tensor:
        """Arguments:
        like: A tensor with shape (M, T, *).
        """
        rows = []
        for member in self.members:
            source, sign = noise_source(member, self.antithetic)
            drawn = [self._state(source, hour, like.shape[2:]) for hour in self.hours]
            rows.append(sign * torch.stack(drawn))
        self.draws += 1
        return torch.stack(rows).to(like)


class RecordedNoise:
    """Noise drawn elsewhere, in order of use.

    Arguments:
        draws: The draws, each with as many elements as the tensor it is asked for.
    """

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self._draws = iter(draws)

    def __call__(self, like: Tensor) -> Tensor:
        return next(self._draws).reshape(like.shape).to(like)


@dataclass(frozen=True)
class SamplerControl:
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

    def __init__(self, *args: Any, control: SamplerControl, **kwargs: Any) -> None:
        steps = len(control.times) - 1
        kwargs |= {"steps": steps, "silent": True, "dtype": control.times.dtype}
        super().__init__(*args, **kwargs)
        self.control = control

    @property
    def timesteps(self) -> Tensor:
        """The time grid, with shape (steps + 1,)."""
        return self.control.times

    def progress_bar(self, it: Any) -> Iterator[Any]:
        """Iterate over steps and call `on_step` before each."""
        items = it.unbind() if torch.is_tensor(it) else list(it)
        total = self.control.total or len(items)
        for i, item in enumerate(items):
            self.control.on_step(self.control.offset + i, total)
            yield item
