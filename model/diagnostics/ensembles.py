r"""Verify ensembles against values: fair CRPS, ranks and the shape of their histogram.

A perfect ensemble of states looks too narrow beside observations, unless the error of the
observations is part of the prediction. The prediction is therefore the ensemble of H(x) with an
error from N(0, R) added to each member. Fields, whose truth is known, have errors of zero.

Observations of one station are not independent of one another, stations nearly are: with o_s of
n_s values of station s in the outermost two of B bins, the share is
:math:`p = \sum o_s / \sum n_s`, and

.. math:: \mathrm{excess} = \frac{p}{2 / B} - 1, \qquad
    \mathrm{var}(p) = \frac{S}{S - 1} \frac{\sum_s (o_s - p n_s)^2}{(\sum_s n_s)^2}

(the cluster estimator of a ratio). The excess is 0 for a calibrated ensemble, positive for a U
shape (too little spread, or a bias), negative for a dome (too much), and at most B/2 - 1.

References:
    | Saetra, Hersbach, Bidlot and Richardson, "Effects of observation errors on the statistics for
    | ensemble spread and reliability", Mon. Wea. Rev. 132, 2004
    | Ferro, "Fair scores for ensemble forecasts", QJRMS 140, 2014
    | Grimit, Gneiting, Berrocal and Johnson, "The continuous ranked probability score for circular
    | variables", QJRMS 132, 2006 (the score of a mixture of Gaussians)
    | Hamill, "Interpretation of rank histograms for verifying ensemble forecasts", MWR 129, 2001
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import erf

from model.domain.ensembles import AntitheticPairs

__all__ = [
    "BINS",
    "RankShape",
    "fair_crps",
    "gaspari_cohn",
    "flatness",
    "outlier_ratio",
    "rank_shape",
    "ranks",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def _mean_distance(mean: Float, std: Float) -> Float:
    """Return E|Z| of Z from N(mean, std^2)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(std > 0, mean / (np.sqrt(2.0) * std), np.inf)
    return np.where(
        std > 0,
        mean * erf(ratio) + std * np.sqrt(2.0 / np.pi) * np.exp(-np.minimum(ratio**2, 700.0)),
        np.abs(mean),
    )


def gaspari_cohn(distance: Float) -> Float:
    """Return the correlation at distances in units of half the support: 1 at 0, 0 from 2 on.

    G. Gaspari and S. E. Cohn, QJRMS 125, 1999, equation 4.10.
    """
    r = np.minimum(distance, 2.0)
    near = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    far = 4 - 5 * r + r**2 * (5 / 3 + r * (5 / 8 + r * (-1 / 2 + r / 12)))
    far = far - 2 / (3 * np.maximum(r, 1e-3))
    return np.maximum(np.where(r <= 1, near, far), 0.0)


def fair_crps(
    members: Float, values: Float, errors: Float, pairs: AntitheticPairs | None = None
) -> Float | None:
    r"""Return the fair CRPS of members with observation errors added, averaged over such errors.

    .. math:: \frac{1}{M} \sum_i A(x_i - y, \sigma^2)
              - \frac{1}{2 M (M - 1)} \sum_{i \ne j} A(x_i - x_j, 2 \sigma^2),
              \qquad A(\mu, \sigma^2) = E |N(\mu, \sigma^2)|

    in closed form: nothing is drawn, so that few members and few stations give no extra noise.
    The members of an antithetic pair are further apart than two draws of the posterior: the second
    mean is over members that are independent of each other.

    Arguments:
        members: H(x), with shape (M, *).
        values: Observations, with shape (*).
        errors: One standard deviation of the observation errors, with shape (*); zero for none.
        pairs: How the members depend on each other; None for not at all.

    Returns:
        With shape (*), in the units of the values; None without two independent members.
    """
    pairs = pairs or AntitheticPairs.of(range(len(members)), antithetic=False)
    chosen = list(pairs.independent_pairs())
    if not chosen:
        return None
    distance: Float = np.mean([_mean_distance(x - values, errors) for x in members], axis=0)
    wide = np.sqrt(2.0) * errors
    between = np.zeros_like(values, dtype=np.float64)
    for i, j in chosen:
        between += _mean_distance(members[i] - members[j], wide)
    return distance - between / (2 * len(chosen))


def ranks(
    members: Float,
    values: Float,
    errors: Float,
    rng: np.random.Generator,
    among: Sequence[int] | None = None,
) -> Int:
    """Count the members, with an observation error drawn for each, that lie below each value.

    Uniform from 0 to M for a reliable ensemble. Ties, which exact observations of bounded
    quantities have, are broken at random.

    Arguments:
        members: H(x), with shape (M, N).
        values: Observations, with shape (N,).
        errors: One standard deviation of the observation errors, with shape (N,).
        rng: Draws the errors.
        among: Positions of the members that are counted; None for all.
    """
    noisy = members + rng.standard_normal(members.shape) * errors
    if among is not None:
        noisy = noisy[list(among)]
    below, ties = (noisy < values).sum(axis=0), (noisy == values).sum(axis=0)
    drawn: Int = below + rng.integers(0, ties + 1)
    return drawn


def outlier_ratio(counts: Int) -> float | None:
    """Return the values outside the ensemble over those expected, 2 / (M + 1): 1 when reliable.

    Arguments:
        counts: Values at each rank, with shape (M + 1,).
    """
    total = int(counts.sum())
    return float((counts[0] + counts[-1]) / total * len(counts) / 2.0) if total else None


def flatness(counts: Int) -> float | None:
    """Return the chi-square of a rank histogram over its degrees of freedom: about 1 when flat.

    Arguments:
        counts: Values at each rank, with shape (M + 1,).
    """
    if not (total := int(counts.sum())):
        return None
    expected = total / len(counts)
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


BINS = 9
"""Bins of a printed histogram: the ranks of 8 members."""


class RankShape(BaseModel):
    """A rank histogram.

    Attributes:
        name: Which observations.
        values: How many.
        stations: Stations and starts they come from.
        bins: Share of the values in each of `BINS` bins.
        excess: Share of the outermost two bins over what is expected, minus 1.
        uncertainty: One standard error of `excess`; None with a single station.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    values: int
    stations: int
    bins: tuple[float, ...]
    excess: float
    uncertainty: float | None


def _rebinning(ranks: int) -> Float:
    """Return the share of each rank's interval of [0, 1] that lies in each bin, (ranks, BINS).

    A flat rank histogram stays flat.
    """
    edges, bounds = np.arange(ranks + 1) / ranks, np.arange(BINS + 1) / BINS
    low = np.maximum(edges[:-1, None], bounds[None, :-1])
    high = np.minimum(edges[1:, None], bounds[None, 1:])
    shares: Float = np.clip(high - low, 0.0, None) * ranks
    return shares


def rank_shape(name: str, counts: Float) -> RankShape:
    """Summarise the ranks of M members.

    Arguments:
        name: Which observations.
        counts: How often each rank occurred at each station, with shape (S, M + 1).
    """
    bins = np.asarray(counts, dtype=np.float64) @ _rebinning(counts.shape[1])
    number, outer = bins.sum(axis=1), bins[:, 0] + bins[:, -1]
    total, stations = number.sum(), len(bins)
    share = outer.sum() / total
    uncertainty = None
    if stations > 1:
        residual = np.square(outer - share * number).sum() * stations / (stations - 1)
        uncertainty = float(np.sqrt(residual) / total * BINS / 2)
    return RankShape(
        name=name,
        values=round(total),
        stations=stations,
        bins=tuple((bins.sum(axis=0) / total).tolist()),
        excess=float(share * BINS / 2 - 1.0),
        uncertainty=uncertainty,
    )
