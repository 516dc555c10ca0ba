"""Decode GRIB 1 and 2: messages to fields of our variables, and fields to averaged observations.

Messages are found by their own marks and lengths, so that one corrupt message does not hide the
rest. A message may hold several fields (NCEP packs u and v into one GRIB 2 message). As
observations, fields are averaged onto the cells of a grid, with a given error.
"""

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import eccodes
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.errors import DecodeError
from model.domain.grids import Grid
from model.domain.regrid import cell_index
from model.domain.variables import VARIABLES
from worker.observations.columns import build_table, concat_tables
from worker.observations.decoders.base import (
    DecodeContext,
    Decoded,
    DecodeReport,
    FileBudget,
    MessageLimits,
)
from worker.observations.decoders.grib_products import get as _get
from worker.observations.decoders.grib_products import not_a_state, seconds
from worker.observations.decoders.options import GribOptions
from worker.observations.lexicons import GRIB, SURFACE_LEVELS
from worker.observations.units import conversion

__all__ = ["GribField", "as_listed", "decode_grib", "fields", "frames", "holds_several"]


def frames(data: mmap.mmap, report: DecodeReport) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each whole message."""
    at, end = data.find(b"GRIB"), 0
    while at >= 0:
        length = _length(data, at)
        if length is None:
            report.reject("bad_frame", at, 0, f"edition {data[at + 7 : at + 8]!r} or no end mark")
            at = data.find(b"GRIB", at + 4)
            continue
        if length == 0:
            report.reject("truncated", at, len(data) - at)
            at = data.find(b"GRIB", at + 4)
            continue
        report.bytes_between += at - end
        yield at, length
        end = at + length
        at = data.find(b"GRIB", end)
    report.bytes_between += len(data) - end


def _length(data: mmap.mmap, at: int) -> int | None:
    """Return the bytes of the message at `at`; 0 if the file ends before; None if it is none."""
    head = data[at : at + 16]
    if len(head) < 16:
        return 0
    if head[7] == 1:
        length = int.from_bytes(head[4:7], "big")
    elif head[7] == 2:
        length = int.from_bytes(head[8:16], "big")
    else:
        return None
    if at + length > len(data):
        return 0
    if length > 16 and data[at + length - 4 : at + length] == b"7777":
        return length
    # GRIB 1 beyond 8 MB counts its length in units of 120 bytes: the end mark tells.
    stop = data.find(b"7777GRIB", at) if head[7] == 1 and length & 0x800000 else -1
    return stop + 4 - at if stop >= 0 else None


def holds_several(message: bytes) -> bool:
    """Return whether a GRIB 2 message has more than one product definition (section 4)."""
    at, products = 16, 0
    while message[7] == 2 and at + 5 <= len(message) - 4:
        length = int.from_bytes(message[at : at + 4], "big")
        products += message[at + 4] == 4
        if length < 5:
            break
        at += length
    return products > 1


@dataclass(frozen=True, eq=False)
class GribField:
    """One field with the names and units of the vocabulary.

    Attributes:
        variable: Id of the vocabulary.
        level: hPa, None at the surface.
        time: Valid time, UTC.
        step: Hours since the start of its forecast.
        origin: Centre, and ensemble number if any.
        values: SI, NaN where missing, with shape (points,).
        lat, lon: Degrees, with shape (points,).
        offset: First byte of its message in the file.
    """

    variable: str
    level: float | None
    time: datetime
    step: float
    origin: str
    values: NDArray[np.float64]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    offset: int

    @property
    def name(self) -> str:
        """Name of the field, with its level: `temperature_500hPa` or `2m_temperature`."""
        return self.variable if self.level is None else f"{self.variable}_{self.level:g}hPa"


def fields(
    path: Path,
    limits: MessageLimits,
    report: DecodeReport,
    context: DecodeContext | None = None,
) -> Iterator[GribField]:
    """Yield the fields whose variables are known; count everything else in the report.

    Arguments:
        path: The file.
        limits: Bounds of one message.
        report: Report to which counts are added.
        context: Its `mark` is called before each message; messages to `skip` are counted only.

    Raises:
        DecodeError: Once the fields have more points than a file of this size may.
    """
    context = context or DecodeContext()
    budget = context.budget(path.stat().st_size)
    if not path.stat().st_size:
        report.reject("empty_file")
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for offset, length in frames(data, report):
            report.messages += 1
            if offset in context.skip or length > limits.message_bytes:
                detail = f"a message of {length} bytes"
                report.reject(context.skip.get(offset, "too_large"), offset, length, detail)
                continue
            context.mark(offset)
            before = report.rows
            yield from _message(data[offset : offset + length], offset, limits, report, budget)
            report.bytes_decoded += length if report.rows > before else 0


def _message(
    message: bytes, offset: int, limits: MessageLimits, report: DecodeReport, budget: FileBudget
) -> Iterator[GribField]:
    try:
        for handle in _handles(message):
            try:
                field = _field(handle, offset, len(message), limits, report, budget)
            except DecodeError:  # over the budget: the file is refused as a whole
                raise
            except (eccodes.CodesInternalError, ValueError) as error:
                report.reject("undecodable", offset, len(message), str(error))
                field = None
            if field is not None:
                yield field
    except eccodes.CodesInternalError as error:
        report.reject("undecodable", offset, len(message), str(error))


def _handles(message: bytes) -> Iterator[int]:
    """Yield one handle for each field; it is released when the next one is requested."""
    if not holds_several(message):
        handle = eccodes.codes_new_from_message(message)
        try:
            yield handle
        finally:
            eccodes.codes_release(handle)
        return
    # ecCodes splits a message into its fields only when it reads from a file.
    eccodes.codes_grib_multi_support_on()
    try:
        with tempfile.TemporaryFile() as file:
            file.write(message)
            file.seek(0)
            while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
                try:
                    yield handle
                finally:
                    eccodes.codes_release(handle)
    finally:
        eccodes.codes_grib_multi_support_off()


def _field(
    handle: int,
    offset: int,
    length: int,
    limits: MessageLimits,
    report: DecodeReport,
    budget: FileBudget,
) -> GribField | None:
    short, kind = _get(handle, "shortName", str), _get(handle, "typeOfLevel", str)
    level, points = _get(handle, "level", float), _get(handle, "numberOfDataPoints", int) or 0
    variable = _variable(short, kind)
    described = f"{short} on {kind} {level}"
    if variable is None:
        product = not_a_state(handle, accumulated=False)
        detail = f"{described} ({product})" if product else described
        report.reject("unsupported_variable", offset, length, detail)
        return None
    if fault := _unusable(handle, variable):
        report.reject("unsupported_variable", offset, length, f"{described}: {fault}")
        return None
    if points > limits.values:
        report.reject("too_large", offset, length, f"{described}: {points} points")
        return None
    budget.take(points)
    units = "gpm" if short == "gh" else str(_get(handle, "units", str))
    factors = conversion(units, variable)
    if factors is None:
        report.reject("unsupported_variable", offset, length, f"{described} in {units!r}")
        return None
    eccodes.codes_set(handle, "missingValue", -1e100)
    values = eccodes.codes_get_array(handle, "values").astype(np.float64)
    lat = eccodes.codes_get_array(handle, "latitudes").astype(np.float64)
    lon = eccodes.codes_get_array(handle, "longitudes").astype(np.float64)
    if not len(values) == len(lat) == len(lon):
        raise ValueError(f"{len(values)} values at {len(lat)} points")
    values = as_listed(handle, values)
    values = np.where(values <= -1e99, np.nan, values * factors[0] + factors[1])
    time, step = _time(handle)
    pressure = kind in ("isobaricInhPa", "isobaricInPa")
    hpa = level / 100.0 if kind == "isobaricInPa" else level
    return GribField(
        variable, hpa if pressure else None, time, step, _origin(handle), values, lat, lon, offset
    )


_NORTHEAST = ("lambert", "lambert_bf", "mercator", "polar_stereographic")
"""Grids whose points ecCodes lists from west to east, row by row to the north, however they are scanned."""


def as_listed(handle: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values (points,) in the order of the points that ecCodes lists.

    ecCodes returns values as they are stored, but for some grids it lists the points regardless of the
    scanning mode (flag table 3.4), and it never accounts for boustrophedonic rows.

    Raises:
        ValueError: If that order cannot be made.
    """
    westward, northward, by_columns, alternating = (
        bool(_get(handle, key, int))
        for key in (
            "iScansNegatively",
            "jScansPositively",
            "jPointsAreConsecutive",
            "alternativeRowScanning",
        )
    )
    kind = str(_get(handle, "gridType", str))
    if kind in _NORTHEAST and (westward or not northward):
        raise ValueError(
            f"expected a {kind} grid scanned eastwards and northwards; got another way"
        )
    turned = kind in _NORTHEAST and by_columns
    if not alternating and not turned:
        return values
    along, across = _get(handle, "Ni", int) or 0, _get(handle, "Nj", int) or 0
    if along * across != len(values):
        raise ValueError("expected rows of equal length where they run to and fro")
    rows = values.reshape((along, across) if by_columns else (across, along)).copy()
    if alternating:
        rows[1::2] = rows[1::2, ::-1]
    return (rows.T if turned else rows).ravel()


def _variable(short: str | None, kind: str | None) -> str | None:
    if kind in ("isobaricInhPa", "isobaricInPa"):
        return GRIB.aloft.get(short or "")
    return GRIB.surface.get(short or "") if kind in SURFACE_LEVELS else None


def _unusable(handle: int, variable: str) -> str:
    """Return why a field of a known name is not what its name says; empty if it is."""
    accumulated = variable == "total_precipitation"
    if product := not_a_state(handle, accumulated=accumulated):
        return product
    if accumulated and (length := _range(handle)) != 3600.0:
        return f"accumulated over {length / 3600.0:g} h, not 1 h"
    if variable.endswith("component_of_wind") and _along_grid(handle):
        return "wind components along the axes of a rotated or projected grid"
    return ""


def _along_grid(handle: int) -> bool:
    """Return whether wind components do not point east and north."""
    unrotated = ("regular_ll", "regular_gg", "reduced_ll", "reduced_gg", "healpix")
    return bool(_get(handle, "uvRelativeToGrid", int)) and (
        _get(handle, "gridType", str) not in unrotated
    )


def _range(handle: int) -> float:
    """Return the seconds over which a field was accumulated."""
    return (seconds(handle, "endStep") or 0.0) - (seconds(handle, "startStep") or 0.0)


def _time(handle: int) -> tuple[datetime, float]:
    """Return the valid time and the hours since the start of the forecast."""
    date, clock = _get(handle, "validityDate", int), _get(handle, "validityTime", int)
    step = seconds(handle, "endStep") or 0.0
    time = datetime.strptime(f"{date:08d}", "%Y%m%d").replace(tzinfo=UTC)
    # The key of the time of day has no seconds.
    second = ((_get(handle, "second", int) or 0) + step) % 60.0
    time += timedelta(hours=clock // 100, minutes=clock % 100, seconds=second)
    return time, step / 3600.0


def _origin(handle: int) -> str:
    return str(_get(handle, "centre", str) or "unknown")


def decode_grib(path: Path, context: DecodeContext) -> Decoded:
    """Return one row for each grid cell, variable and level of every known field.

    Options: `grid`, a mapping with `kind`, `nlat`, `nlon`, whose cells the values are averaged over
    (a field coarser than it keeps its own points); `errors`, 1 sigma in SI by variable; `variables`
    to take only some. Without an error a field is monitored, not assimilated, as a model's field
    has no error of its own.

    Raises:
        DecodeError: If options are faulty.
    """
    report = DecodeReport(format="grib", size=path.stat().st_size)
    options = GribOptions.of(context.options)
    grid = Grid("superobbing", options.grid.kind, options.grid.nlat, options.grid.nlon)
    wanted = set(options.variables or VARIABLES)
    tables: list[pa.Table] = []
    for field in fields(path, context.limits, report, context):
        report.reports += 1
        if field.variable not in wanted:
            report.notes["variable_not_asked_for"] += 1
            continue
        table = _rows(field, grid, options.errors.get(field.variable), context)
        if not len(table):
            report.reject("no_values", field.offset, detail=field.name)
            continue
        report.decoded += 1
        report.count_rows(table)
        tables.append(table)
    if not report.messages and not report.rejected:
        report.reject("no_messages", 0, report.size)
    return Decoded(concat_tables(tables), report)


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
    """Return the mean latitude, longitude and value of the points in each cell that has any.

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
