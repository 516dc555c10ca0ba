"""The restart file of a result: its latent states, from which the next job takes its background.

Latents are exact and small; reading a published NetCDF file back would lose what was rounded.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.domain.errors import StorageError

__all__ = ["RESTART_NAME", "Restart", "read_restart", "write_restart"]

RESTART_NAME = "restart.safetensors"


@dataclass(frozen=True, eq=False)
class Restart:
    """Latent states of a finished job.

    Attributes:
        times: Consecutive full hours (UTC); T of them.
        latents: Standardised latents, with shape (M, T, c, h, w).
        model: SHA-256 of the checkpoint's card; latents mean nothing to another model.
    """

    times: tuple[datetime, ...]
    latents: Tensor
    model: str


def write_restart(restart: Restart, path: Path) -> None:
    """Writes the file."""
    about = {
        "times": json.dumps([time.isoformat() for time in restart.times]),
        "model": restart.model,
    }
    save_file({"latents": restart.latents.contiguous().cpu()}, path, about)


def read_restart(path: Path) -> Restart:
    """Reads the file.

    Raises:
        StorageError: If it is absent or not a restart file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            times = tuple(datetime.fromisoformat(t) for t in json.loads(about["times"]))
            return Restart(times, file.get_tensor("latents").to(torch.float32), about["model"])
    except (OSError, KeyError, ValueError) as error:
        raise StorageError(f"Expected a restart file at {path.name}; {error}.") from error
