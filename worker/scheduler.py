"""Run the scheduler: find lost and due work every few seconds. It is stateless.

The reaper finds abandoned jobs and batches, and requeues or ends them. The records are the source of
truth about what is queued: a message may be lost with the broker and a worker may die without losing a
job. Several reapers may run at once: every step is atomic and duplicate messages have no effect.

The reconciler compares the stored uploads with the records, and ingests those without a record. The
bytes of an upload are stored before its record is in Redis, so a gateway that dies in between, or a
Redis server that lost its data, leaves accepted uploads that would never be ingested. The record of an
upload is stored with its bytes (`worker.contract.uploads`), and its rows are in the observation store
under its id, so the record can be restored without ingesting a row twice. An upload whose content is
known under another id is a duplicate and is removed.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from model.domain.errors import AppaError, StorageError
from model.domain.files import file_digest
from worker.archivist import Archivist
from worker.contract import traces
from worker.contract.batches import BatchRecord, BatchState, BatchStore, Lane
from worker.contract.jobs import JobRecord, JobStore
from worker.contract.layout import Layout
from worker.contract.logs import configure_logs
from worker.contract.measures import Measures
from worker.contract.queues import (
    INGEST_BATCH,
    RUN_ASSIMILATION,
    SCHEDULER,
    TaskSender,
    submit,
    submit_batch,
)
from worker.contract.records import Problem, utc_now
from worker.contract.redis_server import redis_health
from worker.contract.store import Stores
from worker.contract.trace_export import export_traces, finish_traces
from worker.contract.uploads import UploadStore, upload_store
from worker.cycling.tick import cycling_tick
from worker.notifications import WebhookSender
from worker.observations.formats import detect_format
from worker.observations.store.store import ObservationStore
from worker.process import message_sender
from worker.results.publication import sweep_leftovers
from worker.results.retention.run import RetentionRunner
from worker.runtime import Runtime, open_runtime
from worker.settings import WorkerSettings
from worker.tasks.products import MissedResults

__all__ = ["Reaper", "Reconciler", "run_scheduler"]

log = structlog.get_logger()

_CHUNK = 1_000
_ALWAYS_COMPARED = 10_000
_WHOLE_SECONDS = 3_600.0


@dataclass
class Reconciler:
    """Restore records of uploads that are missing in Redis: call `tick` every few seconds.

    Several may run at once, because creating a record is idempotent.

    Attributes:
        layout: The data folder.
        stores: All records.
        sender: Sends task messages.
        every: Seconds between two comparisons.
        grace_seconds: Age below which the record of an upload may still be in creation.
        turn_seconds: Maximum duration of one call; the next one continues.
    """

    layout: Layout
    stores: Stores
    sender: TaskSender
    every: float = 60.0
    grace_seconds: float = 120.0
    turn_seconds: float = 10.0
    _due: float = float("-inf")
    _whole_due: float = float("-inf")
    _unusable: set[str] = field(default_factory=set)

    @property
    def uploads(self) -> UploadStore:
        """Return the store of uploads that the layout names: a folder or a bucket."""
        return upload_store(self.layout)

    def tick(self) -> int:
        """Compare if the last comparison is old enough; return the number of restored records."""
        if time.monotonic() < self._due:
            return 0
        started, made = time.monotonic(), 0
        for batch_id in self._unknown():
            made += self._restore(batch_id)
            if time.monotonic() - started > self.turn_seconds:
                return made
        self._due = time.monotonic() + self.every
        return made

    def recover(self) -> list[str]:
        """Compare all uploads now; return those that are still too recent."""
        self._due = self._whole_due = float("-inf")
        self.tick()
        self._whole_due = float("-inf")
        return [name for name in self._unknown() if self.uploads.has(name)]

    @property
    def unusable(self) -> list[str]:
        """Return stored uploads for which no record was created: unreadable, or duplicates with rows."""
        return sorted(self._unusable)

    def _unknown(self) -> Iterator[str]:
        """Yield the stored uploads without a record, newest first.

        Older ones are compared once an hour, and whenever a newer one has no record, because records
        are rarely lost one by one.
        """
        whole = time.monotonic() >= self._whole_due
        names = (name for name in self.uploads.names() if name not in self._unusable)
        compared = 0
        while some := list(islice(names, _CHUNK)):
            missing = set(some) - self.stores.batches.known(some)
            yield from (name for name in some if name in missing)
            compared += len(some)
            if not (whole or missing) and compared >= _ALWAYS_COMPARED:
                return
        self._whole_due = time.monotonic() + _WHOLE_SECONDS

    def _restore(self, batch_id: str) -> int:
        try:
            written = self.uploads.written(batch_id)
            if written is None or (utc_now() - written).total_seconds() < self.grace_seconds:
                return 0  # being created or removed
            record = self._record(batch_id)
        except FileNotFoundError:  # being removed
            return 0
        except StorageError:  # not an error of the upload: retry later
            raise
        except (AppaError, ValidationError) as error:
            log.warning("upload not restored", id=batch_id, reason=str(error))
            self._unusable.add(batch_id)
            return 0
        with traces.log_ids(record):
            return self._restore_record(record)

    def _restore_record(self, record: BatchRecord) -> int:
        batch, created = self.stores.batches.restore(record)
        if not created:
            if batch.id != record.id:
                self._remove_duplicate(record, batch)
            return 0
        log.warning("upload restored", id=record.id, state=record.state)
        if record.state is BatchState.RECEIVED:
            large = record.lane is Lane.LARGE
            submit_batch(self.sender, self.stores.workers, record.id, large=large)
        return 1

    def _record(self, batch_id: str) -> BatchRecord:
        """Return the record of an upload from its files.

        Raises:
            DecodeError: If no record is stored with it and its format is not known.
        """
        record = self.uploads.record(batch_id) or self._recognised(batch_id)
        manifest = ObservationStore.of(self.layout).files.manifest(batch_id)
        if manifest is None:
            return record
        update = {
            "state": BatchState.INGESTED,
            "finished": manifest.created,
            "summary": manifest.summary,
        }
        return record.model_copy(update=update)

    def _recognised(self, batch_id: str) -> BatchRecord:
        """Create the record of an upload of an older version from its bytes."""
        with self.uploads.local({batch_id: ""}) as found:
            content = found[batch_id]
            return BatchRecord(
                id=batch_id,
                created=self.uploads.written(batch_id) or utc_now(),
                sha256=file_digest(content),
                size=content.stat().st_size,
                container=detect_format(content),
            )

    def _remove_duplicate(self, record: BatchRecord, batch: BatchRecord) -> None:
        """Remove an upload that was sent again and accepted under another id."""
        if record.state is BatchState.INGESTED:  # rows refer to it
            self._unusable.add(record.id)
            return
        log.info("duplicate upload removed", id=record.id, same_as=batch.id)
        self.uploads.forget(record.id)


_RESENT_AT_ONCE = 100


@dataclass
class _Wait:
    """Schedule for resending the message of a waiting record.

    Attributes:
        due: When its message is sent again (monotonic seconds).
        pause: Seconds from then to the next time.
    """

    due: float
    pause: float


@dataclass
class Reaper:
    """Take over abandoned records and send lost messages again: call `sweep` every few seconds.

    Messages in the broker are not inspected. The message of a waiting record is sent again after
    `resend_seconds`, then after twice as long, and so on. A job in a long queue thus gets a few harmless
    duplicates, and a lost message delays a job by at most `resend_seconds` or the time it had waited
    already, whichever is longer.

    Attributes:
        stores: All records.
        sender: Sends task messages.
        lost_workers: Number of lost workers after which a record fails.
        grace_seconds: Time for which a lease must be missing, so that its holder can renew it after a
            restart of the server.
        resend_seconds: Pause before the message of a waiting record is first sent again.
        measures: Counters of lost messages and workers.
    """

    stores: Stores
    sender: TaskSender
    lost_workers: int
    grace_seconds: float
    resend_seconds: float
    measures: Measures = field(default_factory=Measures)
    _missing: dict[str, float] = field(default_factory=dict)
    _waits: dict[str, _Wait] = field(default_factory=dict)

    def sweep(self) -> int:
        """Check all unfinished records once; return the number of records acted on."""
        acted = 0
        for store, task in (
            (self.stores.jobs, RUN_ASSIMILATION),
            (self.stores.batches, INGEST_BATCH),
        ):
            acted += self._reap_abandoned(store, task)
            acted += self._resend_waiting(store, task)
        return acted

    def _reap_abandoned(self, store: JobStore | BatchStore, task: str) -> int:
        now, acted = time.monotonic(), 0
        held = [record_id for state in store.leased for record_id in store.ids(state)]
        missing = [i for i in held if not self.stores.redis.exists(store.keys.lease(store.noun, i))]
        for known in [i for i in self._missing if _is(store, i) and i not in missing]:
            del self._missing[known]
        for record_id in missing:
            since = self._missing.setdefault(record_id, now)
            if now - since < self.grace_seconds:
                continue
            del self._missing[record_id]
            acted += self._reap(store, record_id, task)
        return acted

    def _reap(self, store: JobStore | BatchStore, record_id: str, task: str) -> int:
        record = store.find(record_id)
        worker = record.worker if record else None
        problem = Problem(
            code="worker_lost",
            message=f"Worker '{worker}' stopped answering while it worked on '{record_id}'.",
            retryable=True,
            context={"worker": worker, "lost_workers_allowed": self.lost_workers},
        )
        state = store.reap(record_id, self.lost_workers, problem)
        if state == "held":
            return 0
        with traces.task_spans("take over", record) if record else nullcontext():
            self._taken_over(store, record_id, record, task, state)
        return 1

    def _taken_over(
        self,
        store: JobStore | BatchStore,
        record_id: str,
        record: JobRecord | BatchRecord | None,
        task: str,
        state: str,
    ) -> None:
        worker = record.worker if record else None
        log.warning("took over", id=record_id, from_worker=worker, now=state)
        self.measures.lost_workers.labels(store.noun).inc()
        if state == store.waiting:
            self._submit(record_id, record, task)

    def _resend_waiting(self, store: JobStore | BatchStore, task: str) -> int:
        """Send the messages of records that have waited long enough, oldest first."""
        now, acted = time.monotonic(), 0
        waiting = store.ids(store.waiting)
        for known in {i for i in self._waits if _is(store, i)}.difference(waiting):
            del self._waits[known]
        for record_id in waiting:
            wait = self._waits.setdefault(
                record_id, _Wait(now + self.resend_seconds, 2 * self.resend_seconds)
            )
            if now > wait.due and acted < _RESENT_AT_ONCE:
                acted += self._resend(store, record_id, task, wait)
        return acted

    def _resend(self, store: JobStore | BatchStore, record_id: str, task: str, wait: _Wait) -> int:
        record = store.find(record_id)
        if record is None:  # removed just now
            return 0
        now = time.monotonic()
        if record.retry_at and (left := (record.retry_at - utc_now()).total_seconds()) > 0:
            wait.due = now + left + self.resend_seconds
            return 0
        with traces.log_ids(record):
            log.info("sent again", id=record_id, next_in_seconds=wait.pause)
            self.measures.resent.labels(store.noun).inc()
            wait.due, wait.pause = now + wait.pause, 2 * wait.pause
            self._submit(record_id, record, task)
        return 1

    def _submit(self, record_id: str, record: JobRecord | BatchRecord | None, task: str) -> None:
        if isinstance(record, BatchRecord):
            large = record.lane is Lane.LARGE or record.lost > 0
            submit_batch(self.sender, self.stores.workers, record_id, large=large)
        else:
            submit(self.sender, task, record_id, record.priority if record else 0)


def _is(store: JobStore | BatchStore, record_id: str) -> bool:
    return record_id.startswith(f"{store.noun}-")


def run_scheduler(
    settings: WorkerSettings | None = None, ticks: Sequence[Callable[[], object]] = ()
) -> None:
    """Sweep until the process is asked to stop.

    Arguments:
        settings: Read from the environment when absent.
        ticks: Further functions to call at every turn; each must be idempotent.
    """
    settings = settings or WorkerSettings()
    configure_logs(settings)
    export_traces(SCHEDULER)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    name = f"{SCHEDULER}.{os.getpid()}@{socket.gethostname()}"
    runtime = open_runtime(settings, [SCHEDULER], name, message_sender(settings))
    for warning in redis_health(runtime.stores.redis).warnings:
        log.warning("redis", advice=warning)
    runtime.report.ready = True
    runtime.start_reporting()
    log.info("ready", worker=name)
    turn = _ticks(runtime, settings)
    turn |= {f"further-{number}": tick for number, tick in enumerate(ticks)}
    while not stop.wait(settings.sweep_seconds):
        for name, tick in turn.items():
            _run_tick(name, tick, runtime.measures)
        runtime.report.figures.turned = utc_now()
    runtime.leave()
    finish_traces()


def _ticks(runtime: Runtime, settings: WorkerSettings) -> dict[str, Callable[[], object]]:
    """Return the functions that the scheduler calls at every turn, by name, in order."""

    def tidy() -> int:
        older_than = max(86_400.0, 2.0 * settings.job_limit_seconds)
        layout = runtime.layout
        return sweep_leftovers(layout, older_than) + upload_store(layout).sweep(older_than)

    reaper = Reaper(
        runtime.stores,
        runtime.sender,
        min(settings.lost_workers, settings.attempts),
        settings.lease_seconds / 2,
        settings.resend_seconds,
        runtime.measures,
    )
    reconciler = Reconciler(
        runtime.layout,
        runtime.stores,
        runtime.sender,
        settings.reconcile_seconds,
        2 * settings.reconcile_seconds,
    )
    archivist = Archivist(
        runtime.stores,
        runtime.layout,
        runtime.sender,
        settings.ended_seconds,
        settings.reconcile_seconds,
    )
    webhooks = WebhookSender(runtime.stores.webhooks, settings, runtime.measures)
    missed = MissedResults(runtime.layout, runtime.stores.events)
    retention = RetentionRunner(runtime.stores, runtime.layout, settings)
    return {
        "archive": archivist.tick,
        "reap": reaper.sweep,
        "reconcile": reconciler.tick,
        "tidy": _RateLimited(tidy, _TIDY_SECONDS),
        "cycles": cycling_tick(runtime),
        "announce": missed.tick,
        "webhooks": webhooks.tick,
        "retention": retention.tick,
    }


_TIDY_SECONDS = 600.0


@dataclass
class _RateLimited:
    """Work that is too expensive for every turn, because it lists buckets.

    Attributes:
        work: The function to call.
        pause: Seconds from one start to the next.
    """

    work: Callable[[], object]
    pause: float
    _due: float = float("-inf")

    def __call__(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self.pause
            self.work()


def _run_tick(name: str, tick: Callable[[], object], measures: Measures) -> None:
    """Call `tick`; a failure is logged and retried at the next turn."""
    begun = time.monotonic()
    try:
        tick()
    except (RedisError, OSError, AppaError) as error:
        measures.tick_failures.labels(name).inc()
        log.warning("tick failed", tick=name, error=str(error))
    except Exception:
        measures.tick_failures.labels(name).inc()
        log.exception("tick failed", tick=name)
    measures.ticks.labels(name).observe(time.monotonic() - begun)
