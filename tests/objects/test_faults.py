"""Faults between worker and bucket, with real worker processes and a real server."""

import os
import signal
import threading

import pytest

from tests.faults.steps import finishes, submit_job, wait_phase, wait_state
from tests.objects.conftest import MakeLayout
from tests.objects.s3_server import S3Server
from tests.objects.test_publication import item, publish, stage
from tests.worker.processes import Processes, wait_for
from worker.contract.buckets import BucketUnavailable
from worker.contract.jobs import JobState, Phase
from worker.contract.layout import Layout
from worker.lease import Lease, ProgressReporter
from worker.results.publication import publish as publish_patiently
from worker.results.retention.run import remove
from worker.results.store import result_store
from worker.settings import WorkerSettings
from worker.tasks.attempt import problem_of


@pytest.fixture
def workers(processes: Processes, server: S3Server) -> Processes:
    processes.environment |= {"APPA_RESULTS_URL": server.url}
    return processes


class Hold:
    """Holds the first write of a manifest until it is let go, then answers 503 or lets it pass."""

    def __init__(self, server: S3Server, status: int | None) -> None:
        self.came, self.go, self.first = threading.Event(), threading.Event(), threading.Lock()
        self.status = status
        server.meddle = self

    def __call__(self, method: str, path: str) -> int | None:
        if method == "PUT" and "/manifests/" in path and self.first.acquire(blocking=False):
            self.came.set()
            self.go.wait(60)
            return self.status
        return None


def result_of(server: S3Server, analysis_id: str) -> bytes:
    (name,) = server.names(f"files/{analysis_id}/")
    return server.get(name)


def test_killed_between_files_and_manifest_nothing_is_visible(stores, workers, server) -> None:
    hold = Hold(server, 503)
    worker = workers.stub_worker()
    workers.appa("worker", "scheduler")
    job = submit_job(stores, workers)
    assert hold.came.wait(60), workers.log()
    workers.kill(worker)
    hold.go.set()
    assert result_of(server, job.analysis_id) == b"attempt 1"
    assert server.names("manifests/") == []
    workers.stub_worker()
    done = wait_state(stores, job.id, JobState.SUCCEEDED, JobState.FAILED, seconds=60)
    assert done.state is JobState.SUCCEEDED, workers.log()
    assert server.names("manifests/") == [f"manifests/{job.analysis_id}.json"]
    layout = Layout(workers.data, server.url)
    assert len(server.names("files/")) == 2  # those of the first attempt lie there unseen
    assert result_store(layout).file(job.analysis_id, "result.txt").read_bytes() == (
        f"attempt {done.attempts}".encode()
    )
    assert result_store(layout).sweep(-60.0) == 1
    assert result_of(server, job.analysis_id) == f"attempt {done.attempts}".encode()


def test_a_worker_taken_for_dead_comes_second(stores, workers, server) -> None:
    hold = Hold(server, None)
    zombie = workers.stub_worker()
    workers.appa("worker", "scheduler")
    job = submit_job(stores, workers)
    assert hold.came.wait(60), workers.log()
    os.killpg(zombie.pid, signal.SIGSTOP)  # past the gate, its manifest on the way
    workers.stub_worker()
    done = wait_state(stores, job.id, JobState.SUCCEEDED, JobState.FAILED, seconds=60)
    assert done.state is JobState.SUCCEEDED, workers.log()
    hold.go.set()
    os.killpg(zombie.pid, signal.SIGCONT)
    wait_for(lambda: "already published" in workers.log(), 60)
    wait_for(lambda: len(server.names("files/")) == 1)  # the zombie took its own file back
    assert result_of(server, job.analysis_id) == f"attempt {done.attempts}".encode()
    assert done.attempts >= 2 and finishes(stores, job.id) == 1


def test_a_job_waits_for_a_server_that_fails_or_is_gone(stores, workers, server) -> None:
    def fail(method: str, path: str) -> int | None:
        return 500 if method in ("PUT", "POST") else None

    server.meddle = fail
    workers.stub_worker()
    job = submit_job(stores, workers)
    wait_phase(stores, job.id, Phase.PUBLISHING)
    wait_for(lambda: "waits for the storage of results" in workers.log(), 60)
    server.stop()
    assert stores.jobs.get(job.id).state is JobState.RUNNING
    server.meddle = lambda method, path: None
    server.start()
    done = wait_state(stores, job.id, JobState.SUCCEEDED, JobState.FAILED, seconds=90)
    assert done.state is JobState.SUCCEEDED, workers.log()
    assert done.attempts == 1  # nothing was computed twice
    assert result_of(server, job.analysis_id) == b"attempt 1"


def test_a_server_that_is_gone_for_long_sends_the_job_back(
    stores, processes, machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    waiting = submit_job(stores, processes)
    settings = WorkerSettings(redis_url=processes.redis_url, redis_prefix=processes.prefix)
    job = stores.jobs.claim(waiting.id, "worker", settings.lease)
    progress = ProgressReporter(
        stores.jobs, Lease(stores.jobs, job.id, job.token, settings.lease), lambda: None
    )
    folder = stage(layout, job.analysis_id, token=job.token)
    server.stop()
    with pytest.raises(BucketUnavailable) as caught:
        publish_patiently(job, stores.jobs, layout, folder, progress, patience=0.0)
    problem = problem_of(caught.value)
    assert problem.retryable and server.url in problem.message  # put back, like on a full disk
    assert not stores.jobs.get(job.id).publishing  # it may still be cancelled


def test_a_deletion_that_is_cut_off_leaves_no_half_of_a_result(
    machine: MakeLayout, server: S3Server
) -> None:
    layout, other = machine(), machine()
    publish(layout, "an-1", data=b"x")
    result_store(other).refresh(now=True)
    deletions = iter([None])  # one request is done, then the server fails
    server.meddle = lambda method, path: next(deletions, 500) if method == "POST" else None
    with pytest.raises(BucketUnavailable):
        remove(layout, item("analysis", "an-1"))
    server.meddle = lambda method, path: None
    assert server.names("manifests/") == [] and len(server.names("files/")) == 2
    result_store(other).refresh(now=True)
    assert not other.manifest("an-1").exists()
    assert result_store(other).sweep(-60.0) == 2
    assert server.names() == []
