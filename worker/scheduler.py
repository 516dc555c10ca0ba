"""Run the scheduler: find every few seconds what is lost or due. It holds no state that matters.

The reaper finds jobs and batches that nobody works on any more, and enqueues them again or ends
them. The records are the truth about what is queued: a message may be lost with the broker and a
worker may die; neither loses a job. Two reapers at once do no harm: every step is atomic and a
duplicate message finds nothing to do.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError
from worker.contract.batches import BatchStore
from worker.contract.jobs import JobStore
from worker.contract.logs import configure_logs
from worker.contract.queues import INGEST_BATCH, RUN_ASSIMILATION, TaskSender, submit
from worker.contract.records import Problem, utc_now
from worker.contract.redis_server import redis_health
from worker.contract.store import Stores
from worker.cycling.tick import cycling_tick
from worker.notifications import WebhookSender
from worker.process import message_sender
from worker.reconcile import Reconciler
from worker.results.publication import sweep_leftovers
from worker.results.retention.run import RetentionRunner
from worker.runtime import open_runtime
from worker.settings import WorkerSettings
from worker.tasks.products import MissedResults

__all__ = ["Reaper", "SCHEDULER", "run_scheduler"]

log = structlog.get_logger()


_RESENT_AT_ONCE = 100


@dataclass
class _Wait:
    """A waiting record as this process has seen it.

    Attributes:
        due: When its message is sent again (monotonic seconds).
        pause: Seconds until the time after that.
    """

    due: float
    pause: float


@dataclass
class Reaper:
    """Take over abandoned records and send lost messages again: call `sweep` every few seconds.

    A message cannot be seen in the broker, and need not be: the message of a record that waits is
    sent again after `resend_seconds`, then after twice as long, and so on. A job in a long queue
    thus gets a few harmless duplicates, and a lost message delays a job by no more than
    `resend_seconds` or, if that is longer, as long as it had waited already.

    Attributes:
        stores: All records.
        sender: Sends task messages.
        lost_workers: A record fails for good once so many workers were lost over it.
        grace_seconds: A lease must be seen missing for so long: after a restart of the server
            the holder gets time to renew it.
        resend_seconds: Pause before the message of a waiting record is first sent again.
    """

    stores: Stores
    sender: TaskSender
    lost_workers: int
    grace_seconds: float
    resend_seconds: float
    _missing: dict[str, float] = field(default_factory=dict)
    _waits: dict[str, _Wait] = field(default_factory=dict)

    def sweep(self) -> int:
        """Look at all unfinished records once; return how many were acted on."""
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
        log.warning("took over", id=record_id, from_worker=worker, now=state)
        if state == store.waiting:
            submit(self.sender, task, record_id, record.priority if record else 0)
        return 1

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
        if record is None:  # removed this moment
            return 0
        now = time.monotonic()
        if record.retry_at and (left := (record.retry_at - utc_now()).total_seconds()) > 0:
            wait.due = now + left + self.resend_seconds
            return 0
        log.info("sent again", id=record_id, next_in_seconds=wait.pause)
        wait.due, wait.pause = now + wait.pause, 2 * wait.pause
        submit(self.sender, task, record_id, record.priority)
        return 1


def _is(store: JobStore | BatchStore, record_id: str) -> bool:
    return record_id.startswith(f"{store.noun}-")


SCHEDULER = "scheduler"


def run_scheduler(
    settings: WorkerSettings | None = None, ticks: Sequence[Callable[[], object]] = ()
) -> None:
    """Sweep until the process is asked to stop.

    Arguments:
        settings: Read from the environment when absent.
        ticks: Further functions to call at every turn; each must be safe to call twice.
    """
    settings = settings or WorkerSettings()
    configure_logs(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    name = f"{SCHEDULER}.{os.getpid()}@{socket.gethostname()}"
    runtime = open_runtime(settings, [SCHEDULER], name, message_sender(settings))
    for warning in redis_health(runtime.stores.redis).warnings:
        log.warning("redis", advice=warning)
    reaper = Reaper(
        runtime.stores,
        runtime.sender,
        min(settings.lost_workers, settings.attempts),
        settings.lease_seconds / 2,
        settings.resend_seconds,
    )
    runtime.report.ready = True
    runtime.start_reporting()
    log.info("ready", worker=name)

    def tidy() -> int:
        return sweep_leftovers(runtime.layout, max(86_400.0, 2.0 * settings.job_limit_seconds))

    reconciler = Reconciler(
        runtime.layout,
        runtime.stores,
        runtime.sender,
        settings.reconcile_seconds,
        2 * settings.reconcile_seconds,
    )
    webhooks = WebhookSender(runtime.stores.webhooks, settings)
    missed = MissedResults(runtime.layout, runtime.stores.events)
    cycling = cycling_tick(runtime)
    retention = RetentionRunner(runtime.stores, runtime.layout, settings)

    while not stop.wait(settings.sweep_seconds):
        for tick in (
            reaper.sweep, reconciler.tick, tidy, cycling, missed.tick, webhooks.tick, retention.tick, *ticks
        ):  # fmt: skip
            _run_tick(tick)
    runtime.leave()


def _run_tick(tick: Callable[[], object]) -> None:
    """Call `tick`; a failure is logged, and it is called again at the next turn."""
    try:
        tick()
    except (RedisError, OSError, AppaError) as error:
        log.warning("tick failed", tick=getattr(tick, "__name__", str(tick)), error=str(error))
    except Exception:
        log.exception("tick failed", tick=getattr(tick, "__name__", str(tick)))
