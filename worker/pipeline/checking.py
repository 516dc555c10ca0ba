"""Quality control of a window: with the model's surface, with the background, and the selection."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.domain.windows import WindowPlan
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet
from worker.backgrounds.background import Background
from worker.jobs.kinds import ObservationSelection
from worker.pipeline.model_equivalents import (
    fill_background,
    model_equivalents,
    monitored_set,
    observation_set,
    to_feedback,
)
from worker.qc.context import QCContext
from worker.qc.parameters import load_parameters
from worker.qc.run import run_checks
from worker.verification.equivalents import Equivalents

__all__ = ["CheckedWindow", "check_window", "effective_parameters"]


@dataclass(frozen=True, eq=False)
class CheckedWindow:
    """The observations of a window after all checks.

    Attributes:
        observations: y, R and H of the rows in use.
        feedback: Every row, with O-B and outcome.
        parameters: Effective parameters of the checks.
        background: H(x_b) of each member at every row that can be monitored; None without one.
    """

    observations: ObservationSet
    feedback: pa.Table
    parameters: dict[str, Any]
    background: Equivalents | None = None


def check_window(
    table: pa.Table,
    plan: WindowPlan,
    selection: ObservationSelection,
    model: LatentModel,
    background: Background | None,
    checks: Path | Mapping[str, Any] | None = None,
) -> CheckedWindow:
    """Runs the checks that need the window, the model or the background.

    Arguments:
        table: The observations as stored, checked at arrival.
        plan: Times of the states.
        selection: Cut-off and withheld share.
        model: Its grid, surface and operators.
        background: The first guess at `plan.times`; None for a job without observations.
        checks: This installation's parameters, a YAML file; or all parameters of an earlier run.
    """
    context = qc_context(selection, model, background, checks)
    table, _ = run_checks(to_feedback(table), "window", context)
    _, table = observation_set(table, model, plan.times)
    equivalents = None
    if background is not None and len(table):
        monitored = monitored_set(table, model, plan.times)
        hofx = model_equivalents(background.latents, model, monitored)
        rows, errors = monitored.rows, monitored.obs_errors
        equivalents = Equivalents(rows, errors, hofx, background.mirrored)
        table = fill_background(table, equivalents)
        table, _ = run_checks(table, "background", context)
    table, _ = run_checks(table, "select", context)
    observations, table = observation_set(table, model, plan.times)
    return CheckedWindow(observations, table, dict(context.parameters), equivalents)


def qc_context(
    selection: ObservationSelection,
    model: LatentModel,
    background: Background | None,
    checks: Path | Mapping[str, Any] | None = None,
) -> QCContext:
    """Parameters and surroundings of the checks."""
    if isinstance(checks, Mapping):  # an earlier run's, which had all that is done to them done
        return _context(load_parameters(checks), selection, model)
    cold = background is not None and background.source == "climatology"
    return _context(effective_parameters(selection, checks, cold=cold), selection, model)


def effective_parameters(
    selection: ObservationSelection, checks: Path | None, *, cold: bool
) -> dict[str, dict[str, Any]]:
    """The installation's parameters with what a job changes.

    Arguments:
        selection: What is withheld.
        checks: The installation's, a YAML file.
        cold: Whether the background is climatology.
    """
    changes: dict[str, Any] = {}
    if selection.withhold is not None:
        changes["withholding"] = {"share": selection.withhold}
    parameters = load_parameters(checks, changes)
    if selection.withhold_stations:
        kept_back = parameters["withholding"]
        if not kept_back["enabled"]:
            kept_back.update(enabled=True, share=0.0)
        kept_back["stations"] = [*kept_back["stations"], *selection.withhold_stations]
    if cold:
        # Far from climatology is not wrong: only the spread counts, not the fixed limits.
        limits = parameters["background_check"]["limits"]
        for entry in (*limits.values(), parameters["background_check"]["default"]):
            entry["absolute"] = float("inf")
    return parameters


def _context(
    parameters: dict[str, dict[str, Any]], selection: ObservationSelection, model: LatentModel
) -> QCContext:
    return QCContext(
        parameters=parameters,
        grid=model.grid,
        levels=model.card.levels,
        orography=model.statics.orography,
        cut_off=selection.cut_off,
    )
