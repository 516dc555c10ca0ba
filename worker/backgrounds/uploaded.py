"""Decode a full first guess from an uploaded GRIB file: states in channel order on the model's grid.

Runs in the sandbox; imports no torch.

Fields that are not plausible states of the atmosphere are refused, whatever their metadata say.
Every channel is checked by itself (bounds of quality control, variation, global mean, both signs of a
wind component) and against others: the heights of two pressure levels must be consistent with the
temperature between them, and humidity with temperature. Spread, anomalies, increments, and fields in
other units or on other levels fail at least one check; realistic states pass all.

The layer between pressures p1 > p2 has the mean temperature (z2 - z1) / (R ln(p1 / p2)), the
hypsometric equation (Holton, An Introduction to Dynamic Meteorology, 1.6.2). Saturation is Bolton's
(1980), Monthly Weather Review 108, equation 10.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.regrid import cell_index, regrid_rows
from model.domain.variables import VARIABLES, Channel
from worker.observations.decoders.base import DecodeReport, MessageLimits
from worker.observations.decoders.grib import GribField, fields
from worker.observations.qc.base import load_parameters
from worker.observations.qc.gross import limit_at

__all__ = [
    "UploadedStates",
    "check_states",
    "implausible",
    "read_states",
    "regrid_field",
    "states_table",
]

MARGIN, MARGIN_ABOVE = 0.05, 0.25
"""Tolerance on the bounds of observations, as a share of their range: below and above `TOP`. In the
stratosphere models without ozone are tens of kelvins colder than any sounding: the simulated one of
`appa-t31` has 155 K at 50 hPa over the winter pole."""
TOP = 150.0
"""Pressure in hPa above which (lower pressure) the larger tolerance holds."""
GLOBAL_MEANS: Mapping[str, tuple[float, float]] = {
    "2m_temperature": (270.0, 305.0),
    "mean_sea_level_pressure": (97_000.0, 105_000.0),
    "sea_surface_temperature": (275.0, 310.0),
    "total_precipitation": (0.0, 2e-3),
}
"""Accepted global means, SI units; present values are 287 K, 1011 hPa, 291 K and 0.12 mm per hour."""
MIN_WIND = 1.5
"""Least global root mean square of a wind component in m s-1; the calmest level has 4 m s-1."""
LAYER_TEMPERATURE = (150.0, 350.0)
"""Accepted mean temperature of a layer between two levels at any point, K."""
LAYER_ERROR = 15.0
"""Largest global mean difference of that from the mean temperature of the two levels, K; curvature of
the profile accounts for up to 3 K between the levels of any checkpoint."""
HUMIDITY = (0.15, 1.05)
"""Accepted global mean of specific humidity relative to saturation, from `HUMID` downwards."""
HUMID = 500.0
"""Pressure in hPa of the highest level checked; higher up, specific humidity is too uncertain."""
GAS_CONSTANT = 287.05
"""Gas constant of dry air, J kg-1 K-1."""
SHOWN = 6
"""Maximum number of channels named in the message."""

Field = NDArray[np.float32]
Faults = dict[str, str]


def check_states(
    times: Sequence[datetime], states: NDArray[np.float32], channels: Sequence[Channel], grid: Grid
) -> None:
    """Refuse states that are not plausible states of the atmosphere.

    Arguments:
        times: T valid times.
        states: SI, NaN where undefined, with shape (T, C, Y, X).
        channels: C channels.
        grid: Grid of the states.

    Raises:
        InvalidInput: Naming time, channels, what was expected and what came.
    """
    for time, state in zip(times, states, strict=True):
        faults = implausible(state, channels, grid)
        if not faults:
            continue
        named = [f"{name}: {fault}" for name, fault in list(faults.items())[:SHOWN]]
        more = f" and {len(faults) - SHOWN} more channels" if len(faults) > SHOWN else ""
        raise InvalidInput(
            f"Expected the first guess at {time.isoformat()} to be a state of the atmosphere; "
            f"got {'; '.join(named)}{more}. Send analysis or forecast fields in the units that "
            "their GRIB parameter has.",
            time=time.isoformat(),
            channels=faults,
        )


def implausible(state: Field, channels: Sequence[Channel], grid: Grid) -> Faults:
    """Return what is wrong with a state, by channel; empty for a plausible one.

    Arguments:
        state: SI, with shape (C, Y, X).
        channels: C channels.
        grid: Grid of the state.
    """
    limits = load_parameters()["bounds"]["limits"]
    weights = np.repeat(grid.area_weights[:, None], grid.nlon, axis=1)
    values = {
        (c.variable, c.level): np.asarray(state[i], dtype=float) for i, c in enumerate(channels)
    }
    faults: Faults = {}
    for channel in channels:
        field = values[channel.variable, channel.level]
        fault = _alone(channel, field, weights, limits.get(channel.variable))
        if fault:
            faults[channel.name] = fault
    if not faults:  # a faulty channel would make its neighbours fail, too
        faults |= _heights(values, weights) | _humidity(values, weights)
    return faults


def _mean(field: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the mean over the globe of where there are values; NaN if there are none."""
    there = np.isfinite(field)
    total = float(weights[there].sum())
    return float((weights[there] * field[there]).sum()) / total if total else float("nan")


def _alone(
    channel: Channel,
    field: NDArray[np.float64],
    weights: NDArray[np.float64],
    limits: Mapping[str, Any] | None,
) -> str:
    """Return what is wrong with one field, checked by itself."""
    there = field[np.isfinite(field)]
    units = VARIABLES[channel.variable].units
    if not len(there):
        return "no value anywhere"
    low, high = float(there.min()), float(there.max())
    came = f"{low:.4g} to {high:.4g} {units}"
    if limits is not None:
        pressure = np.array([100.0 * (channel.level or 1000)])
        lower, upper = (float(limit_at(limits, side, pressure)[0]) for side in ("low", "high"))
        share = MARGIN_ABOVE if channel.level is not None and channel.level < TOP else MARGIN
        margin = share * (upper - lower)
        if low < lower - margin or high > upper + margin:
            return f"{came}, expected {lower:g} to {upper:g}"
    if channel.variable in GLOBAL_MEANS:
        mean, (lower, upper) = _mean(field, weights), GLOBAL_MEANS[channel.variable]
        if not lower - MARGIN * (upper - lower) <= mean <= upper:
            return f"{mean:.4g} {units} over the globe, expected {lower:g} to {upper:g}"
    if channel.variable == "total_precipitation":
        return ""  # an hour without rain anywhere is odd, but harmless
    if low == high:
        return f"{low:.4g} {units} everywhere"
    if "component_of_wind" not in channel.variable:
        return ""
    if not low < 0.0 < high:
        return f"{came}, expected winds in both directions"
    size = np.sqrt(_mean(field**2, weights))
    return "" if size >= MIN_WIND else f"{size:.2g} {units} in the mean, expected {MIN_WIND:g}"


Fields = Mapping[tuple[str, int | None], NDArray[np.float64]]


def _levels(values: Fields, *variables: str) -> list[int]:
    """Return the levels (hPa) at which all these variables are there, from below upwards."""
    levels = {level for _, level in values if level is not None}
    return sorted((p for p in levels if all((v, p) in values for v in variables)), reverse=True)


def _heights(values: Fields, weights: NDArray[np.float64]) -> Faults:
    """Compare the thickness of layers with their temperature."""
    faults: Faults = {}
    for below, above in pairwise(_levels(values, "geopotential", "temperature")):
        thickness = values["geopotential", above] - values["geopotential", below]
        layer = thickness / (GAS_CONSTANT * np.log(below / above))
        both = 0.5 * (values["temperature", below] + values["temperature", above])
        low, high = float(layer.min()), float(layer.max())
        name = Channel("geopotential", above).name
        if low < LAYER_TEMPERATURE[0] or high > LAYER_TEMPERATURE[1]:
            faults[name] = (
                f"{low:.4g} to {high:.4g} K by the thickness of {below} to {above} hPa, expected "
                f"{LAYER_TEMPERATURE[0]:g} to {LAYER_TEMPERATURE[1]:g}"
            )
        elif abs(error := _mean(layer - both, weights)) > LAYER_ERROR:
            faults[name] = (
                f"the layer {below} to {above} hPa is {error:+.3g} K by its thickness, against the "
                f"temperatures of its levels; expected within {LAYER_ERROR:g} K"
            )
    return faults


def _humidity(values: Fields, weights: NDArray[np.float64]) -> Faults:
    """Compare specific humidity with that at saturation, over the globe."""
    faults: Faults = {}
    for level in _levels(values, "specific_humidity", "temperature"):
        if level < HUMID:
            continue
        celsius = values["temperature", level] - 273.15
        vapour = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))  # Pa
        saturated = _mean(0.622 * vapour / (100.0 * level), weights)
        share = _mean(values["specific_humidity", level], weights) / saturated
        if not HUMIDITY[0] <= share <= HUMIDITY[1]:
            faults[Channel("specific_humidity", level).name] = (
                f"{100 * share:.3g} % of saturation over the globe, expected "
                f"{100 * HUMIDITY[0]:g} to {100 * HUMIDITY[1]:g} %"
            )
    return faults


_MAY_BE_MISSING = {"sea_surface_temperature"}
"""Variables that may be missing over part of the globe."""


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
        channels: Channels of the model, in order.
        grid: Grid of the model.
        times: Valid times wanted; None takes every time for which all channels are there.
        limits: Bounds of one message.
        within: Fields valid before the first or after the last of these are skipped.

    Raises:
        InvalidInput: Naming the variables, levels and times that are missing and the similar fields
            that were not usable, or the channels with implausible values.
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
    """Return why fields of known names were not used; empty if all were."""
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
