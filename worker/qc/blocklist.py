"""Stations and platforms known to be wrong."""

import re
from fnmatch import translate

import numpy as np
import pyarrow as pa

from worker.columns import BoolArray, codes, is_one_of, times
from worker.qc.context import QCContext

__all__ = ["blocklist"]


def blocklist(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows matched by an entry: station pattern, and optionally networks, variables and period."""
    bad = np.zeros(len(table), dtype=bool)
    station, names = codes(table, "station_id")
    for entry in context.of("blocklist")["entries"]:
        pattern = re.compile(translate(str(entry["station"])))
        rows = np.isin(station, [i for i, name in enumerate(names) if pattern.match(name)])
        for key, column in (("report_types", "report_type"), ("variables", "variable")):
            if entry.get(key):
                rows &= is_one_of(table, column, entry[key])
        if entry.get("from"):
            rows &= times(table) >= _nanoseconds(entry["from"])
        if entry.get("until"):
            rows &= times(table) <= _nanoseconds(entry["until"])
        bad |= rows
    return bad


def _nanoseconds(time: object) -> int:
    text = str(time).replace("+00:00", "").removesuffix("Z")
    return int(np.datetime64(text, "ns").astype(np.int64))
