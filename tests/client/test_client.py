"""The Python client against a real gateway, through lost connections and restarts."""

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray

from appa_client import (
    AppaClient,
    AsyncAppaClient,
    IntegrityError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    UnavailableError,
)
from tests.service import acting_worker
from tests.service.gateway_process import GatewayProcess, StartGateway
from worker.contract.batches import IngestSummary
from worker.contract.kinds import FilteringSpec
from worker.contract.records import Problem
from worker.contract.store import open_stores

SPEC = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z", "members": 2}
DATA = random.Random(9).randbytes(4_000_000)


@pytest.fixture
def client(gateway: GatewayProcess, stores) -> Iterator[AppaClient]:
    acting_worker.report(stores)
    with AppaClient(gateway.url) as found:
        yield found


def test_upload_and_wait(client: AppaClient, stores, tmp_path: Path) -> None:
    path = tmp_path / "reports.bufr"
    path.write_bytes(b"BUFR" + bytes(2_000_000))
    told: list[int] = []
    batch = client.upload(path, on_bytes=lambda name, done, total: told.append(done))
    assert (batch.file_name, batch.size) == ("reports.bufr", 2_000_004)
    assert told[-1] == 2_000_004
    assert client.upload(path.read_bytes()).id == batch.id
    with path.open("rb") as file:
        assert client.upload(file).id == batch.id
    with pytest.raises(TimeoutError):
        client.wait_batch(batch.id, timeout=0.2)
    held = stores.batches.claim(batch.id, "test", acting_worker.LEASE)
    stores.batches.finish(batch.id, held.token, IngestSummary(observations=7, used=5))
    assert client.wait_batch(batch.id).summary.used == 5


def test_errors_are_typed(client: AppaClient) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.submit({**SPEC, "model": "t63"})
    assert caught.value.code == "unknown_name"
    assert "t31" in caught.value.fields["model"]
    assert caught.value.request_id
    with pytest.raises(InvalidRequestError, match="first bytes"):
        client.upload(b"nothing we know")
    with pytest.raises(NotFoundError):
        client.job("job-1")


def test_submit_watch_and_wait(client: AppaClient, stores) -> None:
    job = client.submit(FilteringSpec(**{k: v for k, v in SPEC.items() if k != "kind"}))
    held = acting_worker.start(stores, job.id)
    events = client.watch(job.id)
    assert next(events).job.id == job.id
    acting_worker.step(stores, held, 2, 8)
    assert next(events).progress.step == 2
    acting_worker.finish(stores, held)
    assert [e.type for e in events] == ["state", "done"]
    assert client.wait(job.id).state == "succeeded"
    assert job.id in [j.id for j in client.jobs(state="succeeded", limit=500)]


def test_failed_jobs_raise_with_the_reason(client: AppaClient, stores) -> None:
    job = acting_worker.start(stores, client.submit(SPEC).id)
    stores.jobs.fail(job.id, job.token, Problem(code="resource_exhausted", message="No memory."))
    with pytest.raises(JobFailedError, match="No memory") as caught:
        client.wait(job.id)
    assert caught.value.code == "resource_exhausted"


def test_watch_survives_a_killed_gateway(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    acting_worker.report(stores)
    with AppaClient(gateway.url, attempts=12) as client:
        job = acting_worker.start(stores, client.submit(SPEC).id)
        events = client.watch(job.id)
        next(events)
        acting_worker.step(stores, job, 1, 4)
        assert next(events).progress.step == 1
        gateway.kill()
        acting_worker.step(stores, job, 2, 4)  # nobody is there to tell it
        restart = threading.Timer(0.5, gateway.start)
        restart.start()
        assert next(events).progress.step == 2
        restart.join()
        acting_worker.finish(stores, job)
        assert [e.type for e in events] == ["state", "done"]
    stores.redis.close()


def test_upload_waits_for_a_gateway_that_restarts(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    gateway.kill()
    restart = threading.Timer(0.3, gateway.start)
    restart.start()
    with AppaClient(gateway.url, attempts=12) as client:
        assert client.upload(b"BUFR" + bytes(100)).size == 104
    restart.join()


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    with AppaClient("http://127.0.0.1:9", attempts=3) as client:
        with pytest.raises(UnavailableError, match="http://127.0.0.1:9; .*refused.*appa up"):
            client.job("job-1")
        [waiting] = caplog.messages  # the attempts take half a minute
        assert waiting.endswith("Trying again.") and "http://127.0.0.1:9" in waiting
        with pytest.raises(UnavailableError, match="http://127.0.0.1:9; "):
            client.readiness()
        assert not client.ready()


def test_fetch_resumes_and_checks(client: AppaClient, gateway, tmp_path: Path) -> None:
    acting_worker.publish(gateway.layout, "an-fetch", {"a.nc": DATA, "b.parquet": b"PAR1"})
    (tmp_path / "a.nc.part").write_bytes(DATA[:3_000_000])
    told: list[int] = []
    paths = client.fetch("an-fetch", tmp_path, on_bytes=lambda name, done, total: told.append(done))
    assert [p.name for p in paths] == ["a.nc", "b.parquet"]
    assert paths[0].read_bytes() == DATA
    assert min(t for t in told if t > 4) > 3_000_000  # the first part was not sent again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "b.parquet"]
    told.clear()
    client.fetch("an-fetch", tmp_path, names=["a.nc"], on_bytes=lambda n, d, t: told.append(d))
    assert told == []  # it is there already
    (tmp_path / "a.nc").unlink()
    (tmp_path / "a.nc.part").write_bytes(bytes(3_000_000))  # not what was published
    with pytest.raises(IntegrityError, match=hashlib.sha256(DATA).hexdigest()):
        client.fetch("an-fetch", tmp_path, names=["a.nc"])
    assert client.fetch("an-fetch", tmp_path, names=["a.nc"])[0].read_bytes() == DATA


def test_open_as_xarray(client: AppaClient, gateway, tmp_path: Path) -> None:
    field = np.arange(12.0).reshape(3, 4)
    source = xarray.Dataset({"t2m": (("latitude", "longitude"), field)})
    source.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    published = {"appa_an.nc": (tmp_path / "x.nc").read_bytes(), "q.png": b"\x89PNG"}
    acting_worker.publish(gateway.layout, "an-open", published)
    with client.open("an-open", tmp_path / "cache", engine="h5netcdf") as found:
        np.testing.assert_array_equal(found["t2m"], field)


async def test_asyncio_twin(gateway: GatewayProcess, stores, tmp_path: Path) -> None:
    acting_worker.report(stores)
    async with AsyncAppaClient(gateway.url) as client:
        batch = await client.upload(b"BUFR" + bytes(1_500_000))
        assert (await client.batch(batch.id)).size == 1_500_004
        job = await client.submit(SPEC)

        def work() -> None:
            held = acting_worker.start(stores, job.id)
            for i in range(3):
                acting_worker.step(stores, held, i + 1, 3)
                time.sleep(0.05)
            acting_worker.finish(stores, held)

        types: list[str] = []
        waiting = asyncio.create_task(client.wait(job.id, lambda event: types.append(event.type)))
        await asyncio.to_thread(work)
        assert (await waiting).state == "succeeded"
        assert types[-1] == "done"
        acting_worker.publish(gateway.layout, "an-async", {"a.nc": DATA})
        paths = await client.fetch("an-async", tmp_path)
        assert paths[0].read_bytes() == DATA
        with pytest.raises(NotFoundError):
            await client.analysis("an-none")


def test_methods_of_both_clients_are_the_same() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(AppaClient) == public(AsyncAppaClient)


def test_too_large_uploads_are_told_so(client: AppaClient) -> None:
    """The gateway answers before it has read the body; the client must not only see a reset."""
    for _ in range(5):
        with pytest.raises(InvalidRequestError) as caught:
            client.upload(b"BUFR" + bytes(40_000_000))
        assert caught.value.code == "too_large"


def publish_event(stores, name: str) -> None:
    assert stores.events.emit("analysis.published", name, {"analysis_id": name})


def test_events_go_on_after_a_restart_of_the_gateway(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    publish_event(stores, "before")
    with AppaClient(gateway.url) as client:
        events = client.events(after="0-1", types=["analysis.published"])
        first = next(events)
        assert (first.type, first.event.data["analysis_id"]) == ("analysis.published", "before")
        gateway.kill()
        publish_event(stores, "meanwhile")
        gateway.start()
        second = next(events)
        assert second.event.data["analysis_id"] == "meanwhile"
        assert second.id > first.id
    stores.redis.close()


async def test_the_asyncio_twin_receives_the_same_events(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    publish_event(stores, "one")
    async with AsyncAppaClient(gateway.url) as client:
        async for received in client.events(after="0-1"):
            assert received.event.data["analysis_id"] == "one"
            break
    stores.redis.close()
