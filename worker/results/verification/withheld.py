"""Score the ensembles of background and analysis against the stations that were withheld.

Scores and their references are in `model.diagnostics.ensembles`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from model.diagnostics.departures import LAYERS, layer_names
from model.diagnostics.ensembles import fair_crps, flatness, outlier_ratio, ranks
from model.diagnostics.equivalents import Equivalents
from model.domain.observations import QC_FLAGS
from worker.observations.columns import BoolArray, float_column, is_one_of

__all__ = [
    "ALL_LAYERS",
    "EnsembleScore",
    "WithheldScore",
    "score_withheld",
]

Float = NDArray[np.float64]


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
    """The scores of one network, variable and layer (`all` for the layers together).

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
    """Score the rows that were withheld and had passed all other checks.

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
    values = float_column(sub, "obs_value")
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
    """Return the indices of the rows of each network, variable and layer, and of all layers."""
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
    """Scores of single values, which are averaged over groups of rows."""

    def __init__(self, found: Equivalents, values: Float, rng: np.random.Generator) -> None:
        self.found = found
        self.departure = values - found.hofx.mean(axis=0)
        self.pairs = found.pairs
        self.crps = fair_crps(found.hofx, values, found.errors, self.pairs)
        ranked = found.hofx[list(self.pairs.ranked)]
        self.ranks = ranks(ranked, values, found.errors, rng)
        self.variance = self.pairs.variance(found.hofx)

    def score(self, rows: NDArray[np.int64]) -> EnsembleScore | None:
        """Return the score of those of `rows` that have equivalents; None without any."""
        index = np.searchsorted(self.found.rows, np.intersect1d(rows, self.found.rows))
        if not len(index):
            return None
        rmse = float(np.sqrt(np.mean(self.departure[index] ** 2)))
        spread_skill = None
        if self.variance is not None and rmse > 0:
            errors = self.found.errors[index]
            predicted = self.pairs.square_departure(self.variance[index], errors**2)
            spread_skill = float(np.sqrt(predicted.mean()) / rmse)
        counts = np.bincount(self.ranks[index], minlength=len(self.pairs.ranked) + 1)
        return EnsembleScore(
            rmse,
            float(self.departure[index].mean()),
            None if self.crps is None else float(self.crps[index].mean()),
            spread_skill,
            outlier_ratio(counts),
            flatness(counts),
            counts.tolist(),
        )
