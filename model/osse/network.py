"""The synthetic network: surface stations, radiosondes and one polar-orbiting sounder.

Errors are Gaussian and independent. Humidity errors are a fraction of the true value, and values
that they make negative are set to zero, as a retrieval would: at 30 % that happens to one value
in 2300, and biases it by less than 0.1 % of its error.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
from torch import Tensor

from model.domain.grids import Grid
from model.domain.variables import Channel
from model.operators.domain import Statics
from model.operators.observation_set import ObservationSet, build_observation_set
from model.osse.reports import Network, network_reports
from model.osse.table import reports_table

__all__ = ["Network", "simulate_observations"]

DRIEST = 1e-5
"""Smallest humidity error, kg kg-1."""


def simulate_observations(
    truth: Tensor,
    grid: Grid,
    channels: Sequence[Channel],
    times: Sequence[datetime],
    seed: int,
    *,
    statics: Statics | None = None,
    network: Network | None = None,
) -> pa.Table:
    """Observations of a truth with random errors.

    Surface reports are on the hour, radiosondes at 00 and 12 UTC, the sounder's lines evenly in
    time from half an hour before the first state to the last state: nothing comes from the future
    of the last state.

    Arguments:
        truth: Physical states in SI units, with shape (T, C, Y, X).
        grid: Their grid.
        channels: Their channels.
        times: Their valid times, UTC.
        seed: Of the errors.
        statics: Orography and land-sea mask.
        network: What observes.

    Returns:
        An observation table; `obs_error` holds the standard deviation that was used. Places
        outside the model's domain do not report.
    """
    statics, network = statics or Statics(), network or Network()
    levels = sorted({c.level for c in channels if c.level is not None})
    parts = network_reports(network, grid, statics, times, levels)
    # The truth is observed as it is; what a model cannot represent of it is not our error.
    statics = replace(statics, residual=None)
    table = reports_table(parts)
    observations, table = build_observation_set(table, grid, channels, times, statics)
    table = table.take(pa.array(observations.rows))
    return _with_errors(table, observations, truth, np.random.default_rng(seed))


def _with_errors(
    table: pa.Table, observations: ObservationSet, truth: Tensor, rng: np.random.Generator
) -> pa.Table:
    exact = observations.operator(truth.double()).cpu().numpy()
    variables = np.array(table["variable"].to_pylist())
    error = np.asarray(observations.obs_errors)
    humid = variables == "specific_humidity"
    error = np.where(humid, np.maximum(error * np.abs(exact), DRIEST), error)
    value = exact + error * rng.standard_normal(len(exact))
    value = np.where(humid, np.maximum(value, 0.0), value)
    for name, numbers in (
        ("obs_value", value),
        ("obs_error", error.astype(np.float32)),
        ("observation_id", np.arange(len(value))),
    ):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(numbers))
    return table
