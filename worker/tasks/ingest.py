"""Run the tasks of the ingest queues, and report what such a worker can do. Imports no torch.

A message about a small upload covers all waiting small uploads, up to a maximum: they are decoded in
turn, those of each sender in a separate child, and written in one commit; each record has its own
outcome. A message about a large upload covers one large upload, the oldest of the next sender in turn.
An upload with an earlier failed attempt is ingested alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import structlog
from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from model.domain.errors import InvalidInput
from model.domain.observations import REPORT_TYPES
from worker.contract import traces
from worker.contract.batches import CALL_LIFETIME, BatchRecord, IngestSummary, Lane
from worker.contract.queues import INGEST_BATCH, WorkerReport, submit_batch
from worker.contract.record_store import LeaseLost
from worker.lease import Lease, SharedLease
from worker.observations.formats import FORMATS
from worker.observations.store.group_commit import NewBatch, publish_many
from worker.observations.store.store import ObservationStore
from worker.pipeline.ingest import (
    Arrived,
    Effective,
    decode_small,
    ingest_batch,
    prepare,
)
from worker.runtime import Runtime
from worker.tasks.attempt import RetryAlone, attempt, attempt_batch, known_version

__all__ = ["MAX_TOGETHER", "describe_ingest", "ingest_batch_task"]

MAX_TOGETHER = 64
"""Maximum number of small uploads per task and commit, which are all repeated if a worker is lost."""

log = structlog.get_logger()

Outcome: TypeAlias = IngestSummary | Exception
_MAX_BYTES = 8 * 1024 * 1024


def describe_ingest(report: WorkerReport) -> None:
    """Add the decoders of an ingest worker and the networks they know to its report."""
    report.device = "cpu"
    report.capabilities.decoders = {name: entry.description for name, entry in FORMATS.items()}
    report.capabilities.networks = list(REPORT_TYPES)


@shared_task(name=INGEST_BATCH, bind=True)
def ingest_batch_task(self: "Task[Any, Any]", batch_id: str, version: int) -> None:
    """Ingest uploads into the observation store; Celery's time limits apply."""
    runtime: Runtime = self.app.runtime
    store = runtime.stores.batches
    if not known_version(store, batch_id, version):
        return
    lane, alone = store.lane_of_record(batch_id)
    if lane is None:
        log.info("nothing to do", id=batch_id)
    elif alone:
        attempt(self, runtime, store, batch_id, _alone(runtime))
    elif lane is Lane.SMALL:
        _take_small(self, runtime, batch_id)
    else:
        taken, _ = store.take(lane, runtime.report.name, runtime.settings.lease)
        if taken:
            attempt_batch(self, runtime, store, taken, partial(_one_by_one, runtime))


def _take_small(task: "Task[Any, Any]", runtime: Runtime, batch_id: str) -> None:
    store = runtime.stores.batches
    taken, more = store.take(
        Lane.SMALL,
        runtime.report.name,
        runtime.settings.lease,
        max_records=MAX_TOGETHER,
        max_bytes=_MAX_BYTES,
    )
    if more and store.needs_message(Lane.SMALL, CALL_LIFETIME):  # for another process, or later
        submit_batch(runtime.sender, runtime.stores.workers, batch_id, large=False)
    if taken:
        attempt_batch(task, runtime, store, taken, partial(_together, runtime))


def _alone(runtime: Runtime) -> Callable[[BatchRecord, Lease], None]:
    def body(batch: BatchRecord, lease: Lease) -> None:
        summary = ingest_batch(batch, runtime.layout, lease.check)
        runtime.stores.batches.finish(batch.id, batch.token, summary)
        runtime.measures.ingested(batch, summary)

    return body


def _one_by_one(
    runtime: Runtime, batches: Sequence[BatchRecord], lease: SharedLease
) -> dict[str, Outcome]:
    """Ingest large uploads one after the other."""
    found: dict[str, Outcome] = {}
    for batch in batches:
        try:
            found[batch.id] = ingest_batch(batch, runtime.layout, partial(lease.check, batch.id))
        except Exception as error:
            found[batch.id] = error
    return found


def _together(
    runtime: Runtime, batches: Sequence[BatchRecord], lease: SharedLease
) -> dict[str, Outcome]:
    """Ingest small uploads with one commit; return the summary or the error of each."""
    store = ObservationStore.of(runtime.layout)
    found: dict[str, Outcome] = {}
    fresh: list[BatchRecord] = []
    published = store.files.manifests(batch.id for batch in batches)
    for batch in batches:
        if batch.id in published:
            found[batch.id] = published[batch.id].summary
        else:
            fresh.append(batch)
    ready: dict[str, NewBatch] = {}
    effective = Effective()
    try:
        traces.phase("decoding")
        for arrived in decode_small(fresh, runtime.layout):
            _prepare(arrived, effective, ready, found)
    except SoftTimeLimitExceeded:
        for batch in fresh:
            if batch.id not in found and batch.id not in ready:
                found[batch.id] = _retry_alone()
    except Exception as error:  # our own fault: retry those not decoded
        found.update({b.id: error for b in fresh if b.id not in found and b.id not in ready})
    held = lease.held()
    for name in ready.keys() - held:
        del ready[name]
        found[name] = LeaseLost(f"Another attempt holds batch '{name}'.", id=name)
    traces.phase("storing")
    _publish(store, ready, found)
    return found


def _retry_alone() -> RetryAlone:
    return RetryAlone(
        "Expected a small upload to be decoded like others; its decoding process ended early. It "
        "is decoded alone."
    )


def _prepare(
    arrived: Arrived,
    effective: Effective,
    ready: dict[str, NewBatch],
    found: dict[str, Outcome],
) -> None:
    name = arrived.batch.id
    if arrived.decoded is None:
        found[name] = _retry_alone()
        return
    try:
        ready[name], found[name] = prepare(
            arrived.decoded, arrived.context, arrived.options, effective
        )
    except Exception as error:
        ready.pop(name, None)
        found[name] = error


def _publish(
    store: ObservationStore, ready: Mapping[str, NewBatch], found: dict[str, Outcome]
) -> None:
    """Publish all uploads that are ready together; if one is refused, one by one."""
    if not ready:
        return
    try:
        publish_many(store.files, list(ready.values()))
    except InvalidInput as refused:
        if len(ready) == 1:
            found.update(dict.fromkeys(ready, refused))
            return
        for name, rows in ready.items():
            _publish(store, {name: rows}, found)
    except Exception as error:
        found.update(dict.fromkeys(ready, error))
