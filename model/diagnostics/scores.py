"""Score states and ensembles: area-weighted RMSE, bias, fair CRPS, spread and skill, ranks.

The definitions are those of the `scores` package (https://scores.readthedocs.io), which does the
work; here are the area weights of our grids and the shapes of our ensembles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scores.continuous import additive_bias
from scores.continuous import rmse as scores_rmse
from scores.probability import crps_for_ensemble
from scores.probability import rank_histogram as scores_rank_histogram
from torch import Tensor

from model.domain.ensembles import AntitheticPairs
from model.domain.grids import Grid

__all__ = ["SpreadSkill", "bias", "fair_crps", "rank_histogram", "rmse", "spread_skill"]

Array = Tensor | NDArray[np.float64]

MAP = ("y", "x")


def _named(values: Array, last: Sequence[str], first: Sequence[str] = ()) -> xr.DataArray:
    """Names the first and last axes; those between are `a0`, `a1` …"""
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    between = [f"a{i}" for i in range(np.ndim(array) - len(last) - len(first))]
    return xr.DataArray(np.asarray(array, dtype=np.float64), dims=[*first, *between, *last])


def _weights(grid: Grid) -> xr.DataArray:
    return xr.DataArray(grid.area_weights * grid.nlat, dims="y")


def _tensor(score: xr.DataArray) -> Tensor:
    return torch.from_numpy(np.array(score.values, dtype=np.float64))


def rmse(forecast: Array, truth: Array, grid: Grid) -> Tensor:
    """Area-weighted root mean square error.

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
    """Area-weighted mean of forecast minus truth; shapes as for `rmse`."""
    f, t = _named(forecast, MAP), _named(truth, MAP)
    return _tensor(additive_bias(f, t, reduce_dims=MAP, weights=_weights(grid)))


def fair_crps(members: Array, truth: Array, grid: Grid) -> Tensor:
    r"""Area-weighted fair continuous ranked probability score,

    .. math:: \frac{1}{M} \sum_i |x_i - y| - \frac{1}{2 M (M - 1)} \sum_{i,j} |x_i - x_j|

    (Ferro, "Fair scores for ensemble forecasts", QJRMS 140, 2014).

    Arguments:
        members: With shape (M, *, Y, X), M at least 2.
        truth: With shape (*, Y, X).
        grid: The grid.

    Returns:
        With shape (*), float64.
    """
    score = crps_for_ensemble(
        _named(members, MAP, ("member",)),
        _named(truth, MAP),
        "member",
        method="fair",
        reduce_dims=MAP,
        weights=_weights(grid),
    )
    return _tensor(score)


@dataclass(frozen=True)
class SpreadSkill:
    """Area-weighted spread and error of an ensemble, each with shape (*).

    Attributes:
        spread: Root of the mean unbiased variance of the members.
        skill: Root mean square error of the ensemble mean.
        ratio: spread * sqrt((M + 1) / M) / skill; 1 for a reliable ensemble of any size
            (Fortin et al., "Why should ensemble spread match the RMSE of the ensemble mean?",
            J. Hydrometeor. 15, 2014). Of members in pairs see `model.ensemble_spread`.
    """

    spread: Tensor
    skill: Tensor
    ratio: Tensor


def spread_skill(
    members: Array, truth: Array, grid: Grid, twins: AntitheticPairs | None = None
) -> SpreadSkill:
    """Spread and skill; shapes as for `fair_crps`.

    Arguments:
        members: The ensemble.
        truth: What it is compared with.
        grid: The grid.
        twins: How the members depend on each other; None for not at all.
    """
    ensemble = torch.as_tensor(members).double()
    twins = twins or AntitheticPairs.of(range(len(ensemble)), mirrored=False)
    deviation = ensemble.std(dim=0, correction=twins.ddof)
    spread = rmse(deviation, torch.zeros_like(deviation), grid)
    skill = rmse(ensemble.mean(dim=0), truth, grid)
    return SpreadSkill(spread, skill, spread * np.sqrt(twins.inflation) / skill)


def rank_histogram(members: Array, values: Array) -> Tensor:
    """Share of values at each rank among the members; ties are shared out.

    Arguments:
        members: Model equivalents with an error drawn for each, with shape (M, N): without the
            error of the observations a perfect ensemble looks too narrow.
        values: Observations, with shape (N,).

    Returns:
        With shape (M + 1,), summing to 1.
    """
    ensemble = _named(members, ("n",), ("member",))
    return _tensor(scores_rank_histogram(ensemble, _named(values, ("n",)), "member"))
