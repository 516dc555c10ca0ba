"""Run the tasks of the queue `ingest`, and report what such a worker can do. Imports no torch."""

from typing import Any

from celery import Task, shared_task

from model.domain.observations import REPORT_TYPES
from worker.contract.batches import BatchRecord
from worker.contract.queues import INGEST_BATCH, WorkerReport
from worker.lease import Lease
from worker.observations.formats import FORMATS
from worker.pipeline.ingest import ingest_batch
from worker.runtime import Runtime
from worker.tasks.attempt import attempt, known_version

__all__ = ["describe_ingest", "ingest_batch_task"]


def describe_ingest(report: WorkerReport) -> None:
    """Add the decoders of an ingest worker and the networks they know to its report."""
    report.device = "cpu"
    report.capabilities.decoders = {name: entry.description for name, entry in FORMATS.items()}
    report.capabilities.networks = list(REPORT_TYPES)


@shared_task(name=INGEST_BATCH, bind=True)
def ingest_batch_task(self: "Task[Any, Any]", batch_id: str, version: int) -> None:
    """Ingest one upload into the observation store; Celery's time limits apply."""
    runtime: Runtime = self.app.runtime
    store = runtime.stores.batches
    if not known_version(store, batch_id, version):
        return

    def body(batch: BatchRecord, lease: Lease) -> None:
        store.finish(batch.id, batch.token, ingest_batch(batch, runtime.layout, lease.check))

    attempt(self, runtime, store, batch_id, body)
