"""Workers that die, messages that come twice, zombies: a job ends once, with one result."""

import json
import os
import signal
import time
from datetime import timedelta

import pytest

from tests.deploy.collector import Collector
from tests.faults.steps import (
    finishes,
    manifest,
    published,
    submit_job,
    wait_phase,
    wait_state,
    wait_worker,
)
from tests.worker.processes import wait_for
from worker.contract.jobs import JobState, Phase
from worker.contract.measures import Measures
from worker.contract.record_store import LeaseLost


def test_a_job_runs_and_its_result_is_published(stores, processes):
    processes.stub_worker()
    job = submit_job(stores, processes)
    done = wait_state(stores, job.id, JobState.SUCCEEDED, JobState.FAILED)
    assert done.state is JobState.SUCCEEDED, processes.log()
    assert published(processes) == [job.analysis_id]
    assert not list((processes.data / "tmp").iterdir())


@pytest.fixture
def collector():
    with Collector() as running:
        yield running


def test_kill_9_in_mid_job_and_the_job_finishes_once(stores, processes, collector):
    processes.environment |= collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
    worker = processes.stub_worker()
    scheduler = processes.appa("worker", "scheduler")
    hold = processes.data / "pause-sampling"
    hold.touch()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    asked = {"request_id": "mine-1", "trace": f"00-{trace}-00f067aa0ba902b7-01"}
    job = submit_job(stores, processes, asked=asked)
    wait_phase(stores, job.id, Phase.SAMPLING)
    processes.kill(worker)
    hold.unlink()
    second = processes.stub_worker()
    done = wait_state(stores, job.id, JobState.SUCCEEDED, JobState.FAILED)
    assert done.state is JobState.SUCCEEDED, processes.log()
    for process in (second, scheduler):  # their spans come at the latest when they end
        process.terminate()
        process.wait(30)
    tree = collector.tree(trace, "00f067aa0ba902b7")
    assert set(tree) == {("scheduler", "take over"), ("gpu", "appa.run_assimilation")}
    assert collector.named("appa.run_assimilation").attributes["appa.attempt"] == done.attempts
    lines = [line for line in processes.log().splitlines() if job.id in line]
    assert len([line for line in lines if "took over" in line]) == 1  # the scheduler's
    assert len([line for line in lines if "started" in line]) >= 2
    assert not [x for x in lines if f"trace_id={trace}" not in x or "request_id=mine-1" not in x]
    assert done.attempts >= 2
    assert done.error is None
    assert published(processes) == [job.analysis_id]
    assert finishes(stores, job.id) == 1


def test_a_job_that_kills_every_worker_fails_with_the_reason(stores, processes):
    processes.appa("worker", "scheduler", APPA_ATTEMPTS="2")
    (processes.data / "pause-sampling").touch()
    measured = Measures(None, stores.keys).key

    def counted(name: str, **labels: str) -> float:
        field = json.dumps([name, labels], separators=(",", ":"), sort_keys=True)
        return float(stores.redis.hget(measured, field) or 0)

    job = submit_job(stores, processes)
    about = {"noun": "job", "kind": "filtering"}
    for number in (1, 2):
        worker = processes.stub_worker()
        wait_for(lambda n=number: stores.jobs.get(job.id).attempts == n)
        wait_phase(stores, job.id, Phase.SAMPLING)
        wait_for(lambda n=number: counted("appa_attempts_total", **about) == n)
        processes.kill(worker)
    failed = wait_state(stores, job.id, JobState.FAILED)
    assert failed.error.code == "worker_lost"
    assert published(processes) == []
    wait_for(lambda: counted("appa_workers_lost_total", noun="job") == 2)
    assert counted("appa_attempts_total", **about) == 2


def test_a_message_that_comes_four_times_is_one_job(stores, processes):
    for _ in range(2):
        processes.stub_worker()
    wait_worker(stores, 2)
    job = submit_job(stores, processes, copies=4)
    wait_state(stores, job.id, JobState.SUCCEEDED)
    last = submit_job(stores, processes)
    wait_state(stores, last.id, JobState.SUCCEEDED)
    assert stores.jobs.get(job.id).attempts == 1
    assert finishes(stores, job.id) == 1
    assert published(processes) == sorted([job.analysis_id, last.analysis_id])


def test_a_zombie_cannot_publish(stores, processes):
    """A worker stopped for longer than its lease wakes up after another has done the job."""
    zombie = processes.stub_worker()
    processes.appa("worker", "scheduler")
    hold = processes.data / "pause-writing"
    hold.touch()
    job = submit_job(stores, processes)
    wait_phase(stores, job.id, Phase.WRITING)
    os.killpg(zombie.pid, signal.SIGSTOP)
    hold.unlink()
    wait_for(lambda: stores.jobs.get(job.id).state is JobState.QUEUED)
    processes.stub_worker()
    done = wait_state(stores, job.id, JobState.SUCCEEDED)
    before = manifest(processes, job).model_dump()
    os.killpg(zombie.pid, signal.SIGCONT)
    wait_for(lambda: "Another attempt holds" in processes.log())
    assert manifest(processes, job).model_dump() == before
    assert stores.jobs.get(job.id) == done
    assert finishes(stores, job.id) == 1


def test_a_zombie_past_its_gate_finds_the_name_taken(stores, processes, tmp_path):
    """Both passed the gate in front of publication; the folder can be named only once."""
    from worker.contract.layout import Layout
    from worker.lease import Lease, ProgressReporter
    from worker.results.publication import publish

    layout = Layout(tmp_path).create()
    job = submit_job(stores, processes, copies=0)
    lease = timedelta(seconds=30)
    attempts = []
    for name in ("zombie", "successor"):
        held = stores.jobs.claim(job.id, name, lease)
        reporter = ProgressReporter(
            stores.jobs, Lease(stores.jobs, job.id, held.token, lease), lambda: None
        )
        folder = layout.staging(held.analysis_id, held.token)
        folder.mkdir()
        (folder / "manifest.json").write_text(name)
        attempts.append((held, folder, reporter))
        stores.jobs.begin_publication(job.id, held.token)
        if name == "zombie":
            stores.redis.delete(stores.keys.lease("job", job.id))
            from worker.contract.records import Problem

            assert stores.jobs.reap(job.id, 3, Problem(code="worker_lost", message="")) == "queued"
    held, folder, reporter = attempts[1]
    publish(held, stores.jobs, layout, folder, reporter)
    held, folder, reporter = attempts[0]
    with pytest.raises(LeaseLost):
        publish(held, stores.jobs, layout, folder, reporter)
    assert layout.manifest(job.analysis_id).read_text() == "successor"


def test_a_worker_told_to_stop_gives_its_job_back(stores, processes):
    worker = processes.stub_worker(APPA_STUB_STEPS="1000", APPA_STUB_STEP_SECONDS="0.02")
    job = submit_job(stores, processes)
    wait_phase(stores, job.id, Phase.SAMPLING)
    started = time.monotonic()
    worker.terminate()
    worker.wait(20)
    assert time.monotonic() - started < 15  # the job would have taken 20 s
    assert stores.jobs.get(job.id).state is JobState.QUEUED
    processes.stub_worker()
    wait_state(stores, job.id, JobState.SUCCEEDED)
    assert not stores.workers.alive() or len(stores.workers.alive()) == 1
