"""Noise of ensemble members, the same whatever is computed beside them and wherever.

Every normal number depends on the seed, the member's number, which draw of the sampler it belongs
to and the valid time of its state, and on nothing else: not on the number of members, the
sub-batches, the rank that holds the state, or states that were added only to fill a blanket.
azula's samplers draw with `torch.randn_like` from the global generator, which has none of this.
"""

__all__ = ["MemberNoise", "Noise", "RecordedNoise", "mirror"]

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Noise(Protocol):
    """A source of standard normal numbers."""

    def __call__(self, like: Tensor) -> Tensor:
        """The next draw, with the shape, type and device of `like`."""


def mirror(member: int, mirrored: bool = True) -> tuple[int, int]:
    """Number of the member whose noise a member shares, and the sign; itself if not mirrored."""
    odd = member % 2 if mirrored else 0
    return member - odd, 1 - 2 * odd


class MemberNoise:
    """Seeded noise of a trajectory of several members.

    Arguments:
        seed: The seed of the job.
        members: The number of each of the M members.
        hours: The valid time of each of the T states, in whole hours since an epoch.
        stream: Separates noises of one job that must differ, such as those of two passes of a
            forecast.
        mirrored: Whether each odd member has the noise of the even one before it with the sign
            changed: what is linear in the noise then cancels in the mean of a pair.
    """

    def __init__(
        self,
        seed: int,
        members: Sequence[int],
        hours: Sequence[int],
        stream: int = 0,
        mirrored: bool = False,
    ) -> None:
        self.seed = seed
        self.members = tuple(members)
        self.hours = tuple(hours)
        self.stream = stream
        self.mirrored = mirrored
        self.draws = 0

    def _state(self, member: int, hour: int, shape: Sequence[int]) -> Tensor:
        # SeedSequence wants non-negative words; hours before the epoch wrap.
        words = (self.seed, self.stream, member, self.draws, hour)
        key = np.random.SeedSequence([word % 2**64 for word in words])
        seed = int(key.generate_state(1, np.uint64)[0]) >> 1
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def __call__(self, like: Tensor) -> Tensor:
        """
        Arguments:
            like: A tensor with shape (M, T, *).
        """
        rows = []
        for member in self.members:
            twin, sign = mirror(member, self.mirrored)
            drawn = [self._state(twin, hour, like.shape[2:]) for hour in self.hours]
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
