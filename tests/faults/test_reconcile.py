"""Uploads that are on disk while Redis refuses, forgets or has lost them: gateway, worker, scheduler."""

import shutil
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from typer.testing import CliRunner

from deploy.commands.observations import app
from tests.service.gateway_process import GatewayProcess
from tests.worker.processes import Processes, wait_for
from worker.contract.batches import BatchState
from worker.contract.jobs import JobRecord, JobState
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.queues import RUN_ASSIMILATION, submit
from worker.contract.records import Problem, new_id
from worker.contract.store import open_stores
from worker.observations.store.store import ObservationStore
from worker.process import message_sender
from worker.settings import WorkerSettings


def csv(temperature: float) -> bytes:
    return (
        "time,lat,lon,station_id,report_type,variable,obs_value\n"
        f"2025-01-01T06:00:00Z,48.2,16.4,11035,synop,2m_temperature,{temperature}\n"
    ).encode()


@pytest.fixture
def gateway(own_broker, tmp_path):
    process = GatewayProcess(own_broker.url, tmp_path, prefix="lost").start()
    yield process
    process.stop()


@pytest.fixture
def workers(own_broker, tmp_path, gateway):
    made = Processes(own_broker.url, "lost", tmp_path, {"APPA_RECONCILE_SECONDS": "0.5"})
    yield made
    made.end()


@pytest.fixture
def records(own_broker):
    opened = open_stores(own_broker.url, "lost")
    yield opened.batches
    opened.redis.close()


def send(gateway, content: bytes) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/observations", content=content, timeout=60)


def new_job(jobs, broker) -> JobRecord:
    """A job as the gateway accepts it, with its message."""
    job_id = new_id("job")
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, 12, tzinfo=UTC))
    analysis_id = job_id.replace("job", "an", 1)
    job, _ = jobs.create(JobRecord(id=job_id, analysis_id=analysis_id, spec=spec))
    settings = WorkerSettings(redis_url=broker.url, redis_prefix="lost")
    with message_sender(settings) as app:
        submit(app, RUN_ASSIMILATION, job.id)
    return job


def rows(gateway, batch_id: str) -> int:
    found = ObservationStore(str(Layout(gateway.data_dir).observations)).files.manifest(batch_id)
    return 0 if found is None else found.rows


def state(records, batch_id: str) -> BatchState | None:
    record = records.find(batch_id)
    return None if record is None else record.state


def test_what_was_accepted_survives_the_loss_of_redis(gateway, workers, records, own_broker):
    ingest = workers.appa("worker", "ingest")
    done = send(gateway, csv(271.0)).json()["id"]
    wait_for(lambda: state(records, done) is BatchState.INGESTED, 60)
    workers.kill(ingest)
    waiting = send(gateway, csv(272.0)).json()["id"]
    before = records.get(done)

    own_broker.kill()
    shutil.rmtree(own_broker.folder / "appendonlydir")
    own_broker.start()
    assert state(records, done) is None

    resent = send(gateway, csv(272.0))  # its sender heard of the loss
    workers.appa("worker", "ingest")
    workers.appa("worker", "scheduler")
    wait_for(lambda: state(records, done) is BatchState.INGESTED, 60)
    wait_for(lambda: state(records, resent.json()["id"]) is BatchState.INGESTED, 60)
    after = records.get(done)
    assert (after.sha256, after.created, after.summary.observations) == (
        before.sha256, before.created, 1,
    )  # fmt: skip
    # the same content is known again, and the upload that was accepted twice is ingested once
    assert send(gateway, csv(271.0)).json()["id"] == done
    wait_for(lambda: not gateway.layout.raw_batch(waiting).exists(), 30)
    assert state(records, waiting) is None
    assert rows(gateway, done) + rows(gateway, resent.json()["id"]) == 2
    assert rows(gateway, waiting) == 0


def test_an_upload_of_a_gateway_that_died_before_the_record_is_ingested(gateway, workers, records):
    lost = "batch-20250101t060000000-00000001"
    gateway.layout.raw_batch(lost).mkdir()
    gateway.layout.raw_file(lost).write_bytes(csv(273.0))
    workers.appa("worker", "ingest")
    workers.appa("worker", "scheduler")
    wait_for(lambda: state(records, lost) is BatchState.INGESTED, 60)
    assert rows(gateway, lost) == 1


def test_a_redis_that_refuses_writes_leaves_nothing_on_disk_and_is_not_ready(
    gateway, records, own_broker
):
    ready = f"{gateway.url}/health/ready?part=gateway"
    assert httpx.get(ready).status_code == 200
    records.redis.config_set("maxmemory", "1")
    refused = send(gateway, csv(274.0))
    assert refused.status_code == 503
    assert "Retry-After" in refused.headers
    assert list(gateway.layout.raw.iterdir()) == []
    assert list(gateway.layout.tmp.iterdir()) == []
    answer = httpx.get(ready)
    assert answer.status_code == 503
    assert "Redis refuses writes" in answer.json()["detail"]
    records.redis.config_set("maxmemory", "0")
    assert httpx.get(ready).status_code == 200
    accepted = send(gateway, csv(274.0))
    assert accepted.status_code == 202
    assert {p.name for p in gateway.layout.raw_batch(accepted.json()["id"]).iterdir()} == {
        "batch.json",
        "content",
    }


def test_a_failed_upload_is_ingested_when_someone_asks_for_it(gateway, workers, records):
    sent = send(gateway, csv(275.0)).json()["id"]
    url = f"{gateway.url}/v1/observations/{sent}/retry"
    claimed = records.claim(sent, "test", timedelta(seconds=30))
    assert httpx.post(url).status_code == 409
    records.fail(sent, claimed.token, Problem(code="worker_lost", message="It died."))
    workers.appa("worker", "ingest")
    asked = CliRunner().invoke(app, ["retry", "--url", gateway.url])  # all that failed
    assert (asked.exit_code, asked.output) == (0, f"{sent}: received\n")
    wait_for(lambda: state(records, sent) is BatchState.INGESTED, 60)
    assert rows(gateway, sent) == 1
    assert httpx.post(url).status_code == 409
    refused = CliRunner().invoke(app, ["retry", sent, "--url", gateway.url])
    assert refused.exit_code == 1
    assert "ingested" in refused.output
    shutil.rmtree(gateway.layout.raw_batch(sent))
    assert httpx.post(url).status_code == 404


def test_a_job_that_was_accepted_survives_the_loss_of_redis(gateway, workers, own_broker):
    """Queued and running when the server is replaced by an empty one: each ends once."""
    stub = workers.stub_worker(APPA_STUB_STEPS="2")
    scheduler = workers.appa("worker", "scheduler", APPA_ENDED_SECONDS="0")
    jobs = open_stores(own_broker.url, "lost", gateway.layout).jobs
    done = new_job(jobs, own_broker)
    wait_for(lambda: jobs.get(done.id).state is JobState.SUCCEEDED, 60)
    wait_for(lambda: not jobs.in_redis([done.id]), 60)  # on disk alone
    workers.kill(stub)
    workers.kill(scheduler)
    queued, running = new_job(jobs, own_broker), new_job(jobs, own_broker)
    jobs.claim(running.id, "a worker that is gone", timedelta(seconds=30))

    own_broker.kill()
    shutil.rmtree(own_broker.folder / "appendonlydir")
    own_broker.start()
    url = f"{gateway.url}/v1/jobs"
    assert httpx.get(f"{url}/{done.id}").json()["state"] == "succeeded"
    workers.stub_worker(APPA_STUB_STEPS="2")
    workers.appa("worker", "scheduler")
    every = {job.id for job in (done, running, queued)}
    ended = {"state": "succeeded"}
    wait_for(lambda: httpx.get(url, params=ended, timeout=30).json()["total"] == len(every), 90)
    listed = [job["id"] for job in httpx.get(url, params=ended).json()["items"]]
    assert sorted(listed) == sorted(every)
    results = [p.parent.name for p in gateway.layout.analyses.glob("*/manifest.json")]
    assert len(results) == len(every)
