"""Gives every observation its error; one without an entry is kept aside as passive."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.observations import QC_FLAGS
from worker.columns import BoolArray, codes, kept, numbers, row_pressure, set_column
from worker.observation_errors.table import ErrorTable, load_errors
from worker.rejection import reject

__all__ = ["assign_errors"]


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
