"""The broker is killed with jobs queued and running; all of them finish, once."""

import pytest

from tests.faults.steps import finishes, published, submit_job, wait_phase, wait_state, wait_worker
from tests.worker.processes import Processes
from worker.contract.jobs import JobState, Phase
from worker.contract.store import open_stores


@pytest.fixture
def alone(own_broker, prefix, tmp_path):
    """Stores and processes on a broker that this test may kill."""
    made = Processes(own_broker.url, prefix, tmp_path)
    opened = open_stores(own_broker.url, prefix)
    yield opened, made
    made.end()
    opened.redis.close()


def test_jobs_outlive_a_restart_of_the_broker(alone, own_broker):
    stores, processes = alone
    processes.stub_worker()
    processes.appa("worker", "scheduler")
    wait_worker(stores)
    hold = processes.data / "pause-sampling"
    hold.touch()
    jobs = [submit_job(stores, processes) for _ in range(3)]
    wait_phase(stores, jobs[0].id, Phase.SAMPLING)
    own_broker.kill()
    own_broker.start()
    hold.unlink()
    for job in jobs:
        assert wait_state(stores, job.id, JobState.SUCCEEDED, seconds=60).state
        assert finishes(stores, job.id) == 1
    assert published(processes) == sorted(job.analysis_id for job in jobs)


def test_a_job_whose_message_was_lost_is_sent_again(stores, processes):
    job = submit_job(stores, processes, copies=0)
    processes.appa("worker", "scheduler")
    processes.stub_worker()
    assert wait_state(stores, job.id, JobState.SUCCEEDED).attempts == 1
