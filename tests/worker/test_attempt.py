"""Outcomes of one attempt: every kind of error becomes the right state of the record."""

import errno
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from celery.exceptions import Reject, Retry
from redis.exceptions import ConnectionError as RedisConnectionError

from model.domain.errors import CheckpointError, DecodeError, InvalidInput, StorageError
from worker.contract.batches import BatchRecord, BatchState, IngestSummary
from worker.contract.jobs import JobRecord, JobState, Progress
from worker.contract.kinds import FilteringSpec
from worker.contract.record_store import MoveRefused
from worker.contract.records import new_id
from worker.runtime import WorkerStopping, open_runtime
from worker.sandbox import Interrupted
from worker.settings import WorkerSettings
from worker.tasks.attempt import attempt, known_version, problem_of


class Outbox:
    """Where messages go instead of a broker."""

    def __init__(self):
        self.sent = []

    def send_task(self, name, args, **options):
        self.sent.append((name, args, options))

    def retry(self, **options):
        """As `celery.Task.retry`: sends the message again, and returns what the task raises."""
        self.sent.append(("retry", (), options))
        return Retry()


@pytest.fixture
def runtime(shared_broker, prefix, tmp_path):
    settings = WorkerSettings(
        redis_url=shared_broker.url,
        redis_prefix=prefix,
        data_dir=tmp_path,
        attempts=2,
        retry_backoff_seconds=0,
    )
    opened = open_runtime(settings, ["gpu"], "worker-1", Outbox())
    yield opened
    opened.stores.redis.close()


@pytest.fixture
def job(runtime):
    job_id = new_id("job")
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, tzinfo=UTC))
    return runtime.stores.jobs.create(JobRecord(id=job_id, analysis_id="an-1", spec=spec))[0]


def attempted(runtime, job, body) -> JobRecord:
    """The record after one attempt, as Celery would run it."""
    with suppress(Retry, Reject):
        attempt(runtime.sender, runtime, runtime.stores.jobs, job.id, body)
    return runtime.stores.jobs.get(job.id)


def run(runtime, job, error) -> JobRecord:
    def body(record, lease):
        raise error

    return attempted(runtime, job, body)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("no such time"), "invalid_input"),
        (CheckpointError("wrong hash"), "checkpoint_error"),
        (ValueError("surprise"), "internal_error"),
        (OSError(errno.EFBIG, "File too large"), "disk_full"),
    ],
)
def test_errors_that_stay_fail_the_job_at_once(runtime, job, error, code):
    done = run(runtime, job, error)
    assert (done.state, done.error.code, done.attempts) == (JobState.FAILED, code, 1)
    assert runtime.sender.sent == []


@pytest.mark.parametrize(
    "error",
    [
        StorageError("torn file"),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError("CUDA out of memory"),
        RedisConnectionError(),
    ],
)
def test_errors_that_may_pass_are_tried_again_within_bounds(runtime, job, error):
    first = run(runtime, job, error)
    assert (first.state, first.attempts) == (JobState.QUEUED, 1)
    assert len(runtime.sender.sent) == 1
    second = run(runtime, job, error)
    assert (second.state, second.attempts) == (JobState.FAILED, 2)
    assert len(runtime.sender.sent) == 1


def test_a_stopping_worker_gives_the_job_back_whatever_its_attempts(runtime, job):
    for number in (1, 2, 3):
        given = run(runtime, job, WorkerStopping("bye"))
        assert (given.state, given.attempts) == (JobState.QUEUED, number)


def test_a_cancel_that_meets_an_error_ends_cancelled(runtime, job):
    def body(record, lease):
        runtime.stores.jobs.cancel(record.id)
        raise StorageError("torn file")

    assert attempted(runtime, job, body).state is JobState.CANCELLED


def test_a_cancel_raised_in_a_step_ends_cancelled(runtime, job):
    def body(record, lease):
        runtime.stores.jobs.cancel(record.id)
        lease.check()

    assert attempted(runtime, job, body).state is JobState.CANCELLED


def test_an_error_after_success_changes_nothing(runtime, job):
    def body(record, lease):
        runtime.stores.jobs.succeed(record.id, record.token, Progress())
        raise ValueError("too late")

    assert attempted(runtime, job, body).state is JobState.SUCCEEDED


def test_a_message_of_another_version_fails_the_record_and_says_so(runtime, job):
    assert known_version(runtime.stores.jobs, job.id, 1)
    assert not known_version(runtime.stores.jobs, job.id, 2)
    done = runtime.stores.jobs.get(job.id)
    assert (done.state, done.error.code) == (JobState.FAILED, "message_version")


def test_torch_running_out_of_memory_is_known_by_its_name():
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
    problem = problem_of(error)
    assert (problem.code, problem.retryable) == ("resource_exhausted", True)


# -- uploads


@pytest.fixture
def batch(runtime):
    record = BatchRecord(id=new_id("batch"), sha256="00", size=1, container="csv")
    return runtime.stores.batches.create(record)[0]


def ingested(runtime, batch, error) -> BatchRecord:
    def body(record, lease):
        raise error

    with suppress(Retry, Reject):
        attempt(runtime.sender, runtime, runtime.stores.batches, batch.id, body)
    return runtime.stores.batches.get(batch.id)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "storage_error"),
        (StorageError("torn file"), "storage_error"),
        (RedisConnectionError("gone"), "broker_error"),
    ],
)
def test_an_upload_is_never_given_up_for_a_fault_of_ours(runtime, batch, error, code):
    for number in range(1, 6):  # attempts are 2 here
        waiting = ingested(runtime, batch, error)
        assert (waiting.state, waiting.attempts) == (BatchState.RECEIVED, number)
        assert waiting.error.code == code
        assert waiting.message == f"waiting: {waiting.error.message}"
    assert len(runtime.sender.sent) == 5


def test_an_upload_whose_decoder_is_killed_fails_in_the_end_and_is_not_rejected(runtime, batch):
    error = Interrupted("killed", reason="crashed", large=False, again=True)
    assert ingested(runtime, batch, error).state is BatchState.RECEIVED
    failed = ingested(runtime, batch, error)
    assert (failed.state, failed.error.code) == (BatchState.FAILED, "decoding_interrupted")
    again = runtime.stores.batches.retry(batch.id)
    assert (again.state, again.attempts, again.error, again.finished) == (
        BatchState.RECEIVED, 0, None, None,
    )  # fmt: skip


def test_an_upload_that_cannot_be_decoded_is_rejected_at_once(runtime, batch):
    rejected = ingested(runtime, batch, DecodeError("rubbish", reason="undecodable"))
    assert (rejected.state, rejected.attempts) == (BatchState.REJECTED, 1)
    same = rejected.model_copy(update={"id": new_id("batch")})
    assert runtime.stores.batches.create(same) == (rejected, False)


def test_an_upload_rejected_by_our_limits_can_be_sent_again_and_then_not_retried(runtime, batch):
    rejected = ingested(runtime, batch, DecodeError("too slow", reason="timeout"))
    newer = BatchRecord(id=new_id("batch"), sha256="00", size=1, container="csv")
    assert runtime.stores.batches.create(newer) == (newer, True)
    with pytest.raises(MoveRefused, match=f"sent again as batch '{newer.id}'"):
        runtime.stores.batches.retry(rejected.id)


def test_an_ingested_upload_is_not_retried(runtime, batch):
    claimed = runtime.stores.batches.claim(batch.id, "w", runtime.settings.lease)
    with pytest.raises(MoveRefused):
        runtime.stores.batches.retry(batch.id)
    runtime.stores.batches.finish(batch.id, claimed.token, IngestSummary())
    with pytest.raises(MoveRefused):
        runtime.stores.batches.retry(batch.id)


def outcomes(runtime) -> dict[tuple[str, ...], float]:
    """What was counted, without what was not."""
    return {
        (sample.name.removeprefix("appa_").removesuffix("_total"), *sample.labels.values()): value
        for family in runtime.measures.registry.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and (value := sample.value)
    }


def test_each_attempt_and_its_end_are_counted(runtime, job, batch):
    run(runtime, job, StorageError("torn file"))
    run(runtime, job, MemoryError("CUDA out of memory"))
    assert outcomes(runtime) == {
        ("attempts", "job", "filtering"): 2,
        ("attempt_outcomes", "job", "filtering", "retried"): 1,
        ("attempt_outcomes", "job", "filtering", "failed"): 1,
        ("attempt_failures", "job", "storage_error"): 1,
        ("attempt_failures", "job", "resource_exhausted"): 1,
        ("out_of_memory", "filtering", "failed"): 1,
    }


def test_an_upload_that_is_rejected_is_counted_with_what_its_decoder_found(runtime, batch):
    report = {"messages": 3, "rejected": {"truncated": 3}}
    ingested(runtime, batch, DecodeError("Expected rows", decode_report=report))
    assert outcomes(runtime) == {
        ("attempts", "batch", batch.lane.value): 1,
        ("attempt_outcomes", "batch", batch.lane.value, "rejected"): 1,
        ("attempt_failures", "batch", "decode_error"): 1,
        ("ingest_uploads", batch.container, "rejected"): 1,
        ("decode_messages", batch.container): 3,
        ("decode_rejects", batch.container, "truncated"): 3,
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(WorkerStopping("bye"), "stopped"), (InvalidInput("no such time"), "failed")],
)
def test_how_an_attempt_ended_is_said(runtime, job, error, outcome):
    run(runtime, job, error)
    assert outcomes(runtime)[("attempt_outcomes", "job", "filtering", outcome)] == 1


def test_an_attempt_is_shown_before_its_end_for_its_worker_may_die(runtime, job):
    seen = {}

    def body(record, lease):
        seen.update(runtime.stores.redis.hgetall(runtime.measures.key))
        runtime.stores.jobs.cancel(record.id)
        lease.check()

    attempted(runtime, job, body)
    name = '["appa_attempts_total",{"kind":"filtering","noun":"job"}]'
    assert float(seen[name]) == 1
    assert outcomes(runtime)[("attempt_outcomes", "job", "filtering", "cancelled")] == 1
