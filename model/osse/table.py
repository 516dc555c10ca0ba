"""Synthetic reports as an observation table."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.domain.observations import OBSERVATION_SCHEMA, validate_table
from model.operators.rows import column_codes, with_rejections

__all__ = ["Reports", "reports_table", "withhold_stations"]

Float = NDArray[np.float64]

BATCH = "osse"


@dataclass(frozen=True)
class Reports:
    """Values of one variable by one network; arrays with shape (n,), NaN where not applicable.

    Attributes:
        report_type, variable, vertical_kind: As in the observation table.
        vertical: Pa.
        seconds: Valid time since 1970-01-01 UTC.
        lat, lon, elevation: Degrees and m.
        station: Number of the station in its network.
        error: Observation error, the same for all.
    """

    report_type: str
    variable: str
    vertical_kind: str
    vertical: Float
    seconds: Float
    lat: Float
    lon: Float
    elevation: Float
    station: NDArray[np.int64]
    error: float


def _constant(value: str | None, count: int) -> pa.Array:
    codes = np.zeros(count, dtype=np.int32)
    mask = np.full(count, value is None)
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, mask=mask), pa.array([value or ""], pa.string())
    )


def _part(reports: Reports) -> pa.Table:
    count = len(reports.lat)
    numbers, station = np.unique(reports.station, return_inverse=True)
    names = [f"{reports.report_type}-{n:04d}" for n in numbers]
    time = pa.array((reports.seconds * 1e9).round().astype("datetime64[ns]"))
    columns: dict[str, pa.Array] = {
        "observation_id": pa.array(np.arange(count)),
        "batch_id": _constant(BATCH, count),
        "report_type": _constant(reports.report_type, count),
        "station_id": pa.DictionaryArray.from_arrays(
            pa.array(station.astype(np.int32)), pa.array(names, pa.string())
        ),
        "platform": _constant("simulated", count),
        "time": time,
        "received_time": time,
        "lat": pa.array(reports.lat),
        "lon": pa.array(reports.lon),
        "elevation": pa.array(reports.elevation, from_pandas=True),
        "vertical_kind": _constant(reports.vertical_kind, count),
        "vertical": pa.array(reports.vertical, from_pandas=True),
        "variable": _constant(reports.variable, count),
        "obs_value": pa.array(np.zeros(count)),
        "obs_error": pa.array(np.full(count, reports.error)),
        "rejected_by": _constant(None, count),
        "qc_flag": pa.array(np.zeros(count, dtype=np.uint8)),
    }
    arrays = [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type)
        for f in OBSERVATION_SCHEMA
    ]
    return pa.table(arrays, schema=OBSERVATION_SCHEMA)


def reports_table(parts: Sequence[Reports]) -> pa.Table:
    """One observation table, with values of zero, in order of time."""
    table = validate_table(pa.concat_tables([_part(p) for p in parts]).unify_dictionaries())
    order = pc.sort_indices(table, [("time", "ascending"), ("observation_id", "ascending")])
    return table.take(order)


def _drawn(station: str, share: float, seed: int) -> bool:
    """Whether a station is in a random share of all, by its name alone."""
    digest = hashlib.sha256(f"{seed}/{station}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def withhold_stations(
    table: pa.Table,
    share: float,
    seed: int,
    report_types: Sequence[str] = ("synop", "ship", "temp"),
) -> pa.Table:
    """The table with a share of the stations rejected by `withheld`, for verification.

    All rows of a station go together, so that nothing of it leaks into the analysis, and the same
    stations go whatever else is in the table.
    """
    codes, names = column_codes(table, "station_id")
    kinds, kind_names = column_codes(table, "report_type")
    chosen = np.array([_drawn(name, share, seed) for name in names], dtype=bool)
    rows = chosen[codes] & np.isin(np.array(kind_names)[kinds], report_types)
    rows &= table["rejected_by"].is_null().to_numpy()
    return with_rejections(table, {"withheld": np.flatnonzero(rows)})
