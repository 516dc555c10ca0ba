r"""Representativeness error: what the model's states cannot follow of the observed values.

A latent model only reproduces what its autoencoder keeps. The residual of its reconstruction,
:math:`s` (one standard deviation by channel and row), is an error of the observation operator and
belongs into R beside the instrument's, :math:`\sigma^2 = \sigma_o^2 + \sigma_r^2`, with

.. math:: \sigma_r = |H(\bar{x} + s) - H(\bar{x})|

which for a direct observation is the residual of its own variable interpolated to its place.
(Janjić et al., "On the representation error in data assimilation", QJRMS 144, 2018.)
"""

import numpy as np
import torch
from torch import Tensor

from model.operators.composite import CompositeOperator

__all__ = ["reconstruction_residual", "representativeness_std"]


def reconstruction_residual(states: Tensor, reconstructed: Tensor) -> Tensor:
    """Standard deviation of the residual of each channel and row.

    Arguments:
        states: With shape (N, C, Y, X), spread over the seasons; NaN cells are left out.
        reconstructed: With the same shape.

    Returns:
        With shape (C, Y), in the channels' units.
    """
    residual = (reconstructed - states).double()
    return residual.square().nanmean(dim=(0, 3)).nan_to_num(0.0).sqrt().to(states)


@torch.no_grad()
def representativeness_std(
    operator: CompositeOperator, typical: Tensor, residual: Tensor
) -> Tensor:
    """One standard deviation for each observation, with shape (N,), float64.

    Arguments:
        operator: H.
        typical: A typical value of each channel, with shape (C,).
        residual: See `reconstruction_residual`, with shape (C, Y).
    """
    _, channels, rows, columns = operator.state_shape
    # Only the cells that H reads are filled in, not a whole trajectory.
    plane, cell = np.divmod(operator.columns, rows * columns)
    channel = torch.from_numpy(plane % channels)
    lower = typical.double()[channel]
    upper = lower + residual.double()[channel, torch.from_numpy(cell // columns)]
    below, above = operator.observe(torch.stack((lower, upper)))
    return (above - below).abs()
