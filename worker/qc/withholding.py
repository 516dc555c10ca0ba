"""A stable random share of the stations, kept back for verification."""

import hashlib

import numpy as np
import pyarrow as pa

from worker.columns import BoolArray, codes, is_one_of
from worker.qc.context import QCContext

__all__ = ["draw", "withholding"]


def draw(station: str, salt: str) -> float:
    """A number in [0, 1) that depends on the station and the salt alone."""
    digest = hashlib.sha256(f"{salt}/{station}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def withholding(table: pa.Table, context: QCContext) -> BoolArray:
    """Rows of the stations whose draw lies below the share, the same ones in every cycle, and of
    those that were named.

    It comes after the other checks: what is kept back is as good as what is used.
    """
    p = context.of("withholding")
    station, names = codes(table, "station_id")
    chosen = [i for i, name in enumerate(names) if draw(name, p["salt"]) < p["share"]]
    drawn = np.isin(station, chosen) & is_one_of(table, "report_type", p["report_types"])
    return drawn | is_one_of(table, "station_id", p["stations"])
