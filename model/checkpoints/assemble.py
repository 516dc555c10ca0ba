"""Assemble a model from a card and the arrays that were read for it.

Arrays are checked on the way in: hashes, safetensors, strict loading of state dicts.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.card import Card
from model.denoiser import BlanketDenoiser, Precision
from model.domain.errors import CheckpointError
from model.domain.files import file_digest
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel, LatentNormalisation, StateNormalisation
from model.linear_decoder import LinearDecoder

__all__ = ["assemble", "check_sha256", "load_pickled", "load_strictly", "load_tensors", "sha256"]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file of a checkpoint, in hexadecimal.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise CheckpointError(
            f"Expected the file {path} of a checkpoint; it cannot be read ({error.strerror}).",
            file=str(path),
        ) from error


def check_sha256(path: Path, expected: str) -> None:
    """Check the SHA-256 of a file.

    Raises:
        CheckpointError: If the file has another hash or cannot be read.
    """
    got = sha256(path)
    if got != expected:
        raise CheckpointError(
            f"Expected SHA-256 {expected} of {path}; got {got}. The file was changed or is "
            "incomplete: fetch it again.",
            file=str(path),
            expected=expected,
            got=got,
        )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a safetensors file on the CPU; half-precision ones as float32.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected a safetensors file at {path}; {error}.", file=str(path)
        ) from error
    return {name: _widened(value) for name, value in tensors.items()}


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a `torch.save` file, unpickled without running code.

    Raises:
        CheckpointError: If it holds anything but a flat mapping of names to arrays.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean the file is unusable
        raise CheckpointError(
            f"Expected arrays in {path} that load without running code; "
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            file=str(path),
        ) from error
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise CheckpointError(
            f"Expected a flat mapping of names to arrays in {path}; got {type(values).__name__}.",
            file=str(path),
        )
    return {str(name): _widened(value) for name, value in values.items()}


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put arrays in place of a module's parameters and buffers, all or none.

    The module may be on the meta device: the arrays themselves become its parameters.

    Raises:
        CheckpointError: If a name is missing or unexpected, or a shape differs.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"Expected {len(wanted)} arrays in {path}; {_some('missing', missing)}, "
            f"{_some('unexpected', unexpected)}.",
            file=str(path),
            missing=missing,
            unexpected=unexpected,
        )
    for name, value in wanted.items():
        if value.shape != tensors[name].shape:
            raise CheckpointError(
                f"Expected '{name}' in {path} with shape {tuple(value.shape)}; got "
                f"{tuple(tensors[name].shape)}.",
                file=str(path),
                array=name,
                expected=list(value.shape),
                got=list(tensors[name].shape),
            )
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _widened(value: Tensor) -> Tensor:
    half = value.dtype in (torch.float16, torch.bfloat16)
    # Copied: arrays mapped from a file are not aligned, and sums over them round differently from
    # sums over the same values in aligned memory.
    return value.float() if half else value.clone()


def _some(what: str, names: list[str], shown: int = 4) -> str:
    if not names:
        return f"none {what}"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{more})"


def assemble(
    card: Card,
    autoencoder: Autoencoder,
    backbone: Backbone,
    statistics: dict[str, Tensor],
    *,
    static: dict[str, Tensor] | None = None,
    base: ZonalGaussianPrior | None = None,
    background: ZonalGaussianPrior | None = None,
    tangent: LinearDecoder | None = None,
    precision: Precision = "float32",
) -> LatentModel:
    """Put a model together from its parts.

    Arguments:
        card: The description.
        autoencoder: With its weights.
        backbone: With its weights.
        statistics: state_mean and state_std (C,), latent_mean and latent_std (c,).
        static: Static fields; see `LatentModel`.
        base: Closed-form part of the denoiser.
        background: Errors of backgrounds.
        tangent: See `LatentModel`.
        precision: Of the products inside the networks.
    """
    static = dict(static or {})
    land = static.get("land_sea_mask")
    states = StateNormalisation(
        statistics["state_mean"].float(),
        statistics["state_std"].float(),
        card.parsed_channels(),
        None if land is None else land < 0.5,
    )
    latents = LatentNormalisation(
        statistics["latent_mean"].float(),
        statistics["latent_std"].float(),
        card.autoencoder.noise_level,
    )
    denoise = BlanketDenoiser(backbone, base)
    return LatentModel(
        card,
        autoencoder,
        denoise,
        states,
        latents,
        static,
        background,
        tangent,
        precision=precision,
    )
