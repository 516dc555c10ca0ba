r"""Statistics of departures from a feedback table, by network, variable and level.

With d_b = O−B, d_a = O−A and an analysis that used the right errors,

.. math:: E[d_a d_b] = R, \qquad E[(d_b - d_a) d_b] = H B H^\top,
          \qquad E\left[\frac{d_b^2}{\sigma_o^2 + \sigma_b^2}\right] = 1

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

__all__ = ["DepartureStatistics", "departure_histogram", "departure_statistics"]

LAYERS = (0.0, 7_500.0, 15_000.0, 25_000.0, 40_000.0, 60_000.0, 80_000.0, 110_000.0)
"""Bounds in Pa of the layers in which pressure-level departures are counted."""

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
        layer: `surface`, `850-700 hPa` in the form of its bounds, or the kind of vertical.
        count: Observations used.
        bias_background: Mean O−B.
        rms_background: Root mean square O−B.
        bias_analysis: Mean O−A.
        rms_analysis: Root mean square O−A.
        chi2: Mean of (O−B)² over error variance plus background variance; 1 is consistent.
        error: Root mean square error that was assumed.
        desroziers_error: Error estimated from the departures; None if its square is negative.
        desroziers_spread: Background error in observation space, likewise.
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


def _layer(frame: pd.DataFrame, bounds: Sequence[float]) -> "pd.Series[str]":
    names = [f"{a / 100:.0f}-{b / 100:.0f} hPa" for a, b in zip(bounds, bounds[1:], strict=False)]
    level = pd.cut(frame["vertical"], list(bounds), labels=names).astype(object)
    kind = frame["vertical_kind"].astype(object)
    return level.where((kind == "pressure") & level.notna(), kind)


def departure_statistics(
    feedback: pa.Table, bounds: Sequence[float] = LAYERS
) -> list[DepartureStatistics]:
    """Statistics of the rows in use that have a background departure.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        bounds: Bounds of the layers in Pa, ascending.

    Returns:
        One entry for each network, variable and layer present, in alphabetical order.
    """
    used = feedback.filter(feedback["rejected_by"].is_null())
    frame = used.select(_COLUMNS).to_pandas()
    frame = frame[frame["background_departure"].notna()]
    frame["layer"] = _layer(frame, bounds)
    groups = frame.groupby(["report_type", "variable", "layer"], observed=True, sort=True)
    return [_statistics(*map(str, name), group) for name, group in groups]


def _statistics(
    report_type: str, variable: str, layer: str, group: pd.DataFrame
) -> DepartureStatistics:
    back = group["background_departure"].to_numpy(float)
    analysis = group["analysis_departure"].to_numpy(float)
    error = group["obs_error"].to_numpy(float)
    spread = group["background_spread"].to_numpy(float)
    return DepartureStatistics(
        report_type,
        variable,
        layer,
        len(back),
        _mean(back),
        _root(_mean(back**2)),
        _mean(analysis),
        _root(_mean(analysis**2)),
        _mean(back**2 / (error**2 + spread**2)),
        float(np.sqrt(np.mean(error**2))),
        _root(_mean(back * analysis)),
        _root(_mean(back * (back - analysis))),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _root(square: float | None) -> float | None:
    return None if square is None or square < 0 else float(np.sqrt(square))


def departure_histogram(
    departures: NDArray[np.float64],
    errors: NDArray[np.float64],
    *,
    reach: float = 5.0,
    bins: int = 40,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Histogram of departures in units of the observation error.

    Arguments:
        departures: With shape (N,); NaN are left out.
        errors: One standard deviation, with shape (N,).
        reach: Outermost bound; what lies beyond counts in the outermost bins.
        bins: Number of bins.

    Returns:
        Bounds (bins + 1,) and counts (bins,).
    """
    ratio = departures / errors
    ratio = np.clip(ratio[np.isfinite(ratio)], -reach, reach)
    counts, edges = np.histogram(ratio, bins=bins, range=(-reach, reach))
    return edges, counts
