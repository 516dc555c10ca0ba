"""List all checks in the order they run, run those of one stage over a table, and try parameters.

`load_parameters` knows names and types of parameters. What a check makes of an entry, such as the limits
of a variable or a period of the blocklist, shows only when it runs: `try_parameters` runs all checks on
made-up rows.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from model.domain.observations import QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES, Variable
from worker.observations.bias import BIAS_CHECK, correct
from worker.observations.columns import build_table, category_codes, not_rejected, reject
from worker.observations.decoders.base import DecodeContext
from worker.observations.qc.background import (
    background_check,
    buddy,
    orography,
    reduce_to_surface,
    wind_pairs,
)
from worker.observations.qc.base import EXTRA_CHECKS, Check, QCContext, Stage, load_parameters
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

__all__ = ["CHECKS", "QCReport", "run_checks", "try_parameters"]


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


_NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
_VERTICAL = {"level": ("pressure", 5e4), "layer": ("layer", 5e4), "channel": ("channel", 5.0)}
"""Kind and value of the vertical coordinate of variables that are not at the surface."""


def try_parameters(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Exception]:
    """Run all checks over one row for each network and variable; return the errors of those that fail.

    A check that fails with the default parameters as well is left out: it needs more than these rows.

    Arguments:
        parameters: Effective parameters, from `load_parameters`.

    Returns:
        Errors by name of the check.
    """
    table = _rows()
    found = _errors(table, parameters)
    unable = _errors(table, load_parameters()) if found else {}
    return {name: error for name, error in found.items() if name not in unable}


def _errors(table: pa.Table, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Exception]:
    context, found = QCContext(parameters=parameters), dict[str, Exception]()
    for check in (*CHECKS, *EXTRA_CHECKS.values()):
        if not context.of(check.name)["enabled"]:
            continue
        try:
            check.reject(table, context)
            if check.prepare is not None:
                check.prepare(table, context)
        except Exception as error:  # a check may stumble over a wrong value in any way
            found.setdefault(check.name, error)
    return found


def _rows() -> pa.Table:
    """Return one row for each network and variable, with a background that equals it."""
    pairs = [(r, v) for r in REPORT_TYPES.values() for v in VARIABLES.values()]
    places = [_vertical(variable) for _, variable in pairs]
    count = len(pairs)
    table = build_table(
        DecodeContext(batch_id="trial", received_time=_NOON),
        count,
        report_type=[network.name for network, _ in pairs],
        station_id=[f"{10_000 + row}" for row in range(count)],
        time=np.datetime64(_NOON.replace(tzinfo=None), "ns"),
        lat=np.linspace(-60.0, 60.0, count),
        lon=np.linspace(-170.0, 170.0, count),
        elevation=0.0,
        vertical_kind=[kind for kind, _ in places],
        vertical=np.array([value for _, value in places]),
        vertical_top=np.array([3e4 if kind == "layer" else np.nan for kind, _ in places]),
        variable=[variable.id for _, variable in pairs],
        obs_value=np.full(count, 280.0),
        obs_error=np.ones(count),
    )
    for name, value in (("hofx_background", 280.0), ("background_spread", 1.0)):
        table = table.append_column(name, pa.array(np.full(count, value)))
    return table


def _vertical(variable: Variable) -> tuple[str, float]:
    """Return kind and value of the vertical coordinate of a variable; NaN at the surface."""
    level = "level" if variable.kind == "atmospheric" else variable.vertical
    return _VERTICAL.get(level, ("column" if level == "column" else "surface", np.nan))
