"""Assign observation errors from an error table, whose schema is also that of uploads in the API.

The table is `errors.yaml`, overridden by the deployment and by the upload. Rows whose network
and variable have no entry are rejected as `passive`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from model.domain.errors import ConfigurationError
from model.domain.files import read_yaml
from model.domain.observations import QC_FLAGS, REPORT_TYPES
from model.domain.registry import Registry
from model.domain.variables import VARIABLES
from worker.observations.columns import (
    category_codes,
    float_column,
    not_rejected,
    reject,
    row_pressure,
    set_column,
)

__all__ = [
    "ErrorEntry",
    "ErrorTable",
    "Representativeness",
    "assign_errors",
    "exchange_errors",
    "load_errors",
]

DEFAULTS = Path(__file__).with_name("errors.yaml")

Floats = NDArray[np.float64]


Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
OneOrMore = Annotated[
    tuple[Positive, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, int | float) else value,
        json_schema_input_type=Positive | tuple[Positive, ...],
    ),
    PlainSerializer(lambda values: values[0] if len(values) == 1 else list(values)),
]
"""List of numbers; a single number may be given, and is written, without a list."""


class ErrorEntry(BaseModel):
    """The error of one variable as seen by some networks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    report_types: tuple[str, ...] = Field(min_length=1, description="Networks it applies to.")
    variable: str = Field(description="Id of the vocabulary.")
    error: OneOrMore = Field(
        description="1 standard deviation, SI, or a share of the value if `relative`; one number, "
        "or one for each level of `pressure` or each of `channels`."
    )
    pressure: tuple[Positive, ...] | None = Field(default=None, description="Levels in hPa.")
    sensors: tuple[str, ...] = Field(
        default=(), description="Sensors (`platform`) it applies to; none named: all."
    )
    channels: tuple[int, ...] | None = Field(
        default=None, description="Channels, as the sensor counts them, instead of levels."
    )
    relative: bool = Field(default=False, description="Whether `error` is a share of the value.")
    minimum: float | None = Field(
        default=None, ge=0.0, description="Lower bound of the resulting error, SI."
    )
    maximum: float | None = Field(
        default=None, gt=0.0, description="Upper bound of the resulting error, SI."
    )
    source: str = Field(default="override", description="Where the numbers come from.")

    @field_validator("report_types")
    @classmethod
    def _known_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            REPORT_TYPES[name]
        return names

    @field_validator("variable")
    @classmethod
    def _known_variable(cls, name: str) -> str:
        return VARIABLES[name].id

    @model_validator(mode="after")
    def _consistent(self) -> "ErrorEntry":
        if self.pressure is not None and self.channels is not None:
            raise ValueError("expected 'pressure' or 'channels', not both")
        if len(self.error) != len(self.pressure or self.channels or (0,)):
            raise ValueError("expected one error, or as many as 'pressure' or 'channels'")
        return self

    def sigma(self, pressure: Floats, value: Floats, vertical: Floats) -> Floats:
        """Return 1 standard deviation in SI, (N,); NaN for channels that are not named.

        Arguments:
            pressure: Pa, (N,).
            value: SI, (N,).
            vertical: Vertical coordinate, (N,): the number of a channel.
        """
        error = np.asarray(self.error, dtype=np.float64)
        if self.channels is not None:
            sigma = np.full(len(vertical), np.nan)
            for channel, one in zip(self.channels, error, strict=True):
                sigma[vertical == channel] = one
        elif self.pressure is None:
            sigma = np.full(len(pressure), error[0])
        else:
            order = np.argsort(self.pressure)
            levels = np.log(np.asarray(self.pressure)[order] * 100.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                sigma = np.interp(np.log(pressure), levels, error[order])
        if self.relative:
            sigma = sigma * np.abs(value)
        highest = np.inf if self.maximum is None else self.maximum
        bounded: Floats = np.clip(sigma, self.minimum or 0.0, highest)
        return bounded


class Representativeness(BaseModel):
    """Inflation for what a point feels and a grid cell does not.

    sigma^2 = (factor * sigma_table)^2 + addend^2.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Positive = Field(default=1.0, description="Multiplies the error of every variable.")
    addend: dict[str, Positive] = Field(
        default_factory=dict, description="Added in quadrature, SI, by variable."
    )

    @field_validator("addend")
    @classmethod
    def _known_variables(cls, addend: dict[str, float]) -> dict[str, float]:
        return {VARIABLES[name].id: value for name, value in addend.items()}


class ErrorTable(BaseModel):
    """Observation errors; a later entry of the same network, variable and sensor replaces an earlier one.

    One that names no sensor replaces those of every sensor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    representativeness: Representativeness = Representativeness()
    entries: tuple[ErrorEntry, ...] = ()

    def find(self, report_type: str, variable: str) -> Mapping[str, ErrorEntry]:
        """Return the entries in force by sensor; "" stands for the sensors that are not named."""
        return self._index.get((report_type, variable), {})

    @cached_property
    def _index(self) -> dict[tuple[str, str], dict[str, ErrorEntry]]:
        found: dict[tuple[str, str], dict[str, ErrorEntry]] = {}
        for entry in self.entries:
            for report_type in entry.report_types:
                known = found.setdefault((report_type, entry.variable), {})
                if not entry.sensors:
                    known.clear()
                known |= dict.fromkeys(entry.sensors or ("",), entry)
        return found


EXTRA_ERRORS: Registry[Mapping[str, Any]] = Registry(
    "observation error table", "appa.observation_errors", Mapping
)
"""Entries of extensions, laid out as in `errors.yaml`."""


def load_errors(*overrides: Mapping[str, Any] | str | Path | None) -> ErrorTable:
    """Return the table of `errors.yaml` and of extensions, then of the deployment and the upload.

    Overrides are applied in order.

    Arguments:
        overrides: Mappings of the same layout, or paths of YAML files.

    Raises:
        ConfigurationError: Naming the override and its first fault.
    """
    table = _read(DEFAULTS)
    for name, extra in EXTRA_ERRORS.items():
        table = _merge(table, extra, f"the extension '{name}'")
    for override in overrides:
        if override:
            if isinstance(override, Mapping):
                table = _merge(table, override, "override")
            else:
                table = _merge(table, read_yaml(Path(override)), str(override))
    return table


@lru_cache(maxsize=8)
def _read(path: Path) -> ErrorTable:
    return _validated(read_yaml(path), str(path))


def _merge(table: ErrorTable, override: Mapping[str, Any], name: str) -> ErrorTable:
    extra = _validated(override, name)
    given = override.get("representativeness") or {}
    both = {**table.representativeness.model_dump(), **given}
    return ErrorTable(
        representativeness=Representativeness(**both),
        entries=(*table.entries, *extra.entries),
    )


def _validated(data: Any, name: str) -> ErrorTable:
    try:
        return ErrorTable.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"Observation errors in {name}: at '{where}': {first['msg']}.", source=name, field=where
        ) from error


def sources(entries: Iterable[ErrorEntry]) -> list[tuple[str, str, str]]:
    """Return (networks, variable, source) of each entry, for documentation."""
    return [(", ".join(e.report_types), e.variable, e.source) for e in entries]


_FACTOR = 1_000.0
_MIN_ERROR, _MAX_ERROR = 1e-9, 1e9
"""Plausible errors in SI units where the table has no entry; those of rain in m and humidity start at
1e-5."""


def assign_errors(table: pa.Table, errors: ErrorTable | None = None) -> pa.Table:
    """Return the table with `obs_error` filled, SI units, 1 standard deviation.

    A positive error already in the table came from the provider and is kept, unless it differs from
    that of the error table by a factor of a thousand or more: weights of 1e60, or fill values, would
    corrupt the whole analysis. Rows whose network, variable, sensor and channel have
    no entry are rejected as `passive`.

    Arguments:
        table: An observation table.
        errors: The error table in force; by default `errors.yaml`.
    """
    errors = load_errors() if errors is None else errors
    given = float_column(table, "obs_error")
    known = _assigned(table, errors)
    with np.errstate(invalid="ignore"):
        missing = ~((given > _MIN_ERROR) & (given < _MAX_ERROR))
        missing |= (given <= known / _FACTOR) | (given >= known * _FACTOR)
    sigma = np.where(missing, known, given)
    table = set_column(table, "obs_error", sigma)
    return reject(table, np.isnan(sigma) & not_rejected(table), QC_FLAGS["passive"])


def exchange_errors(table: pa.Table, assigned: ErrorTable, wanted: ErrorTable) -> pa.Table:
    """Return the table with the errors of `wanted` where it has those of `assigned`.

    An error given by the sender stays, as does one from an error table that has changed since.

    Arguments:
        table: An observation table whose errors are assigned.
        assigned: The error table that was in force.
        wanted: The one to take.
    """
    given = float_column(table, "obs_error")
    before, after = (_assigned(table, errors) for errors in (assigned, wanted))
    ours = np.isclose(given, before, rtol=1e-5, atol=0.0) & np.isfinite(after)
    return set_column(table, "obs_error", np.where(ours, after, given))


def _assigned(table: pa.Table, errors: ErrorTable) -> Floats:
    report, report_names = category_codes(table, "report_type")
    variable, variable_names = category_codes(table, "variable")
    platform, platforms = category_codes(table, "platform")
    pressure, value = row_pressure(table), float_column(table, "obs_value")
    vertical = float_column(table, "vertical")
    sigma = np.full(len(table), np.nan)
    pair = report * len(variable_names) + variable
    inflate = errors.representativeness
    for key in np.unique(pair[pair >= 0]):
        name = variable_names[key % len(variable_names)]
        entries = errors.find(report_names[key // len(variable_names)], name)
        named = [i for i, sensor in enumerate(platforms) if sensor and sensor in entries]
        for sensor, entry in entries.items():
            of_entry = pair == key
            if sensor:
                of_entry &= np.isin(platform, [i for i in named if platforms[i] == sensor])
            elif named:
                of_entry &= ~np.isin(platform, named)
            base = entry.sigma(pressure[of_entry], value[of_entry], vertical[of_entry])
            sigma[of_entry] = np.hypot(base * inflate.factor, inflate.addend.get(name, 0.0))
    return sigma
