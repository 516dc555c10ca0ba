"""Buddy check: a departure that none of its neighbours shares."""

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree

from worker.columns import BoolArray, codes, kept, numbers, row_pressure, times, unit_vectors
from worker.qc.background import departures, spread
from worker.qc.context import QCContext

__all__ = ["buddy"]

_EARTH_RADIUS_KM = 6371.229
_HOUR = 3.6e12


def buddy(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows whose O-B differs from the median of its neighbours' by too many standard deviations.

    Neighbours are other stations' values of the same variable, near in distance, ln p and time.
    The tolerance is k sqrt(R_i + median R of the neighbours + s^2).
    """
    bad = np.zeros(len(table), dtype=bool)
    d = departures(table)
    if d is None:
        return bad
    variable, names = codes(table, "variable")
    usable = kept(table) & np.isfinite(d)
    for i in range(len(names)):
        rows = np.flatnonzero(usable & (variable == i))
        if len(rows) > context.of("buddy")["buddies"]:
            bad[rows] = _lonely(table.take(rows), d[rows], context.of("buddy"))
    return bad


def _lonely(sub: pa.Table, d: np.ndarray, p: dict) -> BoolArray:
    where = unit_vectors(numbers(sub, "lat"), numbers(sub, "lon")) * _EARTH_RADIUS_KM
    points = np.column_stack(
        [
            where / p["radius_km"],
            np.log(np.maximum(row_pressure(sub), 1.0)) / p["depth"],
            (times(sub) - times(sub).min(initial=0)) / (_HOUR * p["hours"]),
        ]
    )
    if not sub["vertical"].null_count < len(sub):
        points[:, 3] = 0.0  # at the surface, station height is no distance
    count = min(p["neighbours"] + 1, len(sub))
    distance, index = cKDTree(points).query(points, k=count, distance_upper_bound=1.0)
    found = np.isfinite(distance)
    index = np.where(found, index, 0)
    station = codes(sub, "station_id")[0]
    found &= station[index] != station[:, None]
    variance = np.nan_to_num(numbers(sub, "obs_error"), nan=np.inf) ** 2
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
