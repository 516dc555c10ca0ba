"""Assign observation errors from an error table.

The table is `errors.yaml`, overridden by the deployment and by the upload. Rows whose network
and variable have no entry are rejected as `passive`.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.domain.errors import ConfigurationError
from model.domain.files import read_yaml
from model.domain.observations import QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from worker.observations.columns import (
    BoolArray,
    codes,
    kept,
    numbers,
    reject,
    row_pressure,
    set_column,
)

__all__ = ["ErrorEntry", "ErrorTable", "Representativeness", "assign_errors", "load_errors"]

DEFAULTS = Path(__file__).with_name("errors.yaml")


class ErrorEntry(BaseModel):
    """The error of one variable as seen by some networks.

    Attributes:
        report_types: Networks it holds for.
        variable: Id of the vocabulary.
        error: 1 standard deviation in SI units, or a share of the value if `relative`; one number,
            or one per level of `pressure`.
        pressure: Levels in hPa, from the ground upwards.
        relative: Whether `error` is a share of the observed value.
        minimum: Lower bound of the resulting error, SI.
        maximum: Upper bound of the resulting error, SI.
        source: Where the numbers come from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    report_types: tuple[str, ...]
    variable: str
    error: tuple[float, ...]
    pressure: tuple[float, ...] | None = None
    relative: bool = False
    minimum: float = Field(default=0.0, ge=0.0)
    maximum: float = Field(default=float("inf"), gt=0.0)
    source: str = "override"

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("error"), int | float):
            data = {**data, "error": (data["error"],)}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "ErrorEntry":
        for name in self.report_types:
            REPORT_TYPES[name]
        VARIABLES[self.variable]
        if any(not e > 0.0 for e in self.error):
            raise ValueError("expected errors above zero")
        if len(self.error) != len(self.pressure or (0,)):
            raise ValueError("expected one error, or as many as levels in 'pressure'")
        if self.pressure is not None and any(not p > 0.0 for p in self.pressure):
            raise ValueError("expected pressures above zero, in hPa")
        return self

    def sigma(self, pressure: NDArray, value: NDArray) -> NDArray[np.float64]:
        """1 standard deviation, SI, with the shape of `pressure` (Pa) and `value` (SI)."""
        if self.pressure is None:
            sigma = np.full(len(pressure), self.error[0])
        else:
            order = np.argsort(self.pressure)
            levels = np.log(np.asarray(self.pressure)[order] * 100.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                sigma = np.interp(np.log(pressure), levels, np.asarray(self.error)[order])
        if self.relative:
            sigma = sigma * np.abs(value)
        return np.clip(sigma, self.minimum, self.maximum)


class Representativeness(BaseModel):
    """Inflation for what a point feels and a grid cell does not.

    sigma^2 = (factor * sigma_table)^2 + addend^2.

    Attributes:
        factor: Multiplies the error of every variable.
        addend: Added in quadrature, SI, by variable.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: float = Field(default=1.0, gt=0.0)
    addend: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "Representativeness":
        for name in self.addend:
            VARIABLES[name]
        return self


class ErrorTable(BaseModel):
    """All entries; a later entry of the same network and variable replaces an earlier one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    representativeness: Representativeness = Representativeness()
    entries: tuple[ErrorEntry, ...] = ()

    def find(self, report_type: str, variable: str) -> ErrorEntry | None:
        """The entry in force, or None."""
        return self._index.get((report_type, variable))

    @property
    def _index(self) -> dict[tuple[str, str], ErrorEntry]:
        return {(r, e.variable): e for e in self.entries for r in e.report_types}


def load_errors(*overrides: Mapping[str, Any] | str | Path | None) -> ErrorTable:
    """The table of `errors.yaml` with overrides applied in order (deployment, then upload).

    Arguments:
        overrides: Mappings of the same layout, or paths of YAML files.

    Raises:
        ConfigurationError: Naming the override and its first fault.
    """
    table = _read(DEFAULTS)
    for override in overrides:
        if override:
            table = _merge(table, _parse(override))
    return table


@lru_cache(maxsize=8)
def _read(path: Path) -> ErrorTable:
    return _validated(read_yaml(path), str(path))


def _parse(override: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(override, Mapping):
        return dict(override)
    return read_yaml(Path(override))


def _merge(table: ErrorTable, override: Mapping[str, Any]) -> ErrorTable:
    extra = _validated(override, "override")
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
    """(networks, variable, source) of each entry, for documentation."""
    return [(", ".join(e.report_types), e.variable, e.source) for e in entries]


def assign_errors(table: pa.Table, errors: ErrorTable | None = None) -> pa.Table:
    """The table with `obs_error` filled, SI units, 1 standard deviation.

    A positive error already in the table came from the provider and is kept as it is. Rows whose
    network and variable have no entry are rejected as `passive`.

    Arguments:
        table: An observation table.
        errors: The error table in force; by default `errors.yaml`.
    """
    errors = load_errors() if errors is None else errors
    given = numbers(table, "obs_error")
    with np.errstate(invalid="ignore"):
        missing = ~(np.isfinite(given) & (given > 0.0))
    sigma = np.where(missing, _assigned(table, errors, missing), given)
    table = set_column(table, "obs_error", sigma)
    return reject(table, np.isnan(sigma) & kept(table), QC_FLAGS["passive"])


def _assigned(table: pa.Table, errors: ErrorTable, wanted: BoolArray) -> NDArray[np.float64]:
    report, report_names = codes(table, "report_type")
    variable, variable_names = codes(table, "variable")
    pressure, value = row_pressure(table), numbers(table, "obs_value")
    sigma = np.full(len(table), np.nan)
    pair = np.where(wanted, report * len(variable_names) + variable, -1)
    inflate = errors.representativeness
    for key in np.unique(pair[pair >= 0]):
        name = variable_names[key % len(variable_names)]
        entry = errors.find(report_names[key // len(variable_names)], name)
        if entry is None:
            continue
        rows = pair == key
        base = entry.sigma(pressure[rows], value[rows]) * inflate.factor
        sigma[rows] = np.hypot(base, inflate.addend.get(name, 0.0))
    return sigma
