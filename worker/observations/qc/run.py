"""List all checks in the order they run, and run those of one stage over a table."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from model.domain.observations import QC_FLAGS
from worker.observations.bias import BIAS_CHECK, correct
from worker.observations.columns import category_codes, not_rejected, reject
from worker.observations.qc.background import (
    background_check,
    buddy,
    orography,
    reduce_to_surface,
    wind_pairs,
)
from worker.observations.qc.base import EXTRA_CHECKS, Check, QCContext, Stage
from worker.observations.qc.gross import (
    blocklist,
    bounds,
    late_arrival,
    missing_value,
    outside_domain,
    provider_flags,
)
from worker.observations.qc.identity import (
    ascents,
    corrections,
    duplicates,
    one_barometer,
    one_hygrometer,
    two_places,
)
from worker.observations.qc.kinematic import profile, stuck, supersaturation, track
from worker.observations.qc.selection import (
    append_superobservations,
    denial,
    in_superobservation,
    thinning,
    withholding,
)

__all__ = ["CHECKS", "QCReport", "run_checks"]


def _none(table: pa.Table, context: QCContext) -> np.ndarray:
    """Reject no row; for checks that only change values."""
    return np.zeros(len(table), dtype=bool)


def _corrected(table: pa.Table, context: QCContext) -> pa.Table:
    """Subtract the known biases of sensors."""
    if context.biases is None or "obs_bias" not in table.column_names:
        return table
    return correct(table, context.biases, context.of(BIAS_CHECK))


CHECKS: tuple[Check, ...] = (
    Check("flags", "preqc", "pre", provider_flags),
    Check("missing", "missing", "pre", missing_value),
    Check("domain", "domain", "pre", outside_domain),
    Check("bounds", "bounds", "pre", bounds),
    Check("corrections", "duplicate", "pre", corrections),
    Check("places", "track", "pre", two_places),
    Check("ascents", "duplicate", "pre", ascents),
    Check("duplicates", "duplicate", "pre", duplicates),
    Check("blocklist", "blocklist", "pre", blocklist),
    Check("track", "track", "pre", track),
    Check("stuck", "stuck", "pre", stuck),
    Check("profile", "profile", "pre", profile),
    Check("supersaturation", "bounds", "pre", supersaturation),
    # The batches of a window are combined here, so identity and tracks are checked again.
    Check("late", "late", "window", late_arrival),
    Check("blocklist", "blocklist", "window", blocklist),
    Check("corrections", "duplicate", "window", corrections),
    Check("places", "track", "window", two_places),
    Check("ascents", "duplicate", "window", ascents),
    Check("duplicates", "duplicate", "window", duplicates),
    Check("track", "track", "window", track),
    Check("stuck", "stuck", "window", stuck),
    Check(BIAS_CHECK, "passive", "window", _none, prepare=_corrected),
    Check("orography", "difference", "window", orography, prepare=reduce_to_surface),
    Check("background_check", "background_check", "background", background_check),
    Check("buddy", "buddy", "background", buddy),
    Check("wind_pairs", "difference", "background", wind_pairs),
    Check("barometer", "duplicate", "select", one_barometer),
    Check("hygrometer", "duplicate", "select", one_hygrometer),
    Check("withholding", "withheld", "select", withholding),
    Check("denial", "passive", "select", denial),
    Check(
        "superobbing", "thinned", "select", in_superobservation, prepare=append_superobservations
    ),
    Check("thinning", "thinned", "select", thinning),
)
"""In this order: a row keeps the outcome of the first check that rejects it."""


class QCReport(BaseModel):
    """Counts of one stage.

    Attributes:
        stage: The stage that ran.
        rows: Rows it saw, superobservations included.
        used: Rows that no check has rejected, now.
        rejected: Rows rejected in this stage, by check.
        rejected_by_variable: The same rows, by variable, then by outcome.
        parameters: The effective parameters.
    """

    stage: Stage
    rows: int = 0
    used: int = 0
    rejected: Counter[str] = Field(default_factory=Counter)
    rejected_by_variable: dict[str, Counter[str]] = Field(default_factory=dict)
    parameters: Mapping[str, Any] = Field(default_factory=dict)


def run_checks(
    table: pa.Table, stage: Stage, context: QCContext | None = None
) -> tuple[pa.Table, QCReport]:
    """Run the checks of `stage`; return the table with `rejected_by` and `qc_flag`, and the counts.

    No row is dropped; values change only by superobservations and reduction to the model's surface. A
    check that is not `enabled`, or whose input is missing, does nothing.

    Arguments:
        table: An observation or feedback table.
        stage: `pre`, `window`, `background` or `select`.
        context: Parameters and surroundings.
    """
    context = context or QCContext()
    report = QCReport(stage=stage, parameters=context.parameters)
    for check in (*CHECKS, *EXTRA_CHECKS.values()):
        if check.stage != stage or not context.of(check.name)["enabled"] or not len(table):
            continue
        if check.prepare is not None:
            bad = check.reject(table, context)
            table = check.prepare(table, context)
            bad = np.append(bad, np.zeros(len(table) - len(bad), dtype=bool))
        else:
            bad = check.reject(table, context)
        fresh = bad & not_rejected(table)
        if not fresh.any():
            continue
        _count(table, fresh, check.name, check.outcome, report)
        table = reject(table, fresh, QC_FLAGS[check.outcome])
    report.rows, report.used = len(table), int(not_rejected(table).sum())
    return table, report


def _count(table: pa.Table, fresh: np.ndarray, name: str, outcome: str, report: QCReport) -> None:
    if not fresh.any():
        return
    report.rejected[name] += int(fresh.sum())
    variable, names = category_codes(table, "variable")
    for i, count in enumerate(np.bincount(variable[fresh], minlength=len(names))):
        if count:
            report.rejected_by_variable.setdefault(names[i], Counter())[outcome] += int(count)
