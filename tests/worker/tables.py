"""Small observation tables for tests."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.checkpoints.bundle import load_checkpoint
from model.domain.observations import validate_table
from worker.contract.layout import Layout
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore

RECEIVED = datetime(2024, 1, 1, 12, 30, tzinfo=UTC)


def make_table(
    length: int, *, batch_id: str = "b1", received: datetime = RECEIVED, **columns: Any
) -> pa.Table:
    """A clean table of synop temperatures at 12 UTC; any column can be replaced."""
    values = {
        "report_type": "synop",
        "station_id": [f"{i:05d}" for i in range(length)],
        "time": np.datetime64("2024-01-01T12:00", "ns"),
        "lat": np.linspace(-60.0, 60.0, length),
        "lon": np.linspace(-170.0, 170.0, length),
        "elevation": 0.0,
        "vertical_kind": "surface",
        "variable": "2m_temperature",
        "obs_value": np.full(length, 285.0),
        **columns,
    }
    context = DecodeContext(batch_id=batch_id, received_time=received)
    return validate_table(build_table(context, length, **values))


def store_observations(data: Path, checkpoint: Path, count: int = 30) -> None:
    """Put observations that agree with the mean of a checkpoint's climate into a new data folder."""
    mean = float(load_checkpoint(checkpoint).state_normalisation.mean[0])
    table = assign_errors(make_table(count, obs_value=np.full(count, mean)))
    store = ObservationStore(str(Layout(data).create().observations))
    store.publish(table, "b1", RECEIVED)
