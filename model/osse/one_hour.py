"""Optimal interpolation of one state from the observations of its own hour, for any checkpoint."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.domain.errors import ConfigurationError
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.operators.observation_set import build_observation_set
from model.osse.baselines.optimal_interpolation import optimal_interpolation, prior_anomalies

__all__ = ["one_hour_analysis"]


def one_hour_analysis(
    model: LatentModel,
    table: pa.Table,
    end: datetime,
    background: Tensor,
    dates: Tensor,
    members: int = 400,
) -> Tensor:
    """The state (C, Y, X) at `end` from observations within half an hour of it.

    Arguments:
        model: A checkpoint with a closed-form prior, which gives the climatological covariance.
        table: Observations.
        end: Analysis time, UTC.
        background: Climatology at that time, with shape (C, Y, X).
        dates: Year, month, day, hour of the K states up to `end`, with shape (K, 4).
        members: Climatological states behind the covariance.
    """
    prior = model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior):
        raise ConfigurationError(
            "Expected a checkpoint with a closed-form prior for optimal interpolation; this one "
            "has none."
        )
    middle = np.datetime64(end.astimezone(UTC).replace(tzinfo=None))
    near = np.abs(table["time"].to_numpy() - middle) <= np.timedelta64(timedelta(minutes=30))
    rows = table.filter(pa.array(near))
    seen, _ = build_observation_set(rows, model.grid, model.channels, [end], model.statics)
    lat, lon = (rows[name].to_numpy()[seen.rows] for name in ("lat", "lon"))
    draw = torch.Generator().manual_seed(0)
    anomalies = prior_anomalies(prior, lambda z: model.decode(z, mask=False), dates, members, draw)
    return optimal_interpolation(background, anomalies, seen, lat, lon, model.grid)
