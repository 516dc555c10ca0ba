"""Fit the errors of backgrounds to those of cycles in a simulated world.

``python -m lab.training.background_errors NATURE.zarr LATENTS.f16 OUTPUT`` runs chains of hourly
cycles (`lab.osse.cycling`) spread over the training years, collects the true errors of their
backgrounds, fits a Gaussian to them, and repeats with it: a better covariance makes better
analyses, whose errors it must fit again. The first covariance is that of the climatological prior
given white noise. OUTPUT keeps the last states of the chains, the errors and the fit; the same
command goes on from it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lab.osse.cases import open_truth
from lab.osse.cycling import Chain, mean_only
from lab.training.latent_years import LatentYears, read_latents
from model.assimilation_settings import recommended_settings
from model.background import BackgroundPrior, shifted_forecast
from model.checkpoints.bundle import load_checkpoint
from model.domain.files import open_atomic
from model.domain.windows import HOUR
from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.guidance.base import Denoise
from model.latent_model import LatentModel

__all__ = ["Errors", "first_guess", "fit_errors", "sweep"]


def first_guess(prior: ZonalGaussianPrior, sigma: float) -> ZonalGaussianPrior:
    """Return errors of mean zero and the covariance of a prior given white noise of `sigma`."""
    errors = _like(prior)
    errors.load_state_dict(prior.state_dict())
    errors.mean.zero_()
    noise = sigma**2
    for variance in (errors.variance, errors.dense_variance, errors.rest_variance):
        variance.copy_(variance * noise / (variance + noise))
    return errors


def _like(prior: ZonalGaussianPrior) -> ZonalGaussianPrior:
    return ZonalGaussianPrior(
        prior.blanket_size, prior.latent_shape, prior.modes.shape[2], prior.dense_index.shape[1]
    )


@dataclass(frozen=True)
class Errors:
    """Errors of backgrounds.

    Attributes:
        values: Truth minus background, float16 with shape (N, K, c, h, w).
        date: Dates of the states, with shape (N, K, 4).
    """

    values: Tensor
    date: Tensor


def fit_errors(like: ZonalGaussianPrior, errors: Errors, shrinkage: float) -> ZonalGaussianPrior:
    """Fit a Gaussian of mean zero to errors.

    Arguments:
        like: Gives sizes.
        errors: At least a few hundred.
        shrinkage: Share of the covariances between coefficients that is taken away: there are
            more of those than samples.
    """
    fitted = _like(like)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, date in zip(errors.values.split(32), errors.date.split(32), strict=True):
            yield x.float(), date

    # A mean by season and hour would be fitted to noise.
    return fit_zonal_gaussian(fitted, batches, shrinkage=shrinkage, centred=True)


def sweep(
    chains: list[Chain], truth: LatentYears, first: datetime, hours: int, every: int
) -> Errors:
    """Advance all chains and return the errors of their backgrounds every few hours.

    Arguments:
        chains: Started ones.
        truth: Latents of the truth, hourly from `first` on (UTC).
        first: Of the latents.
        hours: How far.
        every: Hours between errors that are kept: neighbours are alike.
    """
    values, dates = [], []
    for chain in chains:
        size = chain.model.blanket_size
        for number, hour in enumerate(chain.hours(hours)):
            if number % every != every - 1:
                continue
            start = round((hour.end - (size - 1) * HOUR - first) / HOUR)
            x, date = truth.blankets(torch.tensor([0]), torch.tensor([start]), size)
            values.append((x[0].float() - hour.background).half())
            dates.append(date[0])
    return Errors(torch.stack(values), torch.stack(dates))


def starts(data: LatentYears, first: datetime, count: int, hours: int) -> list[datetime]:
    """Return analysis times over the training hours, at changing hours of the day."""
    apart = data.apart[0] if data.apart else slice(0, 0)
    total = data.latents.shape[1] - hours - 48
    chosen = np.linspace(24, total, count).astype(int) + 7 * np.arange(count) % 24
    free = [int(i) for i in chosen if not apart.start - hours - 48 <= i <= apart.stop + 48]
    return [first + timedelta(hours=i) for i in free]


@dataclass
class Known:
    """What chains know of their backgrounds; all of them share it, and it is fitted again.

    Attributes:
        errors: Of backgrounds.
        forecast: Denoiser of blankets with unequal noise.
        sigma: Noise level that analysed states are taken to have in the forecast.
    """

    errors: ZonalGaussianPrior
    forecast: Denoise
    sigma: float

    def __call__(self, analysed: Tensor, date: Tensor) -> BackgroundPrior:
        """Return what is known of a window; see `model.background.Around`."""
        background = shifted_forecast(self.forecast, analysed, date, self.sigma)
        return BackgroundPrior(background, self.errors)


def _resume(path: Path, chains: list[Chain], ends: list[datetime], known: Known) -> int:
    """Set or start the chains; return how many sweeps they have made."""
    if path.exists():
        state = torch.load(path, weights_only=True)
        for chain, last, end in zip(chains, state["last"], state["end"], strict=True):
            chain.last, chain.end = last, datetime.fromisoformat(end)
        known.errors.load_state_dict(state["errors"])
        return int(state["sweeps"])
    for number, (chain, end) in enumerate(zip(chains, ends, strict=True)):
        chain.start(end)
        print(json.dumps({"started": number, "end": end.isoformat()}), flush=True)
    _keep(path, chains, 0, known)
    return 0


def _keep(path: Path, chains: list[Chain], sweeps: int, known: Known) -> None:
    state = {
        "last": [chain.last for chain in chains],
        "end": [cast(datetime, chain.end).isoformat() for chain in chains],
        "errors": known.errors.state_dict(),
        "sweeps": sweeps,
    }
    with open_atomic(path) as file:
        torch.save(state, file)


def _chains(model: LatentModel, url: str, count: int, known: Known) -> list[Chain]:
    truth = open_truth(model, model.card.name, url)
    settings = mean_only(recommended_settings(model))
    return [
        Chain(model, truth, known, settings=settings, seed=100_003 * number)
        for number in range(count)
    ]


def main() -> None:
    """Run sweeps with the settings of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nature", help="store of states")
    parser.add_argument("latents", type=Path, help="the same as latents")
    parser.add_argument("output", type=Path, help="folder; rerun to go on")
    parser.add_argument("--checkpoint", default="appa-t31")
    parser.add_argument("--chains", type=int, default=24)
    parser.add_argument("--hours", type=int, default=24, help="of a sweep")
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--every", type=int, default=4, help="hours between kept errors")
    parser.add_argument("--guess", type=float, default=2.0, help="noise of the first covariance")
    parser.add_argument("--sigma", type=float, default=0.3, help="noise of analysed states")
    parser.add_argument("--shrinkage", type=float, default=0.3)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    model, data = load_checkpoint(asked.checkpoint), read_latents(asked.latents)
    year, month, day, hour = data.dates[0].tolist()
    first = datetime(year, month, day, hour, tzinfo=UTC)
    ends = starts(data, first, asked.chains, asked.hours * asked.sweeps)
    prior = cast(ZonalGaussianPrior, model.denoise.base)
    known = Known(first_guess(prior, asked.guess), prior, asked.sigma)
    chains = _chains(model, asked.nature, len(ends), known)
    done = _resume(asked.output / "chains.pt", chains, ends, known)
    for number in range(done, asked.sweeps):
        began = time.monotonic()
        found = sweep(chains, data, first, asked.hours, asked.every)
        known.errors = fit_errors(prior, found, asked.shrinkage)
        with open_atomic(asked.output / f"errors-{number}.pt") as file:
            torch.save({"values": found.values, "date": found.date}, file)
        _keep(asked.output / "chains.pt", chains, number + 1, known)
        sizes = found.values.float().square().mean((0, 2, 3, 4)).sqrt()
        line: dict[str, object] = {
            "sweep": number,
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        line["error_by_state"] = [round(float(s), 4) for s in sizes[[0, 12, -2, -1]]]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
