"""Score the ensembles of background and analysis against the stations that were withheld.

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

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import erf

from model.diagnostics.departures import LAYERS, layer_names
from model.domain.ensembles import AntitheticPairs
from model.domain.observations import QC_FLAGS
from worker.observations.columns import BoolArray, is_one_of, numbers

__all__ = [
    "ALL_LAYERS",
    "EnsembleScore",
    "Equivalents",
    "WithheldScore",
    "fair_crps",
    "flatness",
    "outlier_ratio",
    "ranks",
    "score_withheld",
]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Equivalents:
    """Model equivalents of N observations.

    Attributes:
        rows: Rows of the feedback table, ascending, with shape (N,).
        errors: Square root of the diagonal of R in SI units, what the states cannot represent
            included, with shape (N,).
        hofx: H(x) of each member in SI units, with shape (M, N).
        mirrored: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
    """

    rows: NDArray[np.int64]
    errors: Float
    hofx: Float
    mirrored: bool = False

    @property
    def members(self) -> int:
        """M."""
        return len(self.hofx)

    @property
    def twins(self) -> AntitheticPairs:
        """How the members depend on each other."""
        return AntitheticPairs.of(range(self.members), self.mirrored)

    def at(self, rows: NDArray[np.int64]) -> "Equivalents":
        """The equivalents at those of `rows` (ascending) that have any."""
        both, _, place = np.intersect1d(rows, self.rows, assume_unique=True, return_indices=True)
        return replace(self, rows=both, errors=self.errors[place], hofx=self.hofx[:, place])

    def errors_of(self, table_errors: Float) -> Float:
        """`table_errors` (rows of the table,) with the errors assumed where there are any."""
        errors = table_errors.copy()
        errors[self.rows] = self.errors
        return errors


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
    members: Float, values: Float, errors: Float, twins: AntitheticPairs | None = None
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
    couples = list((twins or AntitheticPairs.of(range(len(members)), mirrored=False)).couples())
    if not couples:
        return None
    distance = np.mean([_mean_distance(x - values, errors) for x in members], axis=0)
    wide = np.sqrt(2.0) * errors
    between = np.zeros_like(values, dtype=np.float64)
    for i, j in couples:
        between += _mean_distance(members[i] - members[j], wide)
    score: NDArray[np.float64] = distance - between / (2 * len(couples))
    return score


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


ALL_LAYERS = "all"


@dataclass(frozen=True)
class EnsembleScore:
    """An ensemble against observations; SI units of the variable, None where it has no value.

    Attributes:
        rmse: Root mean square of observation minus ensemble mean.
        bias: Mean of observation minus ensemble mean.
        crps: Mean fair CRPS with the observation error as part of the prediction.
        spread_skill: Root of (ensemble variance (M + 1) / M plus error variance), over `rmse`; 1
            for a reliable ensemble whose observations have the errors assumed. Without (M + 1) / M
            for members in pairs of opposite perturbations.
        outliers: Values outside the ranked members over those expected.
        flatness: Chi-square of the rank histogram over its degrees of freedom.
        ranks: Values at each rank, from below all members to above all; of a pair one is ranked.
    """

    rmse: float
    bias: float
    crps: float | None
    spread_skill: float | None
    outliers: float | None
    flatness: float | None
    ranks: list[int]


@dataclass(frozen=True)
class WithheldScore:
    """One network, variable and layer; `layer` is `all` for the layers together.

    Attributes:
        network: Report type.
        variable: Observed variable.
        layer: As in the departure statistics.
        count: Values compared.
        error: Root mean square error that was assumed.
        background: Scores of the background; None without one at these values.
        analysis: Scores of the analysis.
    """

    network: str
    variable: str
    layer: str
    count: int
    error: float
    background: EnsembleScore | None
    analysis: EnsembleScore | None


def score_withheld(
    feedback: pa.Table,
    background: Equivalents | None,
    analysis: Equivalents,
    rng: np.random.Generator,
    among: BoolArray | None = None,
) -> list[WithheldScore]:
    """Scores of the rows that were kept back and passed all other checks before.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        background: H(x_b), at least at the rows that have any.
        analysis: H(x_a), likewise.
        rng: Draws observation errors for the ranks.
        among: Rows that may count, with shape (rows,); None for all.

    Returns:
        One entry for each network, variable and layer, and one for all layers of a network and
        variable, in alphabetical order.
    """
    withheld = is_one_of(feedback, "rejected_by", [QC_FLAGS["withheld"].name])
    analysis = analysis.at(np.flatnonzero(withheld if among is None else withheld & among))
    if not len(analysis.rows):
        return []
    sub = feedback.take(analysis.rows)
    columns = ("report_type", "variable", "vertical_kind", "vertical")
    frame = sub.select(columns).to_pandas()
    frame["layer"] = layer_names(frame, LAYERS)
    values = numbers(sub, "obs_value")
    after = _Values(analysis, values, rng)
    before = None
    if background is not None:
        known = background.at(analysis.rows)
        before = _Values(known, values[np.searchsorted(analysis.rows, known.rows)], rng)
    found = []
    for line, index in _groups(frame):
        error = float(np.sqrt(np.mean(analysis.errors[index] ** 2)))
        rows = analysis.rows[index]
        earlier = None if before is None else before.score(rows)
        found.append(WithheldScore(*line, len(index), error, earlier, after.score(rows)))
    return found


def _groups(frame: pd.DataFrame) -> list[tuple[tuple[str, str, str], NDArray[np.int64]]]:
    """(network, variable, layer) with the places of its rows, each layer and all of them."""
    keys = ["report_type", "variable"]
    layers = frame.groupby([*keys, "layer"], observed=True).indices
    whole = frame.groupby(keys, observed=True).indices
    lines: dict[tuple[str, str, str], NDArray[np.int64]] = {}
    for (network, variable, layer), index in layers.items():
        lines[str(network), str(variable), str(layer)] = index
    for (network, variable), index in whole.items():
        lines[str(network), str(variable), ALL_LAYERS] = index
    return sorted(lines.items(), key=lambda item: item[0])


class _Values:
    """What is known of each value, ready to be averaged over groups."""

    def __init__(self, found: Equivalents, values: Float, rng: np.random.Generator) -> None:
        self.found = found
        self.departure = values - found.hofx.mean(axis=0)
        self.twins = found.twins
        self.crps = fair_crps(found.hofx, values, found.errors, self.twins)
        ranked = found.hofx[list(self.twins.ranked)]
        self.ranks = ranks(ranked, values, found.errors, rng)
        self.variance = self.twins.variance(found.hofx)

    def score(self, rows: NDArray[np.int64]) -> EnsembleScore | None:
        """The score of those of `rows` that there are."""
        index = np.searchsorted(self.found.rows, np.intersect1d(rows, self.found.rows))
        if not len(index):
            return None
        rmse = float(np.sqrt(np.mean(self.departure[index] ** 2)))
        spread_skill = None
        if self.variance is not None and rmse > 0:
            predicted = self.variance[index] * self.twins.inflation
            predicted += self.found.errors[index] ** 2
            spread_skill = float(np.sqrt(predicted.mean()) / rmse)
        counts = np.bincount(self.ranks[index], minlength=len(self.twins.ranked) + 1)
        return EnsembleScore(
            rmse,
            float(self.departure[index].mean()),
            None if self.crps is None else float(self.crps[index].mean()),
            spread_skill,
            outlier_ratio(counts),
            flatness(counts),
            counts.tolist(),
        )
