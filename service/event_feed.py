"""Fan out the events of jobs to many listeners, with one subscription per gateway process.

Missed events are read back from the job's capped stream, so that a listener can resume after the
last event it saw.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from worker.contract.events import STREAM_START, StreamId
from worker.contract.redis_server import Keyspace

__all__ = ["Event", "EventFeed"]


@dataclass(frozen=True)
class Event:
    """One event: `id` orders the events of a record; `type` is `state` or `progress`."""

    id: str
    type: str
    data: dict[str, Any]

    @property
    def order(self) -> StreamId:
        """Return the event id in a form that sorts by age."""
        return StreamId.parse(self.id)


class _Waiting(asyncio.Queue[Event]):
    """Queue of events for one listener; when full, the oldest are dropped and the loss is recorded."""

    overflowed = False


class EventFeed:
    """Follows records; `start` before use, `stop` at the end.

    Arguments:
        url: Redis URL.
        keys: Key names.
        queue_size: Events kept for a slow listener; beyond it the oldest are dropped.
    """

    def __init__(self, url: str, keys: Keyspace, queue_size: int = 256) -> None:
        # Hundreds of listeners may read past events at once: they share a bounded pool.
        tcp: dict[str, bool] = {} if url.startswith("unix:") else {"socket_keepalive": True}
        pool = BlockingConnectionPool.from_url(
            url, max_connections=16, timeout=None, decode_responses=True, **tcp
        )
        self.redis: AsyncRedis = AsyncRedis.from_pool(pool)
        self.keys = keys
        self.queue_size = queue_size
        self._listeners: dict[tuple[str, str], set[_Waiting]] = {}
        self._task: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    async def start(self) -> None:
        """Start the task that listens to the channel of events."""
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening and close the connections."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self.redis.aclose()

    async def follow(
        self,
        record_id: str,
        *,
        after: str = STREAM_START,
        noun: str = "job",
        complete: bool = False,
    ) -> AsyncIterator[Event]:
        """Yield past events after `after`, then new ones as they come; ends when the caller stops.

        Arguments:
            record_id: A job or batch.
            after: Last event already seen, such as a `Last-Event-ID` header; `0-0` for all.
            noun: `job`, `batch`, or that of another stream.
            complete: Read dropped events back from the stream if the listener was too slow.
        """
        queue = _Waiting(self.queue_size)
        listeners = self._listeners.setdefault((noun, record_id), set())
        listeners.add(queue)  # before reading the past: nothing falls in between
        try:
            await self._subscribed.wait()
            last = Event(after, "", {})
            for last in await self._past_when_reachable(noun, record_id, after):
                yield last
            while True:
                event = await queue.get()
                if complete and queue.overflowed:
                    queue.overflowed = False
                    dropped = await self._past_when_reachable(noun, record_id, last.id)
                    for last in dropped:
                        yield last
                elif event.order > last.order:
                    last = event
                    yield event
        finally:
            listeners.discard(queue)
            if not listeners:
                self._listeners.pop((noun, record_id), None)

    async def _past_when_reachable(self, noun: str, record_id: str, after: str) -> list[Event]:
        """Return `_past`, retried until Redis is reachable."""
        while True:
            try:
                return await self._past(noun, record_id, after)
            except (RedisError, OSError):
                await asyncio.sleep(0.5)

    async def _past(self, noun: str, record_id: str, after: str) -> list[Event]:
        key = self.keys.events(noun, record_id)
        entries: Any = await self.redis.xrange(key, min=f"({after}")
        return [Event(str(i), str(f["type"]), json.loads(f["data"])) for i, f in entries]

    async def _listen(self) -> None:
        while True:
            try:
                async with self.redis.pubsub() as channel:
                    await channel.subscribe(self.keys.channel)
                    if self._subscribed.is_set():  # again, after a lost connection
                        await self._catch_up()
                    self._subscribed.set()
                    async for message in channel.listen():
                        if message["type"] == "message":
                            self._hand_out(message["data"])
            except (RedisError, OSError):
                await asyncio.sleep(0.5)

    async def _catch_up(self) -> None:
        """Queue events missed during a lost connection; listeners skip those already seen."""
        for (noun, record_id), queues in list(self._listeners.items()):
            for event in await self._past(noun, record_id, STREAM_START):
                self._put(queues, event)

    def _hand_out(self, text: str) -> None:
        raw = json.loads(text)
        queues = self._listeners.get((raw["noun"], raw["id"]))
        if queues:
            self._put(queues, Event(raw["event"], raw["type"], json.loads(raw["data"])))

    @staticmethod
    def _put(queues: set[_Waiting], event: Event) -> None:
        for queue in queues:
            if queue.full():
                queue.get_nowait()
                queue.overflowed = True
            queue.put_nowait(event)
