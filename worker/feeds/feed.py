"""Run one source: store notifications in the backlog, fetch the announced data and ingest them.

Two tasks share the event loop of the process. One stores notifications from the broker, many in one
transaction, and then acknowledges them; while the backlog is full it waits, and the broker holds further
messages back. The other fetches due items, a few at a time, and passes them to the same intake as
uploads; it pauses while ingest is behind or the disk nearly full.
"""

import asyncio
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError, DecodeError, InvalidInput, StorageError
from worker.contract import traces
from worker.contract.acceptance import Intake
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.disk import DiskSettings, is_disk_full, require_space
from worker.contract.feeds import SourceStatus
from worker.contract.measures import Measures
from worker.contract.part_file import PartFile
from worker.contract.records import new_id
from worker.feeds.backlog import Backlog, BacklogItem, Received
from worker.feeds.fetch import Fetched, Fetcher, FetchFailed
from worker.feeds.notification import parse
from worker.feeds.sources import Source
from worker.feeds.subscription import Delivered, Subscription
from worker.observations.formats import HEAD_BYTES, recognise

__all__ = ["Feed", "FeedSettings"]

log = structlog.get_logger()

_CORRUPT = 6
"""Number of fetches with a wrong checksum after which data are given up."""

_IDLE_SECONDS = 0.5
_LEAVE_SECONDS = 3.0
_CAPACITY_SECONDS = 1.0


class FeedSettings(DiskSettings, Protocol):
    """Settings of workers that a feed reads."""

    @property
    def sources_max_waiting(self) -> int:
        """Return how many uploads may wait for ingest before feeds pause."""


@dataclass
class _BackPressure:
    """Back-pressure: how many uploads may be added now.

    Attributes:
        reason: Why fetching is paused; empty if it is not.
        capacity: Uploads that may be added before the next check.
        looked: Time of the check (monotonic seconds).
    """

    reason: str = ""
    capacity: int = 0
    looked: float = float("-inf")


class Feed:
    """Subscription to one source, and the queue of its announced data.

    Arguments:
        source: What to subscribe to.
        backlog: The persistent backlog.
        intake: Accepts the fetched data.
        settings: Limits at which fetching pauses.
        measures: Metrics, with the latency from publication to acceptance.
    """

    def __init__(
        self,
        source: Source,
        backlog: Backlog,
        intake: Intake,
        settings: FeedSettings,
        measures: Measures | None = None,
    ) -> None:
        self.measures = measures or Measures()
        self.source = source
        self.backlog = backlog
        self.intake = intake
        self.settings = settings
        self.subscription = Subscription(source, self._delivered)
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Delivered] = deque()
        self._overflow = 0
        self._arrived = asyncio.Event()
        self._fresh = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._back_pressure = _BackPressure()

    async def run(self) -> None:
        """Run until cancelled, then give running fetches a moment to end."""
        try:
            self.subscription.start()
            async with Fetcher(self.source) as fetcher:
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._store_on())
                        tasks.create_task(self._fetch_on(fetcher))
                finally:
                    await self._leave()
        except OSError as error:  # usually a file of certificates
            self.subscription.detail = str(error)
            raise
        finally:
            await asyncio.to_thread(self.subscription.stop)

    async def _leave(self) -> None:
        """Give running fetches a moment to end; the others are repeated later."""
        busy = list(self._busy.values())
        if busy:
            _, late = await asyncio.wait(busy, timeout=_LEAVE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    def status(self) -> SourceStatus:
        """Return the state of the source at this moment."""
        line = self.subscription
        paused = self._back_pressure.reason
        detail = line.detail or (f"paused: {paused}" if paused else "")
        update = {"connected": line.connected, "detail": detail, "since": line.since}
        return self.backlog.status(self.source).model_copy(update=update)

    # -- from the broker

    def _delivered(self, message: Delivered) -> None:
        """Pass a message from the network thread to the event loop."""
        if not message.qos and len(self._inbox) >= self.source.max_backlog:
            self._overflow += 1  # QoS 0: the broker cannot hold it back
            return
        self._inbox.append(message)
        with suppress(RuntimeError):  # the loop has ended: the broker will resend it
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def _store_on(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._inbox:
                room = self.source.max_backlog - self.backlog.waiting(self.source.name)
                if room <= 0:
                    self._take([], self._dropped())
                    await asyncio.sleep(_IDLE_SECONDS)
                    continue
                some = [self._inbox.popleft() for _ in range(min(room, len(self._inbox), 500))]
                await self._store(some)

    async def _store(self, messages: list[Delivered]) -> None:
        """Store notifications, then acknowledge them; invalid ones are counted and acknowledged."""
        now = time.time()
        good, refused = [], self._dropped()
        for message in messages:
            try:
                good.append(Received(parse(message.payload), now))
            except InvalidInput as error:
                refused["invalid_message"] += 1
                about = {"source": self.source.name, "topic": message.topic}
                log.warning("notification refused", **about, reason=error.message[:300])
        if self._take(good, refused):
            self._fresh.set()
        for message in messages:
            self.subscription.confirm(message)
        await asyncio.sleep(0)

    def _dropped(self) -> Counter[str]:
        """Return how many notifications were dropped since the last call."""
        count, self._overflow = self._overflow, 0
        return Counter({"overflow": count} if count else {})

    def _take(self, received: list[Received], refused: Mapping[str, int]) -> int:
        """Store notifications in one transaction; if that fails, one by one, to isolate a faulty one."""
        try:
            return self.backlog.take(self.source, received, refused)
        except sqlite3.Error:  # nothing is acknowledged, so all are resent
            raise
        except Exception:
            if len(received) > 1:
                self._take([], refused)
                return sum(self._take([one], {}) for one in received)
            log.exception("notification refused", source=self.source.name)
            return self.backlog.take(self.source, [], {"invalid_message": len(received), **refused})

    # -- to the store

    async def _fetch_on(self, fetcher: Fetcher) -> None:
        while True:
            free = self.source.fetches - len(self._busy)
            free = min(free, await self._capacity() - len(self._busy)) if free > 0 else 0
            if free > 0:
                for item in self.backlog.due(self.source.name, free, self._busy, time.time()):
                    task = asyncio.create_task(self._handle(fetcher, item))
                    self._busy[item.data_id] = task
            self._fresh.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._fresh.wait()

    def _pause(self) -> float:
        """Return the seconds until an item may be due; an event ends the pause early."""
        if self._back_pressure.reason or len(self._busy) >= self.source.fetches:
            return _IDLE_SECONDS
        due = self.backlog.next_due(self.source.name)
        return _IDLE_SECONDS if due is None else min(_IDLE_SECONDS, max(0.01, due - time.time()))

    async def _capacity(self) -> int:
        """Return how many uploads may be added now; 0 while fetching is paused.

        Fetching pauses while ingest is behind, the disk is nearly full, or Redis cannot be reached.
        This is checked once a second, and when the number found last is used up.
        """
        if time.monotonic() - self._back_pressure.looked < _CAPACITY_SECONDS and (
            self._back_pressure.capacity > 0 or self._back_pressure.reason
        ):
            return self._back_pressure.capacity
        capacity, reason = 0, ""
        try:
            await asyncio.to_thread(require_space, self.intake.layout, self.settings)
            count = await asyncio.to_thread(self.intake.stores.batches.count, BatchState.RECEIVED)
            capacity = max(0, self.settings.sources_max_waiting - count)
            reason = "" if capacity else f"{count} uploads wait for ingest"
        except (AppaError, RedisError, OSError) as error:
            reason = str(error)[:200]
        self._close(reason, capacity)
        return capacity

    def _close(self, reason: str, capacity: int = 0) -> None:
        if reason and reason != self._back_pressure.reason:
            log.warning("source paused", source=self.source.name, reason=reason)
        self._back_pressure = _BackPressure(reason, capacity, time.monotonic())

    async def _handle(self, fetcher: Fetcher, item: BacklogItem) -> None:
        """Process one item until it is finished or scheduled for a retry; no error ends the feed."""
        asked = {"request_id": item.notification} if item.notification else {}
        named = {f"appa.{name}": value for name, value in asked.items()}
        try:
            with (
                structlog.contextvars.bound_contextvars(**asked),
                traces.start_trace("fetch", **{"appa.source": self.source.name, **named}),
            ):
                await self._brought(fetcher, item)
        finally:
            self._busy.pop(item.data_id, None)
            self._fresh.set()

    async def _brought(self, fetcher: Fetcher, item: BacklogItem) -> None:
        try:
            with traces.step("bring"):
                await self._bring(fetcher, item)
        except Exception as error:  # a bug must never lose data
            log.exception("fetch failed", source=self.source.name, data_id=item.data_id)
            detail = f"{type(error).__name__}: {error}"[:300]
            self.backlog.postpone(self.source, item, detail)

    async def _bring(self, fetcher: Fetcher, item: BacklogItem) -> None:
        try:
            found = await fetcher.fetch(item)
            record, created = await asyncio.to_thread(self._accept, item, found)
        except FetchFailed as error:
            self._failed(item, error)
        except DecodeError as error:
            reason = str(error.context.get("reason", "unknown_format"))
            self.backlog.refuse(self.source.name, item, reason, error.message)
        except (RedisError, OSError, StorageError) as error:  # our own fault: always retried
            full = isinstance(error, OSError) and is_disk_full(error)
            self._close("the disk is full" if full else str(error)[:200])
            self.backlog.postpone(self.source, item, str(error)[:300])
        else:
            self._back_pressure.capacity -= 1
            size = len(found.data)
            self.backlog.finish(self.source.name, item, record.id, size, created=created)
            if created:
                delay = max(0.0, time.time() - item.published)
                self.measures.source_delay.labels(self.source.name).observe(delay)
            about = {"source": self.source.name, "batch_id": record.id, "created": created}
            log.info("accepted", **about, data_id=item.data_id, size=size, origin=found.origin)

    def _accept(self, item: BacklogItem, found: Fetched) -> tuple[BatchRecord, bool]:
        """Pass data to the intake like an upload; the present is their arrival time.

        Raises:
            DecodeError: If they are of no known format.
        """
        format = recognise(found.data[:HEAD_BYTES])
        report_type = self.source.report_type
        batch_id = new_id("batch")
        with PartFile(self.intake.layout.upload(batch_id)) as part:
            part.write(found.data)
            record = BatchRecord(
                id=batch_id,
                sha256=part.sha256,
                size=part.size,
                container=format.name,
                file_name="".join(c for c in item.file_name if c.isprintable())[:255],
                options={"report_type": report_type} if report_type else {},
                version=item.version,
                api_key=self.source.sender,
                request_id=item.notification,
                trace=traces.traceparent(),
            )
            return self.intake.accept(part, record)

    def _failed(self, item: BacklogItem, error: FetchFailed) -> None:
        age = time.time() - item.received
        hopeless = age > 3600 * self.source.give_up_hours
        corrupt = error.reason == "integrity" and item.attempts + 1 >= _CORRUPT
        about = {"source": self.source.name, "data_id": item.data_id, "reason": error.reason}
        if not error.retryable or hopeless or corrupt:
            log.warning("data refused", **about, detail=error.message[:300])
            self.backlog.refuse(self.source.name, item, error.reason, error.message)
            return
        log.info("fetch failed", **about, attempt=item.attempts + 1, detail=error.message[:300])
        self.backlog.postpone(self.source, item, error.message, error.wait)
