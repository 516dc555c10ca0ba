"""What a key may use in a day: bytes, rows and jobs, over a real gateway and a real server of keys."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess

from service.keys import KeyFile, Scope
from worker.contract.batches import IngestSummary
from worker.contract.records import Problem
from worker.contract.store import Stores, open_stores

FILTERING = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}
LEASE = timedelta(seconds=60)


@pytest.fixture(scope="module")
def stores(guarded: GatewayProcess) -> Iterator[Stores]:
    found = open_stores(guarded.redis_url, guarded.prefix)
    acting_worker.report(found)
    yield found
    found.redis.close()


@pytest.fixture(autouse=True)
def same_day() -> None:
    """No test spans midnight."""
    left = 86_400 - time.time() % 86_400
    if left < 15:
        time.sleep(left + 0.1)


@pytest.fixture
def holder(guarded: GatewayProcess) -> Iterator[Callable[..., httpx.Client]]:
    """Who holds a new key with these scopes and limits."""
    with ExitStack() as clients:

        def make(*scopes: Scope, **limits: int) -> httpx.Client:
            key, _ = KeyFile(guarded.layout.keys_file).create("test", list(scopes), **limits)
            headers = {"Authorization": f"Bearer {key}"}
            http = httpx.Client(base_url=guarded.url, headers=headers, timeout=30)
            return clients.enter_context(http)

        yield make


def used(http: httpx.Client) -> dict[str, int]:
    return {what: q["used"] for what, q in http.get("/v1/keys/me").json()["quotas"].items()}


def refusal(answer: httpx.Response) -> dict:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (429, "quota_exceeded"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert datetime.fromisoformat(problem["context"].pop("reset")) == midnight + timedelta(days=1)
    left = 86_400 - time.time() % 86_400
    assert abs(int(answer.headers["retry-after"]) - left) < 10
    return problem["context"]


def send(http: httpx.Client, text: str, size: int) -> httpx.Response:
    return http.post("/v1/observations", content=b"BUFR" + text.encode().ljust(size - 4, b"."))


def test_bytes_of_a_day(holder: Callable[..., httpx.Client], stores: Stores) -> None:
    http = holder(Scope.OBSERVATIONS_WRITE, bytes_per_day=1000)
    assert send(http, "bytes-a", 600).status_code == 202
    assert send(http, "bytes-a", 200).status_code == 202
    assert send(http, "bytes-a", 200).status_code == 200  # known content is free
    assert used(http) == {"bytes": 800, "rows": 0, "jobs": 0}
    assert refusal(send(http, "bytes-b", 201)) == {"quota": "bytes", "limit": 1000, "used": 800}

    def blocks() -> Iterator[bytes]:  # of no announced length
        yield b"BUFR" + bytes(96)
        yield bytes(5000)

    unannounced = http.post("/v1/observations", content=blocks())
    assert refusal(unannounced) == {"quota": "bytes", "limit": 1000, "used": 800}
    assert send(http, "bytes-c", 200).status_code == 202  # to the last byte
    assert used(http)["bytes"] == 1000


def test_rows_are_counted_when_decoded(holder: Callable[..., httpx.Client], stores: Stores) -> None:
    http = holder(Scope.OBSERVATIONS_WRITE, rows_per_day=50)
    batch = send(http, "rows-a", 100).json()["id"]
    assert send(http, "rows-b", 100).status_code == 202
    claimed = stores.batches.claim(batch, "worker", LEASE)
    stores.batches.finish(batch, claimed.token, IngestSummary(observations=70))
    assert used(http) == {"bytes": 200, "rows": 70, "jobs": 0}
    assert refusal(send(http, "rows-c", 100)) == {"quota": "rows", "limit": 50, "used": 70}


def test_faults_of_ours_are_given_back_once(
    holder: Callable[..., httpx.Client], stores: Stores
) -> None:
    http = holder(Scope.OBSERVATIONS_WRITE, Scope.JOBS_WRITE, jobs_per_day=2)
    fault = Problem(code="internal_error", message="ours")
    batch = send(http, "fault-a", 100).json()["id"]
    claimed = stores.batches.claim(batch, "worker", LEASE)
    stores.batches.fail(batch, claimed.token, fault)
    assert used(http)["bytes"] == 0
    assert http.post(f"/v1/observations/{batch}/retry").status_code == 202
    claimed = stores.batches.claim(batch, "worker", LEASE)
    stores.batches.fail(batch, claimed.token, fault)
    assert used(http)["bytes"] == 0  # not below

    for code, left in (("internal_error", 0), ("invalid_input", 1)):
        job = http.post("/v1/jobs", json=FILTERING).json()["id"]
        assert used(http)["jobs"] == 1
        claimed_job = stores.jobs.claim(job, "worker", LEASE)
        stores.jobs.fail(job, claimed_job.token, Problem(code=code, message="x"))
        assert used(http)["jobs"] == left, code


def test_jobs_of_a_day(holder: Callable[..., httpx.Client], stores: Stores) -> None:
    http = holder(Scope.JOBS_WRITE, jobs_per_day=2)
    again = {"Idempotency-Key": "mine"}
    first = http.post("/v1/jobs", json=FILTERING, headers=again)
    assert first.status_code == 202
    assert http.post("/v1/jobs", json=FILTERING, headers=again).status_code == 200
    http.delete(first.headers["location"])  # what was cancelled is not given back
    assert http.post("/v1/jobs", json=FILTERING).status_code == 202
    context = refusal(http.post("/v1/jobs", json=FILTERING))
    assert context == {"quota": "jobs", "limit": 2, "used": 2}
    assert http.post("/v1/jobs", json=FILTERING, headers=again).status_code == 200
    about = http.get("/v1/keys/me").json()
    assert (about["unfinished_jobs"], about["scopes"]) == (1, ["jobs:write"])


def test_use_expires_and_a_bucket_fills_steadily(
    holder: Callable[..., httpx.Client], guarded: GatewayProcess, stores: Stores
) -> None:
    http = holder(Scope.OBSERVATIONS_WRITE)
    send(http, "expiry", 100)
    own = http.get("/v1/keys/me").json()["id"]
    keys = list(stores.redis.scan_iter(f"{guarded.prefix}:quota:{own}*"))
    assert any(":day:" in key for key in keys)
    assert all(stores.redis.pttl(key) not in (-1, 0) for key in keys)  # a bucket may be full again
    assert all(stores.redis.ttl(key) <= 3 * 86_400 for key in keys)

    take = stores.rates.take
    assert [take("b", 2, window_seconds=2).allowed for _ in range(3)] == [True, True, False]
    assert take("b", 2, window_seconds=2).retry_after == 1
    time.sleep(1.1)
    assert [take("b", 2, window_seconds=2).allowed for _ in range(2)] == [True, False]
