"""Unpack a bundle into the runs that it could have come from, to train on from there.

A bundle, imported or trained here, holds weights and statistics. Fine-tuning needs both: latents and
states must be scaled as the networks know them. What is unpacked are finished runs of the autoencoder
and the denoiser without optimisers, the statistics, and configurations that name all of it:

    appa train unpack my-bundle tuning --set data.store=gs://...
    appa train denoiser tuning/run --config tuning/denoiser.yaml
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from lab.training.datasets import ChannelStatistics
from lab.training.train_autoencoder import AutoencoderTraining
from lab.training.train_denoiser import DenoiserTraining
from model.checkpoints.bundle import load_checkpoint
from model.domain.errors import ConfigurationError
from model.domain.files import open_atomic, write_atomic
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel

__all__ = ["unpack_bundle"]


def unpack_bundle(
    checkpoint: str, folder: Path, autoencoder: AutoencoderTraining, denoiser: DenoiserTraining
) -> tuple[Path, Path]:
    """Write the runs, statistics and configurations that training goes on from.

    Arguments:
        checkpoint: A bundle, by name or folder.
        folder: Where to write; must not exist.
        autoencoder: How the autoencoder is to be trained on; data and networks are those of the
            bundle, but for the store and its periods.
        denoiser: Likewise the denoiser.

    Returns:
        The configurations of autoencoder and denoiser.

    Raises:
        ConfigurationError: If the folder exists.
        CheckpointError: If there is no such bundle.
    """
    if folder.exists():
        raise ConfigurationError(f"Expected a folder that does not exist; {folder} does.")
    model = load_checkpoint(checkpoint)
    card = model.card
    about = {"cache": folder / "cache", "grid": card.grid.model_dump(), "levels": card.levels}
    for part in ("cache", "autoencoder", "denoiser"):
        (folder / part).mkdir(parents=True)
    _statistics(model).save(folder / "cache" / "statistics.json")
    first = AutoencoderTraining.model_validate(
        autoencoder.model_dump()
        | {
            "data": {**autoencoder.data.model_dump(), **about},
            "autoencoder": asdict(model.autoencoder.config),
            "starts_from": folder / "autoencoder",
            "decoder_of": None,
        }
    )
    second = DenoiserTraining.model_validate(
        denoiser.model_dump()
        | {
            "data": {**denoiser.data.model_dump(), **about},
            "autoencoder_run": folder / "autoencoder",
            "starts_from": folder / "denoiser",
            "backbone": asdict(card.backbone),
            "prior": _prior(model, folder / "autoencoder"),
            "sigma_min": card.schedule.sigma_min,
            "sigma_max": card.schedule.sigma_max,
        }
    )
    _run(folder / "autoencoder", model.autoencoder, first)
    _run(folder / "denoiser", model.denoise.backbone, second)
    scaling = model.latent_normalisation
    latents = {"mean": scaling.mean.flatten().tolist(), "scale": scaling.std.flatten().tolist()}
    write_atomic(folder / "autoencoder" / "latent-statistics.json", json.dumps(latents))
    return _write(folder / "autoencoder.yaml", first), _write(folder / "denoiser.yaml", second)


def _statistics(model: LatentModel) -> ChannelStatistics:
    mean, std = (
        np.asarray(getattr(model.state_normalisation, name).flatten().double().cpu().numpy())
        for name in ("mean", "std")
    )
    return ChannelStatistics(tuple(channel.name for channel in model.channels), mean, std)


def _prior(model: LatentModel, run: Path) -> dict[str, Any] | None:
    """Leave the closed form where training looks for it; None if the bundle has none."""
    base, card = model.denoise.base, model.card.base
    if card is None or not isinstance(base, ZonalGaussianPrior):
        return None
    path = run / f"prior-{model.card.blanket.size}-{card.modes}-{card.dense}.pt"
    torch.save(base.state_dict(), path)
    return {"modes": card.modes, "dense": card.dense}


def _run(folder: Path, module: nn.Module, config: AutoencoderTraining | DenoiserTraining) -> None:
    """Write a run whose averaged weights are those of a module."""
    _write(folder / "config.yaml", config)
    weights = {f"module.{name}": value for name, value in module.state_dict().items()}
    with open_atomic(folder / "last.pt") as file:
        torch.save({"step": 0, "parts": [{}, weights]}, file)


def _write(path: Path, config: AutoencoderTraining | DenoiserTraining) -> Path:
    write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return path
