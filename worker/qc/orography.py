"""Station height against the model's: reduction to the model's surface, or rejection."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.columns import BoolArray, codes, groups, is_one_of, kept, numbers, set_column, times
from worker.qc.context import QCContext
from worker.regrid import bilinear

__all__ = [
    "height_difference",
    "orography",
    "reduce_pressure",
    "reduce_temperature",
    "reduce_to_surface",
]

GRAVITY = 9.80665  # m s-2
DRY_GAS_CONSTANT = 287.0597  # J kg-1 K-1


def reduce_temperature(
    temperature: NDArray, rise: NDArray, lapse_rate: float
) -> NDArray[np.float64]:
    """Temperature in K after rising by `rise` metres: T - gamma dz."""
    return temperature - lapse_rate * rise


def reduce_pressure(
    pressure: NDArray, temperature: NDArray, rise: NDArray, lapse_rate: float
) -> NDArray[np.float64]:
    """Pressure in Pa after rising by `rise` metres through a constant lapse rate.

    p' = p (1 - gamma dz / T)^(g / (R_d gamma)), the hydrostatic equation integrated exactly.

    Arguments:
        pressure: Pa, at the station.
        temperature: K, at the station.
        rise: Height of the model's surface minus that of the station, m.
        lapse_rate: gamma in K m-1, above zero.
    """
    share = np.maximum(1.0 - lapse_rate * rise / temperature, 0.01)
    return pressure * share ** (GRAVITY / (DRY_GAS_CONSTANT * lapse_rate))


def height_difference(table: pa.Table, context: QCContext) -> NDArray[np.float64]:
    """Model surface minus station, m; NaN where it does not matter or is not known."""
    rise = np.full(len(table), np.nan)
    if context.orography is None or context.grid is None:
        return rise
    p = context.of("orography")
    use = is_one_of(table, "report_type", p["height_by_report_types"])
    use &= is_one_of(table, "vertical_kind", ["surface"])
    rows = np.flatnonzero(use)
    model = bilinear(
        np.asarray(context.orography, dtype=np.float64),
        context.grid.latitude,
        context.grid.longitude,
        numbers(table, "lat")[rows],
        numbers(table, "lon")[rows],
    )
    rise[rows] = model - numbers(table, "elevation")[rows]
    return rise


def orography(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows whose station lies too far above or below the model's surface."""
    rise = np.abs(height_difference(table, context))
    variable, names = codes(table, "variable")
    limits = context.of("orography")["limits"]
    limit = np.array([limits.get(n, np.inf) for n in names] or [np.inf])[variable]
    return np.nan_to_num(rise, nan=0.0) > limit


def reduce_to_surface(table: pa.Table, context: QCContext) -> pa.Table:
    """Two-metre temperature and surface pressure moved to the model's surface, errors widened.

    The elevation of the moved rows becomes the model's, so that moving them again does nothing.
    Rows beyond the limit of `orography` stay as they are and are rejected there.
    """
    p = context.of("orography")
    rise = height_difference(table, context)
    movable = kept(table) & np.isfinite(rise) & ~orography(table, context)
    if not p["reduce"] or not movable.any():
        return table
    value, error = numbers(table, "obs_value"), numbers(table, "obs_error")
    gamma = p["lapse_rate"]
    is_t = movable & is_one_of(table, "variable", ["2m_temperature"])
    is_p = movable & is_one_of(table, "variable", ["surface_pressure"])
    below = _station_temperature(table, gamma)
    value[is_t] = reduce_temperature(value[is_t], rise[is_t], gamma)
    error[is_t] = np.hypot(error[is_t], p["lapse_error"] * rise[is_t])
    moved = reduce_pressure(value[is_p], below[is_p], rise[is_p], gamma)
    slope = GRAVITY * moved * rise[is_p] / (DRY_GAS_CONSTANT * below[is_p] ** 2)
    error[is_p] = np.hypot(error[is_p], slope * p["layer_temperature_error"])
    value[is_p] = moved
    elevation = numbers(table, "elevation")
    elevation = np.where(is_t | is_p, elevation + rise, elevation)
    for name, array in (("obs_value", value), ("obs_error", error), ("elevation", elevation)):
        table = set_column(table, name, array)
    return table


def _station_temperature(table: pa.Table, lapse_rate: float) -> NDArray[np.float64]:
    """Each row's two-metre temperature from the same report, else the standard atmosphere's."""
    station = groups(codes(table, "report_type")[0], codes(table, "station_id")[0], times(table))
    known = np.full(station.max(initial=-1) + 1, np.nan)
    value = numbers(table, "obs_value")
    rows = kept(table) & is_one_of(table, "variable", ["2m_temperature"])
    known[station[rows]] = value[rows]
    standard = 288.15 - lapse_rate * np.nan_to_num(numbers(table, "elevation"), nan=0.0)
    found = known[station]
    return np.where(np.isfinite(found), found, standard)
