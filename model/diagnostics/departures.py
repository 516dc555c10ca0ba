r"""Compute statistics of departures from a feedback table, by network, variable and level.

With d_b = O−B, d_a = O−A and an analysis that used the right errors,

.. math:: E[d_a d_b] = R, \qquad E[(d_b - d_a) d_b] = H B H^\top,
          \qquad E\left[\frac{d_b^2}{\sigma_o^2 + \sigma_b^2}\right] = 1

The products are covariances: the means of d_a and d_b, which are biases, are subtracted first.

References:
    | Diagnosis of observation, background and analysis-error statistics in observation space
    | (Desroziers, Berre, Chapnik and Poli, QJRMS 131, 2005)
    | https://doi.org/10.1256/qj.05.108
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.ensembles import AntitheticPairs
from model.domain.observations import DEPARTURE_LAYERS

__all__ = [
    "DepartureStatistics",
    "LAYERS",
    "departure_statistics",
    "layer_names",
]

LAYERS = DEPARTURE_LAYERS

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


def layer_names(frame: pd.DataFrame, bounds: Sequence[float] = LAYERS) -> "pd.Series[str]":
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
    bounds: Sequence[float] = LAYERS,
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
