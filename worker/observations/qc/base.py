"""Define a check: its stage, its parameters and its context besides the rows.

Parameters are those of `qc.yaml`, overridden by the deployment and by the upload.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.errors import ConfigurationError
from model.domain.files import read_yaml
from model.domain.grids import Grid
from model.domain.observations import QC_FLAGS
from model.domain.registry import Registry
from worker.observations.bias import BiasState
from worker.observations.columns import BoolArray, category_codes, float_column

__all__ = [
    "Check",
    "CheckFunction",
    "Checks",
    "EXTRA_CHECKS",
    "Override",
    "QCContext",
    "Stage",
    "Transform",
    "distinct_levels",
    "in_order",
    "load_parameters",
]

DEFAULTS = Path(__file__).with_name("qc.yaml")

Override = Mapping[str, Any] | str | Path | None
Checks = Sequence[Override] | Mapping[str, Any]
"""Overrides of the parameters, in order; or the complete parameters of an earlier run."""


def load_parameters(*overrides: Override) -> dict[str, dict[str, Any]]:
    """Return the effective parameters by check, to be stored with each analysis.

    Arguments:
        overrides: Mappings `{check: {parameter: value}}` or paths of YAML files, applied in order;
            values replace the default, mappings by network or variable are merged by key.

    Raises:
        ConfigurationError: On an unknown check or parameter, naming the known ones, on a value of
            another sort than the default, such as text for a number, and on a share beyond 0 to 1.
    """
    parameters = copy.deepcopy(_defaults())
    for override in overrides:
        where = "" if override is None or isinstance(override, Mapping) else f" in {override}"
        for check, values in _parse(override).items():
            _apply(parameters, check, values, where)
    return parameters


def in_order(checks: Checks) -> Sequence[Override]:
    """Return the overrides for `load_parameters`; complete parameters count as a single override."""
    return [checks] if isinstance(checks, Mapping) else checks


@lru_cache(maxsize=1)
def _defaults() -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = dict(read_yaml(DEFAULTS))
    for check in EXTRA_CHECKS.values():
        known.setdefault(check.name, {"enabled": True, **check.defaults})
    return known


def _parse(override: Override) -> Mapping[str, Any]:
    if override is None or isinstance(override, Mapping):
        return override or {}
    return read_yaml(Path(override))


def _apply(parameters: dict[str, dict[str, Any]], check: str, values: Any, where: str) -> None:
    if check not in parameters:
        raise ConfigurationError(
            f"Unknown check '{check}'{where}. Known: {', '.join(sorted(parameters))}.", check=check
        )
    known = parameters[check]
    if not isinstance(values, Mapping):
        raise ConfigurationError(
            f"Expected parameters by name for check '{check}'{where}.", check=check
        )
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(
                f"Unknown parameter '{name}' of check '{check}'{where}. "
                f"Known: {', '.join(sorted(known))}.",
                check=check,
                parameter=name,
            )
        sort = _sort_of(known[name])
        if sort and _sort_of(value) != sort:
            raise ConfigurationError(
                f"Expected {sort} as parameter '{name}' of check '{check}'{where}; got {value!r}.",
                check=check,
                parameter=name,
            )
        if name == "share" and not 0.0 <= value <= 1.0:
            raise ConfigurationError(
                f"Expected a share from 0 to 1 as parameter '{name}' of check '{check}'{where}; "
                f"got {value!r}.",
                check=check,
                parameter=name,
            )
        merge = isinstance(known[name], dict) and isinstance(value, Mapping)
        known[name] = {**known[name], **value} if merge else value


def _sort_of(value: Any) -> str:
    """Return what a value is, as messages say it; empty for null and text, which may be anything."""
    sorts = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (Mapping, "a mapping"),
        ((list, tuple), "a list"),
    )
    return next((text for sort, text in sorts if isinstance(value, sort)), "")


@dataclass(frozen=True)
class QCContext:
    """Input of checks besides the rows; a check whose input is missing does nothing.

    Attributes:
        parameters: Effective parameters by check, from `load_parameters`.
        grid: The model's grid, for superobservations and thinning.
        levels: The model's levels in hPa.
        orography: Height of the model's surface in m on `grid`, with shape (nlat, nlon).
        cut_off: Last arrival accepted (UTC).
        biases: Known biases of sensors.
        outside_window: Rows of ascents that extend beyond the edges of the window, with the same
            columns; they take part in the checks of identity and get no outcome.
        already_assimilated: Which rows the continued analysis has assimilated or rejected, (rows,);
            None for none.
    """

    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=load_parameters)
    grid: Grid | None = None
    levels: tuple[int, ...] = ()
    orography: NDArray[np.floating] | None = None
    cut_off: datetime | None = None
    biases: BiasState | None = None
    outside_window: pa.Table | None = None
    already_assimilated: BoolArray | None = None

    def of(self, check: str) -> Mapping[str, Any]:
        """Return the parameters of one check."""
        return self.parameters[check]


Stage = Literal["pre", "window", "background", "select"]
"""`pre`: after decoding, one batch. `window`: all batches of a window. `background`: with the
background's equivalents. `select`: which of the good rows are used."""

CheckFunction = Callable[[pa.Table, QCContext], BoolArray]
Transform = Callable[[pa.Table, QCContext], pa.Table]


@dataclass(frozen=True)
class Check:
    """One check of the list in `run.py`, or an entry point of the group `appa.qc_checks`.

    Attributes:
        name: Key of its parameters, in `qc.yaml` or `defaults`.
        outcome: Value of `rejected_by`, a name of `QC_FLAGS`.
        stage: When it runs.
        reject: Returns the mask of rows to reject, with shape (rows,).
        prepare: Changes the remaining rows or appends rows (reduction in height, superobservations);
            `reject` sees the rows from before.
        defaults: Parameters of a check that is not in `qc.yaml`; `enabled` is always among them.
    """

    name: str
    outcome: str
    stage: Stage
    reject: CheckFunction
    prepare: Transform | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        QC_FLAGS[self.outcome]


EXTRA_CHECKS: Registry[Check] = Registry("quality-control check", "appa.qc_checks", Check)
"""Checks of extensions. They run after the built-in ones of their stage, in order of their names."""


_APART = ("layer", "channel")


def distinct_levels(table: pa.Table) -> list[NDArray[Any]]:
    """Return keys that distinguish channels and layers, which have no pressure of their own.

    Arrays of numbers (rows,): sensor (station and platform) and number of a channel, bounds of a
    layer; 0 for other kinds of level.
    """
    kind, kinds = category_codes(table, "vertical_kind")
    apart, channel = (
        np.isin(kind, [i for i, name in enumerate(kinds) if name in wanted])
        for wanted in (_APART, ("channel",))
    )
    if not apart.any():
        return []
    bounds = [np.nan_to_num(float_column(table, n), nan=-1.0) for n in ("vertical", "vertical_top")]
    sensor = [category_codes(table, name)[0] for name in ("station_id", "platform")]
    return [np.where(apart, b, 0.0) for b in bounds] + [np.where(channel, s, 0) for s in sensor]
