"""Climatology as a baseline: the mean of each place and channel, following the season."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Climatology", "fit_climatology", "season_features"]

YEAR = 365.2425
"""Days."""


def season_features(times: NDArray[np.datetime64]) -> Tensor:
    """1 and two harmonics of the year at times (n,), with shape (n, 5), float64."""
    days = (times - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
    phase = torch.from_numpy(2.0 * np.pi * np.asarray(days, dtype=np.float64) / YEAR)
    columns = [torch.ones_like(phase)]
    for k in (1, 2):
        columns += [torch.cos(k * phase), torch.sin(k * phase)]
    return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class Climatology:
    """Mean state as a function of the season.

    Attributes:
        coefficients: Of `season_features`, with shape (5, C, Y, X), physical units.
    """

    coefficients: Tensor

    def at(self, times: NDArray[np.datetime64]) -> Tensor:
        """Mean states (n, C, Y, X) at times (n,)."""
        features = season_features(times).to(self.coefficients)
        return torch.tensordot(features, self.coefficients, dims=1)


def fit_climatology(sample: Iterable[tuple[Tensor, NDArray[np.datetime64]]]) -> Climatology:
    """Least squares over batches of states (n, C, Y, X) and their times (n,).

    Cells that are NaN in any state stay NaN.
    """
    gram, moment = torch.zeros(5, 5, dtype=torch.float64), None
    for states, times in sample:
        features = season_features(times)
        gram += features.T @ features
        part = torch.tensordot(features.T, states.double(), dims=1)
        moment = part if moment is None else moment + part
    if moment is None:
        raise ValueError("Expected at least one batch of states for a climatology; got none.")
    # A sample that does not span the year leaves harmonics undetermined; the least norm is taken.
    inverse = torch.linalg.pinv(gram, hermitian=True, rtol=1e-6)
    return Climatology(torch.tensordot(inverse, moment, dims=1).float())
