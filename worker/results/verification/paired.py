r"""Test how two suites differ, and with what confidence, from the paired errors of many cycles.

Squares in units of observation errors are dimensionless, so that those of several variables and networks
can be averaged. The test uses the differences :math:`d_t = b_t - a_t` of challenger and champion over n
cycles: both have the same weather and observations, so most of the variance is common to both. Each
analysis continues the previous one, so the differences are autocorrelated; with the lag-1 correlation r,
the mean of n differences has the variance of that of

.. math:: n' = n (1 - r) / (1 + r)

independent ones (A. J. Geer, "Significance of changes in medium-range forecast scores", Tellus A 68,
2016, where r is one of several terms). r is estimated from the differences, corrected for the bias of
short series (F. H. C. Marriott and J. A. Pope, Biometrika 41, 1954) and at least 0; the interval is
Student's with n' - 1 degrees of freedom. In per cent of the champion's mean square.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.domain.variables import VARIABLES
from worker.contract.suites import Difference, PairedSquares
from worker.results.verification.series import ALL

__all__ = [
    "CHALLENGE",
    "differences",
    "group_of",
    "lag_one_correlation",
    "mean_interval",
    "pairs_in",
]

Float = NDArray[np.float64]

CHALLENGE = "challenge"
"""Key in the scores of the manifest of a challenger's analysis."""
LEVEL = 0.95
MIN_CYCLES = 3
"""Minimum number of cycles for which an interval is given."""
_MAX_CORRELATION = 0.98


def pairs_in(scores: Mapping[str, Any]) -> list[PairedSquares]:
    """Return the paired errors in the scores of a manifest; empty if it was not compared."""
    lines = scores.get(CHALLENGE, {}).get("errors", ())
    return [PairedSquares.model_validate(line) for line in lines]


def lag_one_correlation(values: ArrayLike) -> float:
    """Return the lag-1 autocorrelation of a series, at least 0.

    Arguments:
        values: With shape (n,), in order.
    """
    x = np.asarray(values, dtype=np.float64)
    deviation = x - x.mean()
    power = float(deviation @ deviation)
    if len(x) < MIN_CYCLES or power <= 0.0:
        return 0.0
    found = float(deviation[1:] @ deviation[:-1]) / power
    return float(np.clip(found + (1.0 + 4.0 * found) / len(x), 0.0, _MAX_CORRELATION))


def mean_interval(
    values: ArrayLike, correlation: float, level: float = LEVEL
) -> tuple[float, float] | None:
    """Return the confidence interval of the mean of an autocorrelated series; None for too few values.

    Arguments:
        values: With shape (n,).
        correlation: Lag-1 autocorrelation.
        level: Confidence level.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 (half a second of every scheduler's start)

    x = np.asarray(values, dtype=np.float64)
    longer = (1.0 + correlation) / (1.0 - correlation)
    independent = len(x) / longer
    if len(x) < MIN_CYCLES or independent <= 1.5:
        return None
    # correct the sample variance, which is too small, the more so with autocorrelation
    variance = float(((x - x.mean()) ** 2).sum()) / (len(x) - longer)
    reach = float(stdtrit(independent - 1.0, (1.0 + level) / 2.0))
    half = reach * float(np.sqrt(variance / independent))
    mean = float(x.mean())
    return mean - half, mean + half


def differences(cycles: Iterable[Sequence[PairedSquares]]) -> list[Difference]:
    """Return how the challenger's errors differ, overall, by network and by group of variables.

    Each cycle with values counts once, by the mean of its squares.

    Arguments:
        cycles: The paired errors of each cycle, in the order of valid times.
    """
    sums: dict[tuple[str, str], list[Float]] = defaultdict(list)
    for pairs in cycles:
        of_cycle: dict[tuple[str, str], Float] = defaultdict(lambda: np.zeros(3))
        for pair in pairs:
            row = np.array([pair.count, pair.champion, pair.challenger], dtype=np.float64)
            for group in {
                (ALL, ALL),
                (pair.network, ALL),
                (ALL, group_of(pair.variable)),
                (pair.network, group_of(pair.variable)),
            }:
                of_cycle[group] += row
        for group, total in of_cycle.items():
            sums[group].append(total)
    return [_difference(*group, np.array(sums[group])) for group in sorted(sums, key=_place)]


def _place(group: tuple[str, str]) -> tuple[bool, bool, str, str]:
    """Return the sort key of a group: all values, then by network, by variables, by both."""
    network, variables = group
    return (variables != ALL, network != ALL, network, variables)


def _difference(network: str, variables: str, cycles: Float) -> Difference:
    count, champion, challenger = cycles.T
    means = np.stack([champion, challenger]) / count
    change = means[1] - means[0]
    base = float(means[0].mean())
    scale = 100.0 / base if base > 0.0 else 0.0
    correlation = lag_one_correlation(change)
    interval = mean_interval(change, correlation)
    low, high = (None, None) if interval is None else (scale * end for end in interval)
    return Difference(
        network=network,
        variables=variables,
        cycles=len(cycles),
        values=int(count.sum()),
        percent=scale * float(change.mean()),
        low=low,
        high=high,
        correlation=correlation,
    )


_GROUPS = {
    "wind": ("wind",),
    "humidity": ("humidity", "dewpoint", "water_vapour", "precipitation"),
    "mass": ("pressure", "geopotential"),
    "temperature": ("temperature",),
}
"""Groups of variables, by words in their ids; the first match counts."""


def group_of(variable: str) -> str:
    """Return the group of a variable: `wind`, `humidity`, `mass`, `temperature`, or its own id."""
    name = VARIABLES[variable].id if variable in VARIABLES else variable
    fitting = (g for g, words in _GROUPS.items() if any(word in name for word in words))
    return next(fitting, name)
