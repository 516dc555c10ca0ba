"""Make a tiny model with random weights: its jobs take a second or two, its fields are meaningless.

The chaos test and the tests of everything around the model run on it.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.card import BaseCard, BlanketCard, Card, GridCard, RecommendedCard
from model.checkpoints.assemble import assemble
from model.domain.variables import channel_names
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel

__all__ = ["CLOSED_FORM", "LEVELS", "tiny_card", "tiny_model"]

LEVELS = (100, 500, 850)
CLOSED_FORM = {
    "base": BaseCard(kind="zonal_gaussian", modes=3, dense=2),
    "recommended": RecommendedCard.with_closed_form(),
}
"""Fields of the card of a model with a Gaussian prior."""
_ROWS, _COLUMNS = 9, 14
_LAND = (slice(2, 5), slice(3, 8))


def tiny_card(**changes: Any) -> Card:
    """Return the card of the tiny model: 9 x 14 points, blankets of four hours.

    Arguments:
        changes: Fields that are replaced.
    """
    names = channel_names(LEVELS)
    autoencoder = AutoencoderConfig(
        in_channels=len(names),
        lat_channels=2,
        shape=(_ROWS, _COLUMNS),
        resize=4,
        noise_level=0.1,
        hid_channels=(4, 6, 8),
        hid_blocks=(1, 1, 1),
    )
    backbone = BackboneConfig(
        in_channels=2,
        blanket_size=4,
        shape=autoencoder.latent_shape[1:],
        mod_features=8,
        hid_channels=16,
        hid_blocks=2,
        attention_heads=2,
    )
    values = {
        "name": "tiny",
        "description": "A tiny model with random weights.",
        "licence": "Apache-2.0",
        "simulated": True,
        "grid": GridCard(name="small", kind="gaussian", nlat=_ROWS, nlon=_COLUMNS),
        "levels": LEVELS,
        "channels": names,
        "blanket": BlanketCard(size=4, stride=2),
        "autoencoder": autoencoder,
        "backbone": backbone,
        "latent_shape": autoencoder.latent_shape,
        "code_version": "0",
    }
    return Card(**(values | changes))


def tiny_model(seed: int = 0, based: bool = False, static: bool = True) -> LatentModel:
    """Return the tiny model, ready for use.

    Arguments:
        seed: Of its weights and statistics; torch's own generator is set by it.
        based: Whether it has a Gaussian prior.
        static: Whether it has land and orography.
    """
    torch.manual_seed(seed)
    card = tiny_card(**CLOSED_FORM if based else {})
    base = ZonalGaussianPrior(4, card.latent_shape, 3, 2) if based else None
    channels = len(card.channels)
    statistics = {
        "state_mean": 100 * torch.randn(channels),
        "state_std": 1 + torch.rand(channels),
        "latent_mean": torch.randn(2),
        "latent_std": 1 + torch.rand(2),
    }
    land = torch.zeros(_ROWS, _COLUMNS)
    land[_LAND] = 1.0
    model = assemble(
        card,
        Autoencoder(card.autoencoder),
        Backbone(card.backbone),
        statistics,
        static={"land_sea_mask": land, "orography": 500 * land} if static else {},
        base=base,
    )
    backbone = model.denoise.backbone
    for block in cast(Iterable[Any], backbone.blocks):
        nn.init.normal_(block.ada_zero[-1].weight)
    return model.eval().requires_grad_(False)
