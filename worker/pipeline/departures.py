"""Compare the observations of a window with the model: H(x), the checks that need it, the feedback.

Quality control runs with the model's surface, with the background, and for the selection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from model.diagnostics.ensembles import ranks
from model.diagnostics.equivalents import Equivalents, model_equivalents, observation_set
from model.domain.observations import FEEDBACK_SCHEMA, OBSERVATION_SCHEMA, empty_table
from model.domain.windows import WindowPlan
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet, with_rejections
from worker.contract.kinds import ObservationSelection
from worker.observations.bias import (
    BIAS_CHECK,
    LAYERS,
    BiasState,
    LayerPredictors,
    ThicknessLayer,
    correct,
    rows_with_layers,
    update,
)
from worker.observations.columns import (
    category_codes,
    count_pairs,
    count_values,
    float_column,
    groups,
    is_one_of,
    not_rejected,
    set_column,
    time_column,
)
from worker.observations.qc.base import Checks, Override, QCContext, load_parameters
from worker.observations.qc.run import run_checks
from worker.observations.stations import canonical_stations
from worker.results.outputs.states import StateFile, States
from worker.solver import Background

__all__ = [
    "CheckedWindow",
    "WrittenStates",
    "check_window",
    "count_outcomes",
    "effective_parameters",
    "fill_analysis",
    "fill_background",
    "monitored_set",
    "outcomes_by_network",
    "to_feedback",
]

Float = NDArray[np.float64]

_UNUSABLE = (
    "missing",
    "domain",
    "bounds",
    "decode",
    "operator_failed",
    "passive",
    "assimilated",
)
"""Outcomes for which no departure is computed: the value is unusable, or was assimilated before."""


def to_feedback(table: pa.Table) -> pa.Table:
    """Return an observation table with the canonical stations and the other feedback columns, null."""
    if "canonical_station" not in table.column_names:
        field = FEEDBACK_SCHEMA.field("canonical_station")
        table = table.append_column(field, canonical_stations(table))
    for field in FEEDBACK_SCHEMA:
        if field.name not in OBSERVATION_SCHEMA.names and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(FEEDBACK_SCHEMA.names).cast(FEEDBACK_SCHEMA)


def monitored_set(
    table: pa.Table, model: LatentModel, times: Sequence[datetime]
) -> tuple[ObservationSet, pa.Table]:
    """Build y, R and H of every row with a trustworthy value, whether in use or not.

    Returns:
        The observation set, and the table with rows rejected that have no operator, lack a value or lie
        outside the model's domain; see `observation_set`.
    """
    useless = is_one_of(table, "rejected_by", _UNUSABLE)
    outcome = pa.array(np.full(len(table), "passive"), pa.string(), mask=~useless)
    monitored, after = observation_set(set_column(table, "rejected_by", outcome), model, times)
    refused = not_rejected(table) & ~not_rejected(after)
    code, names = category_codes(after, "rejected_by")
    rejections = {n: np.flatnonzero(refused & (code == i)) for i, n in enumerate(names)}
    return monitored, with_rejections(table, rejections)


def fill_background(table: pa.Table, found: Equivalents) -> pa.Table:
    """Return the feedback table with H(x_b), O-B and spread, null where there are none."""
    return _fill(table, found, "background")


def fill_analysis(table: pa.Table, found: Equivalents, seed: int) -> pa.Table:
    """Return the feedback table with H(x_a), O-A, spread and rank, null where there are none.

    The rank is the number of members of H(x_a), each with a drawn observation error, that lie below the
    value: uniform from 0 to M if errors and spread are right. Of antithetic pairs only one member
    counts.
    """
    table, rows, hofx = _fill(table, found, "analysis"), found.rows, found.hofx
    values, errors = (float_column(table, name)[rows] for name in ("obs_value", "obs_error"))
    rank = ranks(hofx, values, errors, np.random.default_rng(seed), found.pairs.ranked)
    column = np.full(len(table), -1, dtype=np.int16)
    column[rows] = rank
    index = table.schema.get_field_index("rank")
    values = pa.array(column, pa.int16(), mask=column < 0)
    return table.set_column(index, table.schema.field("rank"), values)


def _fill(table: pa.Table, found: Equivalents, name: str) -> pa.Table:
    columns = {f"hofx_{name}": _scatter(len(table), found.rows, found.hofx.mean(0))}
    columns[f"{name}_departure"] = float_column(table, "obs_value") - columns[f"hofx_{name}"]
    spread = found.pairs.std(found.hofx)
    if spread is not None:
        columns[f"{name}_spread"] = _scatter(len(table), found.rows, spread)
    for column, values in columns.items():
        field = table.schema.field(column)
        array = pa.array(values, pa.float64(), mask=~np.isfinite(values)).cast(field.type)
        table = table.set_column(table.schema.get_field_index(column), field, array)
    return table


def _scatter(length: int, rows: NDArray[np.int64], values: Float) -> Float:
    column = np.full(length, np.nan)
    column[rows] = values
    return column


def count_outcomes(table: pa.Table) -> dict[str, int]:
    """Return the number of rows by outcome: `used` and the checks that rejected any."""
    code, names = category_codes(table, "rejected_by")
    counts = {name: int((code == i).sum()) for i, name in enumerate(names)}
    return {"used": int((code < 0).sum())} | {n: c for n, c in counts.items() if c}


def outcomes_by_network(table: pa.Table) -> dict[str, dict[str, int]]:
    """Return the number of rows by network and outcome: `used` and the checks that rejected any."""
    rejected = count_pairs(table, "report_type", "rejected_by")
    return {
        network: {"used": rows - sum(rejected.get(network, {}).values())}
        | rejected.get(network, {})
        for network, rows in count_values(table, "report_type").items()
    }


@dataclass(frozen=True, eq=False)
class CheckedWindow:
    """The observations of a window after all checks.

    Attributes:
        observations: y, R and H of the rows in use.
        monitored: y, R and H of every row of the feedback that can be monitored.
        feedback: Every row, with O-B and outcome.
        parameters: Effective parameters of the checks.
        background: H(x_b) of each member at the monitored rows; None without observations.
        biases: Bias estimates of sensors, after the departures of this window.
        background_states: The background's physical states at the written times, with shape
            (M, T, C, Y, X); None without observations, when it has not been decoded.
        outside_window: Rows beyond the window that were used to judge ascents in it.
    """

    observations: ObservationSet
    monitored: ObservationSet
    feedback: pa.Table
    parameters: dict[str, Any]
    background: Equivalents | None = None
    biases: BiasState = field(default_factory=BiasState)
    background_states: States | None = None
    outside_window: pa.Table = field(default_factory=empty_table)


class WrittenStates:
    """Collect the physical states at the written times as `model_equivalents` decodes them.

    Arguments:
        plan: Which times are written.
        model: The model that decodes.
        members: Size of the ensemble.
        scratch: Folder for the states; None to hold them in memory.
    """

    def __init__(
        self, plan: WindowPlan, model: LatentModel, members: int, scratch: Path | None = None
    ) -> None:
        self.written = np.flatnonzero(plan.written)
        shape = (members, len(self.written), *model.state_shape)
        self.values: StateFile | NDArray[np.float32] = (
            np.empty(shape, dtype=np.float32) if scratch is None else StateFile(scratch, shape)
        )

    def __call__(self, member: int, trajectory: Tensor) -> None:
        """Copy the states of a member (T, C, Y, X) at the written times."""
        for place, i in enumerate(self.written):
            self.values[member, place] = trajectory[i].float().cpu().numpy()


class BackgroundLayers:
    """Collect the thickness of background layers at rows whose sensors have it as a bias predictor.

    Arguments:
        table: The observations.
        rows: Rows that need it, (R,); shared places and times are computed once.
        model: Provides grid and operators; a layer is cut at its outermost geopotential levels.
        times: Times of the states.
    """

    def __init__(
        self,
        table: pa.Table,
        rows: NDArray[np.int64],
        model: LatentModel,
        times: Sequence[datetime],
    ) -> None:
        self.length, self.rows = len(table), rows
        part = table.take(rows)
        place = groups(time_column(part), float_column(part, "lat"), float_column(part, "lon"))
        _, first, self.place = np.unique(place, return_index=True, return_inverse=True)
        self.places = len(first)
        at = part.take(first)
        levels = [
            100.0 * c.level for c in model.channels if c.variable == "geopotential" and c.level
        ]
        self.layers = {name: layer.within(levels or [0.0]) for name, layer in LAYERS.items()}
        wanted = pa.concat_tables([_thickness_rows(at, layer) for layer in self.layers.values()])
        self.observations, _ = observation_set(wanted.unify_dictionaries(), model, times)
        self.observations = self.observations.to(model.dtype, model.device)
        self.total, self.members = np.zeros(len(self.observations)), 0

    def __call__(self, member: int, trajectory: Tensor) -> None:
        """Add a member's states (T, C, Y, X)."""
        if len(self.observations):
            self.total += self.observations.operator(trajectory).double().cpu().numpy()
        self.members += 1

    def predictors(self) -> LayerPredictors:
        """Return the predictors of the mean of the members, for all rows of the table."""
        thickness = np.full((len(self.layers), self.places), np.nan)
        thickness.flat[self.observations.rows] = self.total / max(self.members, 1)
        return {
            name: _scatter(self.length, self.rows, layer.predictor(values)[self.place])
            for (name, layer), values in zip(self.layers.items(), thickness, strict=True)
        }


def _thickness_rows(at: pa.Table, layer: ThicknessLayer) -> pa.Table:
    """Return the rows as observations of the thickness of a layer, with dummy values."""
    new: dict[str, Any] = {
        "variable": pa.array(["geopotential_thickness"] * len(at)),
        "vertical_kind": pa.array(["layer"] * len(at)),
        "vertical": np.full(len(at), layer.bottom),
        "vertical_top": np.full(len(at), layer.top),
        "obs_value": np.zeros(len(at)),
        "obs_error": np.ones(len(at)),
        "rejected_by": pa.nulls(len(at), pa.string()),
    }
    for name, values in new.items():
        at = set_column(at, name, values)
    return at


def check_window(
    table: pa.Table,
    plan: WindowPlan,
    selection: ObservationSelection,
    model: LatentModel,
    background: Background,
    checks: Checks = (),
    biases: BiasState | None = None,
    already_assimilated: NDArray[np.bool_] | None = None,
    outside_window: pa.Table | None = None,
    scratch: Path | None = None,
) -> CheckedWindow:
    """Run the checks that need the window, the model or the background.

    H is built once, for every row that can be monitored, and again only if superobservations are
    appended. The background is decoded once, for both H(x_b) and the written states.

    Arguments:
        table: The observations as stored, checked at arrival.
        plan: Times of the states.
        selection: Cut-off and withheld share.
        model: Its grid, surface and operators.
        background: The first guess at `plan.times`.
        checks: Parameters of this installation and suite, in order; or all of an earlier run.
        biases: Bias estimates of sensors from the continued analysis.
        already_assimilated: Mask (N,) of rows that the continued analysis has assimilated or
            rejected: they take part only in the checks of identity and tracks. None for no such rows.
        outside_window: Rows of ascents beyond the edges of the window, see `gather_outside_window`.
        scratch: Folder for the states of the background; None to hold them in memory.
    """
    known = biases or BiasState()
    outside_window = empty_table() if outside_window is None else outside_window
    context = qc_context(selection, model, background, checks, known)
    context = replace(
        context, outside_window=to_feedback(outside_window), already_assimilated=already_assimilated
    )
    table, _ = run_checks(to_feedback(table), "window", context)
    if already_assimilated is not None:
        rows = np.flatnonzero(already_assimilated & not_rejected(table))
        table = with_rejections(table, {"assimilated": rows})
    monitored, table = monitored_set(table, model, plan.times)
    stored = len(table)
    equivalents = states = layers = None
    if stored:
        collected = WrittenStates(plan, model, background.members, scratch)
        settings = context.of(BIAS_CHECK)
        hofx, layers = _background_equivalents(
            table, monitored, plan, model, background, collected, settings
        )
        if layers is not None:
            table = correct(table, known, settings, layers)
            values = float_column(table, "obs_value")[monitored.rows]
            monitored = replace(monitored, obs_values=values)
        rows, errors = monitored.rows, monitored.obs_errors
        equivalents = Equivalents(rows, errors, hofx, background.antithetic)
        states = collected.values
        table = fill_background(table, equivalents)
        table, _ = run_checks(table, "background", context)
    table, _ = run_checks(table, "select", context)
    if len(table) > stored:
        monitored, table = monitored_set(table, model, plan.times)
    observations = monitored.select(not_rejected(table)[monitored.rows])
    parameters = dict(context.parameters)
    if background.source != "climatology":  # its biases are not those of sensors
        known = update(known, table, context.of(BIAS_CHECK), plan.times[-1], layers)
    return CheckedWindow(
        observations, monitored, table, parameters, equivalents, known, states, outside_window
    )


def _background_equivalents(
    table: pa.Table,
    monitored: ObservationSet,
    plan: WindowPlan,
    model: LatentModel,
    background: Background,
    collected: WrittenStates,
    bias_settings: Mapping[str, Any],
) -> tuple[Float, LayerPredictors | None]:
    """Decode the background once, for H(x_b), the written states and the predictors of biases.

    Arguments:
        table: Feedback rows.
        monitored: H of those that can be monitored.
        plan: Times of the states.
        model: Decodes the background.
        background: The first guess at `plan.times`.
        collected: Collects the states at the written times.
        bias_settings: Parameters of the bias correction.

    Returns:
        H(x_b) of each member at the monitored rows, with shape (M, N), and the thickness of layers
        at the rows whose bias depends on it; None without such rows.
    """
    biased = np.intersect1d(
        rows_with_layers(table, bias_settings), monitored.rows, assume_unique=True
    )
    beneath = BackgroundLayers(table, biased, model, plan.times) if len(biased) else None

    def on_states(member: int, trajectory: Tensor) -> None:
        collected(member, trajectory)
        if beneath is not None:
            beneath(member, trajectory)

    hofx = model_equivalents(
        background.latents, model, monitored, on_states, hours=collected.written
    )
    return hofx, None if beneath is None else beneath.predictors()


def qc_context(
    selection: ObservationSelection,
    model: LatentModel,
    background: Background,
    checks: Checks = (),
    biases: BiasState | None = None,
) -> QCContext:
    """Return the context of the checks; see `check_window`."""
    if isinstance(checks, Mapping):  # of an earlier run: already the effective ones
        parameters = load_parameters(checks)
    else:
        cold = background.source == "climatology"
        parameters = effective_parameters(selection, checks, cold=cold)
    return QCContext(
        parameters=parameters,
        grid=model.grid,
        levels=model.card.levels,
        orography=model.statics.orography,
        cut_off=selection.cut_off,
        biases=biases,
    )


def effective_parameters(
    selection: ObservationSelection, checks: Sequence[Override], *, cold: bool
) -> dict[str, dict[str, Any]]:
    """Return the parameters of installation and suite with the changes of a job.

    Arguments:
        selection: Withheld stations and denied networks.
        checks: YAML files and mappings, in order.
        cold: Whether the background is climatology.
    """
    changes: dict[str, Any] = {}
    if selection.withhold is not None:
        changes["withholding"] = {"share": selection.withhold}
    parameters = load_parameters(*checks, changes)
    if selection.withhold_stations:
        withholding = parameters["withholding"]
        if not withholding["enabled"]:
            withholding.update(enabled=True, share=0.0)
        withholding["stations"] = [*withholding["stations"], *selection.withhold_stations]
    if selection.deny:
        denial = parameters["denial"]
        before = denial["report_types"] if denial["enabled"] else []
        denial.update(enabled=True, report_types=[*before, *selection.deny])
    if cold:
        # Values far from climatology are not wrong: use the spread, not the fixed limits.
        limits = parameters["background_check"]["limits"]
        for entry in (*limits.values(), parameters["background_check"]["default"]):
            entry["absolute"] = float("inf")
    return parameters
