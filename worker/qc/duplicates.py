"""The same value reported twice: the correction wins, else the first that arrived."""

import numpy as np
import pyarrow as pa

from worker.columns import BoolArray, codes, groups, is_one_of, kept, numbers, times
from worker.qc.context import QCContext

__all__ = ["duplicates"]


def duplicates(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows of the same station, time, level and variable as a preferred row.

    Preferred is the highest correction number, then the earliest arrival, then the order in the
    file. Where a station id does not stand for a place (satellites, anonymous call signs) the
    rounded position is part of the identity. Rows already rejected neither win nor lose.
    """
    p = context.of("duplicates")
    rows = np.flatnonzero(kept(table))
    bad = np.zeros(len(table), dtype=bool)
    if not len(rows):
        return bad
    sub = table.take(rows)
    placed = is_one_of(sub, "report_type", p["by_position"])
    placed |= is_one_of(sub, "station_id", p["anonymous"])
    digits = p["position_digits"]
    lat = np.where(placed, np.round(numbers(sub, "lat"), digits), 0.0)
    lon = np.where(placed, np.round(numbers(sub, "lon"), digits), 0.0)
    vertical = np.nan_to_num(np.round(numbers(sub, "vertical")), nan=-1.0)
    top = np.nan_to_num(np.round(numbers(sub, "vertical_top")), nan=-1.0)
    names = ("report_type", "station_id", "variable", "vertical_kind")
    identity = groups(*(codes(sub, n)[0] for n in names), times(sub), vertical, top, lat, lon)
    correction = np.nan_to_num(numbers(sub, "update_sequence"), nan=0.0)
    batch = codes(sub, "batch_id")[0]
    order = np.lexsort(
        (numbers(sub, "observation_id"), batch, times(sub, "received_time"), -correction, identity)
    )
    repeated = np.zeros(len(rows), dtype=bool)
    repeated[order[1:]] = identity[order[1:]] == identity[order[:-1]]
    bad[rows[repeated]] = True
    return bad
