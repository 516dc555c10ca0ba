"""GRIB fields as observations: averaged onto the cells of a grid, with a given error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.domain.errors import DecodeError
from model.domain.grids import Grid
from model.domain.variables import VARIABLES
from worker.decoders.base import DecodeContext, Decoded
from worker.decoders.grib_fields import GribField, fields
from worker.decoders.report import DecodeReport
from worker.decoders.rows import build_table, concat_tables
from worker.regrid import cell_index

__all__ = ["decode_grib"]

_DEFAULT_GRID = {"kind": "regular", "nlat": 73, "nlon": 144}
"""2.5 degrees; coarser than most fields, so that one cell's error is not the next one's."""


def decode_grib(path: Path, context: DecodeContext) -> Decoded:
    """One row for each grid cell, variable and level of every known field.

    Options: `grid`, a mapping with `kind`, `nlat`, `nlon`, whose cells the values are averaged over
    (a field coarser than it keeps its own points); `errors`, 1 sigma in SI by variable; `variables`
    to take only some. Without an error a field is monitored, not assimilated, as a model's field
    has no error of its own.

    Raises:
        DecodeError: If options are faulty.
    """
    report = DecodeReport(format="grib", size=path.stat().st_size)
    grid = _grid(context.options.get("grid") or _DEFAULT_GRID)
    errors = _errors(context.options.get("errors") or {})
    wanted = set(context.options.get("variables") or VARIABLES)
    tables: list[pa.Table] = []
    for field in fields(path, context.limits, report, context.options):
        report.reports += 1
        if field.variable not in wanted:
            report.notes["variable_not_asked_for"] += 1
            continue
        table = _rows(field, grid, errors.get(field.variable), context)
        if not len(table):
            report.reject("no_values", field.offset, detail=field.name)
            continue
        report.decoded += 1
        report.count_rows(table)
        tables.append(table)
    if not report.messages and not report.rejected:
        report.reject("no_messages", 0, report.size)
    return Decoded(concat_tables(tables), report)


def _grid(options: Mapping[str, Any]) -> Grid:
    try:
        return Grid("superobbing", options["kind"], int(options["nlat"]), int(options["nlon"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(
            f"Expected the option 'grid' with kind, nlat and nlon; {error}.", reason="invalid_table"
        ) from error


def _errors(options: Any) -> dict[str, float]:
    if not isinstance(options, Mapping):
        raise DecodeError("Expected the option 'errors' by variable.", reason="invalid_table")
    for name, value in options.items():
        if name not in VARIABLES or not isinstance(value, int | float) or not value > 0:
            raise DecodeError(
                f"Expected the option 'errors' with one value above zero by variable; got "
                f"{name!r}: {value!r}.",
                reason="invalid_table",
            )
    return {name: float(value) for name, value in options.items()}


def _rows(field: GribField, grid: Grid, error: float | None, context: DecodeContext) -> pa.Table:
    lat, lon, value = cell_means(field, grid)
    aloft = field.level is not None
    return build_table(
        context,
        len(value),
        report_type="gridded",
        station_id=field.origin,
        platform=f"step {field.step:g} h",
        time=np.full(len(value), np.datetime64(field.time.replace(tzinfo=None), "ns")),
        lat=lat,
        lon=lon,
        vertical_kind="pressure" if aloft else "surface",
        vertical=np.full(len(value), field.level * 100.0 if field.level is not None else np.nan),
        variable=field.variable,
        obs_value=value,
        obs_error=np.full(len(value), np.nan if error is None else error),
        message_offset=np.full(len(value), field.offset),
    )


def cell_means(field: GribField, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean latitude, longitude and value of the points in each cell that has any.

    Points count by the cosine of their latitude, as they stand for equal steps in latitude and
    longitude; in longitude the mean is taken on the circle.
    """
    good = np.isfinite(field.values)
    lat, lon, value = field.lat[good], field.lon[good], field.values[good]
    cell = cell_index(grid.latitude, grid.nlon, lat, lon)
    weight = np.maximum(np.cos(np.deg2rad(lat)), 1e-6)
    total = np.bincount(cell, weights=weight)
    used = total > 0.0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, weights=weight * values)[used] / total[used]

    east = np.rad2deg(np.arctan2(mean(np.sin(np.deg2rad(lon))), mean(np.cos(np.deg2rad(lon)))))
    return mean(lat), np.where(east >= 180.0, east - 360.0, east), mean(value)
