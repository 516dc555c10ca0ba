"""Small worlds to observe: grids, states of plausible size, and observation tables."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch

from model.domain.grids import Grid
from model.domain.observations import OBSERVATION_SCHEMA, validate_table
from model.domain.physics import height_of_pressure
from model.domain.variables import LEVELS_T31, channels
from model.operators.base import Statics

GRIDS = {
    "regular": Grid("r9", "regular", 9, 16),
    "gaussian": Grid("g8", "gaussian", 8, 16),
}
CHANNELS = channels(LEVELS_T31)
FIRST = datetime(2021, 2, 28, 22, tzinfo=UTC)
LENGTH = 4
TIMES = tuple(FIRST + timedelta(hours=i) for i in range(LENGTH))

_MEAN = {
    "2m_temperature": 285.0,
    "mean_sea_level_pressure": 101_000.0,
    "sea_surface_temperature": 290.0,
    "temperature": 250.0,
    "specific_humidity": 4e-3,
    "total_precipitation": 1e-3,
}
_SPREAD = {
    "mean_sea_level_pressure": 800.0,
    "specific_humidity": 1e-3,
    "total_precipitation": 3e-4,
    "geopotential": 500.0,
}


def statics(grid: Grid) -> Statics:
    rng = np.random.default_rng(1)
    weights = np.linspace(1, 2, len(LEVELS_T31))
    return Statics(
        orography=rng.uniform(0, 800, grid.shape),
        land_sea_mask=(rng.uniform(size=grid.shape) > 0.7).astype(float),
        weighting_functions={5: weights / weights.sum(), 6: weights[::-1] / weights.sum()},
    )


def index(variable: str, level: int | None = None) -> int:
    return next(i for i, c in enumerate(CHANNELS) if c.variable == variable and c.level == level)


def scales() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of each channel, with shape (C, 1, 1), float64."""
    mean, spread = [], []
    for c in CHANNELS:
        value = _MEAN.get(c.variable, 0.0)
        if c.variable == "geopotential":
            value = 9.80665 * float(height_of_pressure(np.array(100.0 * c.level)))
        mean.append(value)
        spread.append(_SPREAD.get(c.variable, 8.0))
    shape = (-1, 1, 1)
    return torch.tensor(mean).double().view(shape), torch.tensor(spread).double().view(shape)


def random_states(grid: Grid, *lead: int, seed: int = 0, length: int = LENGTH) -> torch.Tensor:
    mean, spread = scales()
    noise = torch.randn(
        *lead,
        length,
        len(CHANNELS),
        *grid.shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    return mean + spread * noise


def table(columns: dict) -> pa.Table:
    """An observation table from the columns that matter; the rest is filled in."""
    count = len(columns["variable"])
    hours = np.asarray(columns.pop("hours", np.zeros(count)), dtype=float)
    start = np.datetime64(FIRST.replace(tzinfo=None), "ns")
    stamps = start + np.round(hours * 3.6e12).astype("timedelta64[ns]")
    base = {
        "observation_id": np.arange(count),
        "batch_id": ["b"] * count,
        "report_type": ["other"] * count,
        "station_id": ["s"] * count,
        "station_alias": [None] * count,
        "platform": [None] * count,
        "time": pa.array(stamps, pa.timestamp("ns")),
        "received_time": pa.array(stamps, pa.timestamp("ns")),
        "lat": np.zeros(count),
        "lon": np.zeros(count),
        "elevation": [None] * count,
        "vertical_kind": ["surface"] * count,
        "vertical": [None] * count,
        "vertical_top": [None] * count,
        "scan_angle": [None] * count,
        "obs_value": np.zeros(count),
        "obs_error": np.ones(count),
        "profile_id": [None] * count,
        "update_sequence": [None] * count,
        "message_offset": [None] * count,
        "rejected_by": pa.array([None] * count, pa.string()),
        "qc_flag": np.zeros(count, dtype=np.uint8),
    } | columns
    arrays = []
    for field in OBSERVATION_SCHEMA:
        values = base[field.name]
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        column = values if isinstance(values, pa.Array) else pa.array(values)
        arrays.append(column.cast(plain).cast(field.type))
    return validate_table(
        pa.table(
            arrays,
            schema=pa.schema(
                [(f.name, a.type) for f, a in zip(OBSERVATION_SCHEMA, arrays, strict=True)]
            ),
        )
    )
