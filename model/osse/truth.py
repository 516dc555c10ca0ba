"""Where a simulated truth comes from: the case beside the weights, or any store of states."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.load import resolve
from model.domain.errors import InvalidInput
from model.latent_model import LatentModel
from model.osse.case import CASE_NAME
from model.training.datasets import StateStore

__all__ = ["Truth", "analysis_times", "open_truth"]


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
        """Physical states (count, C, Y, X) from `first` on, hourly.

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
    """The truth at `url` between two times, or the case that ships with the checkpoint.

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
    """Up to `count` analysis times over what the truth allows, at changing hours of the day.

    There are fewer where their windows would overlap.

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
