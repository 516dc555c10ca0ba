"""Progress as the model calls it: told at the right pace, and the place where work is stopped."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from model.domain.errors import JobCancelled
from worker.contract.jobs import JobRecord, Phase
from worker.contract.kinds import FilteringSpec
from worker.contract.record_store import LeaseLost
from worker.contract.records import Problem, new_id
from worker.lease import JobTooLong, Lease, ProgressReporter

LEASE = timedelta(seconds=0.4)


@pytest.fixture
def claimed(stores):
    job_id = new_id("job")
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, tzinfo=UTC))
    stores.jobs.create(JobRecord(id=job_id, analysis_id="an-1", spec=spec))
    return stores.jobs.claim(job_id, "w", LEASE)


def reporter(stores, job, **values) -> ProgressReporter:
    lease = Lease(stores.jobs, job.id, job.token, LEASE)
    return ProgressReporter(stores.jobs, lease, lambda: None, **values)


def steps(stores, job) -> list[int]:
    return [d["step"] for _, kind, d in stores.jobs.events(job.id) if kind == "progress"]


def test_steps_are_told_at_most_once_an_interval_and_phases_at_once(stores, claimed):
    progress = reporter(stores, claimed, interval=1000.0)
    progress.phase(Phase.SAMPLING)
    for step in range(50):
        progress(step, 50)
    progress.phase(Phase.WRITING)
    assert steps(stores, claimed) == [0, 50]
    assert stores.jobs.get(claimed.id).progress.phase is Phase.WRITING


def test_each_phase_counts_its_own_steps(stores, claimed):
    progress = reporter(stores, claimed, interval=0.0)
    progress.phase(Phase.BACKGROUND)
    for step in range(3):
        progress(step, 3)
    progress.phase(Phase.SAMPLING)
    progress(0, 3)
    progress.phase(Phase.WRITING)
    told = [d for _, kind, d in stores.jobs.events(claimed.id) if kind == "progress"]
    assert [(d["phase"], d["step"]) for d in told] == [
        ("background", 0), ("background", 0), ("background", 1), ("background", 2),
        ("sampling", 0), ("sampling", 0), ("writing", 3),
    ]  # fmt: skip


def test_the_time_left_follows_from_the_pace(stores, claimed, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("worker.lease.time.monotonic", lambda: clock[0])
    progress = reporter(stores, claimed, interval=0.0)
    progress.phase(Phase.SAMPLING)
    clock[0] = 10.0
    progress(4, 16)  # 4 steps in 10 s: 12 more take 30 s
    assert stores.jobs.get(claimed.id).progress.eta_seconds == pytest.approx(30.0)


def test_a_step_hears_of_cancel_takeover_and_limit(stores, claimed):
    progress = reporter(stores, claimed)
    progress(0, 2)
    stores.jobs.cancel(claimed.id)
    with pytest.raises(JobCancelled):
        progress(1, 2)
    other = reporter(stores, claimed.model_copy(update={"token": claimed.token - 1}))
    with pytest.raises(LeaseLost):
        other(0, 2)
    slow = reporter(stores, claimed, limit_seconds=-1.0)
    with pytest.raises(JobTooLong):
        slow(0, 2)


def test_heartbeats_keep_a_lease_and_bring_it_back(stores, claimed):
    key = stores.keys.lease("job", claimed.id)
    beaten = threading.Event()
    with Lease(stores.jobs, claimed.id, claimed.token, LEASE):
        stores.redis.delete(key)  # as if it ran out while the server was down
        beaten.wait(1.0)
        assert stores.redis.get(key) == str(claimed.token)
    beaten.wait(0.6)
    assert stores.redis.get(key) is None


def test_a_lease_that_was_taken_over_says_so(stores, claimed):
    with Lease(stores.jobs, claimed.id, claimed.token, LEASE) as lease:
        stores.jobs.requeue(claimed.id, claimed.token, Problem(code="x", message="y"))
        stores.jobs.claim(claimed.id, "other", LEASE)
        assert lease.lost.wait(5)
        with pytest.raises(LeaseLost):
            lease.check()
