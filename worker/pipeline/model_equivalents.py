"""H(x) of ensembles, and the feedback columns made of it.

States are decoded one member at a time: an ensemble of full-size states does not fit in memory.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batching import Batching
from model.domain.observations import FEEDBACK_SCHEMA, OBSERVATION_SCHEMA
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet, build_observation_set
from worker.columns import codes, is_one_of, numbers, set_column
from worker.verification.equivalents import Equivalents

__all__ = [
    "count_outcomes",
    "fill_analysis",
    "fill_background",
    "model_equivalents",
    "monitored_set",
    "observation_set",
    "to_feedback",
]

Float = NDArray[np.float64]

_UNUSABLE = ("missing", "domain", "bounds", "decode", "operator_failed", "passive")
"""Outcomes after which a value says nothing: no departure is computed."""


def to_feedback(table: pa.Table) -> pa.Table:
    """An observation table with the feedback columns, all null."""
    for field in FEEDBACK_SCHEMA:
        if field.name not in OBSERVATION_SCHEMA.names and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(FEEDBACK_SCHEMA.names).cast(FEEDBACK_SCHEMA)


def observation_set(
    table: pa.Table, model: LatentModel, times: Sequence[datetime]
) -> tuple[ObservationSet, pa.Table]:
    """y, R and H of the rows in use; see `model.operators.observation_set`."""
    return build_observation_set(table, model.grid, model.channels, times, model.statics)


def monitored_set(table: pa.Table, model: LatentModel, times: Sequence[datetime]) -> ObservationSet:
    """y, R and H of every row with a trustworthy value, whether in use or not."""
    useless = is_one_of(table, "rejected_by", _UNUSABLE)
    outcome = pa.array(np.where(useless, "passive", None), pa.string())
    return observation_set(set_column(table, "rejected_by", outcome), model, times)[0]


def model_equivalents(
    latents: Tensor,
    model: LatentModel,
    observations: ObservationSet,
    keep: Callable[[int, Tensor], None] | None = None,
) -> Float:
    """H(x) of each member, with shape (M, N).

    Arguments:
        latents: Standardised latents, with shape (M, T, c, h, w).
        model: Decodes them.
        observations: N observations of T states.
        keep: Called with (member, its physical states (T, C, Y, X)) while they are there.
    """
    hofx = np.empty((len(latents), len(observations)))
    operator = observations.to(model.dtype, model.device).operator if len(observations) else None
    with torch.no_grad():
        for member, trajectory in enumerate(latents):
            states = _decode(trajectory.to(model.device, model.dtype), model)
            if operator is not None:
                hofx[member] = operator(states).double().cpu().numpy()
            if keep is not None:
                keep(member, _masked(states, model))
    return hofx


def _decode(trajectory: Tensor, model: LatentModel) -> Tensor:
    """Latents (T, c, h, w) to physical states, as many at once as the memory takes."""
    batching = Batching(rows=len(trajectory))
    return batching(lambda rows: model.decode(trajectory[rows], mask=False), len(trajectory))


def _masked(states: Tensor, model: LatentModel) -> Tensor:
    """The states with NaN where a variable is undefined."""
    missing = model.state_normalisation.missing
    return states if missing is None else states.masked_fill(missing, float("nan"))


def fill_background(table: pa.Table, found: Equivalents) -> pa.Table:
    """The feedback table with H(x_b), O-B and spread where they were found, null elsewhere."""
    return _fill(table, found, "background")


def fill_analysis(table: pa.Table, found: Equivalents, seed: int) -> pa.Table:
    """The feedback table with H(x_a), O-A, spread and rank where they were found, null elsewhere.

    The rank counts the members of H(x_a) with an observation error drawn for each that lie below
    the value: uniform from 0 to M when errors and spread are right. Of members in pairs one of
    each is counted.
    """
    table, rows, hofx = _fill(table, found, "analysis"), found.rows, found.hofx
    draw = np.random.default_rng(seed).standard_normal(hofx.shape)
    noisy = (hofx + draw * numbers(table, "obs_error")[rows])[list(found.twins.ranked)]
    rank = (noisy < numbers(table, "obs_value")[rows]).sum(0)
    column = np.full(len(table), -1, dtype=np.int16)
    column[rows] = rank
    index = table.schema.get_field_index("rank")
    values = pa.array(column, pa.int16(), mask=column < 0)
    return table.set_column(index, table.schema.field("rank"), values)


def _fill(table: pa.Table, found: Equivalents, name: str) -> pa.Table:
    columns = {f"hofx_{name}": _scatter(table, found.rows, found.hofx.mean(0))}
    columns[f"{name}_departure"] = numbers(table, "obs_value") - columns[f"hofx_{name}"]
    spread = found.twins.std(found.hofx)
    if spread is not None:
        columns[f"{name}_spread"] = _scatter(table, found.rows, spread)
    for column, values in columns.items():
        field = table.schema.field(column)
        array = pa.array(values, pa.float64(), mask=~np.isfinite(values)).cast(field.type)
        table = table.set_column(table.schema.get_field_index(column), field, array)
    return table


def _scatter(table: pa.Table, rows: NDArray[np.int64], values: Float) -> Float:
    column = np.full(len(table), np.nan)
    column[rows] = values
    return column


def count_outcomes(table: pa.Table) -> dict[str, int]:
    """Rows by outcome: `used` and the names of the checks that rejected any."""
    code, names = codes(table, "rejected_by")
    counts = {name: int((code == i).sum()) for i, name in enumerate(names)}
    return {"used": int((code < 0).sum())} | {n: c for n, c in counts.items() if c}
