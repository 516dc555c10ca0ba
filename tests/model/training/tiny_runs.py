"""Settings of trainings that take seconds."""

from pathlib import Path
from typing import Any

from lab.training.train_autoencoder import AutoencoderTraining
from lab.training.train_denoiser import DenoiserTraining


def denoiser_training(trained: AutoencoderTraining, run: Path, **changes: Any) -> DenoiserTraining:
    """A tiny denoiser on the latents (6, 2, 4) of a trained autoencoder.

    Arguments:
        trained: The settings that it was trained with.
        run: Where it lies.
        changes: Fields that are replaced.
    """
    backbone = {
        "in_channels": 6,
        "blanket_size": 4,
        "shape": (2, 4),
        "patch_size": (2, 1, 2),
        "hid_channels": 16,
        "hid_blocks": 1,
        "attention_heads": 2,
        "mod_features": 8,
    }
    values = {
        "data": trained.data.model_dump(),
        "autoencoder_run": run,
        "noise_levels": 2,
        "backbone": backbone,
        "optimisation": trained.optimisation.model_dump(),
    }
    return DenoiserTraining.model_validate(values | changes)
