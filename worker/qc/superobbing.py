"""Superobservations: the values in one box of the model merged into one.

The members of a box keep their values and are rejected as `thinned`; their mean is appended as a
new row of the batch `superobservations`. With error correlation rho between n members,

    sigma^2 = mean(sigma_i^2) (rho + (1 - rho) / n),

the variance of a mean of equally correlated errors. After Lorenc, "A global three-dimensional
multivariate statistical interpolation scheme" (1981), Mon. Wea. Rev. 109.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.columns import (
    BoolArray,
    groups,
    is_one_of,
    kept,
    numbers,
    set_column,
    times,
    unit_vectors,
)
from worker.qc.cells import box_keys
from worker.qc.context import QCContext

__all__ = ["SUPEROBSERVATIONS", "append_superobservations", "merged"]

SUPEROBSERVATIONS = "superobservations"
"""Batch of the appended rows."""

_AVERAGED = ("elevation", "vertical", "vertical_top", "obs_value")
_FEEDBACK = ("hofx_background", "hofx_analysis", "background_departure", "analysis_departure")


def _boxes(table: pa.Table, context: QCContext) -> tuple[NDArray, NDArray]:
    """Rows that share a box with enough others, and their box, numbered from 0."""
    p = context.of("superobbing")
    use = kept(table) & is_one_of(table, "report_type", p["report_types"])
    use &= ~is_one_of(table, "batch_id", [SUPEROBSERVATIONS])
    rows = np.flatnonzero(use)
    if not len(rows):
        return rows, rows
    box = groups(*box_keys(table.take(rows), context, p["degrees"], p["hours"]))
    shared = np.bincount(box)[box] >= p["least"]
    _, box = np.unique(box[shared], return_inverse=True)
    return rows[shared], box


def merged(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows that went into a superobservation."""
    rows, _ = _boxes(table, context)
    bad = np.zeros(len(table), dtype=bool)
    bad[rows] = True
    return bad


def append_superobservations(table: pa.Table, context: QCContext) -> pa.Table:
    """The table with one new row for each box."""
    rows, box = _boxes(table, context)
    if not len(rows):
        return table
    sub = table.take(rows)
    count = np.bincount(box)
    _, first = np.unique(box, return_index=True)
    merged_rows = sub.take(first)

    def mean(values: NDArray) -> NDArray:
        return np.bincount(box, weights=values, minlength=len(count)) / count

    for name in (*_AVERAGED, *(n for n in _FEEDBACK if n in sub.column_names)):
        merged_rows = set_column(merged_rows, name, mean(numbers(sub, name)))
    east = np.stack(
        [mean(axis) for axis in unit_vectors(numbers(sub, "lat"), numbers(sub, "lon")).T]
    )
    lat = np.rad2deg(np.arctan2(east[2], np.hypot(east[0], east[1])))
    lon = np.rad2deg(np.arctan2(east[1], east[0]))
    rho = context.of("superobbing")["correlation"]
    variance = mean(numbers(sub, "obs_error") ** 2) * (rho + (1.0 - rho) / count)
    start = times(sub).min()
    time = start + np.round(mean((times(sub) - start).astype(np.float64))).astype(np.int64)
    received = np.zeros(len(count), dtype=np.int64)
    np.maximum.at(received, box, times(sub, "received_time"))
    replaced = {
        "lat": lat,
        "lon": np.where(lon >= 180.0, -180.0, lon),
        "obs_error": np.sqrt(variance),
        "time": pa.array(time, pa.timestamp("ns", tz="UTC")),
        "received_time": pa.array(received, pa.timestamp("ns", tz="UTC")),
        "observation_id": np.arange(len(count)),
        "batch_id": pa.array([SUPEROBSERVATIONS] * len(count)),
        "station_id": pa.array([f"superob-{n}" for n in count]),
        "message_offset": pa.nulls(len(count), pa.int64()),
        "profile_id": pa.nulls(len(count), pa.int32()),
    }
    for name, array in replaced.items():
        merged_rows = set_column(merged_rows, name, array)
    return pa.concat_tables([table, merged_rows]).unify_dictionaries()
