"""Jobs and batches in a real server: every move of the table, and no other."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from worker.contract.batches import BatchRecord, BatchState, IdempotencyConflict, IngestSummary
from worker.contract.jobs import ALLOWED_MOVES, TERMINAL, JobRecord, JobState, Phase, Progress
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.contract.record_store import LeaseLost, MoveRefused, NoSuchRecord
from worker.contract.records import Problem, new_id

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=10)


def job(**values) -> JobRecord:
    job_id = new_id("job")
    values.setdefault("spec", FilteringSpec(valid_time=NOON))
    return JobRecord(id=job_id, analysis_id=job_id.replace("job", "an", 1), **values)


def batch(sha256: str = "0" * 64, **values) -> BatchRecord:
    return BatchRecord(id=new_id("batch"), sha256=sha256, size=1, container="bufr", **values)


def test_what_is_stored_comes_back(stores):
    record = job(api_key="k1", flavour="early", revision=2)
    stored, created = stores.jobs.create(record)
    assert created
    assert stores.jobs.get(stored.id) == record
    assert stores.jobs.active("k1") == 1


def test_an_unknown_job_is_an_error_with_a_code(stores):
    with pytest.raises(NoSuchRecord) as error:
        stores.jobs.get("job-nowhere")
    assert error.value.code == "not_found"


def test_a_unique_key_makes_one_job(stores):
    first, _ = stores.jobs.create(job(), unique_key="cycle:2025010112")
    second, created = stores.jobs.create(job(), unique_key="cycle:2025010112")
    assert (second.id, created) == (first.id, False)


def force(stores, state: JobState) -> tuple[str, int]:
    """A job in `state`, reached by allowed moves, and its token."""
    record, _ = stores.jobs.create(job())
    if state is JobState.QUEUED:
        return record.id, 0
    token = stores.jobs.claim(record.id, "w", LEASE).token
    if state is JobState.SUCCEEDED:
        stores.jobs.succeed(record.id, token, Progress())
    if state is JobState.FAILED:
        stores.jobs.fail(record.id, token, Problem(code="x", message="y"))
    if state in (JobState.CANCELLING, JobState.CANCELLED):
        stores.jobs.cancel(record.id)
    if state is JobState.CANCELLED:
        stores.jobs.confirm_cancel(record.id, token)
    return record.id, token


@pytest.mark.parametrize("source", list(JobState))
@pytest.mark.parametrize("target", list(JobState))
def test_moves_follow_the_table(stores, source, target):
    job_id, token = force(stores, source)
    assert stores.jobs.get(job_id).state is source
    terminal = target in TERMINAL
    if target in ALLOWED_MOVES[source]:
        stores.jobs.move(job_id, target, token=token or None, terminal=terminal)
        assert stores.jobs.get(job_id).state is target
        assert job_id in stores.jobs.ids(target)
        assert job_id not in stores.jobs.ids(source)
    else:
        with pytest.raises(MoveRefused):
            stores.jobs.move(job_id, target, token=token or None, terminal=terminal)
        assert stores.jobs.get(job_id).state is source


def test_of_many_workers_one_gets_the_job(stores):
    record, _ = stores.jobs.create(job())
    outcomes = []

    def claim(name: str) -> None:
        try:
            outcomes.append(stores.jobs.claim(record.id, name, LEASE).worker)
        except MoveRefused:
            outcomes.append(None)

    threads = [threading.Thread(target=claim, args=(f"w{i}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name in outcomes if name]
    assert len(outcomes) == 16
    assert len(winners) == 1
    assert stores.jobs.get(record.id).worker == winners[0]
    assert stores.jobs.get(record.id).attempts == 1


def test_an_old_token_changes_nothing(stores):
    record, _ = stores.jobs.create(job())
    old = stores.jobs.claim(record.id, "w1", LEASE).token
    stores.jobs.requeue(record.id, old, Problem(code="oom", message="out of memory"))
    new = stores.jobs.claim(record.id, "w2", LEASE).token
    assert new > old
    with pytest.raises(LeaseLost):
        stores.jobs.succeed(record.id, old, Progress())
    with pytest.raises(LeaseLost):
        stores.jobs.report(record.id, old, Progress(step=3))
    with pytest.raises(LeaseLost):
        stores.jobs.beat(record.id, old, LEASE)
    with pytest.raises(LeaseLost):
        stores.jobs.begin_publication(record.id, old)
    assert stores.jobs.get(record.id).state is JobState.RUNNING
    stores.jobs.begin_publication(record.id, new)
    stores.jobs.succeed(record.id, new, Progress(phase=Phase.DONE))
    assert stores.jobs.get(record.id).attempts == 2


def test_cancel_before_start_while_running_and_too_late(stores):
    waiting, _ = stores.jobs.create(job(api_key="k"))
    assert stores.jobs.cancel(waiting.id) is JobState.CANCELLED
    assert stores.jobs.get(waiting.id).finished is not None
    assert stores.jobs.active("k") == 0
    with pytest.raises(MoveRefused):
        stores.jobs.claim(waiting.id, "w", LEASE)

    running, _ = stores.jobs.create(job())
    token = stores.jobs.claim(running.id, "w", LEASE).token
    assert stores.jobs.cancel(running.id) is JobState.CANCELLING
    assert stores.jobs.cancel(running.id) is JobState.CANCELLING
    with pytest.raises(MoveRefused):
        stores.jobs.begin_publication(running.id, token)
    stores.jobs.confirm_cancel(running.id, token)

    late, _ = stores.jobs.create(job())
    token = stores.jobs.claim(late.id, "w", LEASE).token
    stores.jobs.begin_publication(late.id, token)
    with pytest.raises(MoveRefused):
        stores.jobs.cancel(late.id)
    stores.jobs.succeed(late.id, token, Progress())


def test_an_abandoned_job_is_tried_again_and_then_fails(stores):
    reason = Problem(code="worker_lost", message="gone")
    record, _ = stores.jobs.create(job())
    stores.jobs.claim(record.id, "w", LEASE)
    assert stores.jobs.reap(record.id, 2, reason) == "held"
    stores.redis.delete(stores.keys.lease("job", record.id))
    assert stores.jobs.reap(record.id, 2, reason) == "queued"
    stores.jobs.claim(record.id, "w", LEASE)
    stores.redis.delete(stores.keys.lease("job", record.id))
    assert stores.jobs.reap(record.id, 2, reason) == "failed"
    assert stores.jobs.get(record.id).error == reason
    assert stores.jobs.reap(record.id, 2, reason) == "held"


def test_an_abandoned_cancelled_job_ends_cancelled(stores):
    record, _ = stores.jobs.create(job())
    stores.jobs.claim(record.id, "w", LEASE)
    stores.jobs.cancel(record.id)
    stores.redis.delete(stores.keys.lease("job", record.id))
    assert stores.jobs.reap(record.id, 5, Problem(code="x", message="")) == "cancelled"


def test_pages_run_from_new_to_old_and_filter(stores):
    made = [stores.jobs.create(job())[0].id for _ in range(5)]
    forecast, _ = stores.jobs.create(job(spec=ForecastSpec(valid_time=NOON)))
    made = sorted([*made, forecast.id])
    stores.jobs.cancel(made[0])
    first = stores.jobs.page(limit=4)
    assert [r.id for r in first.items] == made[:1:-1]
    rest = stores.jobs.page(limit=4, cursor=first.next_cursor or "")
    assert [r.id for r in rest.items] == made[1::-1]
    assert rest.next_cursor is None
    assert [r.id for r in stores.jobs.page(kind="forecast").items] == [forecast.id]
    assert [r.id for r in stores.jobs.page(state="cancelled").items] == [made[0]]
    both = stores.jobs.page(state="queued", kind="filtering")
    assert [r.id for r in both.items] == [i for i in reversed(made[1:]) if i != forecast.id]
    assert both.total == 4


def test_queue_position_counts_the_jobs_ahead(stores):
    ids = sorted(stores.jobs.create(job())[0].id for _ in range(3))
    assert [stores.jobs.read(i).progress.queue_position for i in ids] == [0, 1, 2]
    stores.jobs.claim(ids[0], "w", LEASE)
    assert [stores.jobs.read(i).progress.queue_position for i in ids] == [None, 0, 1]


def test_events_tell_the_story_and_resume(stores):
    record, _ = stores.jobs.create(job())
    token = stores.jobs.claim(record.id, "w", LEASE).token
    stores.jobs.report(record.id, token, Progress(phase=Phase.SAMPLING, step=2, steps=8))
    stores.jobs.succeed(record.id, token, Progress(phase=Phase.DONE))
    events = stores.jobs.events(record.id)
    assert [kind for _, kind, _ in events] == ["state", "state", "progress", "state"]
    assert [data.get("state", data.get("step")) for _, _, data in events] == [
        "queued",
        "running",
        2,
        "succeeded",
    ]
    assert stores.jobs.events(record.id, after=events[1][0]) == events[2:]


def test_the_same_content_is_the_same_batch(stores):
    first, created = stores.batches.create(batch())
    assert created
    again, created = stores.batches.create(batch())
    assert (again.id, created) == (first.id, False)
    other, created = stores.batches.create(batch("1" * 64))
    assert created and other.id != first.id
    assert stores.batches.find_content("0" * 64) == first.id


def test_other_options_make_another_batch_of_the_same_content(stores):
    first, _ = stores.batches.create(batch(options={"report_type": "synop"}))
    again, created = stores.batches.create(batch(options={"report_type": "synop"}))
    assert (again.id, created) == (first.id, False)
    other, created = stores.batches.create(batch(options={"report_type": "ship"}))
    assert created and other.id != first.id


def test_an_idempotency_key_holds_one_content(stores):
    first, _ = stores.batches.create(batch(), idempotency_key="a")
    again, created = stores.batches.create(batch(), idempotency_key="a")
    assert (again.id, created) == (first.id, False)
    with pytest.raises(IdempotencyConflict):
        stores.batches.create(batch("2" * 64), idempotency_key="a")


def test_content_of_a_failed_batch_may_come_again(stores):
    first, _ = stores.batches.create(batch())
    token = stores.batches.claim(first.id, "w", LEASE).token
    stores.batches.fail(first.id, token, Problem(code="storage_error", message="disk full"))
    again, created = stores.batches.create(batch())
    assert created and again.id != first.id


def test_a_batch_ends_with_its_summary(stores):
    record, _ = stores.batches.create(batch())
    token = stores.batches.claim(record.id, "w", LEASE).token
    summary = IngestSummary(messages=3, observations=20, by_variable={"temperature": 20})
    stores.batches.finish(record.id, token, summary)
    done = stores.batches.get(record.id)
    assert (done.state, done.summary) == (BatchState.INGESTED, summary)


def test_specs_refuse_unknown_fields_and_impossible_times():
    with pytest.raises(ValidationError, match="full hour"):
        FilteringSpec(valid_time=NOON + timedelta(minutes=1))
    with pytest.raises(ValidationError, match="extra"):
        FilteringSpec(valid_time=NOON, windw_hours=3)
    with pytest.raises(ValidationError, match="synop"):
        FilteringSpec(valid_time=NOON, observations={"networks": ["sinop"]})
