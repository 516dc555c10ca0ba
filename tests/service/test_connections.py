"""Hostile connections to a real gateway: each is bounded, and none stalls the others."""

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
from gateway_process import GatewayProcess, StartGateway

HEAD = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


def connect(gateway: GatewayProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Return everything until the gateway closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    return int(head.split()[1]), json.loads(body)["code"]


def slowest_live(gateway: GatewayProcess, seconds: float) -> float:
    end, slowest = time.monotonic() + seconds, 0.0
    with httpx.Client(base_url=gateway.url, timeout=10) as client:
        while time.monotonic() < end:
            start = time.monotonic()
            assert client.get("/health/live").status_code == 200
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.02)
    return slowest


@pytest.fixture(scope="module")
def strict(valkey_url_shared: str, tmp_path_factory: pytest.TempPathFactory):
    environment = {"APPA_HEADER_SECONDS": "2", "APPA_UPLOAD_IDLE_SECONDS": "1"}
    folder = tmp_path_factory.mktemp("strict") / "data"
    gateway = GatewayProcess(valkey_url_shared, folder, environment=environment).start()
    yield gateway
    gateway.stop()


def test_half_sent_headers_are_closed_and_stall_nobody(strict: GatewayProcess) -> None:
    sent = time.monotonic()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(strict)) for _ in range(300)]
        for connection in held:
            connection.sendall(HEAD)
        slowest = slowest_live(strict, 1.0)
        answers = [rest(connection) for connection in held]
    assert {problem(answer) for answer in answers} == {(408, "request_timeout")}
    assert time.monotonic() - sent < 8
    assert slowest < 1.0


def test_a_header_that_drips_is_closed(strict: GatewayProcess) -> None:
    start = time.monotonic()
    with connect(strict) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(HEAD)
        while time.monotonic() - start < 10:
            connection.sendall(b"X-A: b\r\n")  # never silent, never done
            time.sleep(0.2)
    assert time.monotonic() - start < 5


def test_lines_between_requests_do_not_hold_a_connection(strict: GatewayProcess) -> None:
    start = time.monotonic()
    with connect(strict) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(HEAD + b"\r\n")
        while time.monotonic() - start < 10:
            connection.sendall(b"\r\n")
            time.sleep(0.2)
    assert time.monotonic() - start < 6


def test_a_header_of_60_mb_is_refused_early(strict: GatewayProcess) -> None:
    sent = 0

    def send() -> None:
        nonlocal sent
        with connect(strict) as connection, contextlib.suppress(OSError):
            connection.sendall(HEAD + b"X-Long: ")
            while sent < 60_000_000:
                connection.sendall(b"a" * 65536)
                sent += 65536

    thread = threading.Thread(target=send)
    thread.start()
    slowest = slowest_live(strict, 1.0)
    thread.join(20)
    assert sent < 20_000_000
    assert slowest < 1.0


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X-Long: " + b"a" * 140_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
        b"GET /health/live?" + b"a" * 140_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["one", "many", "address"],
)
def test_a_large_head_says_what_is_expected(strict: GatewayProcess, head: bytes) -> None:
    with connect(strict) as connection:
        connection.sendall(head)
        assert problem(rest(connection)) == (431, "header_too_large")


def test_a_head_within_the_limit_is_answered(strict: GatewayProcess) -> None:
    answer = httpx.get(f"{strict.url}/health/live", headers={"X-Long": "a" * 100_000})
    assert answer.status_code == 200


def test_trailers_are_bounded(strict: GatewayProcess) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with connect(strict) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head + b"2\r\n{}\r\n0\r\nX-Long: ")
        while sent < 30_000_000:
            connection.sendall(b"a" * 65536)
            sent += 65536
    assert sent < 20_000_000


UPLOAD = b"POST /v1/observations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("path", [b"/v1/observations", b"/v1/jobs"])
@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\nBUFR\r\n", b"-4\r\nBUFR\r\n", b"4\r\nBUFRxx4\r\n", b"f" * 17 + b"\r\n"],
    ids=["size", "sign", "length", "overflow"],
)
def test_a_malformed_chunk_is_a_400(strict: GatewayProcess, path: bytes, chunks: bytes) -> None:
    head = UPLOAD.replace(b"/v1/observations", path)
    with connect(strict) as connection:  # in one piece with the head
        connection.sendall(head + chunks)
        together = rest(connection)
    with connect(strict) as connection:  # while the route already waits for more
        connection.sendall(head + b"4\r\nBUFR\r\n")
        time.sleep(0.1)
        connection.sendall(chunks)
        later = rest(connection)
    for answer in (together, later):
        assert problem(answer) == (400, "bad_request")
        assert b"size in hexadecimal" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
    assert list(strict.layout.tmp.iterdir()) == []


def test_trailers_that_are_too_large_are_a_431(strict: GatewayProcess) -> None:
    with connect(strict) as connection:
        connection.sendall(UPLOAD + b"4\r\nBUFR\r\n0\r\nX-Long: ")
        time.sleep(0.1)
        connection.sendall(b"a" * 140_000)
        assert problem(rest(connection)) == (431, "header_too_large")


def test_what_follows_a_request_does_not_take_its_answer(strict: GatewayProcess) -> None:
    wrong_length = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}}}\r\n"
    with connect(strict) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n" + wrong_length)
        answer = rest(connection)
    assert problem(answer) == (422, "invalid_input")
    with connect(strict) as connection:
        connection.sendall(HEAD + b"\r\n" + HEAD + b"no header\r\n\r\n")
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()


def test_a_body_that_does_not_come_is_a_408(strict: GatewayProcess) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with connect(strict) as connection:
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert problem(rest(connection)) == (408, "request_timeout")


def test_a_dripping_upload_is_dropped(strict: GatewayProcess) -> None:
    head = b"POST /v1/observations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    start, received = time.monotonic(), b""
    with connect(strict) as connection:
        connection.sendall(head + b"BUFR")
        connection.settimeout(0.2)
        while not received and time.monotonic() - start < 10:  # a byte well before each pause ends
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                received = rest(connection) if connection.recv(1, socket.MSG_PEEK) else b""
    assert problem(received) == (408, "upload_stalled")
    assert b"256 bytes a second" in received
    assert list(strict.layout.tmp.iterdir()) == []


def test_connections_of_one_address_are_bounded(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_CONNECTIONS_PER_ADDRESS="5", APPA_TRUSTED_PROXIES="")
    held = [connect(gateway) for _ in range(5)]
    for connection in held:
        connection.sendall(HEAD)
    time.sleep(0.3)
    with connect(gateway) as connection:
        assert problem(rest(connection)) == (503, "too_many_connections")
    for connection in held:
        connection.close()
    time.sleep(0.3)
    assert httpx.get(f"{gateway.url}/health/live").status_code == 200


def test_a_client_that_reads_nothing_is_dropped(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_READER_IDLE_SECONDS="1")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gateway.port))
        for _ in range(60):  # answers of some 200 kB each, none of them read
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        end = time.monotonic() + 10
        while "slow_reader_dropped" not in gateway.log and time.monotonic() < end:
            time.sleep(0.1)
    assert "slow_reader_dropped" in gateway.log


def test_an_upgrade_to_websocket_is_answered_as_a_request(strict: GatewayProcess) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    for path, status in ((b"/v1/data/nothing/zarr/zarr.json", 404), (b"/health/live", 200)):
        with connect(strict) as connection:
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + upgrade + key)
            assert rest(connection).split()[1] == str(status).encode()
