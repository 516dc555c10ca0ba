"""Draw training batches of the denoiser: blankets, noise levels of their states, targets.

Besides one level for all states, as released, a network is trained on blankets whose states carry
different noise: a known past and an unknown future (a forecast), noise that grows along the blanket
(rolling filtering, arXiv 2506.20024), stretches with their own level (gaps, late data; after diffusion
forcing, arXiv 2407.01392). In a cycle the known past is not the truth plus white noise but an
analysis, whose errors are correlated in time and lie where there are no observations. Forecasts are
therefore also trained on simulated analyses of true states, so that the network learns the best
regression on analyses. The closed form of a profile of levels costs a factorisation, so a library of
profiles is kept and gradually renewed.
"""

import math
from collections import deque
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lab.training.latent_years import LatentYears
from model.denoiser import Scalings, noise_time
from model.gaussian_prior import ZonalGaussianPrior
from model.unequal_noise import UNKNOWN, Conditioned, forecast_profile

__all__ = [
    "AnalysisErrors",
    "DenoiserBatch",
    "Batches",
    "Profile",
    "ProfileLibrary",
    "ReusedBatches",
    "draw_profile",
]


KNOWN = {12: 0.7, 18: 0.15}
"""Known states of the forecasts in use and their shares of the draws: cycles that continue from twelve
hours before, and from six."""
KNOWN_WEIGHT = 0.1
"""Weight of the error of known states in a forecast, which is used for the states after them."""


@dataclass(frozen=True)
class Profile:
    """Noise levels of the states of a blanket.

    Attributes:
        sigma: With shape (K,).
        analysed: Whether the known states carry errors of analyses instead of white noise.
    """

    sigma: Tensor
    analysed: bool = False

    @property
    def known(self) -> int:
        """Return the number of known states, whose level is below `UNKNOWN`."""
        return int((self.sigma < UNKNOWN).sum())

    @property
    def weight(self) -> Tensor:
        """Return the weight (K,) of each state's error, 1 on average."""
        weight = torch.ones_like(self.sigma)
        if self.known < len(weight):
            weight[: self.known] = KNOWN_WEIGHT
        return weight / weight.mean()


def draw_profile(blanket: int, random: torch.Generator, analysed: float | None = None) -> Profile:
    """Draw the levels of a blanket: nine forecasts in ten, the others rolling or in stretches.

    Most draws are of the kind that cycles and forecasts use: a past with little noise and an unknown
    future.

    Arguments:
        blanket: K, its states.
        random: Source of the draws.
        analysed: Noise level that analysed states are taken to have; three in five forecasts then
            start from them. None where no errors of analyses are known.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    def level(low: float, high: float) -> float:
        return math.exp(uniform(math.log(low), math.log(high)))

    kind = uniform(0, 1)
    if kind < 0.9:
        known, place = int(uniform(3, blanket - 2)), uniform(0, 1)
        for count, share in KNOWN.items():
            if 0 <= place < share and count < blanket - 2:
                known = count
            place -= share
        if analysed is not None and uniform(0, 1) < 0.6:
            return Profile(forecast_profile(blanket, known, analysed), analysed=True)
        return Profile(forecast_profile(blanket, known, level(0.05, 0.5)))
    if kind < 0.95:
        first, last = level(0.03, 0.5), level(1.0, 50.0)
        ramp = torch.linspace(-uniform(0, 1), 1, blanket).clamp(min=0)
        return Profile(torch.exp(math.log(first) + ramp * math.log(last / first)))
    cuts = sorted({0, *(int(uniform(1, blanket)) for _ in range(3))})
    levels = torch.empty(blanket)
    for start in cuts:
        levels[start:] = level(0.03, 20.0)
    return Profile(levels)


class AnalysisErrors:
    """Simulate the errors of analyses of true blankets.

    An analysis is a conditional mean: its error is uncorrelated with the analysis, not with the truth.
    Where there are hardly any observations it is close to climatology, not the truth plus much noise.
    Along each eigenvector, with variances v of the truth and r of the error, it misses a share r / v of
    the truth's anomaly and adds noise of variance r (1 - r / v). The noise is made of sampled errors
    without that share: zonally shifted, mixed in pairs, of either sign, scaled.

    Arguments:
        prior: The closed form, v.
        errors: Background errors, r, with the same eigenvectors.
        x: True blankets, with shape (N, K, c, h, w).
        missed: Truth minus background of each, with the same shape.
        date: Their dates, with shape (N, K, 4).
        sigma: Noise level that analysed states are taken to have.
    """

    def __init__(
        self,
        prior: ZonalGaussianPrior,
        errors: ZonalGaussianPrior,
        x: Tensor,
        missed: Tensor,
        date: Tensor,
        sigma: float,
    ) -> None:
        self.prior, self.sigma = prior, sigma
        self._shares = deepcopy(errors)
        for name in ("variance", "dense_variance", "rest_variance"):
            share = getattr(errors, name) / getattr(prior, name)
            getattr(self._shares, name).copy_(share.clamp(max=0.99))
        parts = zip(x.split(16), missed.split(16), date.split(16), strict=True)
        self.noise = torch.cat([m - self._share(t, d) for t, m, d in parts]).half()

    def draw(self, x: Tensor, date: Tensor, random: torch.Generator) -> Tensor:
        """Return background minus truth for blankets (B, K, c, h, w) at dates (B, K, 4)."""
        noise = torch.stack([self._noise(random) for _ in x]).to(x)
        scale = 0.65 + 0.4 * torch.rand(len(x), 1, 1, 1, 1, generator=random).to(x)
        return -scale.square() * self._share(x, date) - scale * noise

    def _share(self, x: Tensor, date: Tensor) -> Tensor:
        """Return the share of the anomalies of blankets (B, K, c, h, w) that analyses miss."""
        return self._shares.filter(x - self.prior.climatology(date), lambda share: share)

    def _noise(self, random: torch.Generator) -> Tensor:
        angle = 2 * math.pi * float(torch.rand((), generator=random))
        total, width = len(self.noise), self.noise.shape[-1]
        noise = torch.zeros(self.noise.shape[1:])
        for part in (math.cos(angle), math.sin(angle)):
            sample, shift = (int(torch.randint(n, (), generator=random)) for n in (total, width))
            noise += part * self.noise[sample].float().roll(shift, -1)
        return noise


@dataclass(frozen=True)
class _Known:
    profile: Profile
    given: Conditioned
    scalings: Scalings


class ProfileLibrary:
    """Profiles with their closed forms, drawn from and renewed one by one.

    Arguments:
        prior: The closed form.
        analysed: Noise level that analysed states are taken to have, if their errors are known.
        size: Profiles kept, about 35 MB each for appa-t31.
    """

    def __init__(
        self, prior: ZonalGaussianPrior, analysed: float | None = None, size: int = 24
    ) -> None:
        self.prior = prior
        self.analysed = analysed
        self.size = size
        self._profiles: list[_Known] = []
        self._calls = 0

    def draw(self, count: int, random: torch.Generator) -> list[_Known]:
        """Return `count` profiles; every fourth call, and while there are few, one of them is new."""
        if self._calls % 4 == 0 or len(self._profiles) < count:
            profile = draw_profile(self.prior.blanket_size, random, self.analysed)
            given = Conditioned(self.prior, profile.sigma.to(self.prior.variance.device))
            kept = self._profiles[-self.size + 1 :]
            self._profiles = [*kept, _Known(profile, given, given.scalings())]
        self._calls += 1
        which = torch.randint(len(self._profiles), (count,), generator=random)
        return [self._profiles[i] for i in which]


@dataclass(frozen=True)
class DenoiserBatch:
    """Inputs and targets of the backbone for the blankets of one training step.

    Attributes:
        x: Clean blankets, with shape (B, K, c, h, w).
        seen: The closed form's scaled estimates.
        noise_time: 10 ln sigma, with shape (B, K).
        date: Dates, with shape (B, K, 4).
        target: Errors of the closed form over their expected size, c_out.
        weight: Of each state's error, 1 on average, with shape (B, K, 1, 1, 1).
    """

    x: Tensor
    seen: Tensor
    noise_time: Tensor
    date: Tensor
    target: Tensor
    weight: Tensor


class Batches:
    """Draw batches seeded by the step, so that a resumed run does not repeat earlier ones.

    Arguments:
        data: Latents; of several truths the first is held out.
        base: The closed form.
        blankets: Blankets of a batch.
        levels: How often each blanket is used, with different noise.
        sigma: Lowest and highest level where all states carry one, drawn log-uniformly.
        unequal: Share of a batch whose states carry different noise.
        device: Where batches are made.
        errors: Errors of analyses, if known.
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
        errors: AnalysisErrors | None = None,
    ) -> None:
        self.data, self.device, self.errors = data, device, errors
        self.size, self.levels, self.sigma, self.unequal = blankets, levels, sigma, unequal
        self.base = base
        self.starts = data.starts(base.blanket_size)
        self.library = ProfileLibrary(base, None if errors is None else errors.sigma)

    @torch.no_grad()
    def draw(self, step: int) -> DenoiserBatch:
        """Draw blankets, dates, noise levels (stratified over the range) and noise of one step."""
        random = torch.Generator().manual_seed(1_000_003 + step)
        x, date = self._blankets(random)
        device = x.device
        noise = torch.randn(
            x.shape, generator=torch.Generator(device).manual_seed(step), device=device
        )
        unequal = round(self.unequal * len(x))
        parts = []
        if unequal < len(x):
            parts = [self._equal(x[unequal:], noise[unequal:], date[unequal:], random)]
        if unequal:
            parts += self._unequal(x[:unequal], noise[:unequal], date[:unequal], random)
        seen, times, target, weight = (torch.cat(p) for p in zip(*reversed(parts), strict=True))
        return DenoiserBatch(x, seen, times, date, target, weight)

    def _blankets(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        count = len(self.data.latents)
        chosen = self.starts[torch.randint(len(self.starts), (self.size,), generator=random)]
        first = 1 if count > 1 else 0  # the first truth of several is held out
        seeds = torch.randint(first, count, (self.size,), generator=random)
        x, date = self.data.blankets(seeds, chosen, self.base.blanket_size)
        x, date = x.to(self.device), date.to(self.device)
        # Repeated as a whole, so that both parts of a batch hold each blanket where possible.
        return x.repeat(self.levels, 1, 1, 1, 1), date.repeat(self.levels, 1, 1)

    def _equal(
        self, x: Tensor, noise: Tensor, date: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place = torch.rand(1, generator=random) + torch.arange(len(x)) / max(len(x), 1)
        low, high = map(math.log, self.sigma)
        sigma = torch.exp((place % 1) * (high - low) + low).to(x.device)
        x_t = x + sigma.reshape(-1, 1, 1, 1, 1) * noise
        scale = self.base.scalings(sigma.double().reshape(-1, 1, 1, 1, 1))
        levels = sigma[:, None].expand(-1, x.shape[1])
        scaled = _scaled(x, self.base(x_t, sigma, date), scale, levels)
        return *scaled, x.new_ones(*x.shape[:2], 1, 1, 1)

    def _unequal(
        self, x: Tensor, noise: Tensor, date: Tensor, random: torch.Generator
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        groups = list(torch.arange(len(x)).chunk(max(len(x) // 4, 1)))
        parts = []
        for rows, drawn in zip(groups, self.library.draw(len(groups), random), strict=True):
            profile = drawn.profile
            sigma, weight = (v.to(x.device) for v in (profile.sigma, profile.weight))
            off = sigma.reshape(1, -1, 1, 1, 1) * noise[rows]
            if profile.analysed and self.errors is not None:
                errors = self.errors.draw(x[rows], date[rows], random)
                off[:, : profile.known] = errors[:, : profile.known]
            levels = sigma.expand(len(rows), -1)
            estimate = drawn.given(x[rows] + off, date[rows])
            scaled = _scaled(x[rows], estimate, drawn.scalings, levels)
            parts.append((*scaled, weight.reshape(1, -1, 1, 1, 1).expand(len(rows), -1, 1, 1, 1)))
        return parts[::-1]


class ReusedBatches:
    """Return each batch several times, with others between.

    The closed form's estimates of a batch take a fifth of a step on a processor.

    Arguments:
        batches: Draws new ones.
        uses: How often each is returned; with 1 none is kept.
        apart: Batches kept for later, each about 190 MB with 24 blankets of appa-t31.
    """

    def __init__(self, batches: Batches, uses: int, apart: int = 12) -> None:
        self.batches, self.uses, self.apart = batches, uses, apart
        self._kept: deque[tuple[DenoiserBatch, int]] = deque()

    def draw(self, step: int) -> DenoiserBatch:
        """Return the batch of one step: a new one, or the one kept longest."""
        if step % self.uses == 0 or len(self._kept) < self.apart:
            batch, left = self.batches.draw(step), self.uses
        else:
            batch, left = self._kept.popleft()
        if left > 1:
            self._kept.append((batch, left - 1))
        return batch


def _scaled(
    x: Tensor, estimate: Tensor, scale: Scalings, levels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the backbone's input, the noise times and the target."""
    c_estimate = cast(Tensor, scale.c_estimate).to(x)
    return estimate * c_estimate, noise_time(levels).to(x), (x - estimate) / scale.c_out.to(x)
