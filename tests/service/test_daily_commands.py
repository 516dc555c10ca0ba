"""`appa status`, `appa jobs` and `appa analyses` against a real gateway, on a terminal of 80 columns."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess, free_port
from rich.console import Console
from test_gateway_cycles import DONE, put
from typer.testing import CliRunner

from appa_client import AppaClient, Cycle, Delivery, Webhook
from deploy.commands import admin, records, results, sources, status
from deploy.commands.cycles import cycle_table
from deploy.commands.records import analyses_app, jobs_app, uploads_app
from deploy.commands.status import status_app
from deploy.commands.workers import worker_table
from service.keys import ApiKey
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.feeds import SourceStatus
from worker.contract.queues import QUEUES, SCHEDULER, WorkerReport
from worker.contract.records import Problem, new_id
from worker.contract.store import open_stores
from worker.results.manifest import Pin
from worker.results.retention.plan import RetentionItem

RUNNER = CliRunner()
SPEC = {"kind": "reanalysis", "start": "2025-01-01T06:00Z", "end": "2025-01-01T08:00Z"}


def run(app, *arguments: str, status: int = 0) -> str:
    """What a command prints; no line is wider than the terminal."""
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    assert "--json" in arguments or max(map(len, result.stdout.splitlines()), default=0) <= 80
    return result.stdout


@pytest.fixture(autouse=True)
def terminal(monkeypatch) -> None:
    monkeypatch.delenv("APPA_API_KEY", raising=False)
    for module in (records, status):
        monkeypatch.setattr(module, "out", Console(width=80))


@pytest.fixture
def client(gateway: GatewayProcess, monkeypatch, stores) -> Iterator[AppaClient]:
    monkeypatch.setenv("APPA_URL", gateway.url)
    acting_worker.report(stores)
    with AppaClient(gateway.url) as opened:
        yield opened


def test_jobs_are_listed_with_whole_ids(client: AppaClient, stores) -> None:
    ids = [client.submit(SPEC).id for _ in range(3)]
    job = acting_worker.start(stores, ids[0])
    acting_worker.step(stores, job, 1, 32)
    table = run(jobs_app, "list", "--kind", "reanalysis")
    assert all(job_id in table for job_id in ids)
    assert "1/32, 31 s left" in table
    assert "running" in table
    assert [j["id"] for j in json.loads(run(jobs_app, "list", "--json", "--limit", "3"))] == [
        *reversed(ids)
    ]
    running = json.loads(run(jobs_app, "list", "--state", "running", "--json"))
    assert ids[0] in [j["id"] for j in running]
    for job_id in ids:
        stores.jobs.cancel(job_id)


def test_uploads_are_listed_by_state_sender_and_arrival(client: AppaClient, stores) -> None:
    """Times of 2012, when nothing else in this gateway arrived."""
    hours = [datetime(2012, 1, 1, hour, tzinfo=UTC) for hour in range(4)]
    senders = ("k7", "k7", "source:wis2", "k8")
    sent = [
        BatchRecord(
            id=new_id("batch", hour),
            created=hour,
            sha256=f"{number:032d}" * 2,
            size=700,
            container="bufr",
            api_key=sender,
        )
        for number, (hour, sender) in enumerate(zip(hours, senders, strict=True))
    ]
    for one in sent:
        stores.batches.create(one)
    held = [stores.batches.claim(one.id, "w", timedelta(seconds=30)) for one in sent[:2]]
    stores.batches.finish(sent[0].id, held[0].token, IngestSummary(observations=9, used=7))
    stores.batches.reject(sent[1].id, held[1].token, Problem(code="decode_error", message="Torn."))
    all_day = ("list", "--start", "2012-01-01", "--end", "2012-01-01T23")
    table = run(uploads_app, *all_day)
    assert all(one.id in table for one in sent)
    assert "7 of 9 used" in table and "decode_error" in table and "k7" in table

    def listed(*more: str) -> list[int]:
        found = json.loads(run(uploads_app, *all_day, *more, "--json"))
        return [[one.id for one in sent].index(batch["id"]) for batch in found]

    assert listed() == [3, 2, 1, 0]
    assert listed("--limit", "2") == [3, 2]
    assert listed("--sender", "k7") == [1, 0]
    assert listed("--sender", "-") == [2]
    assert listed("--sender", "nobody") == []
    assert listed("--state", "rejected") == [1]
    assert listed("--state", "received", "--sender", "k8") == [3]
    assert listed("--start", "2012-01-01T01", "--end", "2012-01-01T02") == [2, 1]
    assert run(uploads_app, "list", "--end", "2011-01-01").strip() == "no uploads"
    shown = json.loads(run(uploads_app, *all_day, "--sender", "k8", "--json"))
    assert shown[0]["api_key"] == "k8"
    run(uploads_app, "list", "--start", "yesterday", status=2)
    for one in sent[2:]:  # nothing for another test's worker to take
        held = stores.batches.claim(one.id, "w", timedelta(seconds=30))
        stores.batches.finish(one.id, held.token, IngestSummary(observations=0, used=0))


def test_a_job_is_shown_and_its_failure_is_the_exit_status(client: AppaClient, stores) -> None:
    job = client.submit(SPEC | {"members": 3})
    text = run(jobs_app, "show", job.id)
    assert all(word in text for word in (job.id, job.analysis_id, "queued"))
    assert ["members", "3"] in [line.split() for line in text.splitlines()]
    held = acting_worker.start(stores, job.id)
    stores.jobs.fail(held.id, held.token, Problem(code="no_background", message="None [is] there."))
    text = run(jobs_app, "show", job.id, status=1)
    assert "no_background: None [is] there." in text
    assert json.loads(run(jobs_app, "show", job.id, "--json", status=1))["state"] == "failed"
    assert "not_found" in RUNNER.invoke(jobs_app, ["show", "job-none"]).stderr


def test_jobs_are_cancelled(client: AppaClient) -> None:
    ids = [client.submit(SPEC).id for _ in range(2)]
    text = run(jobs_app, "cancel", *ids)
    assert [line.split() for line in text.splitlines()] == [["cancelled", i] for i in ids]
    assert {client.job(i).state for i in ids} == {"cancelled"}
    [again] = json.loads(run(jobs_app, "cancel", ids[0], "--json"))
    assert again["state"] == "cancelled"


def test_analyses(client: AppaClient, gateway: GatewayProcess) -> None:
    first, second = new_id("an"), new_id("an")
    time = datetime(2190, 5, 1, 6, tzinfo=UTC)  # later than those of other tests
    files = {"surface_ensemble_mean_and_spread_20900501T06Z.grib2": b"GRIB", "q.png": b"\x89PNG"}
    for hour, name in enumerate((first, second)):
        valid = time + timedelta(hours=hour)
        acting_worker.publish(gateway.layout, name, files, valid=valid, flavour="final")
    table = run(analyses_app, "list", "--flavour", "final")
    assert first in table
    assert second in table
    assert "2190-05-01 06" in table
    text = run(analyses_app, "latest")
    assert second in text
    assert all(name in text for name in files)
    found = json.loads(run(analyses_app, "show", first, "--json"))
    assert (found["id"], len(found["files"])) == (first, 2)
    assert "valid     2190-05-01 06:00 UTC" in run(analyses_app, "show", first)


def printed(table) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    assert max(map(len, capture.get().splitlines())) <= 80
    return capture.get()


def test_cycles_and_workers_keep_their_ids_on_80_columns() -> None:
    time = datetime(2025, 1, 1, 18, tzinfo=UTC)
    cycle = Cycle(
        id="20250101T18Z_final",
        valid_time=time,
        flavour="final",
        cut_off=time + timedelta(hours=6),
        state="published",
        revision=12,
        decided=time + timedelta(hours=6, seconds=70),
        behind_seconds=70.0,
        caught_up=True,
        message="made again because [late] soundings came in",
        analysis_id=new_id("an"),
        published=time + timedelta(hours=7, minutes=55),
    )
    table = printed(cycle_table([cycle]))
    assert all(
        word in table for word in (cycle.id, cycle.analysis_id, "published", "+6.0 h", "115 min")
    )
    assert "[late]" in table
    worker = WorkerReport(
        name="ingest-products.12345@appa-7c9d5b6f4-x2v",
        queues=["ingest", "products"],
        device="cpu",
        busy_with=new_id("batch"),
        version="0.2.0",
    )
    table = printed(worker_table([worker]))
    assert worker.name in table
    assert worker.busy_with in table


# -- status, of installations of their own


@pytest.fixture
def installation(start_gateway, monkeypatch):
    process = start_gateway()
    monkeypatch.setenv("APPA_URL", process.url)
    stores = open_stores(process.redis_url, process.prefix)
    yield process, stores
    stores.redis.close()


def test_status_tells_what_is_wrong_and_then_what_is_late(installation) -> None:
    gateway, stores = installation
    text = run(status_app, status=1)
    assert "not ready" in text
    assert "wrong gpu: no worker has reported yet; one may still be starting" in text
    assert "no analysis is published yet" in text
    run(analyses_app, "latest", status=1)

    name, analysis_id = "ingest-products.1234@appa-7c9d5b6f4-x2v8k", new_id("an")
    report = WorkerReport(
        name=name, queues=list(QUEUES), ready=True, capabilities=acting_worker.CAN
    )
    stores.workers.register(report, timedelta(minutes=5))
    acting_worker.publish(gateway.layout, analysis_id, {"a.nc": b"CDF\x01"})
    assert "wrong no scheduler reports" in run(status_app, status=1)
    report = WorkerReport(name="scheduler.1235@appa", queues=[SCHEDULER], ready=True)
    stores.workers.register(report, timedelta(minutes=5))
    text = run(status_app)
    assert all(word in text for word in (name, analysis_id, "nothing is wrong", "free", "t31"))

    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    late = put(stores, hour - timedelta(hours=7), "final", "due")  # cut off four hours ago
    put(stores, hour, "final")  # not yet
    text = run(status_app, status=1)
    assert f"late  cycle {late.id} is due" in text
    assert text.count("late") == 1
    run(status_app, "--late-minutes", "400")
    failed = put(
        stores, hour - timedelta(hours=5), "early", *DONE[:2], "failed", message="No [model]."
    )
    told = json.loads(run(status_app, "--json", status=1))
    assert (told["ok"], told["ready"]) == (False, True)
    assert told["wrong"] == [f"cycle {failed.id} has failed: No [model]."]
    assert told["last_analysis"]["id"] == analysis_id


def test_a_job_that_waits_is_late_but_for_a_reanalysis(installation) -> None:
    gateway, stores = installation
    report = WorkerReport(
        name="gpu.1@appa", queues=list(QUEUES), ready=True, capabilities=acting_worker.CAN
    )
    stores.workers.register(report, timedelta(minutes=5))
    bodies = [
        {"kind": "filtering", "valid_time": "2024-01-01T12:00:00Z"},
        {
            "kind": "reanalysis",
            "start": "2024-01-01T00:00:00Z",
            "end": "2024-01-01T23:00:00Z",
        },
    ]
    answers = [httpx.post(f"{gateway.url}/v1/jobs", json=body, timeout=30) for body in bodies]
    analysis, reanalysis = (answer.raise_for_status().json()["id"] for answer in answers)
    late = json.loads(run(status_app, "--late-minutes", "0", "--json", status=1))["late"]
    assert len(late) == 1 and analysis in late[0]
    assert reanalysis not in late[0]


def test_status_of_a_gateway_that_is_off_is_told_at_once() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = RUNNER.invoke(status_app, ["--url", url])
    assert result.exit_code == 1
    assert f"unreachable: Expected an answer of the gateway at {url}" in result.stderr
    assert "Traceback" not in result.output


def test_what_is_copied_from_other_tables_is_whole_on_80_columns() -> None:
    """Sources, webhooks, deliveries, keys, retention, pins: ids as long as they get."""
    time = datetime(2025, 1, 1, 18, tzinfo=UTC)
    source = SourceStatus(
        name="global-broker-of-meteo-france",
        broker="mqtts://globalbroker.meteo.fr:8883",
        topics=["cache/a/wis2/+/data/core/weather/surface-based-observations/#"],
        received=1_234_567,
        refused={"too_large": 3},
        last_accepted=time,
    )
    hook = Webhook(
        id=new_id("wh"), url="https://example.org/hooks/" + "long/" * 9, created=time, disabled="",
        events=["analysis.published", "cycle.outside_limits"], description="[of] the *archive*",
    )  # fmt: skip
    sent = Delivery(
        event_id="evt_9181abb25781d732a66a2fb67c158b18", webhook_id=hook.id, created=time,
        type="cycle.outside_limits", state="pending", next_attempt=time, body="",
        attempts=[{"time": time, "status": 503, "error": "service unavailable", "milliseconds": 31}],
    )  # fmt: skip
    key = ApiKey(
        id="5b0e77d1", name="a name of forty letters, for all to read", created=time, sha256="",
        scopes={"analyses:read", "jobs:write", "observations:write"}, expires=time, queued_jobs=7,
    )  # fmt: skip
    item = RetentionItem("result", new_id("an"), 123_456_789, 123.4, "filtering older than 60 days")
    pinned = Pin(analysis_id=new_id("an"), by="5b0e77d1", note="the storm of the century " * 4)
    tables = {
        sources._table([source]): ["global-broker-of-meteo-france", "received 1234567"],
        admin._webhook_table([hook]): [hook.id],
        admin._delivery_table([sent]): [sent.event_id, "pending"],
        admin._key_table([key]): ["5b0e77d1", "2025-01-01"],
        results._item_table([item], "would be removed"): [item.name],
        results._pin_table([pinned]): [pinned.analysis_id],
    }
    for table, wanted in tables.items():
        text = printed(table)
        assert "…" not in text
        assert all(name in text for name in wanted), text
    assert "[of]" in "".join(printed(admin._webhook_table([hook])).split())
