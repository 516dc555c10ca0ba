"""Open all stores in Redis over one connection pool, and measure the length and age of queues.

Beside records there are small counters: usage of each API key (`worker.contract.usage`) and what
retention has removed so far (shown on `/metrics`).

Queued jobs and uploads are records. One that waits for a retry is counted, but its waiting time
starts at the time of the retry. Results to be announced are messages of the broker, which carry the
time at which they were sent.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis

from worker.contract import clock
from worker.contract.archive import RecordArchive
from worker.contract.batches import BatchStore, Lane, lane_of
from worker.contract.cycles import CycleStore
from worker.contract.events import EventLog
from worker.contract.feeds import StatusBoard
from worker.contract.jobs import JobStore
from worker.contract.layout import Layout
from worker.contract.parts import PartStore
from worker.contract.queues import (
    GPU_QUEUE,
    INGEST_LARGE_QUEUE,
    INGEST_QUEUE,
    PRIORITIES,
    PRODUCTS_QUEUE,
    SENT_HEADER,
    WorkerDirectory,
)
from worker.contract.records import utc_now
from worker.contract.redis_server import Keyspace, connect
from worker.contract.usage import TokenBuckets, UsageCounters
from worker.contract.webhook_store import WebhookStore

__all__ = [
    "Removed",
    "RetentionFigures",
    "Stores",
    "Waiting",
    "open_stores",
    "waiting",
]


_LAST = "last_run"


@dataclass(frozen=True)
class Removed:
    """What retention has removed so far, over all runs.

    Attributes:
        items: Number of items removed, by type.
        size: Bytes freed, by type.
        last_run: Seconds since 1970; None before the first run.
    """

    items: Mapping[str, int]
    size: Mapping[str, int]
    last_run: float | None


@dataclass(frozen=True)
class RetentionFigures:
    """One hash: `items:<what>`, `bytes:<what>` and the time of the last run."""

    redis: Redis
    keys: Keyspace

    def add(self, what: str, size: int) -> None:
        """Count one removed item of type `what`, and its size in bytes."""
        pipe = self.redis.pipeline()
        pipe.hincrby(self.keys.retention, f"items:{what}", 1)
        pipe.hincrby(self.keys.retention, f"bytes:{what}", size)
        pipe.execute()

    def ran(self, when: float) -> None:
        """Store the time of a finished run, in seconds since 1970."""
        self.redis.hset(self.keys.retention, _LAST, str(when))

    def read(self) -> Removed:
        """Return what was removed so far, and when retention last ran."""
        found: Any = self.redis.hgetall(self.keys.retention)
        last = found.pop(_LAST, None)
        parts = {"items": {}, "bytes": {}}  # type: dict[str, dict[str, int]]
        for name, value in found.items():
            sort, _, what = str(name).partition(":")
            parts[sort][what] = int(value)
        return Removed(parts["items"], parts["bytes"], None if last is None else float(last))


@dataclass(frozen=True)
class Stores:
    """All that is kept in Redis, over one connection pool."""

    redis: Redis
    keys: Keyspace
    jobs: JobStore
    batches: BatchStore
    workers: WorkerDirectory
    rates: TokenBuckets
    usage: UsageCounters
    cycles: CycleStore
    events: EventLog
    webhooks: WebhookStore
    sources: StatusBoard
    parts: PartStore
    archive: RecordArchive | None = None


def open_stores(url: str, prefix: str = "appa", layout: Layout | None = None) -> Stores:
    """Return the stores on the Redis server at `url` (`redis://…` or `unix://…`).

    No connection is made before the first call; calls are retried for some seconds while the server
    restarts.

    Arguments:
        url: The server.
        prefix: Put before every key.
        layout: The data folder with the records that have left Redis; without it only those in
            Redis are known.
    """
    redis = connect(url)
    keys = Keyspace(prefix)
    events = EventLog(redis, keys)
    archive = None if layout is None else RecordArchive(layout)
    return Stores(
        redis,
        keys,
        JobStore(redis, keys, archive),
        BatchStore(redis, keys, archive),
        WorkerDirectory(redis, keys),
        TokenBuckets(redis, keys),
        UsageCounters(redis, keys),
        CycleStore(redis, keys, archive),
        events,
        WebhookStore(redis, keys, events),
        StatusBoard(redis, keys),
        PartStore(redis, keys),
        archive,
    )


_CHUNK = 1_000
_LANES = {Lane.SMALL: INGEST_QUEUE, Lane.LARGE: INGEST_LARGE_QUEUE}


@dataclass
class Waiting:
    """Length and age of a queue.

    Attributes:
        length: Number of jobs, uploads or messages.
        oldest_seconds: Waiting time of the oldest; 0 if the queue is empty.
    """

    length: int = 0
    oldest_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one entry that has waited for `seconds`."""
        self.length += 1
        self.oldest_seconds = max(self.oldest_seconds, seconds)


def waiting(stores: Stores) -> dict[str, Waiting]:
    """Return the length and age of each queue.

    Raises:
        RedisError: If the server cannot be reached.
    """
    found = {
        GPU_QUEUE: Waiting(),
        INGEST_QUEUE: Waiting(),
        INGEST_LARGE_QUEUE: Waiting(),
        PRODUCTS_QUEUE: _messages(stores.redis, stores.keys, PRODUCTS_QUEUE),
    }
    now = utc_now()
    for created, retry_at in _fields(stores.jobs, "created", "retry_at"):
        found[GPU_QUEUE].add(_waited(created, retry_at, now))
    arrived_by = clock.now()  # uploads are dated by the operational clock
    for created, retry_at, size, container in _fields(
        stores.batches, "created", "retry_at", "size", "container"
    ):
        queue = found[_LANES[lane_of(size, container)]]
        if retry_at:
            queue.add(_waited(retry_at, None, now))
        else:
            queue.add(_waited(created, None, arrived_by) / clock.speed())
    return found


def _waited(created: str, retry_at: str | None, now: datetime) -> float:
    return max(0.0, (now - datetime.fromisoformat(retry_at or created)).total_seconds())


def _fields(store: JobStore | BatchStore, *names: str) -> Iterator[list[Any]]:
    """Yield fields of all records that wait."""
    ids = store.ids(store.waiting)
    for first in range(0, len(ids), _CHUNK):
        pipe = store.redis.pipeline(transaction=False)
        for record_id in ids[first : first + _CHUNK]:
            pipe.hmget(store.keys.record(store.noun, record_id), names)
        for values in pipe.execute():
            if values[0] is not None:  # removed meanwhile
                yield [None if value is None else json.loads(value) for value in values]


def _messages(redis: "Redis", keys: Keyspace, queue: str) -> Waiting:
    """Measure a queue by kombu's message lists, one for each priority."""
    stem = f"{keys.prefix}:broker:{queue}"
    found = Waiting()
    for priority in PRIORITIES:
        name = f"{stem}\x06\x16{priority}" if priority else stem
        length: Any = redis.llen(name)
        oldest: Any = redis.lindex(name, -1)
        found.length += length
        sent = json.loads(oldest).get("headers", {}).get(SENT_HEADER) if oldest else None
        if sent:
            found.oldest_seconds = max(found.oldest_seconds, _waited(sent, None, utc_now()))
    return found
