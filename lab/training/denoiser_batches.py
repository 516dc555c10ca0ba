"""Draw what the denoiser is trained on: blankets, noise levels of their states, targets.

Besides one level for all states, the released way, a network is trained on blankets whose states
carry different noise: a known past and an unknown future (a forecast), noise that grows along the
blanket (rolling filtering, arXiv 2506.20024), stretches of their own level (gaps, late data; after
diffusion forcing, arXiv 2407.01392). The closed form of a profile costs a factorisation, so a
library of profiles is kept and renewed a little at every step.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lab.training.latent_years import LatentYears
from model.denoiser import Scalings, noise_time
from model.gaussian_prior import ZonalGaussianPrior
from model.unequal_noise import Conditioned, forecast_profile

__all__ = ["Batch", "Batches", "ProfileLibrary", "draw_profile"]


def draw_profile(blanket: int, random: torch.Generator) -> Tensor:
    """Draw the levels (K,) of a blanket: forecasts, one in seven rolling, one in seven stretches.

    Cycles and forecasts know a past with little noise and no future: most draws go there.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    def level(low: float, high: float) -> float:
        return math.exp(uniform(math.log(low), math.log(high)))

    kind = uniform(0, 1)
    if kind < 5 / 7:
        return forecast_profile(blanket, int(uniform(3, blanket - 2)), level(0.1, 1.0))
    if kind < 6 / 7:
        first, last = level(0.03, 0.5), level(1.0, 50.0)
        place = torch.linspace(-uniform(0, 1), 1, blanket).clamp(min=0)
        return torch.exp(math.log(first) + place * math.log(last / first))
    cuts = sorted({0, *(int(uniform(1, blanket)) for _ in range(3))})
    levels = torch.empty(blanket)
    for start in cuts:
        levels[start:] = level(0.03, 20.0)
    return levels


@dataclass(frozen=True)
class _Profile:
    sigma: Tensor
    given: Conditioned
    scalings: Scalings


class ProfileLibrary:
    """Profiles with their closed forms, drawn from and renewed one by one.

    Arguments:
        prior: The closed form.
        size: Profiles kept, about 35 MB each for appa-t31.
    """

    def __init__(self, prior: ZonalGaussianPrior, size: int = 24) -> None:
        self.prior = prior
        self.size = size
        self._profiles: list[_Profile] = []
        self._calls = 0

    def draw(self, count: int, random: torch.Generator) -> list[_Profile]:
        """Return `count` profiles; every fourth call, and while there are few, one of them is new."""
        if self._calls % 4 == 0 or len(self._profiles) < count:
            sigma = draw_profile(self.prior.blanket_size, random).to(self.prior.variance.device)
            given = Conditioned(self.prior, sigma)
            kept = self._profiles[-self.size + 1 :]
            self._profiles = [*kept, _Profile(sigma, given, given.scalings())]
        self._calls += 1
        which = torch.randint(len(self._profiles), (count,), generator=random)
        return [self._profiles[i] for i in which]


@dataclass(frozen=True)
class Batch:
    """One step's blankets: what the backbone sees and should answer.

    Attributes:
        x: Clean blankets, with shape (B, K, c, h, w).
        seen: The closed form's scaled estimates.
        noise_time: 10 ln sigma, with shape (B, K).
        date: Dates, with shape (B, K, 4).
        target: Errors of the closed form over their expected size: a correction of 1 everywhere
            would be as large as what the closed form leaves.
    """

    x: Tensor
    seen: Tensor
    noise_time: Tensor
    date: Tensor
    target: Tensor


class Batches:
    """Draw batches from the step, so that a run that goes on does not repeat what was seen.

    Arguments:
        data: Latents; of several truths the first is held out.
        base: The closed form.
        blankets: Blankets of a batch.
        levels: Times each blanket is used, at another noise.
        sigma: Lowest and highest level where all states carry one, drawn log-uniformly.
        unequal: Share of a batch whose states carry different noise.
        device: Where batches are made.
    """

    def __init__(
        self,
        data: LatentYears,
        base: ZonalGaussianPrior,
        *,
        blankets: int,
        levels: int,
        sigma: tuple[float, float],
        unequal: float,
        device: str,
    ) -> None:
        self.data, self.device = data, device
        self.size, self.levels, self.sigma, self.unequal = blankets, levels, sigma, unequal
        self.base = base
        self.starts = data.starts(base.blanket_size)
        self.library = ProfileLibrary(base)

    @torch.no_grad()
    def draw(self, step: int) -> Batch:
        """Draw blankets, dates, noise levels (stratified over the range) and noise of one step."""
        random = torch.Generator().manual_seed(1_000_003 + step)
        x, date = self._blankets(random)
        device = x.device
        noise = torch.randn(
            x.shape, generator=torch.Generator(device).manual_seed(step), device=device
        )
        unequal = round(self.unequal * len(x))
        parts = [self._equal(x[unequal:], noise[unequal:], date[unequal:], random)]
        if unequal:
            parts += self._unequal(x[:unequal], noise[:unequal], date[:unequal], random)
        seen, times, target = (torch.cat(p) for p in zip(*reversed(parts), strict=True))
        return Batch(x, seen, times, date, target)

    def _blankets(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        count = len(self.data.latents)
        chosen = self.starts[torch.randint(len(self.starts), (self.size,), generator=random)]
        first = 1 if count > 1 else 0  # the first truth of several is held out
        seeds = torch.randint(first, count, (self.size,), generator=random)
        x, date = self.data.blankets(seeds, chosen, self.base.blanket_size)
        x, date = x.to(self.device), date.to(self.device)
        # Both halves of a batch see each blanket where they can.
        return x.repeat(self.levels, 1, 1, 1, 1), date.repeat(self.levels, 1, 1)

    def _equal(
        self, x: Tensor, noise: Tensor, date: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.rand(1, generator=random) + torch.arange(len(x)) / max(len(x), 1)
        low, high = map(math.log, self.sigma)
        sigma = torch.exp((place % 1) * (high - low) + low).to(x.device)
        x_t = x + sigma.reshape(-1, 1, 1, 1, 1) * noise
        scale = self.base.scalings(sigma.double().reshape(-1, 1, 1, 1, 1))
        levels = sigma[:, None].expand(-1, x.shape[1])
        return _scaled(x, self.base(x_t, sigma, date), scale, levels)

    def _unequal(
        self, x: Tensor, noise: Tensor, date: Tensor, random: torch.Generator
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        groups = list(torch.arange(len(x)).chunk(max(len(x) // 4, 1)))
        parts = []
        for rows, profile in zip(groups, self.library.draw(len(groups), random), strict=True):
            x_t = x[rows] + profile.sigma.reshape(1, -1, 1, 1, 1) * noise[rows]
            levels = profile.sigma.expand(len(rows), -1)
            parts.append(_scaled(x[rows], profile.given(x_t, date[rows]), profile.scalings, levels))
        return parts[::-1]


def _scaled(
    x: Tensor, estimate: Tensor, scale: Scalings, levels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the backbone sees, the noise times and the target."""
    c_estimate = cast(Tensor, scale.c_estimate).to(x)
    return estimate * c_estimate, noise_time(levels).to(x), (x - estimate) / scale.c_out.to(x)
