"""Attempt the work on a record once: claim it, hold a lease, do the work, write the outcome down.

This is the one place where errors are caught broadly: no error kills a worker, every error becomes
the state of a job.
"""

from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from model.domain.errors import DecodeError, InvalidInput, JobCancelled, ResourceExhausted
from worker.contract.batches import BatchRecord, BatchStore, IngestSummary
from worker.contract.disk import is_disk_full
from worker.contract.jobs import JobRecord, JobState, JobStore
from worker.contract.queues import INGEST_BATCH, MESSAGE_VERSION, RUN_ASSIMILATION, submit
from worker.contract.record_store import LeaseLost, MoveRefused, NoSuchRecord
from worker.contract.records import Problem
from worker.lease import Lease
from worker.runtime import Runtime, WorkerStopping

__all__ = ["attempt", "known_version", "problem_of"]

log = structlog.get_logger()

Body = Callable[[Any, Lease], None]


def problem_of(error: Exception) -> Problem:
    """The problem kept in the record of a job that met `error`."""
    if isinstance(error, OSError) and is_disk_full(error):
        return Problem(
            code="disk_full",
            message=f"The data folder is full ({error}); free space and submit the job again.",
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message = str(error) or "out of memory"
        return Problem(code=ResourceExhausted.code, message=message, retryable=True)
    if isinstance(error, RedisError):
        return Problem(code="broker_error", message=str(error), retryable=True)
    return Problem.of(error)


def known_version(store: JobStore | BatchStore, record_id: str, version: int) -> bool:
    """Whether this code understands a message of `version`; else the record fails and says so."""
    if version == MESSAGE_VERSION:
        return True
    message = f"Expected a message of version {MESSAGE_VERSION}; got {version}. Update the worker."
    log.error("message refused", id=record_id, reason=message)
    try:
        store.fail(record_id, None, Problem(code="message_version", message=message))
    except (MoveRefused, NoSuchRecord):
        log.info("nothing to do", id=record_id)
    return False


def attempt(runtime: Runtime, store: JobStore | BatchStore, record_id: str, body: Body) -> None:
    """Claims a record, runs `body` under a lease and writes the outcome.

    Arguments:
        runtime: Of this process.
        store: Jobs or batches.
        record_id: From the message; a copy of a message finds nothing to do.
        body: The work; finishes the record itself when it succeeds.
    """
    try:
        record = store.claim(record_id, runtime.report.name, runtime.settings.lease)
    except (MoveRefused, NoSuchRecord) as error:
        log.info("nothing to do", id=record_id, reason=error.message)
        return
    log.info("started", id=record_id, attempt=record.attempts)
    lease = Lease(store, record_id, record.token, runtime.settings.lease)
    try:
        with runtime.busy_with(record_id), lease:
            _run(runtime, store, record, lease, body)
    except RedisError as error:
        # Nothing can be written down now; the reaper finds the record when the server is back.
        log.error("outcome not stored", id=record_id, error=str(error))


def _run(
    runtime: Runtime,
    store: JobStore | BatchStore,
    record: JobRecord | BatchRecord,
    lease: Lease,
    body: Body,
) -> None:
    try:
        body(record, lease)
        log.info("finished", id=record.id)
    except LeaseLost as error:
        log.warning("stopped", id=record.id, reason=error.message)
    except JobCancelled:
        log.info("cancelled", id=record.id)
        if isinstance(store, JobStore):
            store.confirm_cancel(record.id, record.token)
    except Exception as error:
        try:
            _settle(runtime, store, record, error)
        except LeaseLost as lost:
            log.warning("stopped", id=record.id, reason=lost.message)
        except MoveRefused as refused:
            _after_refusal(store, record, refused)


def _after_refusal(
    store: JobStore | BatchStore, record: JobRecord | BatchRecord, refused: MoveRefused
) -> None:
    """A cancel may have come in while an error was on its way; else the record has its outcome."""
    state, token = store.state_and_token(record.id)
    if isinstance(store, JobStore) and state == JobState.CANCELLING and token == record.token:
        store.confirm_cancel(record.id, record.token)
    else:
        log.warning("outcome kept", id=record.id, state=state, reason=refused.message)


def _settle(
    runtime: Runtime,
    store: JobStore | BatchStore,
    record: JobRecord | BatchRecord,
    error: Exception,
) -> None:
    """Writes a failed attempt down: tried again, rejected or failed."""
    problem = problem_of(error)
    again = isinstance(error, WorkerStopping) or record.attempts < runtime.settings.attempts
    expected = isinstance(error, InvalidInput)
    log.warning(
        "attempt failed", id=record.id, code=problem.code, reason=problem.message,
        exc_info=None if expected or problem.code != "internal_error" else error,
    )  # fmt: skip
    if problem.retryable and again:
        store.requeue(record.id, record.token, problem)
        task = RUN_ASSIMILATION if isinstance(store, JobStore) else INGEST_BATCH
        submit(runtime.sender, task, record.id, record.priority)
    elif isinstance(store, BatchStore) and isinstance(error, DecodeError | InvalidInput):
        report = error.context.get("decode_report", {})
        context = {k: v for k, v in problem.context.items() if k != "decode_report"}
        store.reject(
            record.id,
            record.token,
            problem.model_copy(update={"context": context}),
            IngestSummary(decode_report=report),
        )
    else:
        store.fail(record.id, record.token, problem)
