r"""Read errors and impact from the departures in a feedback table.

Statistics by network, variable and level: with d_b = O−B, d_a = O−A and an analysis that used the
right errors,

.. math:: E[d_a d_b] = R, \qquad E[(d_b - d_a) d_b] = H B H^\top,
          \qquad E\left[\frac{d_b^2}{\sigma_o^2 + \sigma_b^2}\right] = 1

The products are covariances: the means of d_a and d_b, which are biases, are subtracted first.

Impact of each network on the error at the withheld stations: with departures
:math:`e_b = y_w - H_w x_b` and :math:`e_a = y_w - H_w x_a` at withheld values, in units of
their assumed errors, the analysis reduces the squared error by

.. math:: J = e_b^\top e_b - e_a^\top e_a = (e_a + e_b)^\top (H_w x_a - H_w x_b)

and :math:`H_w (x_a - x_b) = \sum_i k_i d_i` is a sum over the innovations d of the values that were
assimilated. Where a cycle continues an analysis, their gains are those of the analysis itself, by its
adjoint (`model.background.innovation_weights`). Elsewhere they are estimated from its members
(E. Kalnay et al., "A simpler formulation of forecast sensitivity to observations", Tellus A 64, 2012,
equation 6):

.. math:: k_i = \rho_{wi} \operatorname{cov}_a(H_w x, H_i x) / \sigma_i^2

with the localisation :math:`\rho` of Gaspari and Cohn at the distance between the two, because
covariances from few members are only noise at large distances: meaningful when summed over the thousands
of values of a network. `appa deny` determines the same by a data denial experiment.

References:
    | Diagnosis of observation, background and analysis-error statistics in observation space
    | (Desroziers, Berre, Chapnik and Poli, QJRMS 131, 2005)
    | https://doi.org/10.1256/qj.05.108
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model.diagnostics.ensembles import gaspari_cohn
from model.diagnostics.equivalents import Equivalents
from model.domain.ensembles import AntitheticPairs
from model.domain.grids import unit_vectors
from model.domain.observations import DEPARTURE_LAYERS
from model.domain.physics import EARTH_RADIUS
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    is_one_of,
    not_rejected,
)

__all__ = [
    "DepartureStatistics",
    "IMPACT",
    "Impact",
    "WithheldErrors",
    "departure_statistics",
    "estimate_impact",
    "layer_names",
    "withheld_errors",
]

Float = NDArray[np.float64]

_COLUMNS = (
    "report_type",
    "variable",
    "vertical_kind",
    "vertical",
    "obs_error",
    "background_departure",
    "analysis_departure",
    "background_spread",
)


@dataclass(frozen=True)
class DepartureStatistics:
    """One line of the table; SI units of the variable, None where it cannot be computed.

    Attributes:
        report_type: Network.
        variable: Observed variable.
        layer: `surface`, `400-600 hPa` in the form of its bounds, the kind of vertical, or `all`.
        count: Observations used.
        bias_background: Mean O−B.
        rms_background: Root mean square O−B.
        bias_analysis: Mean O−A.
        rms_analysis: Root mean square O−A.
        chi2: Mean of (O−B)² over error variance plus background variance; 1 is consistent.
        error: Root mean square error that was assumed.
        desroziers_error: Error estimated from the departures; None if its square is negative.
        desroziers_spread: Background error in observation space, likewise.
        spread: Root mean square of the background's ensemble spread.
        error_ratio: `desroziers_error` over `error`; above 1, errors were assumed too small.
        spread_ratio: `desroziers_spread` over `spread`; above 1, the ensemble is too narrow.
        spread_skill: Root of (spread² (M + 1) / M plus error²), over `rms_background`; 1 when both
            are right. Without (M + 1) / M for members in pairs of opposite perturbations.
    """

    report_type: str
    variable: str
    layer: str
    count: int
    bias_background: float | None
    rms_background: float | None
    bias_analysis: float | None
    rms_analysis: float | None
    chi2: float | None
    error: float
    desroziers_error: float | None
    desroziers_spread: float | None
    spread: float | None
    error_ratio: float | None
    spread_ratio: float | None
    spread_skill: float | None


def layer_names(
    frame: pd.DataFrame, bounds: Sequence[float] = DEPARTURE_LAYERS
) -> "pd.Series[str]":
    """Return the name of each row's layer.

    Arguments:
        frame: With `vertical_kind` and `vertical`, in Pa where the kind is `pressure`.
        bounds: Bounds of the layers in Pa, ascending; a layer includes its lower boundary.
    """
    names = [f"{a / 100:.0f}-{b / 100:.0f} hPa" for a, b in zip(bounds, bounds[1:], strict=False)]
    level = pd.cut(frame["vertical"], list(bounds), labels=names).astype(object)
    kind = frame["vertical_kind"].astype(object)
    return level.where((kind == "pressure") & level.notna(), kind)


def departure_statistics(
    feedback: pa.Table,
    bounds: Sequence[float] = DEPARTURE_LAYERS,
    *,
    pairs: AntitheticPairs | None = None,
    overall: bool = False,
) -> list[DepartureStatistics]:
    """Return statistics of the rows in use that have a background departure.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        bounds: Bounds of the layers in Pa, ascending.
        pairs: Size of the background's ensemble and its pairs, for `spread_skill`; None for a mean
            without sampling error.
        overall: Add a line for all layers of a network and variable, with the layer `all`.

    Returns:
        One entry for each network, variable and layer present, in alphabetical order.
    """
    used = feedback.filter(feedback["rejected_by"].is_null())
    frame = used.select(_COLUMNS).to_pandas()
    frame = frame[frame["background_departure"].notna()]
    frame["layer"] = layer_names(frame, bounds)
    parts = [frame, frame.assign(layer="all")] if overall else [frame]
    keys = ["report_type", "variable", "layer"]
    found = [
        _statistics(tuple(map(str, name)), group, pairs)
        for part in parts
        for name, group in part.groupby(keys, observed=True, sort=True)
    ]
    return sorted(found, key=lambda line: (line.report_type, line.variable, line.layer))


def _statistics(
    name: tuple[str, ...], group: pd.DataFrame, pairs: AntitheticPairs | None
) -> DepartureStatistics:
    report_type, variable, layer = name
    back = group["background_departure"].to_numpy(float)
    analysis = group["analysis_departure"].to_numpy(float)
    error = group["obs_error"].to_numpy(float)
    spread = group["background_spread"].to_numpy(float)
    rms_error, rms_spread = float(np.sqrt(np.mean(error**2))), _root(_mean(spread**2))
    rms_background = _root(_mean(back**2))
    found_error = _root(_covariance(analysis, back))
    found_spread = _root(_covariance(back - analysis, back))
    predicted = None
    if rms_spread is not None:
        square = rms_spread**2 + rms_error**2
        if pairs is not None:
            square = pairs.square_departure(rms_spread**2, rms_error**2)
        predicted = float(np.sqrt(square))
    return DepartureStatistics(
        report_type,
        variable,
        layer,
        len(back),
        _mean(back),
        rms_background,
        _mean(analysis),
        _root(_mean(analysis**2)),
        _mean(back**2 / (error**2 + spread**2)),
        rms_error,
        found_error,
        found_spread,
        rms_spread,
        _ratio(found_error, rms_error),
        _ratio(found_spread, rms_spread),
        _ratio(predicted, rms_background),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _root(square: float | None) -> float | None:
    return None if square is None or square < 0 else float(np.sqrt(square))


def _covariance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return the unbiased covariance of the rows that have both; None with fewer than two."""
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2:
        return None
    return float(np.cov(first[both], second[both])[0, 1])


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


IMPACT = "impact"
"""Statistic of the verification series: share of the withheld square error removed by a network."""
HALF_WIDTH = 1.5e6
"""Horizontal localisation: half the radius beyond which there is no influence, m."""
HALF_DEPTH = 1.0
"""Vertical localisation: the same in the logarithm of pressure."""
SURFACE_PRESSURE = 1.0e5
"""Pressure in Pa assumed for the distance of values without a pressure."""
MAX_WITHHELD = 2000
"""Maximum number of withheld values used; if there are more, evenly spaced ones."""
_AT_ONCE = 100


@dataclass(frozen=True)
class Impact:
    """Impact of the values of one network.

    Attributes:
        network: Report type.
        share: Share of the square error of the background at withheld values that they removed;
            negative if they increased it.
        count: Number of values assimilated.
    """

    network: str
    share: float
    count: int


@dataclass(frozen=True)
class _Places:
    vectors: Float
    depth: Float

    @classmethod
    def of(cls, table: pa.Table, rows: NDArray[np.int64]) -> "_Places":
        part = table.take(rows)
        vectors = unit_vectors(float_column(part, "lat"), float_column(part, "lon"))
        kind, names = category_codes(part, "vertical_kind")
        aloft = kind == (names.index("pressure") if "pressure" in names else -2)
        pressure = np.where(aloft, float_column(part, "vertical"), SURFACE_PRESSURE)
        known = np.isfinite(pressure) & (pressure > 0)
        return cls(vectors, np.log(np.where(known, pressure, SURFACE_PRESSURE)))


@dataclass(frozen=True, eq=False)
class WithheldErrors:
    """Errors of background and analysis at withheld values, in units of their assumed errors.

    Attributes:
        rows: Rows of the feedback, ascending, with shape (W,).
        background: e_b, with shape (W,).
        analysis: e_a, with shape (W,).
    """

    rows: NDArray[np.int64]
    background: Float
    analysis: Float

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sensitivity(self) -> Float:
        """The weight of a change of each equivalent in what the analysis took away: e_a + e_b."""
        return self.background + self.analysis


def withheld_errors(feedback: pa.Table, analysis: Equivalents, new: BoolArray) -> WithheldErrors:
    """Return the errors at the withheld values among `new` rows that have both equivalents.

    Arguments:
        feedback: A table with O-B.
        analysis: H(x_a) at rows of the feedback.
        new: Rows that were not assimilated into the background.
    """
    withheld = is_one_of(feedback, "rejected_by", ["withheld"]) & new
    rows = _with_background(feedback, analysis, withheld)
    rows = rows[:: max(1, -(-len(rows) // MAX_WITHHELD))]
    after = analysis.at(rows)
    before, value = (float_column(feedback, n)[rows] for n in ("background_departure", "obs_value"))
    return WithheldErrors(rows, before / after.errors, (value - after.hofx.mean(0)) / after.errors)


def _with_background(
    feedback: pa.Table, analysis: Equivalents, wanted: BoolArray
) -> NDArray[np.int64]:
    known = np.isfinite(float_column(feedback, "background_departure")) & wanted
    return analysis.rows[known[analysis.rows]]


def estimate_impact(
    feedback: pa.Table,
    analysis: Equivalents,
    new: BoolArray,
    weights: Float | None = None,
) -> tuple[Impact, ...]:
    """Return the impact of each network, the most beneficial first.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        analysis: H(x_a) at rows of the feedback; without `weights` of at least two members.
        new: Rows that were not assimilated into the background; only these count.
        weights: What each innovation did to the weighted equivalents at the withheld values, by
            the adjoint of the analysis, with shape (rows of the feedback,); None to estimate it
            from the members.

    Returns:
        Empty if nothing was withheld, or if there are neither weights nor two members.
    """
    withheld = withheld_errors(feedback, analysis, new)
    rows = _with_background(feedback, analysis, not_rejected(feedback) & new)
    if not len(withheld) or not len(rows) or (weights is None and analysis.members < 2):
        return ()
    innovation = float_column(feedback, "background_departure")[rows] / analysis.at(rows).errors
    weight = weights[rows] if weights is not None else _weights(feedback, analysis, withheld, rows)
    squared = max(float(withheld.background @ withheld.background), 1e-12)
    gained = weight * innovation / squared
    network, names = category_codes(feedback.take(rows), "report_type")
    found = [
        Impact(name, float(gained[network == n].sum()), int((network == n).sum()))
        for n, name in enumerate(names)
        if (network == n).any()
    ]
    return tuple(sorted(found, key=lambda one: -one.share))


def _weights(
    feedback: pa.Table,
    analysis: Equivalents,
    withheld: WithheldErrors,
    rows: NDArray[np.int64],
) -> Float:
    """Estimate the weights of the innovations at `rows` from covariances of the members, localised."""
    after, seen = analysis.at(withheld.rows), analysis.at(rows)
    divisor = np.sqrt(analysis.pairs.divisor)
    own = (seen.hofx - seen.hofx.mean(0)) / (seen.errors * divisor)
    there = (after.hofx - after.hofx.mean(0)) / (after.errors * divisor)
    weights = np.zeros(len(rows))
    for w, i, share in _near(_Places.of(feedback, withheld.rows), _Places.of(feedback, rows)):
        gain = share * np.einsum("mp,mp->p", there[:, w], own[:, i])
        np.add.at(weights, i, withheld.sensitivity[w] * gain)
    return weights


def _near(
    target: _Places, seen: _Places
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Float]]:
    """Yield pairs of places within the localisation radius, with the weight at their distance."""
    tree = cKDTree(seen.vectors)
    reach = 2 * HALF_WIDTH / EARTH_RADIUS
    for first in range(0, len(target.vectors), _AT_ONCE):
        numbers = np.arange(first, min(first + _AT_ONCE, len(target.vectors)))
        lists = tree.query_ball_point(target.vectors[numbers], reach)
        counts = [len(one) for one in lists]
        i = np.fromiter(chain.from_iterable(lists), np.int64, sum(counts))
        w = np.repeat(numbers, counts)
        chord = np.linalg.norm(target.vectors[w] - seen.vectors[i], axis=1)
        deep = np.abs(target.depth[w] - seen.depth[i])
        share = gaspari_cohn(chord * (EARTH_RADIUS / HALF_WIDTH)) * gaspari_cohn(deep / HALF_DEPTH)
        yield w[share > 0], i[share > 0], share[share > 0]
