"""Loading a checkpoint: our bundle (card and safetensors) or the authors' run folders."""

from pathlib import Path

import torch
from torch import Tensor

from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.checkpoints.assemble import assemble
from model.checkpoints.card import CARD_NAME, Card, FileCard, read_card
from model.checkpoints.released import load_released
from model.checkpoints.tensors import check_sha256, load_strictly, load_tensors
from model.domain.errors import AppaError, CheckpointError
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.nn.precision import Precision

__all__ = ["WEIGHTS", "load_checkpoint", "resolve"]

WEIGHTS = Path(__file__).parent / "weights"
"""Bundles that come with the package, one folder each."""

STATISTICS = ("state_mean", "state_std", "latent_mean", "latent_std")


def resolve(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint.

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
    """Loads a model, ready for use: evaluation mode, no gradients for its parameters.

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
    for role in ("autoencoder", "backbone", "statistics", *(["base"] if card.base else [])):
        if role not in tensors:
            raise CheckpointError(
                f"Expected a file for '{role}' in {folder / CARD_NAME}; got "
                f"{', '.join(sorted(card.files)) or 'none'}.",
                file=str(folder / CARD_NAME),
            )
    with torch.device("meta"):
        autoencoder, backbone = Autoencoder(card.autoencoder), Backbone(card.backbone)
    base = None
    if card.base is not None:
        base = ZonalGaussianPrior(
            card.blanket.size, card.latent_shape, card.base.modes, card.base.dense
        )
    for role, module in (("autoencoder", autoencoder), ("backbone", backbone), ("base", base)):
        if module is not None:
            load_strictly(module, tensors[role], folder / card.files[role].path)
    statistics = _statistics(card, tensors["statistics"], folder / card.files["statistics"].path)
    try:
        return assemble(
            card,
            autoencoder,
            backbone,
            statistics,
            static=tensors.get("static"),
            base=base,
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
