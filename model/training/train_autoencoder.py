"""Trains the autoencoder: latitude-weighted squared error of standardised states.

The loop reads top to bottom: data, model, then steps of draw, forward, backward, average, log, save.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.domain.grids import Grid
from model.domain.variables import channels
from model.progress import OnStep
from model.training.datasets import StateStore
from model.training.pca import fit_patch_pca, start_at_pca
from model.training.reconstruction_loss import ReconstructionLoss
from model.training.run import (
    Optimisation,
    Run,
    averaged,
    averaged_weights,
    generator,
    rank_and_world,
    setup_distributed,
)
from model.training.splits import Splits
from model.training.state_cache import ArrayCache, build_cache
from model.training.statistics import ChannelStatistics, channel_statistics

__all__ = ["AutoencoderTraining", "DataConfig", "GridConfig", "train_autoencoder"]


class GridConfig(BaseModel):
    """The grid by name, kind and size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    nlat: int
    nlon: int

    def build(self) -> Grid:
        """The grid itself."""
        return Grid(self.name, self.kind, self.nlat, self.nlon)  # type: ignore[arg-type]


class DataConfig(BaseModel):
    """Where states come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    cache: Path
    grid: GridConfig
    levels: tuple[int, ...]
    splits: Splits
    every_hours: int = 5
    """Training states are taken this far apart; 5 visits every hour of the day."""

    def open(self) -> StateStore:
        """The store, checked against the grid."""
        store = StateStore(self.store, channels(self.levels))
        store.check_grid(self.grid.build())
        return store

    def statistics(self, store: StateStore) -> ChannelStatistics:
        """Computed from the training period on first use, then kept beside the caches."""
        path = self.cache / "statistics.json"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            indices = list(chain(*store.within(self.splits.bounds("train"))))
            channel_statistics(store, indices, self.grid.build()).save(path)
        return ChannelStatistics.load(path)

    def states(self, store: StateStore, split: str, every_hours: int) -> ArrayCache:
        """Standardised states of a split, `every_hours` apart."""
        statistics = self.statistics(store)
        runs = [run[::every_hours] for run in store.within(self.splits.bounds(split))]

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            # Whole runs of the store are read, because its chunks hold a day each.
            for part in (run[i : i + 48] for run in runs for i in range(0, len(run), 48)):
                states = store.read(slice(part[0], part[-1] + 1))[::every_hours]
                yield statistics.standardise(states), store.times[list(part)]

        item = (len(store.channels), *self.grid.build().shape)
        return build_cache(
            self.cache / f"{split}-{every_hours}h", chunks, sum(map(len, runs)), item
        )


class AutoencoderTraining(BaseModel):
    """Configuration of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    autoencoder: dict[str, Any]
    optimisation: Optimisation
    start_at_pca: bool = True
    latent_noise: float = 0.0
    spectral_weight: float = 0.0
    """Weight of the error relative to the power at each wavenumber; see `ReconstructionLoss`."""
    spectral_largest: int = 20
    """Last total wavenumber of that part and the next."""
    amplitude_weight: float = 0.0
    """Weight of the deviation of the power itself."""
    decoder_of: Path | None = None
    """A finished run to start from, whose encoder is kept: latents stay what they are."""


def train_autoencoder(
    config: AutoencoderTraining, folder: Path, on_step: OnStep = lambda done, total: None
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
    settings, grid = config.optimisation, config.data.grid.build()
    store = config.data.open()
    states = config.data.states(store, "train", config.data.every_hours)
    held_out = config.data.states(store, "validation", 97)
    loss_of = _loss(config, store, states).to(device)

    torch.manual_seed(settings.seed)
    model = Autoencoder(AutoencoderConfig(**config.autoencoder))
    if config.decoder_of is not None:
        model.load_state_dict(averaged_weights(config.decoder_of / "last.pt")[0])
        model.encoder.requires_grad_(False)
    elif config.start_at_pca:
        start_at_pca(model, _pca(states, model, grid))
    model.to(device)
    ema = averaged(model, settings.ema_decay)
    optimiser = settings.optimiser(model)
    run = Run(folder, config)
    first = run.resume(model, ema, optimiser)
    wrapped = DistributedDataParallel(_Reconstruct(model)) if world > 1 else _Reconstruct(model)

    total, counted = torch.zeros(2, device=device), 0
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * settings.rate(step)
        random = generator(settings.seed, step, rank)
        for _ in range(settings.accumulate):
            index = torch.randint(len(states), (settings.batch,), generator=random).sort().values
            x = torch.from_numpy(states.array[index.numpy()]).float().to(device)
            with settings.autocast(device.type):
                restored = wrapped(x, config.latent_noise)
                loss = loss_of(restored, x)
            (loss / settings.accumulate).backward()
            squared = loss_of.squared(restored.detach(), x)
            total += torch.stack([squared, loss.detach() - squared]) / settings.accumulate
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        counted += 1
        ema.update_parameters(model)
        if (step + 1) % settings.log_every == 0:
            samples = settings.log_every * settings.batch * settings.accumulate * world
            squared, spectral = total / counted
            total, counted = torch.zeros_like(total), 0
            extra = {"spectral": spectral} if spectral > 0 else {}
            if (step + 1) % (10 * settings.log_every) == 0:
                extra |= validate(ema.module, held_out, loss_of)
            run.log(step + 1, settings.steps, samples, rmse=squared.sqrt(), **extra)
        if run.due(settings.save_minutes):
            run.save(step + 1, model, ema, optimiser)
        on_step(step + 1, settings.steps)
    run.save(settings.steps, model, ema, optimiser)
    return folder / "last.pt"


class _Reconstruct(torch.nn.Module):
    """decode(encode(x)) as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor, noise: float = 0.0) -> Tensor:
        z = self.autoencoder.encode(x)
        if noise > 0:
            z = z + noise * torch.randn_like(z)
        return self.autoencoder.decode(z)


def _pca(states: ArrayCache, model: Autoencoder, grid: Grid) -> Any:
    index = np.linspace(0, len(states) - 1, min(400, len(states))).astype(int)
    sample = torch.tensor(states.array[index]).float()
    pca = fit_patch_pca(sample, model.config.patch_size, torch.from_numpy(grid.area_weights))
    latent = model.config.lat_channels
    print(f"linear code of {latent} numbers per patch leaves {pca.residual_rmse(latent):.4f}")
    return pca


def _loss(config: AutoencoderTraining, store: StateStore, states: ArrayCache) -> ReconstructionLoss:
    """The loss, with the power of states spread through the training period."""
    index = np.linspace(0, len(states) - 1, min(200, len(states))).astype(int)
    sample = torch.tensor(states.array[index]).float()
    first = store.read([store.within(config.data.splits.bounds("train"))[0].start])[0]
    return ReconstructionLoss(
        config.data.grid.build(),
        sample,
        torch.from_numpy(np.isfinite(first)),
        config.spectral_weight,
        config.spectral_largest,
        config.amplitude_weight,
    )


@torch.no_grad()
def validate(
    model: Autoencoder, states: ArrayCache, loss_of: ReconstructionLoss
) -> dict[str, Tensor]:
    """Standardised reconstruction error over a cache of states, and its relative part."""
    parts = []
    for first in range(0, len(states), 16):
        x = torch.tensor(states.array[first : first + 16]).float().to(loss_of.weights.device)
        restored = model.decode(model.encode(x))
        parts.append(torch.stack([loss_of.squared(restored, x), loss_of.spectral(restored, x)]))
    squared, spectral = torch.stack(parts).mean(0)
    return {"validation_rmse": squared.sqrt(), "validation_spectral": spectral}
