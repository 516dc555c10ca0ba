"""Decode a full first guess from an uploaded GRIB file: states in channel order on the model's grid.

Runs in the sandbox; imports no torch.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.regrid import cell_index, regrid_rows
from model.domain.variables import Channel
from worker.backgrounds.sanity import check_states
from worker.observations.decoders.base import DecodeReport, MessageLimits
from worker.observations.decoders.grib import GribField, fields

__all__ = ["UploadedStates", "read_states", "regrid_field", "states_table"]

_MAY_BE_MISSING = {"sea_surface_temperature"}
"""Variables with no value over part of the sphere."""


@dataclass(frozen=True, eq=False)
class UploadedStates:
    """Physical states of an upload, on the grid of the model.

    Attributes:
        times: Valid times (UTC), ascending; T of them.
        states: SI, with shape (T, C, nlat, nlon); latitude north to south; sea surface temperature
            is NaN over land.
        report: What was found in the file.
    """

    times: tuple[datetime, ...]
    states: NDArray[np.float32]
    report: DecodeReport


def read_states(
    path: str | Path,
    channels: Sequence[Channel],
    grid: Grid,
    times: Sequence[datetime] | None = None,
    limits: MessageLimits | None = None,
    within: tuple[datetime, datetime] | None = None,
) -> UploadedStates:
    """Return the states at `times` with every channel of the model.

    Finer fields are averaged over the model's cells, coarser ones interpolated bilinearly.

    Arguments:
        path: GRIB 1 or 2.
        channels: Of the model, in order.
        grid: Of the model.
        times: Valid times wanted; None takes every time for which all channels are there.
        limits: Bounds of one message.
        within: Fields valid before the first or after the last of these are skipped.

    Raises:
        InvalidInput: Naming the variables, levels and times that are missing and what was set aside
            in their place, or the channels whose values no atmosphere has.
    """
    path = Path(path)
    report = DecodeReport(format="grib", size=path.stat().st_size)
    index = {_key(c.variable, c.level): i for i, c in enumerate(channels)}
    found: dict[datetime, dict[int, NDArray[np.float32]]] = {}
    for field in fields(path, limits or MessageLimits(), report):
        number = index.get(_key(field.variable, field.level))
        wanted = times is None or field.time in times
        wanted &= within is None or within[0] <= field.time <= within[1]
        if number is not None and wanted and number not in found.get(field.time, {}):
            values = regrid_field(field, grid)
            found.setdefault(field.time, {})[number] = values.astype(np.float32)
            report.decoded += 1
    chosen = _choose(found, channels, times, report)
    states = np.stack([np.stack([found[t][i] for i in range(len(channels))]) for t in chosen])
    check_states(chosen, states, channels, grid)
    return UploadedStates(chosen, states, report)


def states_table(
    path: str, channels: Sequence[Channel], grid: Grid, period: tuple[datetime, datetime]
) -> tuple[pa.Table, list[str]]:
    """Return all values in order of (T, C, Y, X) and the T times; runs in the sandboxed process."""
    found = read_states(path, channels, grid, within=period)
    values = pa.array(found.states.ravel())
    return pa.table({"states": values}), [time.isoformat() for time in found.times]


def _key(variable: str, level: float | None) -> tuple[str, float | None]:
    return variable, None if level is None else float(level)


def _choose(
    found: dict[datetime, dict[int, NDArray[np.float32]]],
    channels: Sequence[Channel],
    times: Sequence[datetime] | None,
    report: DecodeReport,
) -> tuple[datetime, ...]:
    complete = tuple(t for t in sorted(found) if len(found[t]) == len(channels))
    if times is None and complete:
        return complete
    wanted = tuple(sorted(times if times is not None else list(found)[:1]))
    missing = {
        t.isoformat(): [c.name for i, c in enumerate(channels) if i not in found.get(t, {})]
        for t in wanted
    }
    missing = {t: names for t, names in missing.items() if names}
    if wanted and not missing:
        return wanted
    words = "; ".join(f"{t}: {_summary(names, channels)}" for t, names in missing.items())
    raise InvalidInput(
        f"Expected all {len(channels)} channels of the first guess; missing at "
        f"{words or 'every time: all of them'}.{_set_aside(report)}",
        missing=missing,
    )


def _set_aside(report: DecodeReport) -> str:
    """Say why fields of known names were not taken; empty if all were."""
    faults = Counter(q.detail.partition(": ")[2] for q in report.quarantined)
    named = [f"{fault} ({count})" for fault, count in faults.most_common(4) if fault]
    if not named:
        return ""
    return f" Set aside in the file: {', '.join(named)}. Send states: an analysis or forecast."


def _summary(names: list[str], channels: Sequence[Channel]) -> str:
    return "all of them" if len(names) == len(channels) else ", ".join(names)


def regrid_field(field: GribField, grid: Grid) -> NDArray[np.float64]:
    """Return the field on the grid of the model, with shape (nlat, nlon).

    Raises:
        InvalidInput: If the field leaves part of the sphere without a value.
    """
    rows, columns = np.unique(np.round(field.lat, 6)), np.unique(np.round(field.lon % 360.0, 6))
    if len(rows) * len(columns) == len(field.values) and len(rows) > 1 and len(columns) > 1:
        result = _from_rows(field, rows, columns, grid)
    else:
        result = _from_points(field, grid)
    if np.isnan(result).any() and field.variable not in _MAY_BE_MISSING:
        raise InvalidInput(
            f"Expected '{field.name}' over the whole globe; {int(np.isnan(result).sum())} of "
            f"{result.size} cells of the model's grid have no value. Send a global field.",
            channel=field.name,
        )
    return result


def _from_rows(
    field: GribField, rows: NDArray[np.float64], columns: NDArray[np.float64], grid: Grid
) -> NDArray[np.float64]:
    """Regrid from a rectilinear grid in any scanning order."""
    values = np.full((len(rows), len(columns)), np.nan)
    j = np.searchsorted(rows, np.round(field.lat, 6))
    i = np.searchsorted(columns, np.round(field.lon % 360.0, 6))
    values[j, i] = field.values
    return regrid_rows(values, rows, columns, grid)


def _from_points(field: GribField, grid: Grid) -> NDArray[np.float64]:
    """Regrid from any other grid: the mean of the points in each cell, weighted by area."""
    good = np.isfinite(field.values)
    cell = cell_index(grid.latitude, grid.nlon, field.lat[good], field.lon[good])
    size = grid.nlat * grid.nlon
    weight = np.maximum(np.cos(np.deg2rad(field.lat[good])), 1e-6)
    total = np.bincount(cell, weights=weight * field.values[good], minlength=size)
    count = np.bincount(cell, weights=weight, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0.0, total / count, np.nan).reshape(grid.shape)
