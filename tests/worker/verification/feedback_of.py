"""Feedback tables with the outcomes and columns a test gives."""

import numpy as np
import pyarrow as pa

from model.domain.observations import FEEDBACK_SCHEMA, QC_FLAGS, validate_table
from tests.worker.tables import make_table
from worker.observations.columns import set_column
from worker.pipeline.departures import to_feedback


def make_feedback(length, outcome=None, departures=None, **columns):
    """`length` rows; `outcome` is a check's name for each or all, `departures` their columns."""
    table = to_feedback(make_table(length, **columns))
    names = [outcome] * length if outcome is None or isinstance(outcome, str) else outcome
    table = set_column(table, "rejected_by", pa.array(names, pa.string()))
    flags = np.array([QC_FLAGS[name].number if name else 0 for name in names])
    table = set_column(table, "qc_flag", flags)
    for name, values in (departures or {}).items():
        table = set_column(table, name, np.asarray(values))
    return validate_table(table, FEEDBACK_SCHEMA)
