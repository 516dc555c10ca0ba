"""Look at the queues: how much waits in each, and for how long the oldest has waited.

Jobs and uploads wait as records. One that waits for a retry is counted, but not late before the
time of that. Results wait to be announced as messages of the broker, which carry the time at which
they were sent.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis

from worker.contract import clock
from worker.contract.batches import BatchStore, Lane, lane_of
from worker.contract.jobs import JobStore
from worker.contract.queues import (
    GPU_QUEUE,
    INGEST_LARGE_QUEUE,
    INGEST_QUEUE,
    PRIORITIES,
    PRODUCTS_QUEUE,
    SENT_HEADER,
)
from worker.contract.records import utc_now
from worker.contract.redis_server import Keyspace
from worker.contract.store import Stores

__all__ = ["Waiting", "waiting"]

_CHUNK = 1_000
_LANES = {Lane.SMALL: INGEST_QUEUE, Lane.LARGE: INGEST_LARGE_QUEUE}


@dataclass
class Waiting:
    """What waits in a queue.

    Attributes:
        length: Jobs, uploads or messages.
        oldest_seconds: How long the oldest has waited; 0 without any.
    """

    length: int = 0
    oldest_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one that has waited for so long."""
        self.length += 1
        self.oldest_seconds = max(self.oldest_seconds, seconds)


def waiting(stores: Stores) -> dict[str, Waiting]:
    """Return what waits in each queue.

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
    """Return what the lists hold in which kombu keeps the messages of a queue, by priority."""
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
