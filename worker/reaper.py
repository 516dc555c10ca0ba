"""Finds jobs and batches that nobody works on any more, and sends them again or ends them.

The records are the truth. A message may be lost with the broker and a worker may die; neither
loses a job. Two reapers at once do no harm: every step is atomic and a doubled message finds
nothing to do.
"""

import time
from dataclasses import dataclass, field

import structlog

from worker.attempt import priority_of
from worker.jobs.batch_store import BatchStore
from worker.jobs.job import Problem
from worker.jobs.queues import (
    GPU_QUEUE,
    INGEST_BATCH,
    INGEST_QUEUE,
    RUN_ASSIMILATION,
    TaskSender,
    queue_keys,
    submit,
)
from worker.jobs.store import JobStore, Stores

__all__ = ["Reaper"]

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
            submit(self.sender, task, record_id, priority_of(record))
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
                submit(self.sender, task, record_id, priority_of(store.find(record_id)))
                acted += 1
        return acted


def _is(store: JobStore | BatchStore, record_id: str) -> bool:
    return record_id.startswith(f"{store.noun}-")
