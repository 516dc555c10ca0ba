"""Simulate the world of the demo: its truth, its observations hour by hour as files, errors against it.

Errors are given per quantity in its unit, and over all channels.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from lab.encoders.bufr import encode_bufr
from lab.osse.cases import CASE_NAME, Truth
from lab.osse.network import Network, simulate_observations
from lab.training.datasets import StateStore
from model.card import CARD_NAME, Card, read_card
from model.checkpoints.bundle import resolve
from model.diagnostics.scores import rmse
from model.domain.grids import Grid
from model.domain.physics import GRAVITY
from model.domain.variables import VARIABLES, Channel
from model.domain.windows import HOUR
from model.operators.base import Statics

__all__ = [
    "StateErrors",
    "ObservationFile",
    "SHOWN",
    "Scorer",
    "World",
    "channel_fields",
    "observation_files",
    "real_soundings",
]

BUFR_TYPES = ("synop", "ship", "temp", "aircraft", "scatterometer")
NETWORK = Network(stations=400, scan_lines=20, aircraft=200, scatterometer_lines=20)
"""Smaller than the network of the skill tests, so that the demo ends in minutes."""


@dataclass(frozen=True)
class ObservationFile:
    """One file of reports, as a data centre would send it."""

    name: str
    content: bytes
    reports: int


class World:
    """Truth and observations.

    Arguments:
        checkpoint: Name or folder of the checkpoint whose case is used.
        truth: A store of states instead of the case that ships.
    """

    def __init__(self, checkpoint: str, truth: str | None = None) -> None:
        folder = resolve(checkpoint)
        self.card: Card = read_card(folder / CARD_NAME)
        self.grid: Grid = self.card.grid.grid()
        self.channels = self.card.parsed_channels()
        store = StateStore(truth or str(folder / CASE_NAME), self.channels)
        store.check_grid(self.grid)
        self.truth = Truth(store)
        fields = {name: value.astype(float) for name, value in store.static().items()}
        self.statics = Statics(fields.get("orography"), fields.get("land_sea_mask"))

    @property
    def span(self) -> tuple[datetime, datetime]:
        """First and last time of the truth."""
        return self.truth.span

    def state(self, time: datetime) -> Tensor:
        """Return the true state (C, Y, X) in SI units."""
        return self.truth(time, 1)[0]

    def observe(self, end: datetime, hours: int, seed: int = 0) -> pa.Table:
        """Simulate observations of the `hours` hours up to `end`."""
        first = end - (hours - 1) * HOUR
        truth = torch.nan_to_num(self.truth(first, hours), nan=273.0)
        times = [first + i * HOUR for i in range(hours)]
        return simulate_observations(
            truth,
            self.grid,
            self.channels,
            times,
            seed + int(end.timestamp()) // 3600,
            statics=self.statics,
            network=NETWORK,
        )


def observation_files(table: pa.Table, label: str) -> Iterator[ObservationFile]:
    """Yield a BUFR file of conventional reports and a Parquet file of the sounder's retrievals."""
    messages = [encode_bufr(table, kind) for kind in BUFR_TYPES]
    types = table["report_type"].cast(pa.string())
    retrievals = table.filter(pc.equal(types, "satellite"))
    yield ObservationFile(f"{label}.bufr", b"".join(messages), table.num_rows - retrievals.num_rows)
    buffer = io.BytesIO()
    # The receiver sets these: identity, arrival and flags.
    own = ["observation_id", "batch_id", "received_time", "rejected_by", "qc_flag"]
    pq.write_table(retrievals.drop_columns(own), buffer)
    yield ObservationFile(f"{label}-sounder.parquet", buffer.getvalue(), retrievals.num_rows)


def real_soundings(start: Path) -> Path | None:
    """Return the file of real radiosonde reports below `start`, if there is one."""
    path = start / "bufr" / "upperair_sonde_wind" / "pdbufr__temp.bufr"
    return path if path.exists() else None


SHOWN: tuple[tuple[str, str, str, float], ...] = (
    ("t2m", "2m_temperature", "K", 1.0),
    ("msl", "mean_sea_level_pressure", "hPa", 0.01),
    ("z500", "geopotential_500hPa", "m", 1 / GRAVITY),
    ("t850", "temperature_850hPa", "K", 1.0),
    ("u300", "u_component_of_wind_300hPa", "m/s", 1.0),
)
"""Column, channel, unit and factor to it."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class StateErrors:
    """Root mean square errors against the truth.

    Attributes:
        standardised: Mean over channels, in standard deviations of each.
        shown: In physical units, by column of `SHOWN`.
    """

    standardised: float
    shown: dict[str, float]


class Scorer:
    """Score fields against the truth.

    Arguments:
        grid: Of all fields.
        channels: C channels, in order.
        std: Standard deviation of each, with shape (C,).
    """

    def __init__(self, grid: Grid, channels: Sequence[Channel], std: torch.Tensor) -> None:
        self.grid = grid
        self.names = [c.name for c in channels]
        self.std = std.double().flatten().cpu()

    def __call__(self, fields: Array | torch.Tensor, truth: Array | torch.Tensor) -> StateErrors:
        """Score fields (C, Y, X) against the truth (C, Y, X); NaN cells of the truth are left out."""
        exact = torch.as_tensor(truth)
        values = torch.where(torch.isnan(exact), torch.nan, torch.as_tensor(fields))
        error = rmse(values, exact, self.grid)
        shown = {
            column: float(error[self.names.index(channel)]) * factor
            for column, channel, _, factor in SHOWN
        }
        return StateErrors(float((error / self.std).mean()), shown)


def channel_fields(dataset: xr.Dataset, channels: Sequence[Channel], time: int = 0) -> Array:
    """Return the ensemble mean of a result file at one of its times, with shape (C, Y, X)."""
    fields = []
    for channel in channels:
        name = f"{VARIABLES[channel.variable].short}_mean"
        field = dataset[name].isel(time=time)
        if channel.level is not None:
            field = field.sel(air_pressure=100.0 * channel.level)
        fields.append(field.values)
    return np.stack(fields).astype(np.float32)
