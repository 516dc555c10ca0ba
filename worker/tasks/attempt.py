"""Run one attempt at a record: claim it, hold a lease, do the work, record the outcome.

Only here are errors caught broadly: no error kills a worker, and every error is recorded as the state
of a record. A transient error (`retryable`: storage, broker, memory, a stopping worker) puts the record
back to waiting, with the reason and the time of the next attempt, and Celery sends the message again:
`Task.retry` with exponential back-off and jitter, or `Reject` at once when this worker stops.

An accepted upload is never given up because of a fault of the service: while the disk is full, the data
folder fails or the broker is unavailable it is retried without limit. If the upload itself may have
caused the fault (memory, a decoder that was killed), attempts are limited and the upload finally fails;
a user can retry it (`BatchStore.retry`).
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import structlog
from celery.exceptions import Reject, Retry, SoftTimeLimitExceeded
from celery.utils.time import get_exponential_backoff_interval
from redis.exceptions import RedisError

from model.domain.errors import (
    AppaError,
    DecodeError,
    InvalidInput,
    JobCancelled,
    ResourceExhausted,
)
from worker.contract import traces
from worker.contract.batches import BatchRecord, BatchStore, IngestSummary, Lane
from worker.contract.disk import is_disk_full
from worker.contract.jobs import JobRecord, JobState, JobStore, Phase
from worker.contract.queues import INGEST_BATCH, MESSAGE_VERSION, RUN_ASSIMILATION, submit_batch
from worker.contract.record_store import LeaseLost, MoveRefused, NoSuchRecord
from worker.contract.records import Problem, utc_now
from worker.lease import Lease, SharedLease
from worker.runtime import Runtime, WorkerStopping

__all__ = ["RetryAlone", "Retrying", "attempt", "attempt_batch", "known_version", "problem_of"]

log = structlog.get_logger()

Body = Callable[[Any, Any], None]
"""The work on a record, given the record and its lease."""

_CLOCKS_DIFFER = timedelta(seconds=1)
_PASSING = frozenset(
    {
        errno.EIO, errno.ESTALE, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
        errno.ENOMEM, errno.EBUSY, errno.ETIMEDOUT,
    }
)  # fmt: skip
_TASK = {"job": RUN_ASSIMILATION, "batch": INGEST_BATCH}
_NEVER_THE_UPLOAD = frozenset({"disk_full", "disk_low", "storage_error", "broker_error"})


class RetryAlone(AppaError):
    """Decoding of a small upload together with others ended early: it is decoded alone, at once."""

    code = "decoded_alone"
    retryable = True


class Retrying(Protocol):
    """The part of the interface of a bound Celery task that `attempt` uses."""

    def retry(self, **options: Any) -> BaseException:
        """Send the message again after `countdown` seconds, as `celery.Task.retry` does."""
        ...


def problem_of(error: Exception) -> Problem:
    """Return the problem to store in the record of a job or batch after `error`."""
    if isinstance(error, OSError) and is_disk_full(error):
        return Problem(
            code="disk_full",
            message=f"The data folder is full ({error}); free space. A job that has failed must be "
            "submitted again.",
            retryable=error.errno != errno.EFBIG,  # a limit of the process does not change
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message = str(error) or "out of memory"
        return Problem(code=ResourceExhausted.code, message=message, retryable=True)
    if isinstance(error, RedisError):
        return Problem(code="broker_error", message=str(error), retryable=True)
    if isinstance(error, SoftTimeLimitExceeded):
        return Problem(
            code="ingest_too_long",
            message="Expected the upload to be ingested within APPA_INGEST_LIMIT_SECONDS; it took "
            "longer. Send it in smaller files or raise the limit.",
        )
    return Problem.of(error)


def problem_of_upload(error: Exception) -> Problem:
    """Return the problem to store in the record of an upload; faults of the service are retryable."""
    if is_disk_full(error):
        return Problem(
            code="disk_full",
            message=f"The data folder is full ({error}). The upload is kept and is ingested when "
            "there is room.",
            retryable=True,
        )
    if isinstance(error, OSError) and error.errno in _PASSING:
        message = f"The data folder or this machine failed ({error}). The upload is kept."
        return Problem(code="storage_error", message=message, retryable=True)
    return problem_of(error)


def known_version(store: JobStore | BatchStore, record_id: str, version: int) -> bool:
    """Return whether a message of `version` is supported; otherwise fail the record."""
    if version == MESSAGE_VERSION:
        return True
    message = f"Expected a message of version {MESSAGE_VERSION}; got {version}. Update the worker."
    log.error("message refused", id=record_id, reason=message)
    try:
        store.fail(record_id, None, Problem(code="message_version", message=message))
    except (MoveRefused, NoSuchRecord):
        log.info("nothing to do", id=record_id)
    return False


def attempt(
    task: Retrying, runtime: Runtime, store: JobStore | BatchStore, record_id: str, body: Body
) -> None:
    """Claim a record, run `body` under a lease and record the outcome.

    Arguments:
        task: The bound Celery task that received the message.
        runtime: Runtime of this process.
        store: Jobs or batches.
        record_id: Id from the message; a duplicate message has no effect.
        body: The work; it finishes the record itself on success.

    Raises:
        celery.exceptions.Retry: After a transient error; the next message is sent.
        celery.exceptions.Reject: When this worker stops; the message returns to its queue.
    """
    waiting = store.find(record_id)
    with traces.log_ids(*([waiting] if waiting else [])):
        _claim(task, runtime, store, record_id, waiting, body)


def _claim(
    task: Retrying,
    runtime: Runtime,
    store: JobStore | BatchStore,
    record_id: str,
    waiting: JobRecord | BatchRecord | None,
    body: Body,
) -> None:
    if waiting and waiting.retry_at and waiting.retry_at > utc_now() + _CLOCKS_DIFFER:
        log.info("too early", id=record_id, retry_at=waiting.retry_at.isoformat())
        return
    try:
        record = store.claim(record_id, runtime.report.name, runtime.settings.lease)
    except (MoveRefused, NoSuchRecord) as error:
        log.info("nothing to do", id=record_id, reason=error.message)
        return
    with traces.task_spans(_TASK[store.noun], record, **_described(record)):
        log.info("started", id=record_id, attempt=record.attempts)
        _begin(runtime, waiting, record)
        lease = Lease(store, record_id, record.token, runtime.settings.lease)
        try:
            with runtime.busy_with(record_id), lease:
                _run(task, runtime, store, record, lease, body)
        except RedisError as error:
            # The outcome cannot be recorded now; the reaper finds the record when Redis is back.
            log.error("outcome not stored", id=record_id, error=str(error))


def attempt_batch(
    task: Retrying,
    runtime: Runtime,
    store: BatchStore,
    records: Sequence[BatchRecord],
    body: Callable[[Sequence[BatchRecord], SharedLease], Mapping[str, IngestSummary | Exception]],
) -> None:
    """Run `body` for several claimed batches together, and record the outcome of each.

    Arguments:
        task: The bound Celery task that received the message for them.
        runtime: Runtime of this process.
        store: The batches.
        records: The claimed batches.
        body: The work; returns the summary or the error of each.
    """
    tokens = {record.id: record.token for record in records}
    with traces.task_spans(INGEST_BATCH, *records, **_described(*records)):
        log.info("started", ids=list(tokens))
        for record in records:
            runtime.measures.attempts.labels(*_about(record)).inc()
        try:
            with (
                runtime.busy_with(records[0].id),
                SharedLease(store, tokens, runtime.settings.lease) as lease,
            ):
                try:
                    outcomes = body(records, lease)
                except Exception as error:
                    outcomes = {record.id: error for record in records}
                _end_all(task, runtime, store, records, outcomes)
        except RedisError as error:
            # The outcome cannot be recorded now; the reaper finds the records when Redis is back.
            log.error("outcomes not stored", ids=list(tokens), error=str(error))


def _end_all(
    task: Retrying,
    runtime: Runtime,
    store: BatchStore,
    records: Sequence[BatchRecord],
    outcomes: Mapping[str, IngestSummary | Exception],
) -> None:
    """Record the outcome of each of several batches."""
    done = {i: o for i, o in outcomes.items() if not isinstance(o, Exception)}
    refused = store.finish_all([r for r in records if r.id in done], done)
    for record in records:
        outcome = refused.get(record.id) or outcomes[record.id]
        if isinstance(outcome, Exception):
            with traces.log_ids(record):
                _end(task, runtime, store, record, outcome)
        else:
            _count(runtime, record, "succeeded")
            runtime.measures.ingested(record, outcome)
    log.info("finished", ids=[name for name in done if name not in refused])


def _about(record: JobRecord | BatchRecord) -> tuple[str, str]:
    """Return the labels of a record in metrics: its noun, and its kind or lane."""
    return ("batch", record.lane.value) if isinstance(record, BatchRecord) else ("job", record.kind)


def _described(*records: JobRecord | BatchRecord) -> dict[str, str | int]:
    """Return the attributes of the spans of an attempt at `records`."""
    kinds = dict.fromkeys(_about(record)[1] for record in records)
    return {"appa.kind": ",".join(kinds), "appa.attempt": max(r.attempts for r in records)}


def _begin(
    runtime: Runtime, waiting: JobRecord | BatchRecord | None, record: JobRecord | BatchRecord
) -> None:
    """Count an attempt, and push at once because the worker may be killed during it."""
    runtime.measures.attempts.labels(*_about(record)).inc()
    if isinstance(record, JobRecord):
        since = waiting.retry_at if waiting and waiting.retry_at else record.created
        traces.waited(since)
        waited = max(0.0, (utc_now() - since).total_seconds())
        runtime.measures.phases.labels(record.kind, Phase.WAITING.value).observe(waited)
        runtime.measures.push()


def _count(runtime: Runtime, record: JobRecord | BatchRecord, outcome: str) -> None:
    runtime.measures.outcomes.labels(*_about(record), outcome).inc()
    traces.ended(record.id, outcome)


def _end(
    task: Retrying,
    runtime: Runtime,
    store: BatchStore,
    record: BatchRecord,
    error: Exception,
) -> None:
    """Record the error of one of several batches; its retry has a separate message."""

    def body(batch: BatchRecord, _: Any) -> None:
        if isinstance(error, RetryAlone):
            store.requeue(batch.id, batch.token, Problem.of(error))
            submit_batch(runtime.sender, runtime.stores.workers, batch.id, large=True)
            return
        raise error

    message = _OwnMessage(task, record.id)
    try:
        _run(message, runtime, store, record, None, body, done=RetryAlone.code)
    except Retry:
        return  # already sent; the task itself continues
    except Reject:
        large = record.lane is Lane.LARGE
        submit_batch(runtime.sender, runtime.stores.workers, record.id, large=large)


@dataclass(frozen=True)
class _OwnMessage:
    """Send a message about another record than that of the task's own message."""

    task: Retrying
    record_id: str

    def retry(self, **options: Any) -> BaseException:
        """Send the message after `countdown` seconds."""
        return self.task.retry(args=(self.record_id, MESSAGE_VERSION), **options)


def _run(
    task: Retrying,
    runtime: Runtime,
    store: JobStore | BatchStore,
    record: JobRecord | BatchRecord,
    lease: Lease | None,
    body: Body,
    done: str = "succeeded",
) -> None:
    try:
        body(record, lease)
        _count(runtime, record, done)
        log.info("finished", id=record.id)
    except LeaseLost as error:
        _count(runtime, record, "superseded")
        log.warning("stopped", id=record.id, reason=error.message)
    except JobCancelled:
        _count(runtime, record, "cancelled")
        log.info("cancelled", id=record.id)
        if isinstance(store, JobStore):
            store.confirm_cancel(record.id, record.token)
    except Exception as error:
        try:
            _settle(task, runtime, store, record, error)
        except LeaseLost as lost:
            _count(runtime, record, "superseded")
            log.warning("stopped", id=record.id, reason=lost.message)
        except MoveRefused as refused:
            _count(runtime, record, "cancelled")
            _after_refusal(store, record, refused)


def _after_refusal(
    store: JobStore | BatchStore, record: JobRecord | BatchRecord, refused: MoveRefused
) -> None:
    """Confirm a cancel that arrived during the attempt; otherwise the record has its outcome already."""
    state, token = store.state_and_token(record.id)
    if isinstance(store, JobStore) and state == JobState.CANCELLING and token == record.token:
        store.confirm_cancel(record.id, record.token)
    else:
        log.warning("outcome kept", id=record.id, state=state, reason=refused.message)


def _settle(
    task: Retrying,
    runtime: Runtime,
    store: JobStore | BatchStore,
    record: JobRecord | BatchRecord,
    error: Exception,
) -> None:
    """Record a failed attempt: retry, reject or fail."""
    uploaded = isinstance(store, BatchStore)
    problem = problem_of_upload(error) if uploaded else problem_of(error)
    expected = isinstance(error, InvalidInput)
    log.warning(
        "attempt failed", id=record.id, code=problem.code, reason=problem.message,
        exc_info=None if expected or problem.code != "internal_error" else error,
    )  # fmt: skip
    runtime.measures.failures.labels(store.noun, problem.code).inc()
    traces.failed(record.id, problem.code, problem.message)
    if problem.code == ResourceExhausted.code:
        runtime.measures.out_of_memory.labels(_about(record)[1], "failed").inc()
    if isinstance(error, WorkerStopping):
        store.requeue(record.id, record.token, problem)
        _count(runtime, record, "stopped")
        raise Reject(problem.message, requeue=True)
    for_ever = uploaded and problem.code in _NEVER_THE_UPLOAD
    if problem.retryable and (for_ever or record.attempts < runtime.settings.attempts):
        raise _retry(task, runtime, store, record, problem)
    at_fault = isinstance(error, DecodeError | InvalidInput) and not error.retryable
    if isinstance(store, BatchStore) and isinstance(error, AppaError) and at_fault:
        summary = IngestSummary(decode_report=error.context.get("decode_report", {}))
        context = {k: v for k, v in problem.context.items() if k != "decode_report"}
        store.reject(
            record.id,
            record.token,
            problem.model_copy(update={"context": context}),
            summary,
        )
        _count(runtime, record, "rejected")
        if isinstance(record, BatchRecord):
            runtime.measures.decoded(record, summary, "rejected")
    else:
        store.fail(record.id, record.token, problem)
        _count(runtime, record, "failed")
        if isinstance(record, BatchRecord):
            runtime.measures.decoded(record, IngestSummary(), "failed")


def _retry(
    task: Retrying,
    runtime: Runtime,
    store: JobStore | BatchStore,
    record: JobRecord | BatchRecord,
    problem: Problem,
) -> BaseException:
    """Put the record back to waiting and schedule its message; return the exception for Celery.

    The pause has full jitter: it is drawn between 0 and a bound that doubles with each attempt, so that
    jobs that failed together are not retried together.
    """
    settings = runtime.settings
    pause = get_exponential_backoff_interval(
        settings.retry_backoff_seconds,
        record.attempts - 1,
        settings.retry_backoff_max_seconds,
        full_jitter=True,
    )
    retry_at = utc_now() + timedelta(seconds=pause)
    store.requeue(record.id, record.token, problem, retry_at)
    _count(runtime, record, "retried")
    log.info("retried later", id=record.id, seconds=pause, retry_at=retry_at.isoformat())
    return task.retry(
        countdown=pause,
        priority=record.priority,
        max_retries=max(settings.attempts, record.attempts + 1),
        throw=False,
    )
