"""Fit the Gaussian of background errors to errors of cycles in a simulated world.

``python -m lab.training.background_errors NATURE.zarr LATENTS.f16 OUTPUT`` runs chains of
cycles (`lab.osse.cycling`) spread over the training years, collects the true errors of their
backgrounds, fits a Gaussian to them, and repeats with it: a better covariance makes better
analyses, whose errors it must fit again. The first covariance is that of the climatological prior
given white noise. OUTPUT keeps the last states of the chains, the errors and the fit, and at the end
the bundle of the checkpoint with that fit; the same command, run again, continues from there.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lab.osse.cases import open_truth
from lab.osse.cycling import AnalysisChain, mean_settings
from lab.training.latent_years import LatentYears, read_latents
from model.assimilation_settings import recommended_settings
from model.background import around_forecast
from model.card import BackgroundCard
from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.domain.files import open_atomic
from model.domain.windows import HOUR
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from worker.idle_memory import keep_freed_memory

__all__ = [
    "BackgroundErrors",
    "attach_background_errors",
    "collect_errors",
    "first_guess",
    "fit_errors",
]


def first_guess(prior: ZonalGaussianPrior, sigma: float) -> ZonalGaussianPrior:
    """Return errors of mean zero and the covariance of a prior given white noise of `sigma`."""
    errors = _like(prior)
    errors.load_state_dict(prior.state_dict())
    errors.mean.zero_()
    noise = sigma**2
    for variance in _variances(errors):
        variance.copy_(variance * noise / (variance + noise))
    return errors


def _like(prior: ZonalGaussianPrior) -> ZonalGaussianPrior:
    return ZonalGaussianPrior(
        prior.blanket_size, prior.latent_shape, prior.modes.shape[2], prior.dense_index.shape[1]
    )


@dataclass(frozen=True)
class BackgroundErrors:
    """Samples of background errors, with their dates.

    Attributes:
        values: Truth minus background, float16 with shape (N, K, c, h, w).
        date: Dates of the states, with shape (N, K, 4).
    """

    values: Tensor
    date: Tensor


@torch.no_grad()
def fit_errors(
    guess: ZonalGaussianPrior,
    errors: BackgroundErrors,
    weight: float,
    exponent: float = 1.0,
    limit: float = math.inf,
) -> ZonalGaussianPrior:
    r"""Fit the variances of a Gaussian of mean zero to errors, along its eigenvectors.

    With g a variance of the guess and f that of the errors, the fitted one is
    :math:`g \min(f / g, l)^a`.

    A few hundred blankets determine variances, no more: with EOFs and covariances of their own
    (102 blankets), cycles of appa-t31 lost half of their skill in a day.

    Arguments:
        guess: Gives the eigenvectors, and the variances before any sample.
        errors: Samples.
        weight: Number of samples that the guess counts for.
        exponent: a; 0 keeps the guess, 1 takes the variances of the errors.
        limit: l; at 1 no variance grows. Humidity of the stratosphere drifts from year to year, and
            its errors in some years would make the analyses of others noisy.
    """
    fitted, count = _like(guess), len(errors.values)
    fitted.load_state_dict(guess.state_dict())
    sums = [torch.zeros_like(v) for v in _variances(guess)]
    for x in errors.values.split(16):
        for total, power in zip(sums, guess.power(x.float()), strict=True):
            total += len(x) * power
    for variance, total in zip(_variances(fitted), sums, strict=True):
        ratio = (total / variance.clamp_min(1e-12) + weight) / (count + weight)
        variance.mul_(ratio.clamp(max=limit) ** exponent)
    return fitted


def attach_background_errors(
    model: LatentModel,
    errors: ZonalGaussianPrior,
    sigma: float,
    hours: int,
    remainder: float | None = None,
    spread: float = 1.0,
) -> None:
    """Attach background errors to a model and describe them in its card.

    Arguments:
        model: The checkpoint.
        errors: Their Gaussian.
        sigma: Noise level that analysed states are taken to have in forecasts.
        hours: Age of the analysis that a cycle continues.
        remainder: Factor on the model error of forecasts, for flow-dependent errors; see
            `model.card.BackgroundCard`.
        spread: Factor on the deviations of members from their mean.
    """
    modes, dense = errors.modes.shape[2], errors.dense_index.shape[1]
    known = BackgroundCard(
        modes=modes, dense=dense, sigma=sigma, hours=hours, remainder=remainder, spread=spread
    )
    model.background_errors = errors
    model.card = model.card.model_copy(update={"background": known})


def _variances(prior: ZonalGaussianPrior) -> tuple[Tensor, Tensor, Tensor]:
    return prior.variance, prior.dense_variance, prior.rest_variance


def collect_errors(
    chains: list[AnalysisChain], truth: LatentYears, first: datetime, cycles: int, every: int
) -> BackgroundErrors:
    """Advance all chains and return the errors of their backgrounds every few cycles.

    Arguments:
        chains: Started ones.
        truth: Latents of the truth, hourly from `first` on (UTC).
        first: Time of the first latent.
        cycles: Number of cycles of each chain.
        every: Cycles between errors that are kept, as errors of consecutive ones are similar.
    """
    values, dates = [], []
    for chain in chains:
        size = chain.model.blanket_size
        for number, cycle in enumerate(chain.cycles(cycles)):
            if number % every != every - 1:
                continue
            start = round((cycle.end - (size - 1) * HOUR - first) / HOUR)
            x, date = truth.blankets(torch.tensor([0]), torch.tensor([start]), size)
            values.append((x[0].float() - cycle.background).half())
            dates.append(date[0])
    return BackgroundErrors(torch.stack(values), torch.stack(dates))


def starts(data: LatentYears, first: datetime, count: int, hours: int) -> list[datetime]:
    """Return analysis times spread over the training hours, at different hours of the day."""
    held_out = data.held_out[0] if data.held_out else slice(0, 0)
    total = data.latents.shape[1] - hours - 48
    chosen = np.linspace(24, total, count).astype(int) + 7 * np.arange(count) % 24
    free = [int(i) for i in chosen if not held_out.start - hours - 48 <= i <= held_out.stop + 48]
    return [first + timedelta(hours=i) for i in free]


def _resume(
    path: Path, chains: list[AnalysisChain], ends: list[datetime], errors: ZonalGaussianPrior
) -> int:
    """Set or start the chains; return how many sweeps they have made."""
    if path.exists():
        state = torch.load(path, weights_only=True)
        for chain, last, end in zip(chains, state["last"], state["end"], strict=True):
            chain.last, chain.end = last, datetime.fromisoformat(end)
        errors.load_state_dict(state["errors"])
        return int(state["sweeps"])
    for number, (chain, end) in enumerate(zip(chains, ends, strict=True)):
        chain.start(end)
        print(json.dumps({"started": number, "end": end.isoformat()}), flush=True)
    _keep(path, chains, 0, errors)
    return 0


def _keep(path: Path, chains: list[AnalysisChain], sweeps: int, errors: ZonalGaussianPrior) -> None:
    state = {
        "last": [chain.last for chain in chains],
        "end": [cast(datetime, chain.end).isoformat() for chain in chains],
        "errors": errors.state_dict(),
        "sweeps": sweeps,
    }
    with open_atomic(path) as file:
        torch.save(state, file)


def _chains(model: LatentModel, url: str, count: int, step: int) -> list[AnalysisChain]:
    truth, around = open_truth(model, model.card.name, url), around_forecast(model)
    settings = mean_settings(recommended_settings(model))
    return [
        AnalysisChain(model, truth, around, step=step, settings=settings, seed=100_003 * number)
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
    parser.add_argument("--step", type=int, default=6, help="hours from cycle to cycle")
    parser.add_argument("--cycles", type=int, default=4, help="of a sweep")
    parser.add_argument("--sweeps", type=int, default=3, help="0 takes the guess as it is")
    parser.add_argument("--every", type=int, default=1, help="cycles between kept errors")
    parser.add_argument("--guess", type=float, default=2.0, help="noise of the first covariance")
    parser.add_argument("--sigma", type=float, default=0.5, help="noise of analysed states")
    parser.add_argument(
        "--remainder",
        type=float,
        help="what forecasts err by themselves: errors grow with the flow",
    )
    parser.add_argument("--weight", type=float, default=10, help="samples the guess counts for")
    parser.add_argument(
        "--exponent", type=float, default=1.0, help="of fitted over guessed variances"
    )
    parser.add_argument("--limit", type=float, default=math.inf, help="largest ratio of the two")
    parser.add_argument("--inflation", type=float, default=1.0, help="of variances in the bundle")
    parser.add_argument("--spread", type=float, default=1.0, help="of members, in the bundle")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    model, data = load_checkpoint(asked.checkpoint), read_latents(asked.latents)
    keep_freed_memory(model.window_bytes)
    year, month, day, hour = data.dates[0].tolist()
    first = datetime(year, month, day, hour, tzinfo=UTC)
    ends = starts(data, first, asked.chains, asked.step * asked.cycles * asked.sweeps)
    prior = cast(ZonalGaussianPrior, model.denoise.base)
    guess = first_guess(prior, asked.guess)
    errors = first_guess(prior, asked.guess)  # replaced in place by every fit: all chains share it
    attach_background_errors(model, errors, asked.sigma, asked.step, asked.remainder, asked.spread)
    chains = _chains(model, asked.nature, len(ends), asked.step) if asked.sweeps else []
    done = _resume(asked.output / "chains.pt", chains, ends, errors) if chains else 0
    for number in range(done, asked.sweeps):
        began = time.monotonic()
        found = collect_errors(chains, data, first, asked.cycles, asked.every)
        fitted = fit_errors(guess, found, asked.weight, asked.exponent, asked.limit)
        errors.load_state_dict(fitted.state_dict())
        with open_atomic(asked.output / f"errors-{number}.pt") as file:
            torch.save({**vars(found), "sigma": asked.sigma}, file)
        _keep(asked.output / "chains.pt", chains, number + 1, errors)
        sizes = found.values.float().square().mean((0, 2, 3, 4)).sqrt()
        line: dict[str, object] = {
            "sweep": number,
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        line["error_by_state"] = [round(float(s), 4) for s in sizes[[0, 12, -2, -1]]]
        print(json.dumps(line), flush=True)
    for variance in _variances(errors):
        variance.mul_(asked.inflation)
    save_checkpoint(model, asked.output / model.card.name, stored="float16")


if __name__ == "__main__":
    main()
