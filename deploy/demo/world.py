"""The simulated world of the demo: its truth, and what is observed of it, hour by hour, as files."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.checkpoints.card import CARD_NAME, Card, read_card
from model.checkpoints.load import resolve
from model.domain.grids import Grid
from model.operators.domain import Statics
from model.osse.case import CASE_NAME
from model.osse.network import Network, simulate_observations
from model.osse.truth import Truth
from model.training.datasets import StateStore
from worker.encoders.bufr.encode import encode_bufr

__all__ = ["ObservationFile", "World", "observation_files", "real_soundings"]

BUFR_TYPES = ("synop", "ship", "temp", "aircraft", "scatterometer")
NETWORK = Network(stations=400, scan_lines=20, aircraft=200, scatterometer_lines=20)
"""Less than the network of the skill tests, so that the demo ends in minutes."""
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class ObservationFile:
    """What a centre would send."""

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
        """The true state (C, Y, X) in SI units."""
        return self.truth(time, 1)[0]

    def observe(self, end: datetime, hours: int, seed: int = 0) -> pa.Table:
        """Simulated observations of the `hours` hours up to `end`."""
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
    """A BUFR file of all conventional reports, and a Parquet file of the sounder's retrievals."""
    messages = [encode_bufr(table, kind) for kind in BUFR_TYPES]
    types = table["report_type"].cast(pa.string())
    retrievals = table.filter(pc.equal(types, "satellite"))
    yield ObservationFile(f"{label}.bufr", b"".join(messages), table.num_rows - retrievals.num_rows)
    buffer = io.BytesIO()
    # Identity and arrival are the receiver's to decide.
    own = ["observation_id", "batch_id", "received_time", "rejected_by", "qc_flag"]
    pq.write_table(retrievals.drop_columns(own), buffer)
    yield ObservationFile(f"{label}-sounder.parquet", buffer.getvalue(), retrievals.num_rows)


def real_soundings(start: Path) -> Path | None:
    """A file of real radiosonde reports beside the repository, if there is one."""
    path = start / "bufr" / "upperair_sonde_wind" / "pdbufr__temp.bufr"
    return path if path.exists() else None
