"""Check against the model: station height, first guess, neighbours' departures, wind pairs.

Surface values are reduced to the height of the model's surface where the difference allows it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model.domain.grids import bilinear, interpolate, unit_vectors
from model.domain.physics import (
    EARTH_RADIUS,
    GAS_CONSTANT_DRY,
    GRAVITY,
    STANDARD_TEMPERATURE,
    pressure_after_rise,
)
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    groups,
    is_one_of,
    not_rejected,
    row_pressure,
    set_column,
    time_column,
)
from worker.observations.qc.base import QCContext
from worker.observations.stations import station_codes

__all__ = [
    "background_check",
    "buddy",
    "departures",
    "height_difference",
    "orography",
    "reduce_temperature",
    "reduce_to_surface",
    "wind_pairs",
]


def reduce_temperature(
    temperature: NDArray[Any], rise: NDArray[Any], lapse_rate: float
) -> NDArray[np.float64]:
    """Return temperature in K after rising by `rise` metres: T - gamma dz."""
    return temperature - lapse_rate * rise


def height_difference(table: pa.Table, context: QCContext) -> NDArray[np.float64]:
    """Return model surface height minus station height, m; NaN where not applicable or unknown."""
    rise = np.full(len(table), np.nan)
    if context.orography is None or context.grid is None:
        return rise
    p = context.of("orography")
    use = is_one_of(table, "report_type", p["height_by_report_types"])
    use &= is_one_of(table, "vertical_kind", ["surface"])
    rows = np.flatnonzero(use)
    places = float_column(table, "lat")[rows], float_column(table, "lon")[rows]
    orography = np.asarray(context.orography, dtype=np.float64)
    ground = interpolate(orography, *bilinear(context.grid, *places))
    rise[rows] = ground - float_column(table, "elevation")[rows]
    return rise


def orography(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows whose station lies too far above or below the model's surface."""
    rise = np.abs(height_difference(table, context))
    variable, names = category_codes(table, "variable")
    limits = context.of("orography")["limits"]
    limit = np.array([limits.get(n, np.inf) for n in names] or [np.inf])[variable]
    return np.nan_to_num(rise, nan=0.0) > limit


def reduce_to_surface(table: pa.Table, context: QCContext) -> pa.Table:
    """Move two-metre temperature and surface pressure to the model's surface and widen their errors.

    The elevation of reduced rows becomes the model's, so the reduction is idempotent. Rows beyond the
    limit of `orography` are unchanged and rejected by that check.
    """
    p = context.of("orography")
    rise = height_difference(table, context)
    movable = not_rejected(table) & np.isfinite(rise) & ~orography(table, context)
    if not p["reduce"] or not movable.any():
        return table
    value, error = float_column(table, "obs_value"), float_column(table, "obs_error")
    gamma = p["lapse_rate"]
    is_t = movable & is_one_of(table, "variable", ["2m_temperature"])
    is_p = movable & is_one_of(table, "variable", ["surface_pressure"])
    below = _station_temperature(table, gamma)
    value[is_t] = reduce_temperature(value[is_t], rise[is_t], gamma)
    error[is_t] = np.hypot(error[is_t], p["lapse_error"] * rise[is_t])
    moved = pressure_after_rise(value[is_p], below[is_p], rise[is_p], gamma)
    slope = GRAVITY * moved * rise[is_p] / (GAS_CONSTANT_DRY * below[is_p] ** 2)
    error[is_p] = np.hypot(error[is_p], slope * p["layer_temperature_error"])
    value[is_p] = moved
    elevation = float_column(table, "elevation")
    elevation = np.where(is_t | is_p, elevation + rise, elevation)
    for name, array in (("obs_value", value), ("obs_error", error), ("elevation", elevation)):
        table = set_column(table, name, array)
    return table


def _station_temperature(table: pa.Table, lapse_rate: float) -> NDArray[np.float64]:
    """Return each row's two-metre temperature from the same report, else the standard atmosphere's."""
    station = groups(
        category_codes(table, "report_type")[0],
        station_codes(table)[0],
        time_column(table),
    )
    known = np.full(station.max(initial=-1) + 1, np.nan)
    value = float_column(table, "obs_value")
    rows = not_rejected(table) & is_one_of(table, "variable", ["2m_temperature"])
    known[station[rows]] = value[rows]
    standard = STANDARD_TEMPERATURE - lapse_rate * np.nan_to_num(
        float_column(table, "elevation"), nan=0.0
    )
    found = known[station]
    return np.where(np.isfinite(found), found, standard)


_PAIRS = {
    "u_component_of_wind": "v_component_of_wind",
    "10m_u_component_of_wind": "10m_v_component_of_wind",
}


def departures(table: pa.Table) -> np.ndarray | None:
    """Return O-B with shape (rows,), NaN where unknown; None if the table has no background."""
    if "hofx_background" not in table.column_names:
        return None
    return float_column(table, "obs_value") - float_column(table, "hofx_background")


def background_check(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows with |O-B| > min(k sqrt(R + s^2), absolute limit).

    R is the variance of the observation error, s the ensemble standard deviation of H(x_b).
    """
    d = departures(table)
    if d is None:
        return np.zeros(len(table), dtype=bool)
    p = context.of("background_check")
    variable, names = category_codes(table, "variable")
    limits = [p["limits"].get(n, p["default"]) for n in names]
    sigmas = np.array([float(e["sigmas"]) for e in limits] or [np.inf])[variable]
    absolute = np.array([float(e["absolute"]) for e in limits] or [np.inf])[variable]
    total = np.hypot(np.nan_to_num(float_column(table, "obs_error"), nan=np.inf), spread(table))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(d) > np.minimum(sigmas * total, absolute))


def spread(table: pa.Table) -> np.ndarray:
    """Return the ensemble standard deviation of H(x_b), 0 where unknown."""
    if "background_spread" not in table.column_names:
        return np.zeros(len(table))
    return np.nan_to_num(float_column(table, "background_spread"), nan=0.0)


def wind_pairs(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark wind components whose partner in the same report was rejected."""
    variable, names = category_codes(table, "variable")
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
    keys = [category_codes(sub, n)[0] for n in ("batch_id", "report_type", "station_id")]
    place = [np.nan_to_num(float_column(sub, n), nan=-1.0) for n in ("vertical", "lat", "lon")]
    offset = np.nan_to_num(float_column(sub, "message_offset"), nan=-1.0)
    wind = groups(*keys, time_column(sub), offset, *place)
    height = np.isin(variable[rows], [i for u, v in pairs for i in (u, v) if names[i][0] == "1"])
    wind = groups(wind, height)
    any_rejected = np.bincount(wind, weights=rejected[rows]) > 0
    bad[rows] = any_rejected[wind]
    return bad


_HOUR = 3.6e12


def buddy(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows whose O-B differs from the median of its neighbours' by too many standard deviations.

    Neighbours are other stations' values of the same variable, near in distance, ln p and time.
    The tolerance is k sqrt(R_i + median R of the neighbours + s^2).
    """
    bad = np.zeros(len(table), dtype=bool)
    d = departures(table)
    if d is None:
        return bad
    variable, names = category_codes(table, "variable")
    usable = not_rejected(table) & np.isfinite(d)
    for i in range(len(names)):
        rows = np.flatnonzero(usable & (variable == i))
        if len(rows) > context.of("buddy")["buddies"]:
            bad[rows] = _lonely(table.take(rows), d[rows], context.of("buddy"))
    return bad


def _lonely(sub: pa.Table, d: np.ndarray, p: Mapping[str, Any]) -> BoolArray:
    where = unit_vectors(float_column(sub, "lat"), float_column(sub, "lon")) * (EARTH_RADIUS / 1e3)
    points = np.column_stack(
        [
            where / p["radius_km"],
            np.log(np.maximum(row_pressure(sub), 1.0)) / p["depth"],
            (time_column(sub) - time_column(sub).min(initial=0)) / (_HOUR * p["hours"]),
        ]
    )
    if not sub["vertical"].null_count < len(sub):
        points[:, 3] = 0.0  # at the surface, height does not count as distance
    count = min(p["neighbours"] + 1, len(sub))
    distance, index = cKDTree(points).query(points, k=count, distance_upper_bound=1.0)
    found = np.isfinite(distance)
    index = np.where(found, index, 0)
    station = station_codes(sub)[0]
    found &= station[index] != station[:, None]
    variance = np.nan_to_num(float_column(sub, "obs_error"), nan=np.inf) ** 2
    enough = found.sum(axis=1) >= p["buddies"]
    bad = np.zeros(len(sub), dtype=bool)
    rows = np.flatnonzero(enough)
    if not len(rows):
        return bad
    near = np.where(found[rows], d[index[rows]], np.nan)
    near_variance = np.where(found[rows], variance[index[rows]], np.nan)
    tolerance = np.sqrt(
        variance[rows] + np.nanmedian(near_variance, axis=1) + spread(sub)[rows] ** 2
    )
    bad[rows] = np.abs(d[rows] - np.nanmedian(near, axis=1)) > p["sigmas"] * tolerance
    return bad
