"""Jobs over HTTP; the worker's side is played through `worker.contract`, as a worker would."""

import base64
import json

import acting_worker
import httpx
import pytest
from gateway_process import StartGateway

from worker.contract.store import open_stores

FILTERING = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z", "members": 4}


def errors_of(answer: httpx.Response, code: str = "invalid_input") -> dict:
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == code
    return {e["field"]: e for e in answer.json()["errors"]}


@pytest.fixture
def worker(stores):
    acting_worker.report(stores)
    return stores


def submit(http: httpx.Client, **changes) -> dict:
    answer = http.post("/v1/jobs", json={**FILTERING, **changes})
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_submit(http, worker, gateway) -> None:
    answer = http.post("/v1/jobs", json=FILTERING, headers={"X-Request-ID": "mine-1"})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["request_id"]) == ("queued", "mine-1")
    assert job["spec"]["valid_time"] == "2025-01-01T06:00:00Z"
    assert http.get(answer.headers["location"]).json()["id"] == job["id"]
    messages = worker.redis.lrange(f"{gateway.prefix}:broker:gpu", 0, -1)
    sent = [base64.b64decode(json.loads(m)["body"]).decode() for m in messages]
    assert sum(job["id"] in text for text in sent) == 1


def test_unknown_names_say_what_is_known(http, worker) -> None:
    found = errors_of(http.post("/v1/jobs", json={**FILTERING, "model": "t63"}), "unknown_name")
    assert found["model"]["known"] == ["t31"]
    answer = http.post("/v1/jobs", json={**FILTERING, "outputs": ["netcdf", "hdf4"]})
    assert "netcdf" in errors_of(answer, "unknown_name")["outputs"]["known"]
    answer = http.post("/v1/jobs", json={**FILTERING, "members": 65})
    assert "64" in errors_of(answer)["members"]["message"]
    answer = http.post("/v1/jobs", json={**FILTERING, "observations": {"batches": ["batch-1"]}})
    assert "observations.batches" in errors_of(answer, "unknown_name")
    forecast = {"kind": "forecast", "valid_time": "2025-01-01T06:00:00Z", "analysis_id": "an-1"}
    assert "analysis_id" in errors_of(http.post("/v1/jobs", json=forecast), "unknown_name")


def test_fields_that_do_not_fit_say_what_was_expected_and_what_came_once(http, worker) -> None:
    def message(field: str, **changes) -> str:
        return errors_of(http.post("/v1/jobs", json={**FILTERING, **changes}))[field]["message"]

    half = message("valid_time", valid_time="2025-01-01T06:30:00Z")
    assert half == "Expected a full hour in UTC; got 2025-01-01T06:30:00+00:00."
    kinds = "'filtering', 'forecast', 'reanalysis'"
    assert message("kind", kind="filterin") == f"Expected one of {kinds}; got 'filterin'."
    assert message("membres", membres=4).endswith("; got 4.")
    assert message("members", members="many").endswith("; got 'many'.")
    cut = http.post("/v1/jobs", content='{"kind": ', headers={"Content-Type": "application/json"})
    assert errors_of(cut)["body"]["message"] == "Expected JSON; Expecting value at character 9."


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/jobs", '{"kind":"filtering","kind":"forecast","valid_time":"x"}', "kind"),
        ("/v1/jobs", '{"kind":"filtering","observations":{"lag":1,"lag":1}}', "lag"),
        ("/v1/webhooks", '{"url":"https://a.example/","url":"https://b.example/"}', "url"),
        ("/v1/stac/search", r'{"limit": 1, "lim\u0069t": 2}', "limit"),
    ],
)
def test_a_name_that_a_body_repeats_is_refused(http, worker, path, body, name) -> None:
    answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
    expected = f"Expected each name once; the name '{name}' is repeated in an object of the body."
    assert (answer.status_code, answer.json()["detail"]) == (422, expected)


def test_how_to_compute_is_chosen_among_what_workers_report(http, worker) -> None:
    chosen = {"sampler": "ddim", "guidance": "mmps", "precision": "float32", "steps": 8}
    job = http.post("/v1/jobs", json={**FILTERING, **chosen}).json()
    assert chosen.items() <= job["spec"].items()
    others = {"sampler": "dice", "guidance": "sda", "precision": "bfloat16"}
    known = {"sampler": ["ddim", "zeab"], "guidance": ["mmps"], "precision": ["float32"]}
    for field, name in others.items():
        answer = http.post("/v1/jobs", json={**FILTERING, field: name})
        assert answer.status_code == 422
        assert errors_of(answer, "unknown_name")[field]["known"] == known[field]


def test_a_first_guess_is_an_upload_of_grib(http, worker) -> None:
    def start(batch: str) -> httpx.Response:
        return http.post("/v1/jobs", json={**FILTERING, "background_batch": batch})

    def upload(content: bytes) -> str:
        return http.post("/v1/observations", content=content).json()["id"]

    assert "background_batch" in errors_of(start("batch-1"), "unknown_name")
    wrong = errors_of(start(upload(b"BUFR" + bytes(300))))
    assert "'bufr'" in wrong["background_batch"]["message"]
    batch = upload(b"GRIB" + bytes(300))
    job = start(batch)
    assert job.status_code == 202
    assert job.json()["spec"]["background_batch"] == batch
    two = {**FILTERING, "background_batch": batch, "background": "climatology"}
    assert http.post("/v1/jobs", json=two).status_code == 422


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"members": 0}, "members"),
        ({"valid_time": "2025-01-01T06:30:00Z"}, "valid_time"),
        ({"valid_time": "0001-01-01T00:00:00Z"}, "valid_time"),
        ({"valid_time": "9999-12-31T23:00:00Z"}, "valid_time"),
        ({"valid_time": "2025"}, "valid_time"),
        ({"valid_time": "2025-01"}, "valid_time"),
        ({"valid_time": 3600}, "valid_time"),
        ({"observations": {"cut_off": "2025"}}, "observations.cut_off"),
        ({"valid_time": "yesterday"}, "valid_time"),
        ({"stepps": 3}, "stepps"),
        ({"observations": {"networks": ["sinop"]}}, "observations.networks"),
        ({"kind": "nowcast"}, "kind"),
    ],
)
def test_bad_fields_are_named(http, worker, changes: dict, field: str) -> None:
    assert field in errors_of(http.post("/v1/jobs", json={**FILTERING, **changes}))


def test_kinds_are_listed(http, worker) -> None:
    found = errors_of(http.post("/v1/jobs", json={"kind": "nowcast"}))
    assert found["kind"]["known"] == ["filtering", "forecast", "reanalysis"]


def test_no_worker(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    answer = httpx.post(f"{gateway.url}/v1/jobs", json=FILTERING)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
    assert answer.headers["retry-after"] == "60"
    assert "no model worker has reported yet: one may still be starting" in answer.json()["detail"]
    stores = open_stores(gateway.redis_url, gateway.prefix)
    acting_worker.report(stores, ready=False)
    answer = httpx.post(f"{gateway.url}/v1/jobs", json=FILTERING)
    assert "still loads its model" in answer.json()["detail"]
    acting_worker.report(stores)
    assert httpx.post(f"{gateway.url}/v1/jobs", json=FILTERING).status_code == 202
    stores.redis.close()


def test_idempotency_key(http, worker) -> None:
    headers = {"Idempotency-Key": "cycle-06"}
    first = http.post("/v1/jobs", json=FILTERING, headers=headers)
    again = http.post("/v1/jobs", json=FILTERING, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/v1/jobs", json={**FILTERING, "members": 5}, headers=headers)
    assert "Idempotency-Key" in errors_of(other, "idempotency_conflict")


def test_queue_position_and_progress(http, worker) -> None:
    first, second = submit(http), submit(http)
    place = [http.get(f"/v1/jobs/{j['id']}").json()["progress"] for j in (first, second)]
    assert place[1]["queue_position"] == place[0]["queue_position"] + 1
    job = acting_worker.start(worker, first["id"])
    acting_worker.step(worker, job, 3, 32)
    shown = http.get(f"/v1/jobs/{job.id}").json()
    assert shown["state"] == "running"
    assert (shown["progress"]["step"], shown["progress"]["steps"]) == (3, 32)
    assert shown["progress"]["queue_position"] is None


def test_cancel_waiting_and_running(http, worker) -> None:
    waiting = submit(http)
    answer = http.delete(f"/v1/jobs/{waiting['id']}")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    running = acting_worker.start(worker, submit(http)["id"])
    assert http.delete(f"/v1/jobs/{running.id}").json()["state"] == "cancelling"
    assert acting_worker.step(worker, running, 1, 32) == "cancelling"  # the worker is told
    worker.jobs.confirm_cancel(running.id, running.token)
    assert http.get(f"/v1/jobs/{running.id}").json()["state"] == "cancelled"
    assert http.delete(f"/v1/jobs/{running.id}").json()["state"] == "cancelled"


def test_finished_jobs_cannot_be_cancelled(http, worker) -> None:
    job = acting_worker.start(worker, submit(http)["id"])
    acting_worker.finish(worker, job)
    answer = http.delete(f"/v1/jobs/{job.id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "move_refused")


def test_lists_are_paged_and_filtered(http, worker) -> None:
    made = [submit(http, seed=i)["id"] for i in range(5)]
    cancelled = made[2]
    http.delete(f"/v1/jobs/{cancelled}")
    seen, cursor = [], None
    while True:
        page = http.get("/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += [j["id"] for j in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen)) == page.json()["total"]
    states = http.get("/v1/jobs", params={"state": "cancelled", "limit": 500}).json()["items"]
    assert cancelled in [j["id"] for j in states]
    assert {j["state"] for j in states} == {"cancelled"}
    asked = {"kind": "filtering", "state": "queued", "limit": 500}
    queued = http.get("/v1/jobs", params=asked).json()["items"]
    assert [j["id"] for j in queued][:4] == [i for i in made[::-1] if i != cancelled]
    others = http.get("/v1/jobs", params={**asked, "kind": "forecast"}).json()["items"]
    assert not {j["id"] for j in others} & set(made)
    assert "known" in errors_of(http.get("/v1/jobs?state=waiting"))["query.state"]


def test_unknown_job(http) -> None:
    for answer in (http.get("/v1/jobs/job-1"), http.delete("/v1/jobs/job-1")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert http.get("/v1/jobs/job-1/events").status_code == 404


def test_a_leap_second_is_the_second_that_follows(http, worker) -> None:
    job = submit(http, valid_time="2016-12-31T23:59:60Z")
    assert job["spec"]["valid_time"] == "2017-01-01T00:00:00Z"
    for parameters in (
        {"valid_from": "2016-12-31T23:59:60Z"},
        {"valid_to": "2017-01-01T00:59:60+01:00"},
    ):
        assert http.get("/v1/analyses", params=parameters).status_code == 200
    interval = {"datetime": "2016-12-31T23:59:60Z/2017-01-01T00:00:00Z"}
    assert http.get("/v1/stac/search", params=interval).status_code == 200
    interval = {"datetime": "2016-12-31T23:59:60Z/2016-12-31T23:59:59Z"}
    assert "datetime" in errors_of(http.get("/v1/stac/search", params=interval))
    for time in ("2016-12-31T23:59:61Z", "9999-12-31T23:59:60Z", "2016-12-32T23:59:60Z"):
        answer = http.get("/v1/analyses", params={"valid_from": time})
        assert "query.valid_from" in errors_of(answer)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00"])
def test_times_outside_the_calendar(http, worker, time: str) -> None:
    assert "valid_time" in errors_of(http.post("/v1/jobs", json={**FILTERING, "valid_time": time}))
    answer = http.get("/v1/analyses", params={"valid_from": time})
    assert "query.valid_from" in errors_of(answer)
