"""`appa upload`, `submit`, `watch`, `fetch`, `keys` against a real gateway."""

import json
import threading
import time
from pathlib import Path

import acting_worker
import pytest
from gateway_process import GatewayProcess
from typer.testing import CliRunner

from appa_client import AppaClient
from deploy.commands.admin import keys_app
from deploy.commands.client import fetch_app, submit_app, upload_app, watch_app
from worker.contract.batches import IngestSummary
from worker.contract.records import Problem

RUNNER = CliRunner()


def run(app, *arguments: str, status: int = 0) -> str:
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.stdout


@pytest.fixture(autouse=True)
def address(gateway: GatewayProcess, monkeypatch, stores) -> None:
    monkeypatch.setenv("APPA_URL", gateway.url)
    monkeypatch.delenv("APPA_API_KEY", raising=False)
    acting_worker.report(stores)


def play(stores, *, fail: bool = False) -> threading.Thread:
    """A worker that takes the next job."""

    def work() -> None:
        deadline = time.monotonic() + 20
        while not (waiting := stores.jobs.ids("queued")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job = acting_worker.start(stores, waiting[0])
        acting_worker.step(stores, job, 1, 2)
        if fail:
            stores.jobs.fail(job.id, job.token, Problem(code="no_background", message="None."))
        else:
            acting_worker.finish(stores, job)

    for job_id in stores.jobs.ids("queued"):
        stores.jobs.cancel(job_id)
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_upload(stores, tmp_path: Path) -> None:
    paths = [tmp_path / "a.bufr", tmp_path / "b.bufr"]
    for i, path in enumerate(paths):
        path.write_bytes(b"BUFR" + bytes([i]) * 5000)
    batches = json.loads(run(upload_app, *paths, "--no-wait", "--json"))
    assert [b["file_name"] for b in batches] == ["a.bufr", "b.bufr"]
    for batch in batches:
        held = stores.batches.claim(batch["id"], "test", acting_worker.LEASE)
        summary = IngestSummary(observations=9, used=8, by_rejection={"bounds": 1})
        stores.batches.finish(batch["id"], held.token, summary)
    table = run(upload_app, *paths)
    assert "ingested" in table
    assert "bounds 1" in table


def test_upload_of_nonsense_ends_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.bufr"
    path.write_bytes(b"hello")
    result = RUNNER.invoke(upload_app, [str(path)])
    assert result.exit_code == 1
    assert "unsupported_content" in result.stderr
    assert "Traceback" not in result.output


def test_submit_fields(gateway: GatewayProcess) -> None:
    arguments = ["filtering", "--valid-time", "2025-01-01T06:00Z", "--members", "4", "--seed", "7"]
    arguments += ["--networks", "synop,temp", "--cut-off", "2025-01-01T07:00Z"]
    arguments += ["--set", "warm_start=true", "--set", "observations.withhold=0.1", "--json"]
    job = json.loads(run(submit_app, *arguments))
    with AppaClient(gateway.url) as client:
        spec = client.job(job["id"]).spec
    assert (spec.members, spec.seed, spec.warm_start) == (4, 7, True)
    assert spec.observations.networks == ["synop", "temp"]
    assert (spec.observations.withhold, spec.observations.cut_off.hour) == (0.1, 7)


def test_submit_tells_what_is_wrong() -> None:
    result = RUNNER.invoke(submit_app, ["filtering", "--valid-time", "2025-01-01T06:30Z"])
    assert result.exit_code == 1
    assert "valid_time" in result.stderr
    assert "full hour" in result.stderr


@pytest.mark.parametrize("option", ["--spec", "--set"])
def test_submit_refuses_repeated_names(tmp_path: Path, option: str) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"members": 4, "members": 8}')
    given = str(path) if option == "--spec" else 'observations={"members": 1, "members": 2}'
    result = RUNNER.invoke(
        submit_app, ["filtering", "--valid-time", "2025-01-01T06:00Z", option, given]
    )
    assert result.exit_code == 2
    assert "'members' is" in result.stderr


def test_a_file_that_is_no_json_is_named_by_its_option(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{members: 4}")
    result = RUNNER.invoke(submit_app, ["filtering", "--spec", str(path)])
    assert (result.exit_code, "Expected JSON" in result.stderr) == (2, True)


def test_submit_and_watch(stores) -> None:
    worker = play(stores)
    text = run(submit_app, "filtering", "--valid-time", "2025-01-01T06:00Z", "--watch")
    worker.join()
    assert "succeeded" in text


def test_watch_as_json_and_failure(stores) -> None:
    job = json.loads(run(submit_app, "filtering", "--valid-time", "2025-01-01T06:00Z", "--json"))
    for other in stores.jobs.ids("queued"):
        if other != job["id"]:
            stores.jobs.cancel(other)
    held = acting_worker.start(stores, job["id"])
    stores.jobs.fail(held.id, held.token, Problem(code="no_background", message="None."))
    lines = run(watch_app, job["id"], "--json", status=1).splitlines()
    events = [json.loads(line) for line in lines]
    assert events[-1]["event"] == "done"
    assert events[-1]["data"]["error"]["code"] == "no_background"


def test_fetch(gateway: GatewayProcess, tmp_path: Path) -> None:
    acting_worker.publish(gateway.layout, "an-cli", {"a.nc": b"CDF\x01", "q.png": b"\x89PNG"})
    run(fetch_app, "an-cli", "--to", tmp_path)
    assert (tmp_path / "a.nc").read_bytes() == b"CDF\x01"
    found = json.loads(
        run(fetch_app, "an-cli", "--to", tmp_path / "b", "--name", "q.png", "--json")
    )
    assert found == {"analysis_id": "an-cli", "files": [str(tmp_path / "b" / "q.png")]}
    run(fetch_app, "an-none", "--to", tmp_path, status=1)


def test_keys(tmp_path: Path) -> None:
    folder = ["--data-dir", tmp_path]
    made = json.loads(
        run(
            keys_app,
            "create",
            "archive",
            "--scope",
            "analyses:read",
            "--days",
            "3",
            "--json",
            *folder,
        )
    )
    listed = json.loads(run(keys_app, "list", "--json", *folder))
    assert [k["id"] for k in listed] == [made["id"]]
    assert listed[0]["scopes"] == ["analyses:read"]
    assert made["key"] not in json.dumps(listed)
    assert "archive" in run(keys_app, "list", *folder)
    run(keys_app, "revoke", made["id"], *folder)
    assert json.loads(run(keys_app, "list", "--json", *folder)) == []
    run(keys_app, "revoke", made["id"], *folder, status=1)
