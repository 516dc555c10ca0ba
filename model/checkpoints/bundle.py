"""Load a checkpoint and save one as a bundle: card and safetensors in one folder.

Bundles are written atomically. The authors' run folders load without conversion.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.card import CARD_NAME, Card, FileCard, Storage, read_card, write_card
from model.checkpoints.assemble import assemble, check_sha256, load_strictly, load_tensors, sha256
from model.checkpoints.released import load_released
from model.denoiser import Precision
from model.domain.errors import AppaError, CheckpointError
from model.domain.files import code_version, sync_file
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.linear_decoder import LinearDecoder, linear_decoder_of

__all__ = ["WEIGHTS", "load_checkpoint", "resolve", "save_checkpoint"]

WEIGHTS = Path(__file__).parent / "weights"
"""Bundles that come with the package, one folder each."""

STATISTICS = ("state_mean", "state_std", "latent_mean", "latent_std")


def resolve(checkpoint: str | Path) -> Path:
    """Return the folder of a checkpoint.

    Arguments:
        checkpoint: A folder, a card file, or the name of a bundle that comes with the package.

    Raises:
        CheckpointError: If there is no such folder; lists the bundled names.
    """
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if path.is_file() and path.name == CARD_NAME:
        return path.parent
    bundled = sorted(p.parent.name for p in WEIGHTS.glob(f"*/{CARD_NAME}"))
    if path.name == str(checkpoint) and path.name in bundled:
        return WEIGHTS / path.name
    raise CheckpointError(
        f"Expected a checkpoint folder, a {CARD_NAME} or a bundled name "
        f"({', '.join(bundled) or 'none is bundled'}); got '{checkpoint}'.",
        checkpoint=str(checkpoint),
        known=bundled,
    )


def load_checkpoint(
    checkpoint: str | Path,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    *,
    verify: bool = True,
) -> LatentModel:
    """Load a model, ready for use: evaluation mode, no gradients for its parameters.

    Arguments:
        checkpoint: See `resolve`; a folder without a card is read as the authors' run folders.
        device: Where the model goes.
        precision: Of the products inside the networks.
        verify: Whether hashes are checked.

    Raises:
        CheckpointError: If anything is absent or does not match; nothing is half-loaded.
    """
    folder = resolve(checkpoint)
    if (folder / CARD_NAME).is_file():
        model = _load_bundle(folder, precision, verify=verify)
    else:
        model = load_released(folder, precision=precision)
    return model.to(device).eval().requires_grad_(False)


def _load_bundle(folder: Path, precision: Precision, *, verify: bool) -> LatentModel:
    card = read_card(folder / CARD_NAME)
    tensors = {role: _read(folder, role, file, verify=verify) for role, file in card.files.items()}
    gaussians = {"base": card.base, "background": card.background}
    described = [role for role, sizes in gaussians.items() if sizes is not None]
    for role in ("autoencoder", "backbone", "statistics", *described):
        if role not in tensors:
            raise CheckpointError(
                f"Expected a file for '{role}' in {folder / CARD_NAME}; got "
                f"{', '.join(sorted(card.files)) or 'none'}.",
                file=str(folder / CARD_NAME),
            )
    with torch.device("meta"):
        autoencoder, backbone = Autoencoder(card.autoencoder), Backbone(card.backbone)
    priors = {
        role: ZonalGaussianPrior(card.blanket.size, card.latent_shape, sizes.modes, sizes.dense)
        for role, sizes in gaussians.items()
        if sizes is not None
    }
    networks: dict[str, nn.Module] = {"autoencoder": autoencoder, "backbone": backbone}
    tangent: LinearDecoder | None = None
    if "tangent" in tensors:
        state_shape = len(card.channels), *card.grid.grid().shape
        tangent = networks["tangent"] = linear_decoder_of(card.latent_shape, state_shape)
    if "background" in priors:
        # The file leaves out the arrays that are the same as those of the base.
        tensors["background"] = tensors.get("base", {}) | tensors["background"]
    for role, module in (networks | priors).items():
        load_strictly(module, tensors[role], folder / card.files[role].path)
    statistics = _statistics(card, tensors["statistics"], folder / card.files["statistics"].path)
    try:
        return assemble(
            card,
            autoencoder,
            backbone,
            statistics,
            static=tensors.get("static"),
            **priors,
            tangent=tangent,
            precision=precision,
        )
    except AppaError as error:
        raise CheckpointError(f"{folder}: {error.message}", file=str(folder)) from error


def _read(folder: Path, role: str, file: FileCard, *, verify: bool) -> dict[str, Tensor]:
    path = folder / file.path
    if verify:
        check_sha256(path, file.sha256)
    return load_tensors(path)


def _statistics(card: Card, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    sizes = {"state": len(card.channels), "latent": card.latent_shape[0]}
    expected = {name: (sizes[name.split("_")[0]],) for name in STATISTICS}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if got != expected:
        raise CheckpointError(
            f"Expected statistics {expected} in {path}; got {got}.", file=str(path)
        )
    return tensors


_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save_checkpoint(model: LatentModel, folder: Path, *, stored: Storage = "float32") -> Card:
    """Write a model as a bundle.

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
        arrays["base"] = _gaussian(cast(nn.Module, model.denoise.base), stored)
    if model.card.background is not None and model.background_errors is not None:
        errors = _gaussian(model.background_errors, stored)
        shared = arrays.get("base", {})
        arrays["background"] = {
            name: value
            for name, value in errors.items()
            if name not in shared or not torch.equal(value, shared[name])
        }
    if model.card.base is not None and model.has_equal_patches:
        # Stored because every job uses it and fitting it takes seconds.
        arrays["tangent"] = dict(model.tangent.state_dict())
    if model.static:
        arrays["static"] = dict(model.static)
    return arrays


def _gaussian(prior: nn.Module, stored: Storage) -> dict[str, Tensor]:
    # Vectors of unit length keep three digits in float16, whose exponents suffice for them.
    half = stored != "float32"
    return {
        name: value.half() if half and name in ("eofs", "dense_vectors", "mean") else value
        for name, value in prior.state_dict().items()
    }


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
    sync_file(path)
    kept = stored if role in ("autoencoder", "backbone") else "float32"
    return FileCard(path=path.name, sha256=sha256(path), stored=kept)
