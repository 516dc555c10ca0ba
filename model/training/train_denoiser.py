"""Trains the denoiser on cached latents: the weighted denoising loss at random noise levels.

The loop reads top to bottom like that of the autoencoder. Each blanket read from disk is used at
several noise levels, because reading and encoding cost more than drawing noise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.backbone import Backbone, BackboneConfig
from model.denoiser import BlanketDenoiser, denoiser_loss
from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.progress import OnStep
from model.schedule import RectifiedSchedule
from model.training.latents import Latents
from model.training.run import (
    Optimisation,
    Run,
    averaged,
    generator,
    rank_and_world,
    setup_distributed,
)
from model.training.train_autoencoder import DataConfig

__all__ = ["DenoiserTraining", "PriorConfig", "build_denoiser", "fitted_prior", "train_denoiser"]


class PriorConfig(BaseModel):
    """The closed-form base of the denoiser; see `ZonalGaussianPrior`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modes: int
    dense: int
    blankets: int = 3000
    shrinkage: float = 0.05


class DenoiserTraining(BaseModel):
    """Configuration of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    autoencoder_run: Path
    backbone: dict[str, Any]
    optimisation: Optimisation
    prior: PriorConfig | None = None
    residual_inflation: float = 6.0
    """Factor on what the autoencoder loses, where observation errors include it. Error of the
    analysis at one start, with one Gauss-Newton step: 0.223 with 1, 0.216 with 2, 0.211 with 3,
    0.207 with 5, 0.206 with 8, 0.209 with 12."""
    noise_levels: int = 4
    """How many noise levels each blanket is used at."""
    sigma_min: float = 1e-2
    sigma_max: float = 1e2
    """Range of the rectified schedule the noise levels are drawn from."""

    def latents(self, split: str) -> Latents:
        """Blankets of a split; encodes its states at first use."""
        blanket = int(self.backbone["blanket_size"])
        return Latents(self.data, self.autoencoder_run, blanket, split)


def fitted_prior(config: DenoiserTraining, latents: Latents) -> ZonalGaussianPrior | None:
    """The closed-form base, fitted once and kept beside the latents."""
    if config.prior is None:
        return None
    shape = latents.cache.array.shape[1:]
    prior = ZonalGaussianPrior(latents.blanket, shape, config.prior.modes, config.prior.dense)
    name = f"prior-{latents.blanket}-{config.prior.modes}-{config.prior.dense}.pt"
    path = config.autoencoder_run / name
    if path.exists():
        prior.load_state_dict(torch.load(path, weights_only=True))
        return prior
    spread = np.linspace(0, len(latents.starts) - 1, config.prior.blankets).astype(int)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in np.array_split(spread, max(len(spread) // 50, 1)):
            yield latents.blankets(torch.from_numpy(part))

    fit_zonal_gaussian(prior, batches, config.prior.shrinkage)
    torch.save(prior.state_dict(), path)
    return prior


def build_denoiser(config: DenoiserTraining, prior: ZonalGaussianPrior | None) -> BlanketDenoiser:
    """A denoiser whose correction starts at zero where there is a closed-form base."""
    torch.manual_seed(config.optimisation.seed)
    backbone = Backbone(BackboneConfig(**config.backbone))
    if prior is not None:
        nn.init.zeros_(backbone.out_proj.weight)
        nn.init.zeros_(backbone.out_proj.bias)
    return BlanketDenoiser(backbone, prior)


def train_denoiser(
    config: DenoiserTraining, folder: Path, on_step: OnStep = lambda done, total: None
) -> Path:
    """Trains until `optimisation.steps`, resuming from `folder` if it holds a checkpoint.

    Arguments:
        config: What to train on what.
        folder: Of the run.
        on_step: Told after each step; may raise to stop.

    Returns:
        Path of the last checkpoint.
    """
    device = setup_distributed()
    rank, world = rank_and_world()
    settings = config.optimisation
    latents, held_out = config.latents("train"), config.latents("validation")
    denoiser = build_denoiser(config, fitted_prior(config, latents)).to(device)
    backbone = denoiser.backbone
    ema = averaged(backbone, settings.ema_decay)
    optimiser = settings.optimiser(backbone)
    run = Run(folder, config)
    first = run.resume(backbone, ema, optimiser)
    if world > 1:
        denoiser.backbone = DistributedDataParallel(backbone)
    schedule = RectifiedSchedule(config.sigma_min, config.sigma_max)

    total, counted = torch.zeros((), device=device), 0
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * settings.rate(step)
        random = generator(settings.seed, step, rank)
        for _ in range(settings.accumulate):
            chosen = torch.randint(len(latents.starts), (settings.batch,), generator=random)
            x, date = latents.blankets(chosen.sort().values)
            x = x.repeat_interleave(config.noise_levels, 0).to(device)
            date = date.repeat_interleave(config.noise_levels, 0).to(device)
            sigma = schedule.sigma(torch.rand(len(x), generator=random)).to(device)
            noise = torch.randn(x.shape, generator=random).to(device)
            with settings.autocast(device.type):
                loss = denoiser_loss(denoiser, x, sigma, date, noise=noise)
            (loss / settings.accumulate).backward()
            total += loss.detach() / settings.accumulate
        nn.utils.clip_grad_norm_(backbone.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        counted += 1
        ema.update_parameters(backbone)
        if (step + 1) % settings.log_every == 0:
            samples = settings.log_every * settings.batch * settings.accumulate * world
            extra = {}
            if (step + 1) % (10 * settings.log_every) == 0:
                extra = validate(BlanketDenoiser(ema.module, denoiser.base), held_out, schedule)
            mean, total, counted = total / counted, torch.zeros_like(total), 0
            run.log(step + 1, settings.steps, samples * config.noise_levels, loss=mean, **extra)
        if run.due(settings.save_minutes):
            run.save(step + 1, backbone, ema, optimiser)
        on_step(step + 1, settings.steps)
    run.save(settings.steps, backbone, ema, optimiser)
    return folder / "last.pt"


@torch.no_grad()
def validate(
    denoiser: BlanketDenoiser, latents: Latents, schedule: RectifiedSchedule, count: int = 16
) -> dict[str, float]:
    """Loss at fixed noise levels over blankets spread through the validation period."""
    device = next(denoiser.parameters()).device
    chosen = torch.linspace(0, len(latents.starts) - 1, count).long()
    x, date = (v.to(device) for v in latents.blankets(chosen))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    values = {}
    for sigma in (0.05, 0.2, 1.0, 5.0):
        level = torch.full((count,), sigma, device=device)
        values[f"validation_{sigma}"] = float(denoiser_loss(denoiser, x, level, date, noise=noise))
    return values
