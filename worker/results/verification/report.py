"""Verify one job in one pass, and put its statistics in long form.

A row is network, variable, layer, statistic, value, count.

Ensembles of background and analysis are scored against withheld stations; the scores and their
references are in `model.diagnostics.ensembles`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from model.diagnostics.ensembles import fair_crps, flatness, outlier_ratio, ranks
from model.diagnostics.equivalents import Equivalents
from model.domain.observations import QC_FLAGS
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    is_one_of,
    not_rejected,
    set_column,
    time_column,
)
from worker.results.outputs.product import Product
from worker.results.verification.departures import (
    IMPACT,
    DepartureStatistics,
    Impact,
    departure_statistics,
    estimate_impact,
    layer_names,
)
from worker.results.verification.series import ALL, SCORES_VERSION, StatisticRow
from worker.results.verification.states import StateScore, score_states

__all__ = [
    "ALL_LAYERS",
    "EnsembleScore",
    "VerificationReport",
    "WithheldScore",
    "count_rows",
    "departure_rows",
    "new_values",
    "score_withheld",
    "state_rows",
    "verify_product",
    "withheld_rows",
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
        spread_skill: Root of (ensemble variance (M + 1) / M plus error variance), over `rmse`; 1 for a
            reliable ensemble and correct observation errors. Without (M + 1) / M for antithetic pairs.
        outliers: Number of values outside the ranked members over the expected number.
        flatness: Chi-square of the rank histogram over its degrees of freedom.
        ranks: Number of values at each rank, from below all members to above all; one member of each
            antithetic pair is ranked.
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
        count: Number of values compared.
        error: Root mean square of the assumed observation error.
        background: Scores of the background; None if there is none at these values.
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
    """Score the withheld rows that passed all other checks.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        background: H(x_b), at the rows that have equivalents.
        analysis: H(x_a), likewise.
        rng: Draws observation errors for the ranks.
        among: Mask of rows to use, with shape (rows,); None for all.

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
    frame["layer"] = layer_names(frame)
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


STATES = "states"
"""Network name of statistics of the states themselves."""

_DEPARTURES = (
    "bias_background",
    "rms_background",
    "bias_analysis",
    "rms_analysis",
    "chi2",
    "error",
    "spread",
    "desroziers_error",
    "desroziers_spread",
    "error_ratio",
    "spread_ratio",
    "spread_skill",
)
_WITHHELD = ("rmse", "bias", "crps", "spread_skill", "outliers", "flatness")


def departure_rows(lines: Iterable[DepartureStatistics]) -> Iterator[StatisticRow]:
    """Yield the statistics of the departures of values in use."""
    for line in lines:
        for name in _DEPARTURES:
            value = getattr(line, name)
            if value is not None:
                yield StatisticRow(
                    line.report_type, line.variable, line.layer, name, value, line.count
                )


def withheld_rows(lines: Iterable[WithheldScore]) -> Iterator[StatisticRow]:
    """Yield the scores against withheld stations, `withheld_rmse_analysis` and so on."""
    for line in lines:
        sides: tuple[tuple[str, EnsembleScore | None], ...] = (
            ("background", line.background),
            ("analysis", line.analysis),
        )
        for side, score in sides:
            for name in _WITHHELD if score is not None else ():
                value = getattr(score, name)
                if value is not None:
                    statistic = f"withheld_{name}_{side}"
                    yield StatisticRow(
                        line.network, line.variable, line.layer, statistic, value, line.count
                    )


def state_rows(lines: Iterable[StateScore], members: int) -> Iterator[StatisticRow]:
    """Yield spectra and balance; for energies also the ratio of analysis to background."""
    for line in lines:
        yield StatisticRow(
            STATES, ALL, line.level, f"{line.quantity}_analysis", line.analysis, members
        )
        if line.background is None:
            continue
        name = line.quantity
        yield StatisticRow(STATES, ALL, line.level, f"{name}_background", line.background, members)
        if name.startswith("kinetic_energy") and line.background > 0:
            ratio = line.analysis / line.background
            yield StatisticRow(STATES, ALL, line.level, f"{name}_ratio", ratio, members)


def count_rows(
    used: Mapping[str, int], new: Mapping[str, int], chi2: float | None
) -> Iterator[StatisticRow]:
    """Yield the numbers of values used, in total and by network, and the chi-square of new ones.

    Arguments:
        used: Number of values used by network.
        new: Number of those not assimilated into the background.
        chi2: Chi-square of all new values together.
    """
    for statistic, counts in (("used", used), ("used_new", new)):
        for network, count in {ALL: sum(counts.values()), **counts}.items():
            yield StatisticRow(network, ALL, ALL, statistic, float(count), count)
    if chi2 is not None:
        yield StatisticRow(ALL, ALL, ALL, "chi2", chi2, sum(new.values()))


@dataclass(frozen=True)
class VerificationReport:
    """The verification of one job.

    Attributes:
        used: Number of values used, by network.
        used_new: Number of those not assimilated into the background.
        chi2: Mean of (O-B)² over error plus background variance of the new values.
        departures: Statistics by network, variable and layer, including all layers together.
        withheld: Likewise, of withheld stations.
        states: Spectra and balance.
        members: Number of members of the analysis.
        impact: Impact of each network on the withheld values.
    """

    used: Mapping[str, int]
    used_new: Mapping[str, int]
    chi2: float | None
    departures: tuple[DepartureStatistics, ...]
    withheld: tuple[WithheldScore, ...]
    states: tuple[StateScore, ...]
    members: int
    impact: tuple[Impact, ...] = ()

    @property
    def rows(self) -> list[StatisticRow]:
        """Return all statistics, for the time series."""
        return [
            *count_rows(self.used, self.used_new, self.chi2),
            *departure_rows(self.departures),
            *withheld_rows(self.withheld),
            *state_rows(self.states, self.members),
            *(
                StatisticRow(one.network, ALL, ALL, IMPACT, one.share, one.count)
                for one in self.impact
            ),
        ]

    @property
    def scores(self) -> dict[str, Any]:
        """Return the `scores` for the manifest, without single layers to keep it small."""
        lines = []
        for line in self.departures:
            if line.layer == ALL:
                values = asdict(line)
                lines.append({"network": values.pop("report_type"), **values})
        return {
            "version": SCORES_VERSION,
            "chi2": self.chi2,
            "used": dict(self.used),
            "used_new": dict(self.used_new),
            "departures": lines,
            "withheld": [asdict(line) for line in self.withheld if line.layer == ALL],
            "states": [asdict(line) for line in self.states],
            "impact": {one.network: one.share for one in self.impact},
        }


def verify_product(
    product: Product,
    background: Equivalents | None,
    analysis: Equivalents,
    tendency: tuple[float, float] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> VerificationReport:
    """Verify a finished job against its observations, and score its states.

    Arguments:
        product: The job's states and feedback.
        background: H(x_b) and assumed errors, at rows of the feedback.
        analysis: H(x_a), likewise.
        tendency: See `worker.verification.states.pressure_tendency`, mean over members.
        weights: See `worker.results.verification.departures.estimate_impact`.
    """
    job, feedback = product.job, product.feedback
    moment = int(product.reference_time.timestamp()) // 3600
    rng = np.random.default_rng([job.spec.seed, moment])
    new = new_values(feedback, product.background_info)
    withheld = score_withheld(feedback, background, analysis, rng, new)
    assumed = analysis.errors_of(float_column(feedback, "obs_error"))
    feedback = set_column(feedback, "obs_error", assumed)
    pairs = background.pairs if background is not None else None
    fresh = feedback.filter(pa.array(new))
    departures = departure_statistics(fresh, pairs=pairs, overall=True)
    states = score_states(
        product.states[:, -1],
        None if product.background is None else product.background[:, -1],
        product.channels,
        product.grid,
    )
    if tendency is not None:
        names = ("pressure_tendency", "mass_tendency")
        states += [StateScore(n, ALL, v, None) for n, v in zip(names, tendency, strict=True)]
    return VerificationReport(
        _used(feedback),
        _used(fresh),
        _chi2(fresh),
        tuple(departures),
        tuple(withheld),
        tuple(states),
        product.members,
        estimate_impact(feedback, analysis, new, weights),
    )


def new_values(feedback: pa.Table, background: Mapping[str, Any]) -> BoolArray:
    """Return which rows were observed after the analysis that the background continues.

    All are new after a cold start.

    Windows overlap: the previous analysis has assimilated most of the observations of this one, so
    their O-B is not an innovation, and chi-square and Desroziers estimates would be too small. With only
    new values, no value enters the statistics of two cycles either.

    Arguments:
        feedback: A table with the column `time`.
        background: Background information of the product: its source and last valid time.
    """
    if background.get("source") != "previous_analysis" or "valid_time" not in background:
        return np.ones(len(feedback), dtype=bool)
    last = datetime.fromisoformat(background["valid_time"])
    return time_column(feedback) > int(last.timestamp()) * 1_000_000_000


def _used(feedback: pa.Table) -> dict[str, int]:
    """Return the number of values used by network, 0 for networks without any."""
    network, names = category_codes(feedback, "report_type")
    counts = np.bincount(network[not_rejected(feedback)], minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _chi2(feedback: pa.Table) -> float | None:
    """Return the mean of squared innovations over their expected variance, of values in use."""
    used = feedback.filter(pa.array(not_rejected(feedback)))
    innovation = float_column(used, "background_departure")
    variance = float_column(used, "obs_error") ** 2
    variance += np.nan_to_num(float_column(used, "background_spread")) ** 2
    known = np.isfinite(innovation) & (variance > 0)
    if not known.any():
        return None
    return float(np.mean(innovation[known] ** 2 / variance[known]))
