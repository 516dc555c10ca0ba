"""Train the denoiser on cached latents: the weighted denoising loss at random noise levels.

The loop reads top to bottom like that of the autoencoder. Latents of a finished autoencoder are
encoded once, kept on disk and read as scaled blankets. Each blanket read from disk is used at
several noise levels, because reading and encoding cost more than drawing noise.

Latents are scaled by how far each channel moves the decoded state. With every latent channel
brought to variance 1, white noise and the leading EOFs of latents count a channel that hardly
shows in the state as much as one that carries the flow: on the nature run the responses of 96
channels differ by a factor of 40. Scaled by the response instead, distances between latents are,
to first order, distances between states; with the same number of EOFs the analysis error of the
closed-form prior fell from 0.30 to 0.25.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lab.training.datasets import ArrayCache, build_cache
from lab.training.loop import (
    Optimisation,
    TrainingRun,
    averaged,
    averaged_weights,
    built_once,
    generator,
    gradient_sync,
    rank_and_world,
    setup_distributed,
)
from lab.training.streaming import DataConfig, StateStream, states_of_part
from lab.training.train_autoencoder import AutoencoderTraining
from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.denoiser import (
    BlanketDenoiser,
    denoiser_loss,
    reduced_precision,
)
from model.domain.errors import CheckpointError
from model.domain.files import open_atomic, write_atomic
from model.execution import OnStep
from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.samplers.schedule import RectifiedSchedule

__all__ = [
    "DenoiserTraining",
    "Latents",
    "PriorConfig",
    "build_denoiser",
    "decoder_response",
    "fitted_prior",
    "latent_scale",
    "load_autoencoder",
    "train_denoiser",
]

Scaling = Literal["response", "std"]


@torch.no_grad()
def decoder_response(autoencoder: Autoencoder, latents: Tensor, std: Tensor) -> Tensor:
    """Return the root mean square change of the decoded state when one channel changes at random.

    Arguments:
        autoencoder: Decodes latents to standardised states.
        latents: States around which it is measured, with shape (N, c, h, w).
        std: Standard deviation of each channel: the size of the change, with shape (c,).

    Returns:
        In standard deviations of the state, with shape (c,).
    """
    before = autoencoder.decode(latents)
    draw = torch.Generator().manual_seed(0)
    response = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        change = torch.randn(moved[:, channel].shape, generator=draw).to(moved)
        moved[:, channel] += std[channel] * change
        response.append((autoencoder.decode(moved) - before).square().mean().sqrt())
    return torch.stack(response)


def latent_scale(std: Tensor, response: Tensor) -> Tensor:
    """Return the scale of latents (c,): divided by it, their mean square over channels is 1.

    Arguments:
        std: Standard deviation of each channel, with shape (c,).
        response: Of the decoded state to a change of one `std`, with shape (c,).
    """
    return std / (response / response.square().mean().sqrt())


def load_autoencoder(folder: Path) -> Autoencoder:
    """Return the averaged weights of a finished autoencoder run."""
    config = AutoencoderTraining(**yaml.safe_load((folder / "config.yaml").read_text()))
    model = Autoencoder(AutoencoderConfig(**config.autoencoder))
    path = folder / "last.pt"
    if not path.exists():
        raise CheckpointError(f"Expected a trained autoencoder in {path}; train it first.")
    model.load_state_dict(averaged_weights(path)[0])
    return model.eval()


class Latents:
    """Cached latents of one split, scaled per channel.

    Arguments:
        data: Where states come from.
        run: Folder of the autoencoder that encodes them; latents are kept in it.
        blanket: States of a blanket.
        split: `train`, `validation` or `test`.
        scaling: `response` scales by the response of the decoded state, `std` by the standard
            deviation, as released.
    """

    def __init__(
        self, data: DataConfig, run: Path, blanket: int, split: str, scaling: Scaling = "response"
    ) -> None:
        self.cache = _encode(data, run, split)
        self.blanket = blanket
        self.starts = self.cache.windows(blanket)
        self.mean, self.scale = _statistics(run, self.cache, split, scaling)
        times = self.cache.times.astype("datetime64[h]")
        years = times.astype("datetime64[Y]").astype(int) + 1970
        months = times.astype("datetime64[M]").astype(int) % 12 + 1
        days = (times.astype("datetime64[D]") - times.astype("datetime64[M]")).astype(int) + 1
        hours = (times - times.astype("datetime64[D]")).astype(int)
        self.dates = torch.from_numpy(np.stack([years, months, days, hours], axis=-1))

    def blankets(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled blankets (B, K, c, h, w) and dates (B, K, 4) at positions of `starts`."""
        first = self.starts[chosen.numpy()]
        index = first[:, None] + np.arange(self.blanket)
        x = torch.from_numpy(self.cache.array[index]).float()
        x = (x - self.mean[:, None, None]) / self.scale[:, None, None]
        return x, self.dates[torch.from_numpy(index)]


def _encode(data: DataConfig, run: Path, split: str) -> ArrayCache:
    """Encode a split once, on the devices of all ranks, each its share."""
    folder = run / f"latents-{split}"
    if (folder / "index.json").exists():
        return ArrayCache(folder)
    store, device = data.open(), setup_distributed()
    model = load_autoencoder(run).to(device)
    stream = StateStream(store, data.statistics(store), data.indices(store, split, 1))

    @torch.no_grad()
    def encode(states: NDArray[np.float32]) -> NDArray[np.float32]:
        with reduced_precision(device):
            latents = model.encode(torch.from_numpy(states).to(device)).float()
        return np.asarray(latents.cpu().numpy(), np.float32)

    size = states_of_part((len(store.channels), *data.grid.build().shape))
    times = store.times[stream.indices]
    return build_cache(folder, times, model.latent_shape, size, stream.read_part, encode)


def _statistics(
    run: Path, cache: ArrayCache, split: str, scaling: Scaling
) -> tuple[Tensor, Tensor]:
    path = run / "latent-statistics.json"

    def build() -> None:
        index = np.linspace(0, len(cache) - 1, min(2000, len(cache))).astype(int)
        sample = np.asarray(cache.array[index], np.float64)
        scale = std = torch.from_numpy(sample.std((0, 2, 3))).float()
        if scaling == "response":
            device = setup_distributed()
            some = torch.from_numpy(sample[:: max(len(sample) // 4, 1)]).float().to(device)
            response = decoder_response(load_autoencoder(run).to(device), some, std.to(device))
            scale = latent_scale(std, response.cpu())
        values = {"mean": sample.mean((0, 2, 3)).tolist(), "scale": scale.tolist()}
        write_atomic(path, json.dumps(values))

    if split == "train":
        built_once(path, build)
    values = json.loads(path.read_text())
    return torch.tensor(values["mean"]), torch.tensor(values["scale"])


class PriorConfig(BaseModel):
    """The closed-form base of the denoiser; see `ZonalGaussianPrior`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modes: int
    dense: int
    blankets: int = 3000
    shrinkage: float = 0.05


class DenoiserTraining(BaseModel):
    """Configuration of one training run of the denoiser."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    autoencoder_run: Path
    latent_scaling: Scaling = "response"
    """Scaling of latents: `response` of the decoded state, or `std`, standard deviation, as released."""
    starts_from: Path | None = None
    """A finished run, or a bundle that was unpacked, whose weights to start from."""
    checkpointing: bool = False
    """Whether the backward pass recomputes transformer blocks instead of storing their activations."""
    backbone: dict[str, Any]
    optimisation: Optimisation
    prior: PriorConfig | None = None
    residual_inflation: float = 6.0
    """Factor on the reconstruction residual in observation errors. Error of the analysis at one start,
    with one Gauss-Newton step: 0.223 with 1, 0.216 with 2, 0.211 with 3, 0.207 with 5, 0.206 with 8,
    0.209 with 12."""
    noise_levels: int = 4
    """How many noise levels each blanket is used at."""
    sigma_min: float = 1e-2
    sigma_max: float = 1e2
    """Range of the rectified schedule the noise levels are drawn from."""

    def latents(self, split: str) -> Latents:
        """Return blankets of a split; encodes its states at first use."""
        blanket = int(self.backbone["blanket_size"])
        return Latents(self.data, self.autoencoder_run, blanket, split, self.latent_scaling)


def fitted_prior(config: DenoiserTraining, latents: Latents) -> ZonalGaussianPrior | None:
    """Return the closed-form base, fitted once and kept beside the latents."""
    if config.prior is None:
        return None
    shape, shrinkage = latents.cache.array.shape[1:], config.prior.shrinkage
    prior = ZonalGaussianPrior(latents.blanket, shape, config.prior.modes, config.prior.dense)
    name = f"prior-{latents.blanket}-{config.prior.modes}-{config.prior.dense}.pt"
    path = config.autoencoder_run / name

    def build() -> None:
        fit_zonal_gaussian(prior, batches, shrinkage)
        with open_atomic(path) as file:
            torch.save(prior.state_dict(), file)

    spread = np.linspace(0, len(latents.starts) - 1, config.prior.blankets).astype(int)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in np.array_split(spread, max(len(spread) // 50, 1)):
            yield latents.blankets(torch.from_numpy(part))

    built_once(path, build)
    prior.load_state_dict(torch.load(path, weights_only=True))
    return prior


def build_denoiser(config: DenoiserTraining, prior: ZonalGaussianPrior | None) -> BlanketDenoiser:
    """Return a denoiser whose correction starts at zero where there is a closed-form base."""
    torch.manual_seed(config.optimisation.seed)
    backbone = Backbone(BackboneConfig(**config.backbone))
    if prior is not None:
        nn.init.zeros_(backbone.out_proj.weight)
        nn.init.zeros_(backbone.out_proj.bias)
    return BlanketDenoiser(backbone, prior)


def train_denoiser(
    config: DenoiserTraining, folder: Path, on_step: OnStep = lambda done, total: None
) -> Path:
    """Train until `optimisation.steps`, resuming from `folder` if it holds a checkpoint.

    Arguments:
        config: Settings of the run.
        folder: Of the run.
        on_step: Called after each step; may raise to stop.

    Returns:
        Path of the last checkpoint.
    """
    device = setup_distributed()
    rank, world = rank_and_world()
    settings = config.optimisation
    latents, held_out = config.latents("train"), config.latents("validation")
    denoiser = build_denoiser(config, fitted_prior(config, latents)).to(device)
    backbone = cast(Backbone, denoiser.backbone)
    if config.starts_from is not None:
        backbone.load_state_dict(averaged_weights(config.starts_from / "last.pt")[0])
    backbone.checkpointing = config.checkpointing
    ema = averaged(backbone, settings.ema_decay)
    optimiser = settings.optimiser(backbone)
    run = TrainingRun(folder, config)
    first = run.resume(backbone, ema, optimiser)
    if world > 1:
        denoiser.backbone = DistributedDataParallel(backbone)
    schedule = RectifiedSchedule(config.sigma_min, config.sigma_max)

    total, counted = torch.zeros((), device=device), 0
    for step in range(first, settings.steps):
        settings.set_rate(optimiser, step)
        random = generator(settings.seed, step, rank)
        for part in range(settings.accumulate):
            x, date, sigma, noise = (
                v.to(device) for v in _drawn(config, latents, schedule, random)
            )
            with gradient_sync(denoiser.backbone, last=part + 1 == settings.accumulate):
                with settings.autocast(device.type):
                    loss = denoiser_loss(denoiser, x, sigma, date, noise=noise)
                (loss / settings.accumulate).backward()
            total += loss.detach() / settings.accumulate
        settings.update(backbone, optimiser, ema)
        counted += 1
        if (step + 1) % settings.log_every == 0:
            samples = settings.log_every * settings.batch * settings.accumulate * world
            extra = {}
            if (step + 1) % (10 * settings.log_every) == 0 and rank == 0:
                extra = validate(BlanketDenoiser(ema.module, denoiser.base), held_out, schedule)
            mean, total, counted = total / counted, torch.zeros_like(total), 0
            run.log(step + 1, settings.steps, samples * config.noise_levels, loss=mean, **extra)
        if run.due(settings.save_minutes):
            run.save(step + 1, backbone, ema, optimiser)
        on_step(step + 1, settings.steps)
    run.save(settings.steps, backbone, ema, optimiser)
    return folder / "last.pt"


def _drawn(
    config: DenoiserTraining,
    latents: Latents,
    schedule: RectifiedSchedule,
    random: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the blankets of a step, each at several noise levels.

    Returns:
        Clean blankets (B, K, c, h, w), their dates (B, K, 4), noise levels (B,) and standard
        normal noise with the shape of the blankets.
    """
    chosen = torch.randint(len(latents.starts), (config.optimisation.batch,), generator=random)
    x, date = latents.blankets(chosen.sort().values)
    x = x.repeat_interleave(config.noise_levels, 0)
    date = date.repeat_interleave(config.noise_levels, 0)
    sigma = schedule.sigma(torch.rand(len(x), generator=random))
    return x, date, sigma, torch.randn(x.shape, generator=random)


@torch.no_grad()
def validate(
    denoiser: BlanketDenoiser, latents: Latents, schedule: RectifiedSchedule, count: int = 16
) -> dict[str, float]:
    """Return loss at fixed noise levels over blankets spread through the validation period."""
    device = next(denoiser.parameters()).device
    chosen = torch.linspace(0, len(latents.starts) - 1, count).long()
    x, date = (v.to(device) for v in latents.blankets(chosen))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    values = {}
    for sigma in (0.05, 0.2, 1.0, 5.0):
        level = torch.full((count,), sigma, device=device)
        values[f"validation_{sigma}"] = float(denoiser_loss(denoiser, x, level, date, noise=noise))
    return values
