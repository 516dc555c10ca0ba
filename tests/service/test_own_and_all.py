"""A key sees, retries and cancels its own uploads and jobs; those of others need a scope."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess

from service.keys import KeyFile, Scope
from tests.service.openapi_document import openapi_document
from worker.contract.batches import BatchRecord
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec
from worker.contract.records import Problem, new_id
from worker.contract.store import Stores, open_stores

JOB = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
OWN = (Scope.OBSERVATIONS_WRITE, Scope.JOBS_WRITE, Scope.ANALYSES_READ)


@dataclass
class Caller:
    """Somebody with a key of some scopes."""

    gateway: GatewayProcess
    scopes: tuple[Scope, ...]

    def __post_init__(self) -> None:
        keys = KeyFile(self.gateway.layout.keys_file)
        self.key, record = keys.create("test", list(self.scopes))
        self.id = record.id

    def __call__(self, method: str, path: str, **more) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.request(method, self.gateway.url + path, headers=headers, timeout=30, **more)

    def upload(self, text: str, **params: str) -> dict:
        posted = self("POST", "/v1/observations", content=b"BUFR" + text.encode(), params=params)
        assert posted.status_code in (200, 202), posted.text
        return posted.json()

    def job(self, **more) -> dict:
        posted = self("POST", "/v1/jobs", json=JOB | more)
        assert posted.status_code == 202, posted.text
        return posted.json()

    def listed(self, what: str, **params: str) -> set[str]:
        page = self("GET", f"/v1/{what}", params={"limit": 500, **params}).json()
        assert page["total"] == len(page["items"])
        return {item["id"] for item in page["items"]}


@pytest.fixture(scope="module")
def stores(guarded: GatewayProcess) -> Iterator[Stores]:
    opened = open_stores(guarded.redis_url, guarded.prefix)
    acting_worker.report(opened, seconds=600)
    yield opened
    opened.redis.close()


def same_problem(answer: httpx.Response, other: httpx.Response, its: str, others: str) -> bool:
    """Whether two problems differ in the ids of the records alone."""
    one, two = (json.loads(a.text) for a in (answer, other))
    one.pop("request_id"), two.pop("request_id")
    return json.dumps(one).replace(its, "X") == json.dumps(two).replace(others, "X")


def test_lists_hold_the_own_records_alone(guarded: GatewayProcess, stores: Stores) -> None:
    a, b = Caller(guarded, OWN), Caller(guarded, OWN)
    batches = [a.upload(f"a{i}")["id"] for i in range(3)]
    jobs = [a.job(seed=i)["id"] for i in range(2)]
    theirs = b.upload("b")["id"]
    assert a.listed("batches") == a.listed("batches", state="received") == set(batches)
    assert a.listed("jobs") == a.listed("jobs", state="queued", kind="filtering") == set(jobs)
    assert a.listed("jobs", kind="forecast") == b.listed("jobs") == set()
    assert b.listed("batches") == {theirs}
    assert a.listed("batches", sender=a.id) == set(batches)
    assert a.listed("batches", sender=b.id) == a.listed("batches", sender="unknown") == set()
    assert Caller(guarded, (Scope.ALL_READ,)).listed("batches", sender=b.id) == {theirs}
    pages, cursor = [], ""
    while cursor is not None:
        query = {"limit": 1} | ({"cursor": cursor} if cursor else {})
        page = a("GET", "/v1/batches", params=query).json()
        pages += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert pages == sorted(batches, reverse=True)
    for scopes in ((Scope.ALL_READ,), (Scope.ADMIN,), (Scope.ALL_WRITE, Scope.JOBS_WRITE)):
        one = Caller(guarded, scopes)
        assert {*batches, theirs} <= one.listed("batches")
        assert set(jobs) <= one.listed("jobs")


def operations() -> list[tuple[str, str]]:
    """All operations on one upload or job: a new one is held against the rule as well."""
    return [
        (method.upper(), path)
        for path, item in openapi_document()["paths"].items()
        for method in item
        if "{job_id}" in path or "{batch_id}" in path
    ]


@pytest.mark.parametrize(("method", "path"), operations())
def test_records_of_others_are_not_there(guarded, stores, method: str, path: str) -> None:
    owner, stranger = Caller(guarded, OWN), Caller(guarded, OWN)
    noun = "job" if "{job_id}" in path else "batch"
    record = owner.job()["id"] if noun == "job" else owner.upload(f"{method}{path}")["id"]
    absent = new_id(noun)
    hidden, nothing = (
        stranger(method, path.replace(f"{{{noun}_id}}", name)) for name in (record, absent)
    )
    assert (hidden.status_code, nothing.status_code) == (404, 404)
    assert same_problem(hidden, nothing, record, absent)
    store = stores.jobs if noun == "job" else stores.batches
    assert store.get(record).state in ("queued", "received")  # nothing was done to it
    seer = Caller(guarded, (*OWN, Scope.ALL_READ))
    address = path.replace(f"{{{noun}_id}}", record)
    if method != "GET":
        refused = seer(method, address)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert "all:write" in refused.json()["detail"]
        for scopes in ((Scope.ALL_WRITE,), (Scope.ALL_WRITE, Scope.ANALYSES_READ)):
            assert Caller(guarded, scopes)(method, address).status_code == 403  # without the verb
        changer = Caller(guarded, (*OWN, Scope.ALL_WRITE))
        assert changer(method, address).status_code == 202
    elif not path.endswith("/events"):
        assert seer("GET", address).json()["api_key"] == owner.id


def test_streams_of_own_jobs_and_of_all(guarded: GatewayProcess, stores: Stores) -> None:
    owner, seer = Caller(guarded, (Scope.JOBS_WRITE,)), Caller(guarded, (Scope.ALL_READ,))
    job = owner.job()
    assert owner("DELETE", f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    for one in (owner, seer):
        stream = one("GET", f"/v1/jobs/{job['id']}/events")
        assert stream.status_code == 200 and "event: done" in stream.text


def test_what_the_installation_sent_is_seen_by_readers(guarded, stores) -> None:
    jobs = [
        JobRecord(id=new_id("job"), analysis_id=new_id("an"), spec=FilteringSpec(valid_time=NOON))
    ]
    batches = [
        BatchRecord(id=new_id("batch"), sha256=f"{i:064x}", size=9, container="bufr", api_key=owner)
        for i, owner in enumerate(("", "source:wis2"))
    ]
    for job in jobs:
        stores.jobs.create(job)
    for batch in batches:
        stores.batches.create(batch)
    reader, sender = Caller(guarded, OWN), Caller(guarded, OWN[:2])
    assert reader.listed("jobs") == {job.id for job in jobs}
    assert reader.listed("batches") == {batch.id for batch in batches}
    assert sender.listed("jobs") == sender.listed("batches") == set()
    for path in (f"/v1/jobs/{jobs[0].id}", *(f"/v1/observations/{b.id}" for b in batches)):
        assert reader("GET", path).status_code == 200
        assert sender("GET", path).status_code == 404
    assert reader("DELETE", f"/v1/jobs/{jobs[0].id}").status_code == 403
    assert sender("DELETE", f"/v1/jobs/{jobs[0].id}").status_code == 404


def test_who_sends_the_same_content_sees_that_upload(guarded, stores) -> None:
    first, second, third = (Caller(guarded, OWN) for _ in range(3))
    batch = first.upload("same", file_name="secret plan.bufr")
    again = second.upload("same", file_name="mine.bufr")
    hidden = {"file_name": "", "api_key": "", "request_id": ""}
    assert again == batch | hidden
    address = f"/v1/observations/{batch['id']}"
    assert second("GET", address).json() == again
    assert first("GET", address).json() == batch
    assert third("GET", address).status_code == 404
    claimed = stores.batches.claim(batch["id"], "w", acting_worker.LEASE)
    stores.batches.reject(batch["id"], claimed.token, Problem(code="decode_error", message="No."))
    assert third("POST", f"{address}/retry").status_code == 404
    assert second("POST", f"{address}/retry").json()["state"] == "received"


def test_a_job_reads_no_upload_that_its_sender_does_not_see(guarded, stores) -> None:
    owner = Caller(guarded, OWN)
    batch = owner.upload("referred")["id"]
    only_jobs, reader = Caller(guarded, OWN[1:2]), Caller(guarded, OWN)
    named = {"observations": {"batches": [batch]}}
    refused = only_jobs("POST", "/v1/jobs", json=JOB | named)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_name")
    assert reader.job(**named)  # the rows of all uploads are shared with readers
    guess = {"background_batch": batch}
    assert reader("POST", "/v1/jobs", json=JOB | guess).json()["code"] == "unknown_name"
    assert "GRIB" in owner("POST", "/v1/jobs", json=JOB | guess).json()["detail"]


def test_where_no_key_is_needed_everything_is_seen(gateway: GatewayProcess) -> None:
    batch = httpx.post(f"{gateway.url}/v1/observations", content=b"BUFR open").json()
    a, b = Caller(gateway, OWN[:1]), Caller(gateway, OWN[:1])
    own = a.upload("with a key")
    for one in (a, b):
        assert {batch["id"], own["id"]} <= one.listed("batches", state="received")
        assert one("POST", f"/v1/observations/{own['id']}/retry").status_code == 202
    assert httpx.get(f"{gateway.url}/v1/observations/{own['id']}").json()["api_key"] == a.id


def test_keys_of_an_older_file_have_their_own_records(guarded: GatewayProcess) -> None:
    """The file as it was before there were scopes for everyone's records."""
    path = guarded.layout.keys_file
    old = Caller(guarded, OWN)
    other = Caller(guarded, OWN).upload("of another key")
    entries = json.loads(path.read_text())["keys"]
    assert {s for e in entries if e["id"] == old.id for s in e["scopes"]} == set(OWN)
    assert old("GET", f"/v1/observations/{other['id']}").status_code == 404
    assert old.upload("mine")["id"] in old.listed("batches")
