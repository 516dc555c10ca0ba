"""Score fields and ensembles of them: area-weighted RMSE, bias, fair CRPS, spread and skill.

RMSE and bias are those of the `scores` package (https://scores.readthedocs.io), with the area
weights of our grids; the statistics of ensembles are those of `model.diagnostics.ensembles`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scores.continuous import additive_bias
from scores.continuous import rmse as scores_rmse
from torch import Tensor

from model.diagnostics import ensembles
from model.domain.ensembles import AntitheticPairs
from model.domain.grids import Grid

__all__ = ["SpreadSkill", "bias", "fair_crps", "rmse", "spread_skill"]

Array = Tensor | NDArray[np.float64]

MAP = ("y", "x")


def _named(values: Array, last: Sequence[str]) -> xr.DataArray:
    """Name the last axes; those before are `a0`, `a1` and so on."""
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    between = [f"a{i}" for i in range(np.ndim(array) - len(last))]
    return xr.DataArray(np.asarray(array, dtype=np.float64), dims=[*between, *last])


def _weights(grid: Grid) -> xr.DataArray:
    return xr.DataArray(grid.area_weights * grid.nlat, dims="y")


def _tensor(score: xr.DataArray) -> Tensor:
    return torch.from_numpy(np.array(score.values, dtype=np.float64))


def rmse(forecast: Array, truth: Array, grid: Grid) -> Tensor:
    """Return the area-weighted root mean square error.

    Arguments:
        forecast: With shape (*, Y, X); NaN cells are left out.
        truth: With shape (*, Y, X).
        grid: The grid.

    Returns:
        With shape (*), float64, in the fields' units.
    """
    f, t = _named(forecast, MAP), _named(truth, MAP)
    return _tensor(scores_rmse(f, t, reduce_dims=MAP, weights=_weights(grid)))


def bias(forecast: Array, truth: Array, grid: Grid) -> Tensor:
    """Return the area-weighted mean of forecast minus truth; shapes as for `rmse`."""
    f, t = _named(forecast, MAP), _named(truth, MAP)
    return _tensor(additive_bias(f, t, reduce_dims=MAP, weights=_weights(grid)))


def fair_crps(
    members: Array, truth: Array, grid: Grid, pairs: AntitheticPairs | None = None
) -> Tensor:
    """Return the area-weighted fair CRPS; see `model.diagnostics.ensembles.fair_crps`.

    Arguments:
        members: With shape (M, *, Y, X), at least two of them independent.
        truth: With shape (*, Y, X).
        grid: The grid.
        pairs: How the members depend on each other; None for not at all.

    Returns:
        With shape (*), float64.
    """
    x, y = (np.asarray(a, dtype=np.float64) for a in (members, truth))
    score = ensembles.fair_crps(x, y, np.zeros_like(y), pairs)
    if score is None:
        raise ValueError("Expected at least two independent members.")
    mean = (score * grid.area_weights[:, None]).sum(axis=(-2, -1)) / grid.nlon
    return torch.from_numpy(np.asarray(mean))


@dataclass(frozen=True)
class SpreadSkill:
    """Area-weighted spread and error of an ensemble, each with shape (*).

    Attributes:
        spread: Root of the mean unbiased variance of the members.
        skill: Root mean square error of the ensemble mean.
        ratio: spread * sqrt((M + 1) / M) / skill; 1 for a reliable ensemble of any size
            (Fortin et al., "Why should ensemble spread match the RMSE of the ensemble mean?",
            J. Hydrometeor. 15, 2014). Of antithetic pairs see `model.domain.ensembles`.
    """

    spread: Tensor
    skill: Tensor
    ratio: Tensor


def spread_skill(
    members: Array, truth: Array, grid: Grid, pairs: AntitheticPairs | None = None
) -> SpreadSkill:
    """Compare the spread of an ensemble with the error of its mean; shapes as for `fair_crps`.

    Arguments:
        members: The ensemble.
        truth: The fields that it is verified against.
        grid: The grid.
        pairs: How the members depend on each other; None for not at all.
    """
    ensemble = torch.as_tensor(members).double()
    pairs = pairs or AntitheticPairs.of(range(len(ensemble)), antithetic=False)
    deviation = ensemble.std(dim=0, correction=pairs.ddof)
    spread = rmse(deviation, torch.zeros_like(deviation), grid)
    skill = rmse(ensemble.mean(dim=0), truth, grid)
    return SpreadSkill(spread, skill, pairs.square_departure(spread.square()).sqrt() / skill)
