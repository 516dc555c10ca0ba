"""A cancel is honoured in every phase, and what was cancelled is never visible."""

import pytest

from tests.faults.steps import published, submit_job, wait_phase, wait_state, wait_worker
from worker.contract.jobs import JobState, Phase


@pytest.mark.parametrize("phase", ["gathering", "background", "sampling", "writing"])
def test_cancel_in_each_phase(stores, processes, phase):
    processes.stub_worker()
    hold = processes.data / f"pause-{phase}"
    hold.touch()
    job = submit_job(stores, processes)
    wait_phase(stores, job.id, Phase(phase))
    assert stores.jobs.cancel(job.id) is JobState.CANCELLING
    wait_state(stores, job.id, JobState.CANCELLED)
    hold.unlink()
    following = submit_job(stores, processes)
    wait_state(stores, following.id, JobState.SUCCEEDED)
    assert published(processes) == [following.analysis_id]


def test_a_job_cancelled_while_it_waits_never_starts(stores, processes):
    job = submit_job(stores, processes)
    assert stores.jobs.cancel(job.id) is JobState.CANCELLED
    processes.stub_worker()
    wait_worker(stores)
    following = submit_job(stores, processes)
    wait_state(stores, following.id, JobState.SUCCEEDED)
    assert stores.jobs.get(job.id).attempts == 0


def test_a_cancelled_job_whose_worker_died_ends_cancelled(stores, processes):
    worker = processes.stub_worker()
    processes.appa("worker", "scheduler")
    (processes.data / "pause-sampling").touch()
    job = submit_job(stores, processes)
    wait_phase(stores, job.id, Phase.SAMPLING)
    processes.kill(worker)
    stores.jobs.cancel(job.id)
    wait_state(stores, job.id, JobState.CANCELLED)
    assert published(processes) == []
