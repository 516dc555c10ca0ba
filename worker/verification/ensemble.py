r"""Scores of ensembles against observations that have errors of their own.

A perfect ensemble of states looks too narrow beside observations, unless the error of the
observations is part of the prediction. The prediction is therefore the ensemble of H(x) with an
error from N(0, R) added to each member.

References:
    | Saetra, Hersbach, Bidlot and Richardson, "Effects of observation errors on the statistics for
    | ensemble spread and reliability", Mon. Wea. Rev. 132, 2004
    | Ferro, "Fair scores for ensemble forecasts", QJRMS 140, 2014
    | Grimit, Gneiting, Berrocal and Johnson, "The continuous ranked probability score for circular
    | variables", QJRMS 132, 2006 (the score of a mixture of Gaussians)
    | Hamill, "Interpretation of rank histograms for verifying ensemble forecasts", MWR 129, 2001
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from model.ensemble_spread import Twins

__all__ = ["fair_crps", "flatness", "outlier_ratio", "ranks"]

Float = NDArray[np.float64]


def _mean_distance(mean: Float, std: Float) -> Float:
    """E|Z| of Z from N(mean, std^2)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(std > 0, mean / (np.sqrt(2.0) * std), np.inf)
    return np.where(
        std > 0,
        mean * erf(ratio) + std * np.sqrt(2.0 / np.pi) * np.exp(-np.minimum(ratio**2, 700.0)),
        np.abs(mean),
    )


def fair_crps(
    members: Float, values: Float, errors: Float, twins: Twins | None = None
) -> Float | None:
    r"""Fair CRPS of the members with observation errors added, its mean over all such errors,

    .. math:: \frac{1}{M} \sum_i A(x_i - y, \sigma^2)
              - \frac{1}{2 M (M - 1)} \sum_{i \ne j} A(x_i - x_j, 2 \sigma^2),
              \qquad A(\mu, \sigma^2) = E |N(\mu, \sigma^2)|

    in closed form: nothing is drawn, so that few members and few stations give no extra noise.
    Twins are further apart than two draws of the posterior: of members in pairs the second mean is
    over those that are independent of each other.

    Arguments:
        members: H(x), with shape (M, N).
        values: Observations, with shape (N,).
        errors: One standard deviation of the observation errors, with shape (N,).
        twins: How the members depend on each other; None for not at all.

    Returns:
        With shape (N,), in the units of the values; None without two independent members.
    """
    couples = list((twins or Twins.of(range(len(members)), mirrored=False)).couples())
    if not couples:
        return None
    distance = np.mean([_mean_distance(x - values, errors) for x in members], axis=0)
    wide = np.sqrt(2.0) * errors
    between = np.zeros_like(values, dtype=np.float64)
    for i, j in couples:
        between += _mean_distance(members[i] - members[j], wide)
    return distance - between / (2 * len(couples))


def ranks(
    members: Float, values: Float, errors: Float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Members, with an observation error drawn for each, that lie below each value: 0 to M.

    Uniform for a reliable ensemble. Ties, which exact observations of bounded quantities have, are
    broken at random.

    Arguments:
        members: H(x), with shape (M, N).
        values: Observations, with shape (N,).
        errors: One standard deviation of the observation errors, with shape (N,).
        rng: Draws the errors.
    """
    noisy = members + rng.standard_normal(members.shape) * errors
    below, ties = (noisy < values).sum(axis=0), (noisy == values).sum(axis=0)
    drawn: NDArray[np.int64] = below + rng.integers(0, ties + 1)
    return drawn


def outlier_ratio(counts: NDArray[np.int64]) -> float | None:
    """Values outside the ensemble over those expected, 2 / (M + 1): 1 when reliable.

    Arguments:
        counts: Values at each rank, with shape (M + 1,).
    """
    total = int(counts.sum())
    return float((counts[0] + counts[-1]) / total * len(counts) / 2.0) if total else None


def flatness(counts: NDArray[np.int64]) -> float | None:
    """Chi-square of the rank histogram over its degrees of freedom: about 1 when flat.

    Arguments:
        counts: Values at each rank, with shape (M + 1,).
    """
    if not (total := int(counts.sum())):
        return None
    expected = total / len(counts)
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))
