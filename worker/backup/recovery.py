"""Rebuild what Redis held from the data folder, in one go: after a server lost all its data.

A running scheduler does the same by itself, step by step (`worker.archivist`, `Reconciler` in
`worker.scheduler`); this does all steps at once, waits for what is too young to be judged, and tells
what came back. It may run beside the system: every step is atomic and may be repeated.

What is on disk: uploads (`raw/`) with what was said about each, their rows in the observation store,
results with their manifests, and in `records.sqlite` jobs, cycles and webhooks.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum

from model.domain.errors import StorageError
from worker.archivist import AnyStore, Archivist
from worker.contract.batches import BatchState
from worker.contract.cycles import CycleState
from worker.contract.jobs import JobState
from worker.contract.layout import Layout
from worker.contract.queues import TaskSender
from worker.contract.store import Stores
from worker.results.catalogue import Catalogue
from worker.scheduler import Reconciler

__all__ = ["Recovered", "recover"]

_PAUSE = 0.5


@dataclass
class Recovered:
    """What an installation has after a recovery.

    Attributes:
        results: Published results in the catalogue.
        unreadable: Folders among them that hold no result, with the reason.
        uploads: Uploads with a record, by state.
        jobs: Jobs, by state.
        cycles: Cycles, by state.
        webhooks: Subscriptions.
        restored: Records that were brought back now, by noun.
        unusable: Uploads on disk of which no record can be made.
        young: Uploads and jobs that were still too young at the end: the scheduler brings them.
    """

    results: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    cycles: dict[str, int] = field(default_factory=dict)
    webhooks: int = 0
    restored: dict[str, int] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    young: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not (self.unreadable or self.unusable or self.young)


def recover(
    layout: Layout, stores: Stores, sender: TaskSender, *, grace_seconds: float = 30.0
) -> Recovered:
    """Make records of all that the data folder holds, and the catalogue of results anew.

    Arguments:
        layout: The data folder.
        stores: All records, with the archive of the data folder.
        sender: Sends the messages of uploads and jobs that had not ended.
        grace_seconds: Younger uploads and jobs may be on their way from a gateway's disk to Redis;
            they are waited for. 0 where no gateway runs.

    Raises:
        StorageError: If there is no data folder, or it cannot be read or written.
        RedisError: If the server does not answer.
    """
    if not layout.raw.is_dir():
        raise StorageError(f"Expected the data folder of an installation; got '{layout.root}'.")
    records: tuple[AnyStore, ...] = (stores.batches, stores.jobs, stores.cycles)
    before = {store.noun: _in_redis(store) for store in records}
    found = Recovered()
    with Catalogue(layout) as catalogue:
        found.results = catalogue.rebuild()
        found.unreadable = catalogue.unreadable()
    archivist = Archivist(stores, layout, sender, every=0.0, just_written_seconds=grace_seconds)
    reconciler = Reconciler(layout, stores, sender, 0.0, grace_seconds, float("inf"))
    end = time.monotonic() + grace_seconds + 1.0
    while (young := archivist.recover() + len(reconciler.recover())) and time.monotonic() < end:
        time.sleep(_PAUSE)
    found.young, found.unusable = young, reconciler.unusable
    found.restored = {store.noun: _in_redis(store) - before[store.noun] for store in records}
    found.uploads = _by_state(stores.batches, BatchState)
    found.jobs = _by_state(stores.jobs, JobState)
    found.cycles = _by_state(stores.cycles, CycleState)
    found.webhooks = int(stores.redis.hlen(stores.keys.webhooks))
    return found


def _in_redis(store: AnyStore) -> int:
    return int(store.redis.zcard(f"{store.keys.index(store.noun)}:all"))


def _by_state(store: AnyStore, states: type[StrEnum]) -> dict[str, int]:
    counts = {state.value: store.count(state.value) for state in states}
    return {state: count for state, count in counts.items() if count}
