"""Gather the observations of a window as a job selects them."""

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa

from model.domain.observations import empty_table
from model.domain.windows import HOUR, AssimilationWindow, WindowPlan
from worker.contract.kinds import ObservationSelection
from worker.contract.layout import Layout
from worker.observations.columns import category_codes, float_column, time_column
from worker.observations.store.store import ObservationStore

__all__ = ["gather_observations", "observation_window", "table_digest"]

WINDOW_LEAD = timedelta(minutes=30)
"""Observations this long before the first state stand for its time."""


def observation_window(plan: WindowPlan) -> AssimilationWindow | None:
    """Return the window of the observed times; None if no time is observed.

    It begins half an hour before the first observed time and ends with the last one.
    """
    if plan.window is None:
        return None
    first = plan.window.start + HOUR
    return AssimilationWindow(first - WINDOW_LEAD, plan.window.end)


def gather_observations(
    plan: WindowPlan,
    selection: ObservationSelection,
    layout: Layout,
    batches: Sequence[str] | None = None,
) -> pa.Table:
    """Return every stored value of the window; late ones are included and rejected later.

    Arguments:
        plan: Which times are observed.
        selection: Networks and uploads.
        layout: Where the store is.
        batches: Only these uploads, as an earlier run saw the store; None for all.

    Returns:
        An observation table, possibly empty, in the order of arrival.
    """
    window = observation_window(plan)
    if window is None or batches == ():
        return empty_table()
    table = ObservationStore(str(layout.observations)).read_window(
        window,
        report_types=selection.report_types,
        batches=selection.batches or () if batches is None else batches,
    )
    return in_order_of_arrival(table)


def in_order_of_arrival(table: pa.Table) -> pa.Table:
    """Return the rows by arrival, batch and place in it, however the store arranges its files."""
    keys = (
        float_column(table, "observation_id"),
        category_codes(table, "batch_id")[0],
        time_column(table, "received_time"),
    )
    return table.take(np.lexsort(keys))


def table_digest(table: pa.Table) -> str:
    """Return the SHA-256 of the rows in their order; the same for the same observations."""
    digest = hashlib.sha256()
    batch, names = category_codes(table, "batch_id")
    digest.update("\n".join(names).encode())
    for values in (batch, float_column(table, "observation_id"), float_column(table, "obs_value")):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update(np.ascontiguousarray(float_column(table, "obs_error")).tobytes())
    return digest.hexdigest()
