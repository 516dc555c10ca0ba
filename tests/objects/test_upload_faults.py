"""Faults between gateways, workers and the bucket of uploads: nothing lost, nothing twice.

Gateway and workers have data folders of their own; they share the bucket and the broker.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.test_reconcile import csv
from tests.objects.s3_server import UPLOADS, S3Server
from tests.service.gateway_process import GatewayProcess
from tests.worker.processes import Processes, wait_for
from worker.contract.batches import BatchState
from worker.contract.layout import Layout
from worker.contract.records import Problem
from worker.contract.store import Stores
from worker.observations.store.store import ObservationStore

StartHere = Callable[[], GatewayProcess]


@pytest.fixture
def workers(processes: Processes, server: S3Server) -> Processes:
    processes.environment |= {
        "APPA_UPLOADS_URL": server.uploads_url,
        "APPA_RECONCILE_SECONDS": "0.5",
    }
    return processes


@pytest.fixture
def start_here(
    processes: Processes, server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartHere]:
    """Starts gateways of this installation, each on a machine of its own."""
    started: list[GatewayProcess] = []

    def start() -> GatewayProcess:
        folder = tmp_path_factory.mktemp("gateway")
        about = {"APPA_UPLOADS_URL": server.uploads_url}
        process = GatewayProcess(processes.redis_url, folder, processes.prefix, about)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()


def send(gateway: GatewayProcess, content: bytes, **headers: str) -> httpx.Response:
    url = f"{gateway.url}/v1/observations"
    return httpx.post(url, content=content, headers=headers, timeout=120)


def ingested(stores: Stores, batch_id: str) -> bool:
    record = stores.batches.find(batch_id)
    return record is not None and record.state is BatchState.INGESTED


def rows(workers: Processes) -> dict[str, int]:
    """Rows of each upload in the store of the workers."""
    files = ObservationStore(str(Layout(workers.data).observations)).files
    return {name: files.manifest(name).rows for name in files.batches()}


class Hold:
    """Holds the first request of a kind until it is let go, then answers 503 or lets it pass."""

    def __init__(self, server: S3Server, verb: str, part: str, status: int | None) -> None:
        self.came, self.go, self.first = threading.Event(), threading.Event(), threading.Lock()
        self.verb, self.part, self.status = verb, part, status
        server.meddle = self

    def __call__(self, method: str, path: str) -> int | None:
        wanted = method == self.verb and self.part in path
        if wanted and self.first.acquire(blocking=False):
            self.came.set()
            self.go.wait(60)
            return self.status
        return None


def kill_while_held(gateway: GatewayProcess, hold: Hold, content: bytes) -> None:
    """Sends an upload, and kills the gateway while its request to the bucket is held."""

    def try_to_send() -> None:
        with pytest.raises(httpx.TransportError):
            send(gateway, content)

    sender = threading.Thread(target=try_to_send)
    sender.start()
    assert hold.came.wait(60), gateway.log
    assert gateway.process is not None
    gateway.process.kill()
    gateway.process.wait()
    hold.go.set()
    sender.join()


def test_from_one_machine_to_another_without_a_shared_folder(
    start_here, workers, stores, server
) -> None:
    gateway = start_here()
    workers.appa("worker", "ingest")
    large = csv(280.0) + csv(281.0).split(b"\n", 1)[1] * 150_000  # in the lane of large ones
    sent = [send(gateway, csv(271.0 + n)).json()["id"] for n in range(5)]
    sent.append(send(gateway, large).json()["id"])
    wait_for(lambda: all(ingested(stores, name) for name in sent), 120)
    assert {name: rows(workers)[name] for name in sent[:5]} == dict.fromkeys(sent[:5], 1)
    assert len(server.names("records/", UPLOADS)) == len(sent)
    assert server.get(f"content/{sent[5][6:14]}/{sent[5]}", UPLOADS) == large
    for layout in (gateway.layout, Layout(workers.data)):
        assert list(layout.raw.iterdir()) == []
        wait_for(lambda layout=layout: list(layout.tmp.iterdir()) == [])
    again = send(gateway, large)
    assert (again.status_code, again.json()["id"]) == (200, sent[5])
    assert len(server.names(below=UPLOADS)) == 2 * len(sent)


def test_a_gateway_killed_before_the_record_accepted_nothing(
    start_here, workers, stores, server
) -> None:
    gateway = start_here()
    kill_while_held(gateway, Hold(server, "PUT", "/records/", 503), csv(272.0))
    assert server.names("records/", UPLOADS) == []
    assert len(server.names("content/", UPLOADS)) == 1
    workers.appa("worker", "ingest")
    workers.appa("worker", "scheduler")
    again = send(start_here(), csv(272.0))
    assert again.status_code == 202
    wait_for(lambda: ingested(stores, again.json()["id"]), 60)
    assert rows(workers) == {again.json()["id"]: 1}
    assert len(server.names("records/", UPLOADS)) == 1


def test_a_gateway_killed_after_the_record_is_ingested_once(
    start_here, workers, stores, server
) -> None:
    gateway = start_here()
    kill_while_held(gateway, Hold(server, "PUT", "/records/", None), csv(273.0))
    wait_for(lambda: server.names("records/", UPLOADS))
    (name,) = [n.rsplit("/")[-1] for n in server.names("content/", UPLOADS)]
    assert stores.batches.find(name) is None
    workers.appa("worker", "ingest")
    workers.appa("worker", "scheduler")
    wait_for(lambda: ingested(stores, name), 60)
    again = send(start_here(), csv(273.0))  # its sender heard nothing
    assert (again.status_code, again.json()["id"]) == (200, name)
    assert rows(workers) == {name: 1}
    assert len(server.names(below=UPLOADS)) == 2


def test_a_worker_killed_while_it_fetches_is_followed_by_another(
    start_here, workers, stores, server
) -> None:
    gateway = start_here()
    sent = [send(gateway, csv(274.0 + n)).json()["id"] for n in range(3)]
    hold = Hold(server, "GET", "/content/", 503)
    first = workers.appa("worker", "ingest")
    workers.appa("worker", "scheduler")
    assert hold.came.wait(60), workers.log()
    workers.kill(first)
    hold.go.set()
    workers.appa("worker", "ingest")
    wait_for(lambda: all(ingested(stores, name) for name in sent), 90)
    assert rows(workers) == dict.fromkeys(sent, 1)
    wait_for(lambda: list(Layout(workers.data).tmp.glob("fetched-*")) == [])


def test_a_server_that_fails_or_is_gone_refuses_for_a_while_and_loses_nothing(
    start_here, workers, stores, server
) -> None:
    gateway = start_here()
    failures = iter([500, 503, 500])
    server.meddle = lambda method, path: next(failures, None) if method == "PUT" else None
    accepted = send(gateway, csv(275.0))
    assert accepted.status_code == 202 and next(failures, None) is None
    ready = f"{gateway.url}/health/ready?part=gateway"
    assert httpx.get(ready).json()["checks"]["uploads"]["ok"]
    server.stop()
    refused = send(gateway, csv(276.0))
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_error")
    assert "Retry-After" in refused.headers and list(gateway.layout.tmp.iterdir()) == []
    wait_for(lambda: not httpx.get(ready).json()["checks"]["uploads"]["ok"])
    workers.appa("worker", "ingest")  # its first attempts meet nobody
    workers.appa("worker", "scheduler")
    wait_for(lambda: stores.batches.get(accepted.json()["id"]).attempts > 1, 90)
    server.start()
    again = send(gateway, csv(276.0))
    assert again.status_code == 202
    both = [accepted.json()["id"], again.json()["id"]]
    wait_for(lambda: all(ingested(stores, name) for name in both), 120)
    assert rows(workers) == dict.fromkeys(both, 1)
    assert len(server.names(below=UPLOADS)) == 4


def test_what_is_refused_leaves_no_object(start_here, stores, server) -> None:
    gateway = start_here()
    key = {"Idempotency-Key": "run-7"}
    first = send(gateway, csv(277.0), **key)
    other = send(gateway, csv(278.0), **key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert send(gateway, b"\x00no known format" * 100).status_code == 415
    name = first.json()["id"]
    assert server.names("content/", UPLOADS) == [f"content/{name[6:14]}/{name}"]
    assert len(server.names("records/", UPLOADS)) == 1
    problem = Problem(code="worker_lost", message="It died.")
    stores.batches.fail(name, None, problem)
    url = f"{gateway.url}/v1/observations/{name}/retry"
    shutil.rmtree(gateway.layout.raw)  # nothing lies there
    assert httpx.post(url).status_code == 202
    stores.batches.fail(name, None, problem)
    server.client().delete_object(
        Bucket=server.bucket, Key=f"{UPLOADS}records/{name[6:14]}/{name}.json"
    )
    assert httpx.post(url).status_code == 404


def test_a_lost_broker_is_filled_from_the_bucket(
    own_broker, server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    about = {"APPA_UPLOADS_URL": server.uploads_url}
    gateway = GatewayProcess(own_broker.url, tmp_path_factory.mktemp("g"), "lost", about).start()
    made = Processes(own_broker.url, "lost", tmp_path, {**about, "APPA_RECONCILE_SECONDS": "0.5"})
    try:
        name = send(gateway, csv(279.0)).json()["id"]
        own_broker.kill()
        shutil.rmtree(own_broker.folder / "appendonlydir")
        own_broker.start()
        made.appa("worker", "ingest")
        made.appa("worker", "scheduler")
        wait_for(lambda: rows(made) == {name: 1}, 90)
        assert send(gateway, csv(279.0)).json()["id"] == name
    finally:
        made.end()
        gateway.stop()
