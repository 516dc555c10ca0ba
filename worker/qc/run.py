"""Runs the checks of one stage over a table and counts what they reject."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from model.domain.observations import QC_FLAGS
from worker.columns import codes, kept
from worker.qc.check import Stage
from worker.qc.checks import CHECKS
from worker.qc.context import QCContext
from worker.rejection import reject

__all__ = ["QCReport", "run_checks"]


@dataclass
class QCReport:
    """What a stage did.

    Attributes:
        stage: Which one.
        rows: Rows it saw, superobservations included.
        used: Rows that no check has rejected, now.
        rejected: Rows rejected in this stage, by check.
        rejected_by_variable: The same rows, by variable, then by outcome.
        parameters: The effective parameters.
    """

    stage: Stage
    rows: int = 0
    used: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_by_variable: dict[str, Counter[str]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        variables = {name: dict(count) for name, count in self.rejected_by_variable.items()}
        return {
            **vars(self),
            "rejected": dict(self.rejected),
            "rejected_by_variable": variables,
            "parameters": dict(self.parameters),
        }


def run_checks(
    table: pa.Table, stage: Stage, context: QCContext | None = None
) -> tuple[pa.Table, QCReport]:
    """The table with `rejected_by` and `qc_flag` filled by the checks of `stage`, and the counts.

    No row is dropped; superobservations and heights reduced to the model's surface are the only
    changes to values. A check that is not `enabled`, or lacks what it needs, does nothing.

    Arguments:
        table: An observation or feedback table.
        stage: `pre`, `window`, `background` or `select`.
        context: Parameters and surroundings.
    """
    context = context or QCContext()
    report = QCReport(stage, parameters=context.parameters)
    for check in CHECKS:
        if check.stage != stage or not context.of(check.name)["enabled"] or not len(table):
            continue
        if check.prepare is not None:
            bad = check.reject(table, context)
            table = check.prepare(table, context)
            bad = np.append(bad, np.zeros(len(table) - len(bad), dtype=bool))
        else:
            bad = check.reject(table, context)
        fresh = bad & kept(table)
        _count(table, fresh, check.name, check.outcome, report)
        table = reject(table, fresh, QC_FLAGS[check.outcome])
    report.rows, report.used = len(table), int(kept(table).sum())
    return table, report


def _count(table: pa.Table, fresh: np.ndarray, name: str, outcome: str, report: QCReport) -> None:
    if not fresh.any():
        return
    report.rejected[name] += int(fresh.sum())
    variable, names = codes(table, "variable")
    for i, count in enumerate(np.bincount(variable[fresh], minlength=len(names))):
        if count:
            report.rejected_by_variable.setdefault(names[i], Counter())[outcome] += int(count)
