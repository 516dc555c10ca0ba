"""Tasks of the queue `ingest`."""

from typing import Any

from celery import Task, shared_task

from worker.attempt import attempt, known_version
from worker.jobs.batch import BatchRecord
from worker.jobs.lease import Lease
from worker.jobs.queues import INGEST_BATCH
from worker.pipeline.ingest_batch import ingest_batch
from worker.runtime import Runtime

__all__ = ["ingest_batch_task"]


@shared_task(name=INGEST_BATCH, bind=True)
def ingest_batch_task(self: "Task[Any, Any]", batch_id: str, version: int) -> None:
    """Takes one upload into the observation store."""
    runtime: Runtime = self.app.runtime
    store = runtime.stores.batches
    if not known_version(store, batch_id, version):
        return

    def body(batch: BatchRecord, lease: Lease) -> None:
        store.finish(batch.id, batch.token, ingest_batch(batch, runtime.layout, lease.check))

    attempt(runtime, store, batch_id, body)
