"""GRIB 1 and 2 messages as fields of our variables: names, levels, units, positions.

Messages are found by their own marks and lengths, so one torn message does not hide the rest, and
each is read with several fields in mind (NCEP packs u and v into one GRIB 2 message).
"""

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
from numpy.typing import NDArray

from worker.decoders.base import MessageLimits
from worker.decoders.foreign_units import conversion
from worker.decoders.grib_frames import frames, holds_several
from worker.decoders.grib_names import ALOFT, SURFACE, SURFACE_LEVELS
from worker.decoders.report import DecodeReport

__all__ = ["GribField", "fields"]


@dataclass(frozen=True, eq=False)
class GribField:
    """One field in our words.

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
        """`temperature_500hPa` or `2m_temperature`."""
        return self.variable if self.level is None else f"{self.variable}_{self.level:g}hPa"


def fields(
    path: Path,
    limits: MessageLimits,
    report: DecodeReport,
    options: Mapping[str, Any] | None = None,
) -> Iterator[GribField]:
    """The fields of a file that we have words for; everything else is counted in the report.

    Arguments:
        path: The file.
        limits: Bounds of one message.
        report: Takes the counts.
        options: `mark`, called with the offset of each message before it is opened; `skip`,
            messages that brought an earlier process down, with the reason by offset.
    """
    options = options or {}
    if not path.stat().st_size:
        report.reject("empty_file")
        return
    mark, skip = options.get("mark"), options.get("skip") or {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for offset, length in frames(data, report):
            report.messages += 1
            if offset in skip or length > limits.message_bytes:
                detail = f"a message of {length} bytes"
                report.reject(skip.get(offset, "too_large"), offset, length, detail)
                continue
            if mark is not None:
                mark(offset)
            before = report.rows
            yield from _message(data[offset : offset + length], offset, limits, report)
            report.bytes_decoded += length if report.rows > before else 0


def _message(
    message: bytes, offset: int, limits: MessageLimits, report: DecodeReport
) -> Iterator[GribField]:
    try:
        for handle in _handles(message):
            try:
                field = _field(handle, offset, len(message), limits, report)
            except (eccodes.CodesInternalError, ValueError) as error:
                report.reject("undecodable", offset, len(message), str(error))
                field = None
            if field is not None:
                yield field
    except eccodes.CodesInternalError as error:
        report.reject("undecodable", offset, len(message), str(error))


def _handles(message: bytes) -> Iterator[int]:
    """One handle for each field; released when the next one is asked for."""
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


def _get(handle: int, key: str, kind: type | None = None) -> Any:
    """A key's value, None if the message has none."""
    try:
        return eccodes.codes_get(handle, key, kind) if kind else eccodes.codes_get(handle, key)
    except eccodes.KeyValueNotFoundError:
        return None


def _field(
    handle: int, offset: int, length: int, limits: MessageLimits, report: DecodeReport
) -> GribField | None:
    short, kind = _get(handle, "shortName", str), _get(handle, "typeOfLevel", str)
    level, points = _get(handle, "level", float), _get(handle, "numberOfDataPoints", int) or 0
    variable = _variable(short, kind)
    described = f"{short} on {kind} {level}"
    if variable is None or (fault := _unusable(handle, variable)):
        detail = described if variable is None else f"{described}: {fault}"
        report.reject("unsupported_variable", offset, length, detail)
        return None
    if points > limits.values:
        report.reject("too_large", offset, length, f"{described}: {points} points")
        return None
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
    values = np.where(values <= -1e99, np.nan, values * factors[0] + factors[1])
    time, step = _time(handle)
    pressure = kind in ("isobaricInhPa", "isobaricInPa")
    hpa = level / 100.0 if kind == "isobaricInPa" else level
    return GribField(
        variable, hpa if pressure else None, time, step, _origin(handle), values, lat, lon, offset
    )


def _variable(short: str | None, kind: str | None) -> str | None:
    if kind in ("isobaricInhPa", "isobaricInPa"):
        return ALOFT.get(short or "")
    return SURFACE.get(short or "") if kind in SURFACE_LEVELS else None


def _unusable(handle: int, variable: str) -> str:
    """Why a field of a known name is still not what its name says; empty if it is."""
    number = _get(handle, "perturbationNumber", int)
    if number:
        return f"ensemble member {number}"
    if variable == "total_precipitation":
        hours = _get(handle, "lengthOfTimeRange", int) or _range(handle)
        return "" if hours == 1 else f"accumulated over {hours} h, not 1 h"
    if variable.endswith("component_of_wind") and _along_grid(handle):
        return "wind components along the axes of a rotated or projected grid"
    if _get(handle, "stepType", str) not in (None, "instant"):
        return f"step type {_get(handle, 'stepType', str)}"
    return ""


def _along_grid(handle: int) -> bool:
    """Whether wind components do not point east and north."""
    unrotated = ("regular_ll", "regular_gg", "reduced_ll", "reduced_gg", "healpix")
    return bool(_get(handle, "uvRelativeToGrid", int)) and (
        _get(handle, "gridType", str) not in unrotated
    )


def _range(handle: int) -> float | None:
    first, last = _get(handle, "startStep", int), _get(handle, "endStep", int)
    return None if first is None or last is None else last - first


def _time(handle: int) -> tuple[datetime, float]:
    date, clock = _get(handle, "validityDate", int), _get(handle, "validityTime", int)
    time = datetime.strptime(f"{date:08d}", "%Y%m%d").replace(tzinfo=UTC)
    time += timedelta(hours=clock // 100, minutes=clock % 100)
    return time, float(_get(handle, "endStep", int) or 0)


def _origin(handle: int) -> str:
    return str(_get(handle, "centre", str) or "unknown")
