"""First-guess check, and the pairing of wind components."""

import numpy as np
import pyarrow as pa

from worker.columns import BoolArray, codes, groups, numbers, times
from worker.qc.context import QCContext

__all__ = ["background_check", "departures", "wind_pairs"]

_PAIRS = {
    "u_component_of_wind": "v_component_of_wind",
    "10m_u_component_of_wind": "10m_v_component_of_wind",
}


def departures(table: pa.Table) -> np.ndarray | None:
    """O-B with shape (rows,), NaN where unknown; None if the table has no background."""
    if "hofx_background" not in table.column_names:
        return None
    return numbers(table, "obs_value") - numbers(table, "hofx_background")


def background_check(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows with |O-B| > min(k sqrt(R + s^2), absolute limit).

    R is the variance of the observation error, s the ensemble standard deviation of H(x_b).
    """
    d = departures(table)
    if d is None:
        return np.zeros(len(table), dtype=bool)
    p = context.of("background_check")
    variable, names = codes(table, "variable")
    limits = [p["limits"].get(n, p["default"]) for n in names]
    sigmas = np.array([float(e["sigmas"]) for e in limits] or [np.inf])[variable]
    absolute = np.array([float(e["absolute"]) for e in limits] or [np.inf])[variable]
    total = np.hypot(np.nan_to_num(numbers(table, "obs_error"), nan=np.inf), spread(table))
    with np.errstate(invalid="ignore"):
        return np.abs(d) > np.minimum(sigmas * total, absolute)


def spread(table: pa.Table) -> np.ndarray:
    """Ensemble standard deviation of H(x_b), 0 where unknown."""
    if "background_spread" not in table.column_names:
        return np.zeros(len(table))
    return np.nan_to_num(numbers(table, "background_spread"), nan=0.0)


def wind_pairs(table: pa.Table, context: QCContext) -> BoolArray:
    """Components whose partner of the same report was rejected: half a wind misleads."""
    variable, names = codes(table, "variable")
    rejected = table["rejected_by"].is_valid().to_numpy().astype(bool)
    bad = np.zeros(len(table), dtype=bool)
    pairs = [(names.index(u), names.index(v)) for u, v in _PAIRS.items() if {u, v} <= set(names)]
    rows = np.flatnonzero(np.isin(variable, [i for pair in pairs for i in pair]))
    if not len(rows) or not rejected[rows].any():
        return bad
    sub = table.select(
        [
            "batch_id",
            "report_type",
            "station_id",
            "message_offset",
            "time",
            "vertical",
            "lat",
            "lon",
        ]
    ).take(rows)
    keys = [codes(sub, n)[0] for n in ("batch_id", "report_type", "station_id")]
    place = [np.nan_to_num(numbers(sub, n), nan=-1.0) for n in ("vertical", "lat", "lon")]
    offset = np.nan_to_num(numbers(sub, "message_offset"), nan=-1.0)
    wind = groups(*keys, times(sub), offset, *place)
    height = np.isin(variable[rows], [i for u, v in pairs for i in (u, v) if names[i][0] == "1"])
    wind = groups(wind, height)
    any_rejected = np.bincount(wind, weights=rejected[rows]) > 0
    bad[rows] = any_rejected[wind]
    return bad
