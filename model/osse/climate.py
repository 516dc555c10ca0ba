"""What a checkpoint knows of the season: its mean states, and dates as the networks read them."""

from collections.abc import Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor

from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel

__all__ = ["climatological_states", "date_rows"]


@torch.no_grad()
def climatological_states(model: LatentModel, times: Sequence[datetime]) -> Tensor:
    """Mean states (T, C, Y, X): seasonal where the checkpoint knows the season."""
    prior = model.denoise.base
    if isinstance(prior, ZonalGaussianPrior):
        return model.decode(prior.climatology(date_rows(times)[None])[0], mask=False)
    mean = model.state_normalisation.mean
    return mean.expand(len(times), *model.state_shape).clone()


def date_rows(times: Sequence[datetime]) -> Tensor:
    """Year, month, day and hour (UTC) of times, int64 with shape (T, 4)."""
    utc = [t.astimezone(UTC) for t in times]
    return torch.tensor([[t.year, t.month, t.day, t.hour] for t in utc])
