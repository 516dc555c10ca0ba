"""Select among good observations: withheld stations, superobservations and thinning.

Superobservations merge the values in one box of the model. The members keep their values and are
rejected as `thinned`; their mean is appended as a new row of the batch `superobservations`. With
error correlation rho between n members,

    sigma^2 = mean(sigma_i^2) (rho + (1 - rho) / n),

the variance of a mean of equally correlated errors. After Lorenc, "A global three-dimensional
multivariate statistical interpolation scheme" (1981), Mon. Wea. Rev. 109.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.grids import unit_vectors
from model.domain.observations import station_draw
from model.domain.regrid import cell_index
from worker.observations.columns import (
    SUPEROBSERVATIONS,
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
from worker.observations.qc.base import QCContext, distinct_levels
from worker.observations.stations import is_station, station_codes

__all__ = [
    "append_superobservations",
    "box_keys",
    "denial",
    "in_superobservation",
    "thinning",
    "withholding",
]

_HOUR = 3.6e12
_DEFAULT_LEVELS = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 70, 50, 30, 20, 10)


def box_keys(sub: pa.Table, context: QCContext, degrees: float, hours: float) -> list[NDArray[Any]]:
    """Return the keys that rows of one box share: network, variable, kind of level, cell, level, hour.

    Time boxes are centred on full hours, levels are the nearest of the model's in ln p. Channels of
    a sensor, and layers with other bounds, measure different things and share no box.
    """
    lat, lon = float_column(sub, "lat"), float_column(sub, "lon")
    if context.grid is not None:
        cell = cell_index(context.grid.latitude, context.grid.nlon, lat, lon)
    else:
        columns = int(np.ceil(360.0 / degrees))
        cell = np.floor((90.0 - lat) / degrees).astype(np.int64) * columns
        cell += np.floor((lon % 360.0) / degrees).astype(np.int64)
    levels = np.log(np.sort(np.asarray(context.levels or _DEFAULT_LEVELS, float)) * 100.0)
    middle = (levels[1:] + levels[:-1]) / 2
    level = np.searchsorted(middle, np.log(np.maximum(row_pressure(sub), 1.0)))
    # At the surface, and for columns, height does not separate.
    level = np.where(np.isnan(float_column(sub, "vertical")), -1, level)
    hour = np.floor(time_column(sub) / (hours * _HOUR) + 0.5).astype(np.int64)
    names = ("report_type", "variable", "vertical_kind")
    return [*(category_codes(sub, n)[0] for n in names), *distinct_levels(sub), cell, level, hour]


def withholding(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows of withheld stations: those drawn by hash, the same in every cycle, and named ones.

    It runs after the other checks, so that withheld values are of the same quality as those used.
    """
    p = context.of("withholding")
    station, names = station_codes(table)
    chosen = [i for i, name in enumerate(names) if station_draw(name, p["salt"]) < p["share"]]
    drawn = np.isin(station, chosen) & is_one_of(table, "report_type", p["report_types"])
    return drawn | is_station(table, p["stations"])


def denial(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows of the networks that a job denies.

    It runs after `withholding`, so that withheld stations stay withheld, and analyses with and without
    a network can be verified against the same values.
    """
    return is_one_of(table, "report_type", context.of("denial")["report_types"])


_AVERAGED = ("elevation", "vertical", "vertical_top", "scan_angle", "obs_value")
_FEEDBACK = ("hofx_background", "hofx_analysis", "background_departure", "analysis_departure")


def _boxes(table: pa.Table, context: QCContext) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that share a box with enough others, and their boxes, numbered from 0."""
    p = context.of("superobbing")
    use = not_rejected(table) & is_one_of(table, "report_type", p["report_types"])
    use &= ~is_one_of(table, "batch_id", [SUPEROBSERVATIONS])
    rows = np.flatnonzero(use)
    if not len(rows):
        return rows, rows
    box = groups(*box_keys(table.take(rows), context, p["degrees"], p["hours"]))
    shared = np.bincount(box)[box] >= p["least"]
    _, box = np.unique(box[shared], return_inverse=True)
    return rows[shared], box


def in_superobservation(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows that went into a superobservation."""
    rows, _ = _boxes(table, context)
    bad = np.zeros(len(table), dtype=bool)
    bad[rows] = True
    return bad


def append_superobservations(table: pa.Table, context: QCContext) -> pa.Table:
    """Return the table with one new row for each box."""
    rows, box = _boxes(table, context)
    if not len(rows):
        return table
    sub = table.take(rows)
    count = np.bincount(box)
    _, first = np.unique(box, return_index=True)
    means = sub.take(first)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(box, weights=values, minlength=len(count)) / count

    for name in (*_AVERAGED, *(n for n in _FEEDBACK if n in sub.column_names)):
        means = set_column(means, name, mean(float_column(sub, name)))
    east = np.stack(
        [mean(axis) for axis in unit_vectors(float_column(sub, "lat"), float_column(sub, "lon")).T]
    )
    lat = np.rad2deg(np.arctan2(east[2], np.hypot(east[0], east[1])))
    lon = np.rad2deg(np.arctan2(east[1], east[0]))
    rho = context.of("superobbing")["correlation"]
    variance = mean(float_column(sub, "obs_error") ** 2) * (rho + (1.0 - rho) / count)
    start = time_column(sub).min()
    time = start + np.round(mean((time_column(sub) - start).astype(np.float64))).astype(np.int64)
    received = np.zeros(len(count), dtype=np.int64)
    np.maximum.at(received, box, time_column(sub, "received_time"))
    replaced = {
        "lat": lat,
        "lon": np.where(lon >= 180.0, -180.0, lon),
        "obs_error": np.sqrt(variance),
        "time": pa.array(time, pa.timestamp("ns", tz="UTC")),
        "received_time": pa.array(received, pa.timestamp("ns", tz="UTC")),
        "observation_id": np.arange(len(count)),
        "batch_id": pa.array([SUPEROBSERVATIONS] * len(count)),
        "station_id": pa.array([f"superob-{n}" for n in count]),
        "station_alias": pa.nulls(len(count), pa.string()),
        "message_offset": pa.nulls(len(count), pa.int64()),
        "profile_id": pa.nulls(len(count), pa.int32()),
    }
    if "canonical_station" in means.column_names:
        replaced["canonical_station"] = replaced["station_id"]
    for name, array in replaced.items():
        means = set_column(means, name, array)
    return pa.concat_tables([table, means]).unify_dictionaries()


def thinning(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark all rows of a box but one: the closest in level, then in time, then by station and order.

    The choice is independent of the variable, so that both wind components stay together.
    """
    p = context.of("thinning")
    bad = np.zeros(len(table), dtype=bool)
    rows = np.flatnonzero(not_rejected(table) & is_one_of(table, "report_type", p["report_types"]))
    if not len(rows):
        return bad
    sub = table.take(rows)
    keys = box_keys(sub, context, p["degrees"], p["hours"])
    station = station_codes(sub)[0]
    box = groups(*keys, *([station] if p["per_station"] else []))
    offset = np.abs(time_column(sub) / (p["hours"] * _HOUR) % 1.0 - 0.5)
    order = np.lexsort(
        (
            float_column(sub, "observation_id"),
            category_codes(sub, "batch_id")[0],
            station,
            -offset,
            _level_distance(row_pressure(sub), context.levels),
            box,
        )
    )
    later = np.zeros(len(rows), dtype=bool)
    later[order[1:]] = box[order[1:]] == box[order[:-1]]
    bad[rows] = later
    return bad


def _level_distance(pressure: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Return the distance in ln p from the nearest model level, rounded so that equal levels tie."""
    if not levels:
        return np.zeros(len(pressure))
    grid = np.log(np.asarray(levels, float) * 100.0)
    x = np.log(np.maximum(pressure, 1.0))
    return np.asarray(np.round(np.min([np.abs(x - level) for level in grid], axis=0), 6))
