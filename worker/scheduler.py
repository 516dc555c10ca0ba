"""Run the scheduler: ask every few seconds what is lost or due. It holds no state that matters.

The reaper finds jobs and batches that nobody works on any more, and enqueues them again or ends
them. The records are the truth: a message may be lost with the broker and a worker may die;
neither loses a job. Two reapers at once do no harm: every step is atomic and a duplicate message
finds nothing to do.
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
from worker.contract.queues import (
    GPU_QUEUE,
    INGEST_BATCH,
    INGEST_QUEUE,
    RUN_ASSIMILATION,
    TaskSender,
    queue_keys,
    submit,
)
from worker.contract.records import Problem
from worker.contract.redis_server import redis_health
from worker.contract.store import Stores
from worker.cycling.tick import cycling_tick
from worker.notifications import WebhookSender
from worker.process import message_sender
from worker.results.publication import sweep_leftovers
from worker.results.retention.run import RetentionRunner
from worker.runtime import open_runtime
from worker.settings import WorkerSettings
from worker.tasks.products import MissedResults

__all__ = ["Reaper", "SCHEDULER", "run_scheduler"]

log = structlog.get_logger()


@dataclass
class Reaper:
    """Call `sweep` every few seconds.

    Attributes:
        stores: All records.
        sender: Sends task messages.
        attempts: Starts of a job before it fails for good.
        grace_seconds: A lease must be seen missing for so long: after a restart of the server
            the holder gets time to renew it.
        resend_seconds: A waiting record whose message seems lost is sent again after so long.
    """

    stores: Stores
    sender: TaskSender
    attempts: int
    grace_seconds: float
    resend_seconds: float
    _missing: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)

    def sweep(self) -> int:
        """Looks at everything once; returns how many records were acted on."""
        acted = 0
        for store, task, queue in (
            (self.stores.jobs, RUN_ASSIMILATION, GPU_QUEUE),
            (self.stores.batches, INGEST_BATCH, INGEST_QUEUE),
        ):
            acted += self._reap_abandoned(store, task)
            acted += self._resend_lost(store, task, queue)
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
            context={"worker": worker, "attempts_allowed": self.attempts},
        )
        state = store.reap(record_id, self.attempts, problem)
        if state == "held":
            return 0
        log.warning("took over", id=record_id, from_worker=worker, now=state)
        if state == store.waiting:
            submit(self.sender, task, record_id, record.priority if record else 0)
        return 1

    def _resend_lost(self, store: JobStore | BatchStore, task: str, queue: str) -> int:
        """Sends waiting records again when the queue holds fewer messages than there are."""
        now, acted = time.monotonic(), 0
        waiting = store.ids(store.waiting)
        for known in [i for i in self._waiting if _is(store, i) and i not in waiting]:
            del self._waiting[known]
        pipe = self.stores.redis.pipeline(transaction=False)
        for key in queue_keys(self.stores.keys.prefix, queue):
            pipe.llen(key)
        if sum(map(int, pipe.execute())) >= len(waiting):
            self._waiting.update(dict.fromkeys(waiting, now))
            return 0
        for record_id in waiting:
            if now - self._waiting.setdefault(record_id, now) >= self.resend_seconds:
                self._waiting[record_id] = now
                log.warning("sent again", id=record_id, queue=queue)
                record = store.find(record_id)
                submit(self.sender, task, record_id, record.priority if record else 0)
                acted += 1
        return acted


def _is(store: JobStore | BatchStore, record_id: str) -> bool:
    return record_id.startswith(f"{store.noun}-")


SCHEDULER = "scheduler"


def run_scheduler(
    settings: WorkerSettings | None = None, ticks: Sequence[Callable[[], object]] = ()
) -> None:
    """Sweeps until the process is asked to stop.

    Arguments:
        settings: Read from the environment when absent.
        ticks: Further questions to ask at every turn; each must be safe to ask twice.
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
        settings.attempts,
        settings.lease_seconds / 2,
        settings.resend_seconds,
    )
    runtime.report.ready = True
    runtime.start_reporting()
    log.info("ready", worker=name)

    def tidy() -> int:
        return sweep_leftovers(runtime.layout, max(86_400.0, 2.0 * settings.job_limit_seconds))

    courier = WebhookSender(runtime.stores.webhooks, settings)
    missed = MissedResults(runtime.layout, runtime.stores.events)

    cycling = cycling_tick(runtime)

    upkeep = RetentionRunner(runtime.stores, runtime.layout, settings)

    while not stop.wait(settings.sweep_seconds):
        for tick in (reaper.sweep, tidy, cycling, missed.tick, courier.tick, upkeep.tick, *ticks):
            _ask(tick)
    runtime.leave()


def _ask(tick: Callable[[], object]) -> None:
    """One question; a failure is logged and asked again at the next turn."""
    try:
        tick()
    except (RedisError, OSError, AppaError) as error:
        log.warning("tick failed", tick=getattr(tick, "__name__", str(tick)), error=str(error))
    except Exception:
        log.exception("tick failed", tick=getattr(tick, "__name__", str(tick)))
