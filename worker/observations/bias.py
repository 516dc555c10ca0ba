r"""Correct the biases of sensors, estimated from the departures of every cycle.

The bias of a sensor is :math:`z^\top \beta` with a few predictors z: a constant, the logarithm of
pressure, the scan angle and its square, the thickness of two layers of the background. They are
scaled to order 1; an unknown predictor counts as 0. Each cycle estimates the coefficients from the
departures O−B of values that are new since the previous cycle. The error that all values of one sensor
and cycle have in common (errors of the background there) is added to the error of that estimate, so
that a single cycle has little weight however many values it has. Coefficients are updated by a Kalman
filter with a long memory and stored with the analysis that they belong to. Networks that are not named
are anchors: they are never corrected.

With coefficients :math:`\beta \sim N(m, P)`, departures :math:`d = Z (\beta + \eta) + \epsilon`,
:math:`\eta \sim N(0, C)` and :math:`\epsilon \sim N(0, R)`,

.. math:: A = Z^\top R^{-1} Z, \quad J = A (I + C A)^{-1}, \quad
    P' = (P^{-1} + J)^{-1}, \quad m' = P' (P^{-1} m + (I + A C)^{-1} Z^\top R^{-1} d)

References:
    | Auligné, McNally and Dee, "Adaptive bias correction for satellite data in a numerical weather
      prediction system", QJRMS 133, 2007 (the offline adaptive scheme)
    | https://doi.org/10.1002/qj.56
    | Harris and Kelly, "A satellite radiance-bias correction scheme for data assimilation", QJRMS
      127, 2001 (scan position and the thicknesses 1000-300 hPa and 200-50 hPa as predictors)
    | https://doi.org/10.1002/qj.49712757418
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import ConfigurationError
from model.domain.physics import GAS_CONSTANT_DRY, GRAVITY, height_of_pressure
from worker.observations.columns import (
    SUPEROBSERVATIONS,
    BoolArray,
    category_codes,
    float_column,
    is_one_of,
    not_rejected,
    row_pressure,
    set_column,
    time_column,
)
from worker.observations.stations import station_codes

__all__ = [
    "BIAS_CHECK",
    "LAYERS",
    "PREDICTORS",
    "BiasState",
    "ThicknessLayer",
    "LayerPredictors",
    "SensorBias",
    "correct",
    "rows_with_layers",
    "update",
]

Float = NDArray[np.float64]

BIAS_CHECK = "bias_correction"
"""Name of its parameters in `qc.yaml`."""
_LEARNT_FROM = ("withheld", "thinned")
"""Outcomes of rows that the analysis does not use, but that are good enough to learn from."""

PREDICTORS: Mapping[str, Callable[[pa.Table], Float]] = {
    "constant": lambda table: np.ones(len(table)),
    "log_pressure": lambda table: np.log(np.maximum(row_pressure(table), 100.0) / 50_000.0),
    "scan_angle": lambda table: _scan(table),
    "scan_angle_squared": lambda table: _scan(table) ** 2,
}
"""Predictors by name: functions of a table that return shape (rows,)."""

_WIDEST_SCAN = 50.0
"""Scan angle in degrees from nadir near the edge of the scans of AMSU-A, MHS and ATMS."""


def _scan(table: pa.Table) -> Float:
    """Return scan angles in units of the widest, 0 where unknown, with shape (rows,)."""
    return np.nan_to_num(float_column(table, "scan_angle"), nan=0.0) / _WIDEST_SCAN


@dataclass(frozen=True)
class ThicknessLayer:
    """A layer whose thickness in the background is a predictor of bias.

    Attributes:
        bottom, top: Its bounds in Pa.
    """

    bottom: float
    top: float

    def within(self, levels: Sequence[float]) -> "ThicknessLayer":
        """Return the part of the layer that lies within levels in Pa; the whole where none does."""
        bottom, top = min(self.bottom, max(levels)), max(self.top, min(levels))
        return ThicknessLayer(bottom, top) if bottom > top else self

    def predictor(self, thickness: Float) -> Float:
        """Return the thickness in m2 s-2 as mean temperature above the standard atmosphere's, in 10 K."""
        rise = height_of_pressure(np.array([self.bottom, self.top]))
        standard = GRAVITY * float(rise[1] - rise[0])
        by_kelvin = GAS_CONSTANT_DRY * np.log(self.bottom / self.top)
        return np.asarray((thickness - standard) / (10.0 * by_kelvin))


LAYERS: Mapping[str, ThicknessLayer] = {
    "thickness_1000_300": ThicknessLayer(100_000.0, 30_000.0),
    "thickness_200_50": ThicknessLayer(20_000.0, 5_000.0),
}
"""Predictors that need the background."""

LayerPredictors = Mapping[str, Float]
"""Predictor of each row of a table (rows,), NaN where unknown, by name of `LAYERS`."""


class SensorBias(BaseModel):
    """Bias estimate of one sensor, with its uncertainty and age."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: list[float] = Field(description="Coefficients of the predictors, SI units.")
    covariance: list[list[float]] = Field(description="Of the coefficients.")
    count: int = Field(description="Values seen so far.")
    seen: datetime = Field(description="Newest cycle with a value (UTC).")
    predictors: list[str] = Field(
        default=[], description="Of the coefficients, in their order; empty in earlier states."
    )

    def is_of(self, predictors: Sequence[str]) -> bool:
        """Return whether the coefficients are those of `predictors`.

        If an installation chooses other predictors, the estimate of a sensor starts over, because its
        coefficients have another meaning.
        """
        named = self.predictors or predictors
        return list(named) == list(predictors) and len(self.mean) == len(predictors)


class BiasState(BaseModel):
    """The biases of all sensors after a cycle; it travels with the states that the next continues."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    until: datetime | None = Field(
        default=None, description="Values observed up to then have been learned from (UTC)."
    )
    sensors: dict[str, SensorBias] = Field(
        default={}, description="By `network/variable/sensor`, a station or a channel."
    )

    def summary(self) -> dict[str, dict[str, float]]:
        """Return, by network and variable, the number of sensors and the size of their biases."""
        found: dict[str, list[SensorBias]] = {}
        for name, sensor in self.sensors.items():
            found.setdefault("/".join(name.split("/")[:2]), []).append(sensor)
        return {
            kind: {
                "sensors": len(all_),
                "mean": float(np.mean([s.mean[0] for s in all_])),
                "rms": float(np.sqrt(np.mean([s.mean[0] ** 2 for s in all_]))),
            }
            for kind, all_ in sorted(found.items())
        }

    def coefficients(self) -> dict[str, dict[str, float]]:
        """Return, by sensor, the coefficient of each predictor where there is more than one."""
        return {
            name: dict(zip(sensor.predictors, sensor.mean, strict=True))
            for name, sensor in sorted(self.sensors.items())
            if len(sensor.predictors) > 1
        }


def rows_with_layers(table: pa.Table, parameters: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the rows, ascending, whose sensors have predictors of the background."""
    if not parameters["enabled"]:
        return np.zeros(0, dtype=np.int64)
    network, variable = (_texts(table, name) for name in ("report_type", "variable"))
    found = np.zeros(len(table), dtype=bool)
    for kind, about in parameters["sensors"].items():
        if about and not LAYERS.keys().isdisjoint(about["predictors"]):
            of_network, _, of_variable = kind.partition("/")
            found |= (network == of_network) & (variable == of_variable)
    return np.flatnonzero(found)


def _texts(table: pa.Table, name: str) -> NDArray[np.object_]:
    code, names = category_codes(table, name)
    return np.array([*names, ""], dtype=object)[code]


def correct(
    table: pa.Table,
    state: BiasState,
    parameters: Mapping[str, Any],
    layers: LayerPredictors | None = None,
) -> pa.Table:
    """Subtract the known biases from the values of a feedback table; `obs_bias` holds the correction.

    Sensors with predictors of the background are corrected once that is known, the others before.

    Arguments:
        table: Table with `obs_bias`, which is unchanged in rows that are not corrected.
        state: The known biases.
        parameters: Parameters of the check, with its sensors.
        layers: Predictors of the background, to correct the sensors that need them; None to correct
            the others.
    """
    if not state.sensors:
        return table
    bias = np.full(len(table), np.nan)
    for rows, _, names, code, z, predictors in _sensors(table, parameters, layers):
        if LAYERS.keys().isdisjoint(predictors) == (layers is not None):
            continue
        told = [s if (s := state.sensors.get(n)) and s.is_of(predictors) else None for n in names]
        means = np.array([np.full(z.shape[1], np.nan) if s is None else s.mean for s in told])
        bias[rows] = (z * means[code]).sum(1)
    bias[~not_rejected(table)] = np.nan
    value = float_column(table, "obs_value") - np.nan_to_num(bias, nan=0.0)
    field = table.schema.field("obs_bias")
    bias = np.where(np.isnan(bias), float_column(table, "obs_bias"), bias)
    column = pa.array(bias, pa.float64(), mask=np.isnan(bias)).cast(field.type)
    table = table.set_column(table.schema.get_field_index("obs_bias"), field, column)
    return set_column(table, "obs_value", value)


def update(
    state: BiasState,
    table: pa.Table,
    parameters: Mapping[str, Any],
    until: datetime,
    layers: LayerPredictors | None = None,
) -> BiasState:
    """Return the biases after the departures of one cycle.

    Arguments:
        state: Before the cycle.
        table: The feedback after all checks; its departures are of corrected values.
        parameters: Parameters of the check: sensors, `initial`, `memory_hours`, `shared`,
            `forget_days`.
        until: Latest time observed in the window (UTC).
        layers: Predictors of the background at the first rows of the table; None if no sensor needs
            any.
    """
    if not parameters["enabled"] or (state.until is not None and until <= state.until):
        return state
    taught = np.flatnonzero(_teaches(table, state.until, until))
    chosen = table.take(taught)
    known = {name: _padded(values, len(table))[taught] for name, values in (layers or {}).items()}
    sensors = dict(state.sensors)
    for _, part, names, code, z, predictors in _sensors(chosen, parameters, known):
        measured = _measure(part, code, z, len(names), parameters["shared"])
        told = _known(state, names, predictors, measured, until, parameters)
        sensors.update(zip(names, told, strict=True))
    oldest = until - timedelta(days=float(parameters["forget_days"]))
    kept = {name: s for name, s in sensors.items() if s.seen >= oldest}
    return BiasState(until=until, sensors=kept)


def _padded(values: Float, length: int) -> Float:
    """Return the values padded with NaN for appended rows."""
    return np.append(values, np.full(length - len(values), np.nan))


def _teaches(table: pa.Table, after: datetime | None, until: datetime) -> BoolArray:
    """Mark good rows with a departure that are new since the last cycle, without superobservations."""
    good = not_rejected(table) | is_one_of(table, "rejected_by", _LEARNT_FROM)
    good &= ~is_one_of(table, "batch_id", [SUPEROBSERVATIONS])
    good &= np.isfinite(float_column(table, "background_departure"))
    good &= float_column(table, "obs_error") > 0
    time = time_column(table)
    good &= time <= _nanoseconds(until)
    return good if after is None else np.asarray(good & (time > _nanoseconds(after)))


def _nanoseconds(time: datetime) -> int:
    return round(time.timestamp()) * 1_000_000_000


Sensors = tuple[NDArray[np.int64], pa.Table, list[str], NDArray[np.int64], Float, list[str]]
"""Rows (n,), the same as a table, names of sensors, which each row is (n,), predictors (n, p) and
their names."""


def _sensors(
    table: pa.Table, parameters: Mapping[str, Any], layers: LayerPredictors | None
) -> list[Sensors]:
    """Return the rows of each corrected network and variable, by sensor."""
    found = []
    network, networks = category_codes(table, "report_type")
    variable, variables = category_codes(table, "variable")
    for kind, about in parameters["sensors"].items():
        of_network, _, of_variable = kind.partition("/")
        if not about or of_network not in networks or of_variable not in variables:
            continue
        chosen = network == networks.index(of_network)
        rows = np.flatnonzero(chosen & (variable == variables.index(of_variable)))
        if not len(rows):
            continue
        part = table.take(rows)
        names, code = _split(part, about["by"])
        z = np.stack(
            [_predictor(name, part, rows, layers or {}) for name in about["predictors"]], axis=1
        )
        sensors = [f"{kind}/{name}" for name in names]
        found.append((rows, part, sensors, code, z, list(about["predictors"])))
    return found


def _predictor(
    name: str, part: pa.Table, rows: NDArray[np.int64], layers: LayerPredictors
) -> Float:
    """Return a predictor of the rows of a part of a table, (n,)."""
    if name in LAYERS:
        found = layers.get(name)
        return np.zeros(len(rows)) if found is None else np.nan_to_num(found[rows], nan=0.0)
    if name not in PREDICTORS:
        raise ConfigurationError(
            f"Expected predictors of bias among {', '.join((*PREDICTORS, *LAYERS))}; got ['{name}'].",
            check=BIAS_CHECK,
        )
    return PREDICTORS[name](part)


def _split(part: pa.Table, by: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return names of sensors and which each row belongs to."""
    if by == "network":
        return ["*"], np.zeros(len(part), dtype=np.int64)
    if by == "channel":
        channel = np.nan_to_num(float_column(part, "vertical"), nan=-1.0).astype(np.int64)
        platform, platforms = category_codes(part, "platform")
        satellite, satellites = category_codes(part, "station_id")
        known, flown = [*platforms, ""], [*satellites, ""]
        which = np.stack([satellite, platform, channel], axis=1)
        triples, code = np.unique(which, axis=0, return_inverse=True)
        return [f"{flown[s]} {known[p]}#{c}" for s, p, c in triples], code.reshape(-1)
    if by != "station":
        raise ConfigurationError(
            f"Expected biases by station, channel or network; got '{by}'.", check=BIAS_CHECK
        )
    station, names = station_codes(part)
    present, code = np.unique(station, return_inverse=True)
    return [names[i] if i >= 0 else "" for i in present], code


def _measure(
    part: pa.Table, code: NDArray[np.int64], z: Float, count: int, shared: float
) -> tuple[Float, Float, Float, NDArray[np.int64]]:
    """Return of each sensor the information J and J-weighted mean, its error variance, and its count."""
    error = float_column(part, "obs_error")
    spread = np.nan_to_num(float_column(part, "background_spread"), nan=0.0)
    weight = 1.0 / (error**2 + spread**2)
    raw = float_column(part, "background_departure")
    raw = raw + np.nan_to_num(float_column(part, "obs_bias"), nan=0.0)
    p = z.shape[1]
    a, b = np.zeros((count, p, p)), np.zeros((count, p))
    np.add.at(a, code, weight[:, None, None] * z[:, :, None] * z[:, None, :])
    np.add.at(b, code, (weight * raw)[:, None] * z)
    number = np.bincount(code, minlength=count).astype(np.int64)
    sums = np.bincount(code, error**2, minlength=count)
    typical = np.asarray(sums / np.maximum(number, 1), dtype=np.float64)
    common = shared**2 * typical[:, None, None] * np.eye(p)
    information = a @ np.linalg.inv(np.eye(p) + common @ a)
    pull = np.linalg.solve(np.eye(p) + a @ common, b[..., None])[..., 0]
    return np.asarray(information, np.float64), np.asarray(pull, np.float64), typical, number


def _known(
    state: BiasState,
    names: list[str],
    predictors: list[str],
    measured: tuple[Float, Float, Float, NDArray[np.int64]],
    until: datetime,
    parameters: Mapping[str, Any],
) -> list[SensorBias]:
    """Return the bias estimates of the sensors, updated by the estimates of this cycle."""
    information, pull, typical, number = measured
    p = pull.shape[1]
    start = float(parameters["initial"]) ** 2 * typical[:, None, None] * np.eye(p)
    mean, covariance = np.zeros((len(names), p)), start.copy()
    seen = np.zeros(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        if (old := state.sensors.get(name)) is not None and old.is_of(predictors):
            hours = (until - old.seen) / timedelta(hours=1)
            grown = 1.0 - np.exp(-max(hours, 0.0) / float(parameters["memory_hours"]))
            before = np.array(old.covariance)
            mean[i], seen[i] = old.mean, old.count
            covariance[i] = before + grown * (start[i] - before)
    precision = np.linalg.inv(covariance)
    after = np.linalg.inv(precision + information)
    told = (precision @ mean[..., None])[..., 0] + pull
    mean = (after @ told[..., None])[..., 0]
    return [
        SensorBias(
            mean=mean[i].tolist(),
            covariance=after[i].tolist(),
            count=int(seen[i] + number[i]),
            seen=until,
            predictors=predictors,
        )
        for i in range(len(names))
    ]
