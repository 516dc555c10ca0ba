r"""Representativeness error: what the model's states cannot follow of the observed values.

A latent model only reproduces what its autoencoder keeps. The residual of its reconstruction,
:math:`s` (one standard deviation by channel and row), is an error of the observation operator and
belongs into R beside the instrument's, :math:`\sigma^2 = \sigma_o^2 + \sigma_r^2`, with

.. math:: \sigma_r = |H(\bar{x} + s) - H(\bar{x})|

which for a direct observation is the residual of its own variable interpolated to its place.
(Janjić et al., "On the representation error in data assimilation", QJRMS 144, 2018.)
"""

import torch
from torch import Tensor

from model.operators.observation_set import ObservationSet

__all__ = ["reconstruction_residual", "representativeness_std"]


def reconstruction_residual(states: Tensor, reconstructed: Tensor) -> Tensor:
    """Standard deviation of the residual of each channel and row.

    Arguments:
        states: With shape (N, C, Y, X), spread over the seasons; NaN cells are left out.
        reconstructed: With the same shape.

    Returns:
        With shape (C, Y, 1), in the channels' units.
    """
    residual = (reconstructed - states).double()
    return residual.square().nanmean(dim=(0, 3)).nan_to_num(0.0).sqrt().unsqueeze(-1).to(states)


@torch.no_grad()
def representativeness_std(observations: ObservationSet, mean: Tensor, residual: Tensor) -> Tensor:
    """One standard deviation for each observation, with shape (N,).

    Arguments:
        observations: On trajectories of T states.
        mean: A typical state, with shape (C, Y, X), physical.
        residual: See `reconstruction_residual`, broadcast against `mean`.
    """
    length = observations.state_shape[0]
    states = torch.stack((mean, mean + residual))[:, None].expand(-1, length, -1, -1, -1)
    lower, upper = observations.operator(states)
    return (upper - lower).abs()
