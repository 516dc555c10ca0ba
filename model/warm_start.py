"""Starting from the trajectory of the previous cycle instead of from pure noise.

One hour later all but the newest states have been analysed before. Noise of an intermediate level
is added to them, and sampling goes on from there: the large scales are kept, what the new
observations change is drawn again, and the cost is a fraction of a cold start. Not in the papers.
"""

__all__ = ["WarmStart", "WarmStartSettings", "hours_since_epoch", "warm_sampler"]

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from model.domain.errors import InvalidInput
from model.sampling import SamplerSettings
from model.schedule import NoiseSchedule


@dataclass(frozen=True)
class WarmStartSettings:
    """Where sampling enters.

    Attributes:
        sigma: Noise level that is added, in standard deviations of a latent.
        steps: Diffusion steps from there.
    """

    sigma: float = 1.0
    steps: int = 6


@dataclass(frozen=True)
class WarmStart:
    """Latents of an earlier trajectory.

    Attributes:
        latents: Standardised latents, with shape (M, T, c, h, w).
        first_time: Valid time of the first state, a full hour in UTC; the others follow hourly.
    """

    latents: Tensor
    first_time: datetime

    def at(self, members: int, hours: list[int]) -> Tensor:
        """A guess of the states at other hours.

        Arguments:
            members: M; members repeat if there were fewer.
            hours: Hours since 1970 of the T states wanted.

        Returns:
            With shape (M, T, c, h, w). An hour outside the earlier trajectory takes its nearest
            state: the error of an hour's persistence is below the noise that is added.
        """
        first = hours_since_epoch(self.first_time)
        last = self.latents.shape[1] - 1
        index = torch.tensor([min(max(hour - first, 0), last) for hour in hours])
        if not any(0 <= hour - first <= last for hour in hours):
            raise InvalidInput(
                f"Expected a warm start that overlaps the window; its {last + 1} states from "
                f"{self.first_time.isoformat()} do not. Start cold."
            )
        member = torch.arange(members) % self.latents.shape[0]
        return self.latents[member][:, index]


def hours_since_epoch(time: datetime) -> int:
    """Whole hours since 1970-01-01 00 UTC."""
    return int(time.astimezone(UTC).timestamp() // 3600)


def warm_sampler(
    sampler: SamplerSettings, warm: WarmStartSettings, schedule: NoiseSchedule
) -> SamplerSettings:
    """The sampler from the warm start's noise level on."""
    level = torch.tensor(warm.sigma, dtype=torch.float64)
    return replace(sampler, start=float(schedule.time(level)), steps=warm.steps)
