"""Compare a learned correction with the closed form it corrects: by noise level, as a forecast."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from lab.training.latent_years import LatentYears
from model.denoiser import BlanketDenoiser
from model.gaussian_prior import ZonalGaussianPrior
from model.unequal_noise import forecast_profile

__all__ = ["evaluate", "evaluate_forecast", "relative_errors"]

LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Noise levels of the evaluation."""

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@torch.no_grad()
def relative_errors(denoiser: BlanketDenoiser, batches: Batches) -> dict[float, float]:
    """Return the mean square error over that of the closed form, by noise level.

    Arguments:
        denoiser: The correction and its base.
        batches: Starts a new iteration over clean blankets (B, K, c, h, w) and their dates
            (B, K, 4) at each call.
    """
    device = next(denoiser.parameters()).device
    random = torch.Generator().manual_seed(7)
    found = {}
    for level in LEVELS:
        learned = closed = 0.0
        for x, date in batches():
            x, date = x.to(device), date.to(device)
            x_t = x + level * torch.randn(x.shape, generator=random).to(device)
            sigma = torch.full((len(x),), level, device=device)
            closed += float((denoiser.base(x_t, sigma, date) - x).square().sum())
            learned += float((denoiser(x_t, sigma, date) - x).square().sum())
        found[level] = learned / closed
    return found


def evaluate(
    denoiser: BlanketDenoiser, data: LatentYears, starts: Tensor, blanket: int, seed: int = 0
) -> dict[float, float]:
    """Return `relative_errors` of blankets of one truth.

    Arguments:
        denoiser: The correction and its base.
        data: Latents; truth `seed` was not trained on.
        starts: Hours at which the compared blankets start.
        blanket: States of a blanket.
        seed: Index of the truth.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in starts.split(8):
            yield data.blankets(torch.full_like(part, seed), part, blanket)

    return relative_errors(denoiser, batches)


@torch.no_grad()
def evaluate_forecast(
    denoiser: BlanketDenoiser,
    data: LatentYears,
    starts: Tensor,
    known: int = 12,
    sigma: float = 0.1,
    seed: int = 0,
) -> dict[int, tuple[float, float]]:
    """Return root mean square errors of the unknown states by lead time: (learned, closed form).

    Arguments:
        denoiser: The correction, made for a level per state, and its base.
        data: Latents; truth `seed` was not trained on.
        starts: Hours at which the compared blankets start.
        known: Number of known states, with noise `sigma`; the states after them are unknown.
        sigma: Noise level of the known states.
        seed: Index of the truth.
    """
    base = cast(ZonalGaussianPrior, denoiser.base)
    device = base.variance.device
    random = torch.Generator().manual_seed(8)
    profile = forecast_profile(base.blanket_size, known, sigma).to(device)
    sums = torch.zeros(2, base.blanket_size)
    for part in starts.split(8):
        x, date = data.blankets(torch.full_like(part, seed), part, base.blanket_size)
        x, date = x.to(device), date.to(device)
        noise = torch.randn(x.shape, generator=random).to(device)
        x_t = x + profile.reshape(1, -1, 1, 1, 1) * noise
        levels = profile.expand(len(x), -1)
        estimates = denoiser(x_t, levels, date), base(x_t, levels, date)
        for row, estimate in zip(sums, estimates, strict=True):
            row += (estimate - x).square().mean((2, 3, 4)).sum(0).cpu()
    errors = (sums / len(starts)).sqrt()[:, known:]
    return {lead + 1: (float(a), float(b)) for lead, (a, b) in enumerate(errors.T)}
