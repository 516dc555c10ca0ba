r"""Optimal interpolation with a localised climatological covariance, from observations of one hour.

.. math:: x_a = x_b + (\rho \circ B) H^\top \left(H (\rho \circ B) H^\top + R\right)^{-1}
          (y - H(x_b))

with x_b the climatology, B the sample covariance of M climatological anomalies and :math:`\rho`
the correlation function of Gaspari and Cohn (QJRMS 125, 1999, equation 4.10). The system of all
observations is solved by Cholesky factorisation, so this is for a few ten thousand at most.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.constants import EARTH_RADIUS
from model.domain.grids import Grid
from model.operators.observation_set import ObservationSet
from model.osse.baselines.windowed import GaussianPrior

__all__ = ["gaspari_cohn", "optimal_interpolation", "prior_anomalies", "unit_vectors"]

Float = NDArray[np.float64]


ROWS = 1024
"""Rows of the localisation that are made at a time."""


def unit_vectors(lat: Float, lon: Float) -> Tensor:
    """Points on the unit sphere with shape (n, 3), float32, from degrees (n,)."""
    phi, lam = np.deg2rad(lat), np.deg2rad(lon)
    vectors = (np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi))
    return torch.from_numpy(np.stack(vectors, axis=-1)).float()


def gaspari_cohn(distance: Tensor) -> Tensor:
    """Correlation at a distance in units of half the support: 1 at 0, 0 from 2 on."""
    r = distance.clamp(max=2.0)
    near = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    far = 4 - 5 * r + r**2 * (5 / 3 + r * (5 / 8 + r * (-1 / 2 + r / 12)))
    far = far - 2 / (3 * r.clamp(min=1e-3))
    return torch.where(r <= 1, near, far).clamp(min=0.0)


def _localisation(a: Tensor, b: Tensor, half_width: float) -> Tensor:
    """Weights (n, m) between points (n, 3) and (m, 3); half the support in m."""
    chord = (2.0 - 2.0 * (a @ b.T)).clamp(min=0.0).sqrt()
    return gaspari_cohn(chord.mul_(EARTH_RADIUS / half_width))


@torch.no_grad()
def optimal_interpolation(
    background: Tensor,
    anomalies: Tensor,
    observations: ObservationSet,
    lat: Float,
    lon: Float,
    grid: Grid,
    half_width: float = 3.0e6,
) -> Tensor:
    """Analysis of one state.

    Arguments:
        background: With shape (C, Y, X), physical.
        anomalies: M departures from climatology, with shape (M, C, Y, X), without NaN.
        observations: Observations on a trajectory of one state.
        lat: Degrees north of the observations, with shape (N,).
        lon: Degrees east of the observations, with shape (N,).
        grid: The grid.
        half_width: Half the support of the localisation in m.

    Returns:
        With shape (C, Y, X).
    """
    count = len(anomalies)
    error = observations.error_std
    equivalent = observations.operator(background[None])
    perturbed = torch.stack([observations.operator((background + a)[None]) for a in anomalies])
    spread = (perturbed - equivalent) / (error * (count - 1) ** 0.5)
    places = unit_vectors(lat, lon)
    system = spread.T @ spread
    for rows in torch.arange(len(places)).split(ROWS):
        system[rows[0] : rows[-1] + 1] *= _localisation(places[rows], places, half_width)
    system.diagonal().add_(1.0)
    innovation = (observations.values - equivalent) / error
    factor = torch.linalg.cholesky(system)
    weights = torch.cholesky_solve(innovation[:, None], factor)[:, 0]
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    cells = unit_vectors(latitude.ravel(), longitude.ravel())
    weighted = (spread * weights).T / (count - 1) ** 0.5
    share = torch.cat([_localisation(c, places, half_width) @ weighted for c in cells.split(ROWS)])
    share = share.T.reshape(count, 1, *grid.shape)
    return background + (anomalies * share).sum(dim=0)


@torch.no_grad()
def prior_anomalies(
    prior: GaussianPrior,
    decode: Callable[[Tensor], Tensor],
    date: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Climatological anomalies drawn from a prior, where no climatological states are at hand.

    Arguments:
        prior: Over blankets of K states.
        decode: From latents (n, c, h, w) to physical states (n, C, Y, X).
        date: Year, month, day, hour of K states, with shape (K, 4); the first and the last of
            each blanket are taken.
        count: M, how many.
        generator: Source of the draws.

    Returns:
        With shape (M, C, Y, X).
    """
    ends = [0, -1] if len(date) > 1 else [0]
    mean = decode(prior.climatology(date[None])[0, ends])
    parts = []
    for rows in torch.arange(-(-count // len(ends))).split(16):
        drawn = prior.sample(date.expand(len(rows), *date.shape), generator)
        parts += [decode(drawn[:, end]) - mean[i] for i, end in enumerate(ends)]
    return torch.cat(parts)[:count]
