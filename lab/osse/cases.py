"""Open a simulated truth, and observe one window of it: the input of every method that is scored.

A truth is the case beside the weights, or any store of states. A case is a few days of simulated
truth in one small file. Values are rounded to a fraction of their channel's standard deviation,
far below the errors of any observation, and stored as hourly differences, which are small
integers and compress well.
"""

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xarray as xr
from numcodecs import BitRound, Blosc, Delta, FixedScaleOffset
from torch import Tensor

from lab.osse.network import Network, simulate_observations, withhold_stations
from lab.training.datasets import STATIC_NAMES, StateStore
from model.checkpoints.bundle import resolve
from model.diagnostics.equivalents import observation_set
from model.domain.errors import InvalidInput
from model.domain.variables import VARIABLES
from model.domain.windows import HOUR
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet

__all__ = [
    "CASE_NAME",
    "ObservedCase",
    "ReadTruth",
    "Truth",
    "analysis_times",
    "observe_case",
    "observe_hour",
    "open_truth",
    "restored_withheld",
    "write_case",
]

CASE_NAME = "osse_case.zarr.zip"
"""File name within a checkpoint bundle."""

STEPS_PER_STD = 100.0
"""Quantisation: 100 steps per standard deviation leave a standardised RMSE of 0.003."""

MANTISSA_BITS = 7
"""Mantissa bits stored of humidity and rain, whose errors are fractions of their value (0.4 % at most)."""


def write_case(
    source: xr.Dataset, variables: Sequence[str], levels: Sequence[int], path: Path
) -> None:
    """Write all times of `source` to a zarr store in a zip file.

    Arguments:
        source: A WeatherBench2-layout dataset, cut to the times wanted.
        variables: Ids of the variables to keep; static fields are kept too.
        levels: Pressure levels in hPa.
        path: Of the file; replaced atomically.
    """
    dataset = source[[*variables, *(n for n, _ in STATIC_NAMES.values() if n in source)]]
    dataset = dataset.sel(level=list(levels)).load()
    encoding = {}
    for name in variables:
        # Time runs fastest, so that differences along the stored array are hourly changes.
        dataset[name] = dataset[name].transpose(..., "time")
        encoding[name] = _encoding(dataset[name])
    for variable in dataset.variables.values():
        variable.encoding.clear()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        dataset.to_zarr(f"{folder}/store", zarr_format=2, encoding=encoding, consolidated=False)
        # Already compressed: the zip is only a container.
        with zipfile.ZipFile(f"{folder}/zip", "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(Path(folder, "store").rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(Path(folder, "store")))
        Path(folder, "zip").replace(path)


def _encoding(array: xr.DataArray) -> dict[str, object]:
    values = array.values
    chunks = tuple(1 if d == "level" else n for d, n in zip(array.dims, array.shape, strict=True))
    compressor = Blosc("zstd", clevel=7, shuffle=Blosc.BITSHUFFLE)
    if np.isnan(values).any():
        # Undefined on land, and slowly varying: plain compression suffices.
        return {"chunks": chunks, "compressors": (compressor,)}
    if VARIABLES[str(array.name)].nonnegative:
        filters = [BitRound(MANTISSA_BITS)]
        return {"chunks": chunks, "compressors": (compressor,), "filters": filters}
    # One step per variable: the level of least variance decides.
    axes = tuple(i for i, d in enumerate(array.dims) if d != "level")
    step = float(np.min(values.astype(np.float64).std(axis=axes))) / STEPS_PER_STD
    offset = float(np.round(values.mean() / step) * step)
    filters = [
        FixedScaleOffset(offset=offset, scale=1 / step, dtype="f4", astype="i4"),
        Delta(dtype="i4"),
    ]
    return {"chunks": chunks, "compressors": (compressor,), "filters": filters}


class Truth:
    """States by valid time.

    Arguments:
        store: Holds consecutive hours.
        first: Earliest valid time used (UTC); None for the store's first.
        last: Latest valid time used (UTC); None for the store's last.

    Raises:
        InvalidInput: If the store has nothing in this period.
    """

    def __init__(
        self, store: StateStore, first: datetime | None = None, last: datetime | None = None
    ) -> None:
        self.store = store
        inside = np.ones(len(store), dtype=bool)
        if first is not None:
            inside &= store.times >= _naive(first)
        if last is not None:
            inside &= store.times <= _naive(last)
        self._used = store.times[inside]
        if not len(self._used):
            raise InvalidInput(
                f"Expected states between {first} and {last} in {store.url}; it holds "
                f"{store.times[0]} to {store.times[-1]}."
            )

    @property
    def span(self) -> tuple[datetime, datetime]:
        """First and last valid time, UTC."""
        times = self._used[[0, -1]].astype("datetime64[s]").astype(int)
        first, last = (datetime.fromtimestamp(int(t), UTC) for t in times)
        return first, last

    def __call__(self, first: datetime, count: int) -> Tensor:
        """Return physical states (count, C, Y, X) from `first` on, hourly.

        Raises:
            InvalidInput: If the store does not hold all of these hours.
        """
        wanted = _naive(first)
        start = int(np.searchsorted(self.store.times, wanted))
        times = self.store.times[start : start + count]
        hours = wanted + np.arange(count).astype("timedelta64[h]")
        if len(times) < count or (times != hours).any():
            low, high = self.span
            raise InvalidInput(
                f"Expected {count} hourly states from {first.isoformat()} in {self.store.url}; it "
                f"holds {low.isoformat()} to {high.isoformat()}."
            )
        return torch.from_numpy(self.store.read(slice(start, start + count)))


def _naive(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None))


def open_truth(
    model: LatentModel,
    checkpoint: str | Path,
    url: str | None = None,
    first: datetime | None = None,
    last: datetime | None = None,
) -> Truth:
    """Return the truth at `url` between two times, or the case that ships with the checkpoint.

    Raises:
        InvalidInput: If there is none, or it lies on another grid.
    """
    if url is None:
        path = resolve(checkpoint) / CASE_NAME
        if not path.exists():
            raise InvalidInput(
                f"Expected a simulated truth: the checkpoint has no {CASE_NAME}. Name a store of "
                "states, such as a nature run."
            )
        url = str(path)
    store = StateStore(url, model.channels)
    store.check_grid(model.grid)
    return Truth(store, first, last)


def analysis_times(truth: Truth, window: int, lead: int, count: int) -> list[datetime]:
    """Return up to `count` analysis times, spread over the truth, at different hours of the day.

    There are fewer if their windows would overlap.

    Raises:
        InvalidInput: If the truth is too short for one.
    """
    first, last = truth.span
    first, last = first + timedelta(hours=window - 1), last - timedelta(hours=lead)
    if last < first:
        raise InvalidInput(
            f"Expected at least {window + lead} hours of truth; got {truth.span[0].isoformat()} to "
            f"{truth.span[1].isoformat()}."
        )
    hours = int((last - first).total_seconds() // 3600)
    count = min(count, 1 + hours // window)
    chosen = np.linspace(0, hours, count).astype(int)
    # A step of 7 hours between starts visits all hours of the day, where there is room for it.
    room = hours > 48 * count
    moved = [min(int(h) + (7 * i) % 24 * room, hours) for i, h in enumerate(chosen)]
    return [first + timedelta(hours=h) for h in moved]


def restored_withheld(table: pa.Table) -> pa.Table:
    """Return the withheld rows, with their rejection removed."""
    rejected = pc.equal(table["rejected_by"].cast(pa.string()), "withheld")
    rows = table.filter(pc.fill_null(rejected, False))
    place = rows.schema.get_field_index("rejected_by")
    field = rows.schema.field(place)
    return rows.set_column(place, field, pa.nulls(rows.num_rows, field.type))


ReadTruth = Callable[[datetime, int], Tensor]
"""(first time UTC, count) -> physical states (count, C, Y, X), NaN where undefined."""


@dataclass(frozen=True)
class ObservedCase:
    """A window that ends at `end`, the hour after it, and the truth up to the lead time.

    Attributes:
        model: The checkpoint.
        end: Analysis time (UTC).
        window: W, hours of observations.
        truth: Physical states from the first of the window on, at least W + 1 of them, with shape
            (T, C, Y, X).
        table: Observations of W + 1 hours; those of withheld stations are rejected.
    """

    model: LatentModel
    end: datetime
    window: int
    truth: Tensor
    table: pa.Table

    @property
    def last(self) -> Tensor:
        """The true state (C, Y, X) at `end`."""
        return self.truth[self.window - 1]

    @property
    def middle(self) -> int:
        """Position in the window of its middle state."""
        return self.window // 2

    def times(self, later: int = 0) -> list[datetime]:
        """Return valid times of the window that ends `later` hours after `end`."""
        first = self.end - (self.window - 1 - later) * HOUR
        return [first + i * HOUR for i in range(self.window)]

    def known(self, later: int = 0) -> pa.Table:
        """Return observations up to `later` hours after `end`: nothing comes from the future."""
        latest = np.datetime64((self.end + later * HOUR).astimezone(UTC).replace(tzinfo=None))
        return self.table.filter(pa.array(self.table["time"].to_numpy() <= latest))

    def observations(self, later: int = 0) -> ObservationSet:
        """Return the observations that the window ending `later` hours after `end` assimilates."""
        return self._set(self.known(later), later)[0]

    def withheld(self) -> tuple[ObservationSet, pa.Table]:
        """Return observations of withheld stations in the window, and their rows of the table."""
        found, table = self._set(restored_withheld(self.known()), 0)
        return found, table.take(pa.array(found.rows))

    def _set(self, table: pa.Table, later: int) -> tuple[ObservationSet, pa.Table]:
        return observation_set(table, self.model, self.times(later))


def observe_case(
    model: LatentModel,
    truth_at: ReadTruth,
    end: datetime,
    window: int,
    lead: int,
    network: Network,
    seed: int,
    withhold: float,
) -> ObservedCase:
    """Observe the truth of a window and of the hour after it.

    Arguments:
        model: The checkpoint.
        truth_at: Reads the truth.
        end: Analysis time (UTC).
        window: Hours of observations.
        lead: Hours of truth after `end`, beyond the first.
        network: The simulated observing network.
        seed: Of the errors; the analysis time is added, so that each start has its own.
        withhold: Share of the surface stations and radiosondes that is left out: by their names,
            the same ones at every start.
    """
    first = end - (window - 1) * HOUR
    truth = truth_at(first, window + max(lead, 1))
    table = simulate_observations(
        torch.nan_to_num(truth[: window + 1], nan=273.0),
        model.grid,
        model.channels,
        [first + i * HOUR for i in range(window + 1)],
        seed + int(end.timestamp()) // 3600,
        statics=model.statics,
        network=network,
    )
    return ObservedCase(model, end, window, truth, withhold_stations(table, withhold, seed))


def observe_hour(
    model: LatentModel,
    truth_at: ReadTruth,
    end: datetime,
    network: Network,
    seed: int,
    withhold: float,
) -> pa.Table:
    """Return the reports of the hour up to `end`: the same in every window that holds it.

    Arguments as in `observe_case`.
    """
    table = simulate_observations(
        torch.nan_to_num(truth_at(end - HOUR, 2), nan=273.0),
        model.grid,
        model.channels,
        [end - HOUR, end],
        seed + int(end.timestamp()) // 3600,
        statics=model.statics,
        network=network,
    )
    times, last = table["time"].to_numpy(), np.datetime64(end.replace(tzinfo=None))
    new = (times > last - np.timedelta64(1, "h")) & (times <= last)
    return withhold_stations(table.filter(pa.array(new)), withhold, seed)
