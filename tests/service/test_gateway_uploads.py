"""Uploads over a real socket: what arrives is stored byte for byte, or nothing is."""

import base64
import hashlib
import io
import json
import random
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gateway_process import GatewayProcess, StartGateway

from worker.contract.records import Problem
from worker.contract.store import open_stores

BUFR = b"BUFR"


def content(seed: int, size: int = 5000) -> bytes:
    return BUFR + random.Random(seed).randbytes(size - 4)


def problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def leftovers(gateway: GatewayProcess) -> list[str]:
    return [p.name for p in gateway.layout.tmp.iterdir()]


def wait_for(what, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen")


def test_raw_body(http: httpx.Client, gateway: GatewayProcess) -> None:
    data = content(1, 2_500_000)
    answer = http.post("/v1/observations?file_name=a.bufr", content=data)
    assert answer.status_code == 202
    batch = answer.json()
    assert batch["sha256"] == hashlib.sha256(data).hexdigest()
    assert (batch["size"], batch["container"], batch["state"]) == (2_500_000, "bufr", "received")
    assert gateway.layout.raw_file(batch["id"]).read_bytes() == data
    assert leftovers(gateway) == []
    assert answer.headers["location"] == f"/v1/observations/{batch['id']}"
    assert http.get(answer.headers["location"]).json() == batch


def test_one_message_brings_all_small_uploads_that_wait(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        first, _ = (
            http.post("/v1/observations", content=content(seed)).json() for seed in (20, 21)
        )
    stores = open_stores(gateway.redis_url, gateway.prefix)
    [waiting] = stores.redis.lrange(f"{gateway.prefix}:broker:ingest", 0, -1)
    stores.redis.close()
    assert first["id"] in _arguments(waiting)


def _arguments(message: str) -> str:
    return base64.b64decode(json.loads(message)["body"]).decode()


def test_multipart(http: httpx.Client, gateway: GatewayProcess) -> None:
    data = content(2, 200_000)
    errors = {"entries": [{"report_types": ["synop"], "variable": "2m_temperature", "error": 2.0}]}
    answer = http.post(
        "/v1/observations",
        files={"file": ("b.bufr", io.BytesIO(data))},
        data={"errors": json.dumps(errors)},
    )
    assert answer.status_code == 202
    batch = answer.json()
    assert batch["file_name"] == "b.bufr"
    assert batch["options"] == {"errors": errors}
    assert gateway.layout.raw_file(batch["id"]).read_bytes() == data


def test_same_content_is_the_same_batch(http: httpx.Client, gateway: GatewayProcess) -> None:
    data = content(3)
    first, second = (http.post("/v1/observations", content=data) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    folders = [p for p in gateway.layout.raw.iterdir() if (p / "content").read_bytes() == data]
    assert len(folders) == 1
    other = http.post("/v1/observations?report_type=synop", content=data)
    assert other.status_code == 202  # to be read in another way: another batch
    assert other.json()["id"] != first.json()["id"]


def test_idempotency_key(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "run-7"}
    first = http.post("/v1/observations", content=content(4), headers=headers)
    again = http.post("/v1/observations", content=content(4), headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    answer = http.post("/v1/observations", content=content(5), headers=headers)
    assert problem(answer, 422, "idempotency_conflict")["errors"][0]["field"] == "Idempotency-Key"


def test_idempotency_key_of_known_content_is_bound(http, gateway: GatewayProcess) -> None:
    def send(seed: int, **headers: str) -> httpx.Response:
        return http.post("/v1/observations", content=content(seed), headers=headers)

    first = send(40)
    bound = send(40, **{"Idempotency-Key": "known-1"})
    other = send(41, **{"Idempotency-Key": "known-1"})
    again = send(40, **{"Idempotency-Key": "known-1"})
    assert [r.status_code for r in (first, bound, again)] == [202, 200, 200]
    assert first.json()["id"] == bound.json()["id"] == again.json()["id"]
    assert problem(other, 422, "idempotency_conflict")["context"]["batch_id"] == first.json()["id"]
    assert send(41).status_code == 202  # nothing of the refused upload was kept
    assert leftovers(gateway) == []


def test_a_failed_batch_keeps_its_key_from_other_content(http, stores) -> None:
    headers = {"Idempotency-Key": "failed-1"}
    first = http.post("/v1/observations", content=content(42), headers=headers).json()
    stores.batches.fail(first["id"], None, Problem(code="storage_error", message="disk"))
    known = http.post("/v1/observations", content=content(43)).json()
    refused = http.post("/v1/observations", content=content(43), headers=headers)
    problem(refused, 422, "idempotency_conflict")
    assert http.post("/v1/observations", content=content(43)).json()["id"] == known["id"]
    assert http.post("/v1/observations", content=content(42), headers=headers).status_code == 202


def test_announced_too_large_is_refused_before_reading(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        head = "POST /v1/observations HTTP/1.1\r\nHost: x\r\nContent-Length: 3000001\r\n\r\n"
        connection.sendall(head.encode())  # not one byte of the body
        connection.settimeout(10)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


def test_counted_too_large(http: httpx.Client, gateway: GatewayProcess) -> None:
    def chunks():
        for i in range(40):
            yield content(i, 100_000)

    problem(http.post("/v1/observations", content=chunks()), 413, "too_large")
    assert leftovers(gateway) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"nothing we know", b"\x89PNG\r\n\x1a\n" + bytes(100_000), b"7z\xbc\xaf" + bytes(99)],
)
def test_wrong_magic(http: httpx.Client, gateway: GatewayProcess, data: bytes) -> None:
    body = problem(
        http.post("/v1/observations?file_name=x.bufr", content=data), 415, "unsupported_content"
    )
    assert "Expected" in body["detail"]
    assert leftovers(gateway) == []


def test_a_bomb_is_stored_but_never_opened(http, gateway) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(50_000_000))
    bomb = packed.getvalue()
    for sent in (bomb, BUFR + bomb):
        batch = http.post("/v1/observations?file_name=bomb.bufr", content=sent).json()
        assert batch["size"] == len(sent)
        assert gateway.layout.raw_file(batch["id"]).read_bytes() == sent


def test_options_name_field_and_known_values(http: httpx.Client) -> None:
    answer = http.post("/v1/observations?report_type=sinop", content=content(6))
    error = problem(answer, 422, "unknown_name")["errors"][0]
    assert error["field"] == "report_type"
    assert "synop" in error["known"]
    for bad in (
        "[]",
        "{",
        '{"entries": [], "entries": []}',
        '{"entries": [{"report_types": ["synop"], "variable": "t", "error": 1}]}',
    ):
        answer = http.post("/v1/observations", params={"errors": bad}, content=content(6))
        assert problem(answer, 422, "invalid_input")["errors"][0]["field"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"byte_range": [0, 10]}, "decoder.byte_range"),
        ({"skip": {"0": "crashed"}}, "decoder.skip"),
        ({"mark": "x"}, "decoder.mark"),
        ({"columns": {"T": "obs_value"}}, "decoder.columns"),  # an option of tables, not of BUFR
        ({"report_type": "sinop"}, "decoder.report_type"),
    ],
)
def test_options_that_the_decoder_does_not_have(http, gateway, options, field) -> None:
    """Words between gateway and decoder are no options: with them messages vanished uncounted."""
    before = http.get("/v1/batches").json()["total"]
    text = json.dumps(options)
    sent = http.post("/v1/observations", params={"decoder": text}, content=content(61))
    form = http.post("/v1/observations", data={"decoder": text}, files={"file": content(61)})
    for answer in (sent, form):
        body = problem(answer, 422, "invalid_input")
        assert body["errors"][0]["field"] == field
        assert "bufr" in body["detail"]
    assert http.get("/v1/batches").json()["total"] == before
    assert leftovers(gateway) == []


def test_options_that_are_given_twice(http: httpx.Client) -> None:
    text = '{"report_type": "synop", "report_type": "ship"}'
    for where in ({"params": {"decoder": text}}, {"data": {"decoder": text}}):
        answer = http.post("/v1/observations", files={"file": content(62)}, **where)
        error = problem(answer, 422, "invalid_input")["errors"][0]
        assert error["field"] == "decoder"
        assert "the name 'report_type' is repeated" in error["message"]


def test_options_of_a_format_are_kept(http: httpx.Client) -> None:
    text = b"time,lat,lon,variable,T\n2025-01-01T12:00Z,52,13,t2m,275\n"
    options = {"columns": {"T": "obs_value"}}
    answer = http.post("/v1/observations", params={"decoder": json.dumps(options)}, content=text)
    assert answer.status_code == 202, answer.text
    assert answer.json()["options"]["decoder"] == options


def test_disconnect_leaves_nothing(gateway: GatewayProcess, http: httpx.Client) -> None:
    before = http.get("/v1/batches").json()["total"]
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        head = "POST /v1/observations HTTP/1.1\r\nHost: x\r\nContent-Length: 2900000\r\n\r\n"
        connection.sendall(head.encode() + content(7, 2_000_000))
        wait_for(lambda: leftovers(gateway))
    wait_for(lambda: not leftovers(gateway))
    assert http.get("/v1/batches").json()["total"] == before


def test_killed_gateway_leaves_nothing_visible(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        head = "POST /v1/observations HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
        connection.sendall(head.encode() + content(8, 4_000_000))
        wait_for(lambda: leftovers(gateway))
        gateway.kill()
    assert leftovers(gateway)  # the part file is still there
    gateway.start()
    assert leftovers(gateway) == []
    assert httpx.get(f"{gateway.url}/v1/batches").json()["total"] == 0
    answer = httpx.post(f"{gateway.url}/v1/observations", content=content(8, 9_000_000))
    assert answer.status_code == 202  # and the client may simply send it again


def test_stalled_upload_is_dropped(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_UPLOAD_IDLE_SECONDS="0.3")
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        head = "POST /v1/observations HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
        connection.sendall(head.encode() + content(9))
        connection.settimeout(10)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    assert leftovers(gateway) == []


def test_full_disk(start_gateway: StartGateway) -> None:
    """A limit on file size stands for a full disk: the same error of `write`, on any machine."""
    gateway = start_gateway()
    gateway.stop()
    limited = "import resource as r, signal, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "r.setrlimit(r.RLIMIT_FSIZE, (2_000_000, 2_000_000)); "
    limited += "runpy.run_module('service', run_name='__main__')"
    gateway.start([sys.executable, "-c", limited])
    answer = httpx.post(f"{gateway.url}/v1/observations", content=content(10, 5_000_000))
    problem(answer, 507, "disk_full")
    assert answer.headers["retry-after"]
    assert leftovers(gateway) == []
    small = httpx.post(f"{gateway.url}/v1/observations", content=content(11))
    assert small.status_code == 202


def test_announced_beyond_free_space(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_MIN_FREE_BYTES=str(2**60))
    answer = httpx.post(f"{gateway.url}/v1/observations", content=content(12))
    problem(answer, 507, "disk_full")


def test_the_same_content_at_the_same_time_is_one_batch(gateway: GatewayProcess) -> None:
    data = content(30, 500_000)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: httpx.post(f"{gateway.url}/v1/observations", content=data), range(8))
        )
    assert sorted(a.status_code for a in answers) == [200] * 7 + [202]
    assert len({a.json()["id"] for a in answers}) == 1
    folders = [p for p in gateway.layout.raw.iterdir() if (p / "content").read_bytes() == data]
    assert len(folders) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads(gateway: GatewayProcess, tmp_path: Path) -> None:
    path = tmp_path / "synop.bufr"
    path.write_bytes(content(31, 2_000_000))
    command = ["curl", "-sS", "--fail", "-T", str(path), "-X", "POST"]
    done = subprocess.run(
        [*command, f"{gateway.url}/v1/observations"], check=True, timeout=60, capture_output=True
    )
    assert json.loads(done.stdout)["size"] == 2_000_000
    form = ["curl", "-sS", "--fail", "-F", f"file=@{path}", f"{gateway.url}/v1/observations"]
    again = subprocess.run(form, check=True, timeout=60, capture_output=True)
    assert json.loads(again.stdout)["id"] == json.loads(done.stdout)["id"]
