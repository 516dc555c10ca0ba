r"""Optimal interpolation with a localised climatological covariance, from observations of one hour.

.. math:: x_a = x_b + (\rho \circ B) H^\top \left(H (\rho \circ B) H^\top + R\right)^{-1}
          (y - H(x_b))

with x_b the climatology, B the sample covariance of M climatological anomalies and :math:`\rho`
the correlation function of Gaspari and Cohn (QJRMS 125, 1999, equation 4.10). The system of all
observations is solved by Cholesky factorisation, so this is for a few ten thousand at most.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.constants import EARTH_RADIUS
from model.domain.grids import Grid
from model.operators.observation_set import ObservationSet

__all__ = ["gaspari_cohn", "optimal_interpolation", "unit_vectors"]

Float = NDArray[np.float64]


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
    half_width: float = 2.0e6,
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
    system *= _localisation(places, places, half_width)
    system.diagonal().add_(1.0)
    innovation = (observations.values - equivalent) / error
    factor = torch.linalg.cholesky(system)
    weights = torch.cholesky_solve(innovation[:, None], factor)[:, 0]
    rows, columns = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    cells = unit_vectors(rows.ravel(), columns.ravel())
    share = _localisation(cells, places, half_width) @ (spread * weights).T
    share = share.T.reshape(count, 1, *grid.shape) / (count - 1) ** 0.5
    return background + (anomalies * share).sum(dim=0)
