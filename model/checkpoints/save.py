"""Writing a checkpoint bundle: a folder that appears whole or not at all."""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoints.card import CARD_NAME, Card, FileCard, Storage, write_card
from model.checkpoints.tensors import sha256
from model.domain.errors import CheckpointError
from model.latent_model import LatentModel

__all__ = ["code_version", "save_checkpoint"]

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def code_version() -> str:
    """The version of this package."""
    try:
        return version("appa-service")
    except PackageNotFoundError:
        return "unknown"


def save_checkpoint(model: LatentModel, folder: Path, *, stored: Storage = "float32") -> Card:
    """Writes a model as a bundle.

    Arguments:
        model: The model; its card's files and version are replaced by what is written.
        folder: Must not exist yet, or be empty.
        stored: Type in which the weight matrices are stored. Biases, frequencies and statistics
            stay in full precision: they are few, and rounding them shifts every value alike.

    Returns:
        The card as written.

    Raises:
        CheckpointError: If the folder is in use.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"Expected {folder} to be absent or empty; it holds files. Choose another folder.",
            file=str(folder),
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files = {
            role: _write(temporary, role, tensors, stored)
            for role, tensors in _arrays(model, stored).items()
        }
        card = model.card.model_copy(update={"files": files, "code_version": code_version()})
        write_card(card, temporary / CARD_NAME)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return card


def _arrays(model: LatentModel, stored: Storage) -> dict[str, dict[str, Tensor]]:
    states, latents = model.state_normalisation, model.latent_normalisation
    # The loader adds the noise to the variance again.
    noise = model.card.autoencoder.noise_level
    arrays = {
        "autoencoder": _weights(model.autoencoder, stored),
        "backbone": _weights(model.denoise.backbone, stored),
        "statistics": {
            "state_mean": states.mean.flatten(),
            "state_std": states.std.flatten(),
            "latent_mean": latents.mean.flatten(),
            "latent_std": (latents.std.double().square() - noise**2).sqrt().flatten(),
        },
    }
    if model.card.base is not None:
        base = model.denoise.base.state_dict()
        # Vectors of unit length keep three digits in float16, whose exponents suffice for them.
        half = stored != "float32"
        arrays["base"] = {
            name: value.half() if half and name in ("eofs", "dense_vectors", "mean") else value
            for name, value in base.items()
        }
    if model.static:
        arrays["static"] = dict(model.static)
    return arrays


def _weights(module: nn.Module, stored: Storage) -> dict[str, Tensor]:
    matrices = {
        name for name, p in module.named_parameters() if p.ndim >= 2 and not name.endswith("theta")
    }
    return {
        name: value.to(_TYPES[stored]) if name in matrices else value
        for name, value in module.state_dict().items()
    }


def _write(folder: Path, role: str, tensors: dict[str, Tensor], stored: Storage) -> FileCard:
    path = folder / f"{role}.safetensors"
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    kept = stored if role in ("autoencoder", "backbone") else "float32"
    return FileCard(path=path.name, sha256=sha256(path), stored=kept)
