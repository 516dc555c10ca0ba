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
from worker.observations.columns import (
    category_codes,
    float_column,
    is_one_of,
    number_array,
    time_column,
)
from worker.observations.qc.base import Checks, in_order, load_parameters
from worker.observations.stations import station_codes
from worker.observations.store.store import ObservationStore

__all__ = ["gather_observations", "gather_outside_window", "observation_window", "table_digest"]

WINDOW_LEAD = timedelta(minutes=30)
"""Observations up to this long before the first state are assigned to its time."""


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
    table = ObservationStore.of(layout).read_window(
        window,
        report_types=selection.report_types,
        batches=selection.batches or () if batches is None else batches,
    )
    return in_order_of_arrival(table)


def gather_outside_window(
    table: pa.Table,
    plan: WindowPlan,
    selection: ObservationSelection,
    layout: Layout,
    checks: Checks = (),
    batches: Sequence[str] | None = None,
) -> pa.Table:
    """Return stored rows beyond the edges of a window of ascents that the window cuts.

    A sonde ascends for hours, and may be reported once for a full hour and again with a time for each
    level: the better version can be chosen only by comparing complete ascents.

    Arguments:
        table: The observations of the window.
        plan: Which times are observed.
        selection: Networks, uploads and cut-off.
        layout: Where the store is.
        checks: Parameters of the checks, as for `check_window`.
        batches: Only these uploads, as an earlier run saw the store; None for all.

    Returns:
        Rows that had arrived by the cut-off and were not rejected at arrival; often none.
    """
    window, p = observation_window(plan), load_parameters(*in_order(checks))["ascents"]
    networks = [n for n in p["report_types"] if n in (selection.report_types or p["report_types"])]
    if window is None or batches == () or not p["enabled"] or not networks:
        return empty_table()
    reach, seconds = timedelta(hours=p["beyond"]), time_column(table) * 1e-9
    sondes = is_one_of(table, "report_type", networks)
    store, found = ObservationStore.of(layout), [empty_table()]
    for edge, side in (
        (window.start, AssimilationWindow(window.start - reach, window.start)),
        (window.end, AssimilationWindow(window.end, window.end + reach)),
    ):
        near = sondes & (np.abs(seconds - edge.timestamp()) <= reach.total_seconds())
        if not near.any():
            continue
        rows = store.read_window(
            side, cut_off=selection.cut_off, report_types=networks, used_only=True,
            batches=selection.batches or () if batches is None else batches,
        )  # fmt: skip
        both = pa.concat_tables([rows, table.filter(number_array(near))]).unify_dictionaries()
        station = station_codes(both)[0]
        same = np.isin(station[: len(rows)], station[len(rows) :])
        found.append(rows.filter(number_array(same)))
    return in_order_of_arrival(pa.concat_tables(found).unify_dictionaries())


def in_order_of_arrival(table: pa.Table) -> pa.Table:
    """Return the rows sorted by arrival, batch and position in it, independent of the store's files."""
    keys = (
        float_column(table, "observation_id"),
        category_codes(table, "batch_id")[0],
        time_column(table, "received_time"),
    )
    return table.take(np.lexsort(keys))


def table_digest(table: pa.Table) -> str:
    """Return the SHA-256 of the rows in their order, equal for equal observations."""
    digest = hashlib.sha256()
    batch, names = category_codes(table, "batch_id")
    digest.update("\n".join(names).encode())
    for values in (batch, float_column(table, "observation_id"), float_column(table, "obs_value")):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update(np.ascontiguousarray(float_column(table, "obs_error")).tobytes())
    return digest.hexdigest()
