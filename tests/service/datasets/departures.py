"""Feedback tables of known content, checked as the writers of results check theirs."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from published import NOON

from model.domain.observations import FEEDBACK_SCHEMA, QC_FLAGS
from worker.results.outputs.feedback import checked_feedback


def table_of(columns: dict[str, Sequence[Any]]) -> pa.Table:
    """A feedback table; columns that are not given are null, or the same for all rows."""
    length = len(columns["lat"])
    outcome = columns.get("rejected_by", [None] * length)
    common = {
        "observation_id": np.arange(length),
        "batch_id": ["b-test"] * length,
        "time": [NOON - timedelta(minutes=10)] * length,
        "received_time": [NOON] * length,
        "vertical_kind": ["surface"] * length,
        "qc_flag": [0 if name is None else QC_FLAGS[name].number for name in outcome],
    }
    made = {}
    for field in FEEDBACK_SCHEMA:
        values = {**common, **columns}.get(field.name)
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        array = pa.nulls(length, plain) if values is None else pa.array(values, plain)
        made[field.name] = array.cast(field.type)
    return checked_feedback(pa.table(made, schema=FEEDBACK_SCHEMA))


def few() -> pa.Table:
    """Two stations, a sonde of three levels, a ship beyond the gross limits, a hostile name."""
    return table_of(
        {
            "report_type": ["synop", "synop", "temp", "temp", "temp", "ship", "synop"],
            "station_id": ["S1", "S2", "W9", "W9", "W9", "<b>SHIP</b>", "S1"],
            "lat": [45.0, 45.0, 30.0, 30.0, 30.0, -45.0, 45.0],
            "lon": [-135.0, -100.0, 60.0, 60.0, 60.0, 135.0, -135.0],
            "variable": [
                "2m_temperature", "2m_temperature", "temperature", "temperature", "temperature",
                "2m_temperature", "mean_sea_level_pressure",
            ],
            "vertical_kind": ["surface", "surface", "pressure", "pressure", "pressure", "surface",
                              "surface"],
            "vertical": [None, None, 85_000.0, 40_000.0, 25_000.0, None, None],
            "obs_value": [281.0, 279.0, 275.0, 250.0, 220.0, 330.0, 101_300.0],
            "obs_error": [1.0, 1.5, 0.8, 1.0, 1.2, 2.0, 100.0],
            "background_departure": [2.0, -2.0, 0.5, -0.25, 1.0, None, 150.0],
            "analysis_departure": [0.5, -0.75, 0.25, 0.0, 0.5, None, 50.0],
            "hofx_background": [279.0, 281.0, 274.5, 250.25, 219.0, None, 101_150.0],
            "rejected_by": [None, "background_check", None, None, "withheld", "bounds", None],
        }
    )  # fmt: skip


def many(length: int) -> pa.Table:
    """Random places all over the globe."""
    rng = np.random.default_rng(5)
    departure = rng.normal(0.0, 1.0, length)
    return table_of(
        {
            "report_type": ["aircraft"] * length,
            "station_id": ["A"] * length,
            "lat": np.degrees(np.arcsin(rng.uniform(-1, 1, length))),
            "lon": rng.uniform(-180, 180, length),
            "variable": ["temperature"] * length,
            "vertical_kind": ["pressure"] * length,
            "vertical": np.full(length, 25_000.0),
            "obs_value": 220.0 + departure,
            "obs_error": np.full(length, 1.0),
            "background_departure": departure,
            "analysis_departure": departure / 2,
        }
    )
