"""Putting a model together from a card and the parts that were read for it."""

from torch import Tensor

from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.checkpoints.card import Card
from model.denoiser import BlanketDenoiser
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.nn.precision import Precision
from model.normalisation import LatentNormalisation, StateNormalisation

__all__ = ["assemble"]


def assemble(
    card: Card,
    autoencoder: Autoencoder,
    backbone: Backbone,
    statistics: dict[str, Tensor],
    *,
    static: dict[str, Tensor] | None = None,
    base: ZonalGaussianPrior | None = None,
    precision: Precision = "float32",
) -> LatentModel:
    """Puts a model together from its parts.

    Arguments:
        card: The description.
        autoencoder: With its weights.
        backbone: With its weights.
        statistics: state_mean and state_std (C,), latent_mean and latent_std (c,).
        static: Unchanging fields; see `LatentModel`.
        base: Closed-form part of the denoiser.
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
    return LatentModel(card, autoencoder, denoise, states, latents, static, precision)
