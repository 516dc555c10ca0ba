"""The audit log: who changed what, over a real gateway; set aside by size, by several processes."""

import getpass
import json
import multiprocessing
import stat
import time
from pathlib import Path

import httpx
from click.testing import Result
from gateway_process import StartGateway
from typer.testing import CliRunner

from deploy.commands.admin import keys_app
from service.audit import AuditLog
from service.keys import KeyFile, Scope
from worker.contract.layout import Layout


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_changes_and_refusals_are_written_and_reading_is_not(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_REQUIRE_KEYS="true")
    key, record = KeyFile(gateway.layout.keys_file).create("a", [Scope.OBSERVATIONS_WRITE])
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        http.headers["Authorization"] = f"Bearer {key}"
        batch = http.post("/v1/observations", content=b"BUFR audited").json()["id"]
        http.get("/v1/batches")
        asked = {"X-Request-ID": "mine", "traceparent": f"00-{'4b' * 16}-00f067aa0ba902b7-01"}
        retried = http.post(f"/v1/observations/{batch}/retry", headers=asked)
        assert retried.status_code == 202
        http.post("/v1/webhooks", json={"url": "http://x", "events": ["cycle.failed"]})
        http.delete("/v1/jobs/job-x", headers={"Authorization": "Bearer appa_x_y"})
    path = gateway.layout.audit_file
    end = time.monotonic() + 10
    while len(lines(path)) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    found = lines(path)
    assert [(e["key"], e["action"], e["record"], e["status"]) for e in found] == [
        (record.id, "upload_batch", batch, 202),
        (record.id, "retry_batch", batch, 202),
        (record.id, "create_webhook", "", 403),
        ("", "cancel_job", "job-x", 401),
    ]
    assert [e["trace_id"] for e in found] == ["", "4b" * 16, "", ""]
    assert found[1]["request_id"] == "mine" and found[0]["address"] == "127.0.0.1"
    assert found[0]["time"] < found[3]["time"]
    assert key.split("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_changes_of_keys_on_the_machine_are_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    data = tmp_path / "data"
    run = CliRunner()

    def keys(*words: str) -> Result:
        return run.invoke(keys_app, [*words, "--data", str(data)])

    secret = keys("create", "a", "--scope", "jobs:write").stdout.strip()
    key_id = secret.split("_")[1]
    replaced = keys("rotate", key_id).stdout.strip()
    assert keys("change", key_id, "--add", "admin").exit_code == 0
    assert keys("revoke", "nobody").exit_code == 1
    monkeypatch.delenv("SUDO_USER")
    assert keys("revoke", key_id).exit_code == 0
    keys("list")
    path = Layout(data).audit_file
    found = lines(path)
    assert [(e["action"], e["record"], e["status"]) for e in found] == [
        ("create_key", key_id, 200),
        ("rotate_key", key_id, 200),
        ("change_key", key_id, 200),
        ("revoke_key", "nobody", 400),
        ("revoke_key", key_id, 200),
    ]
    assert {e["key"] for e in found[:4]} == {"local:ada"}
    assert found[4]["key"] == f"local:{getpass.getuser()}"
    assert not any(one.split("_")[2] in path.read_text() for one in (secret, replaced))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def write_many(path: Path, name: str) -> None:
    audit = AuditLog(path, max_bytes=2_000, kept=200)
    for i in range(100):
        audit.write(key=name, record=i)
    audit.flush()


def test_processes_share_a_file_that_is_set_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, n)) for n in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    files = list(tmp_path.glob("audit*.jsonl"))
    assert len(files) > 5 and all(file.stat().st_size <= 2_000 for file in files)
    found = [(e["key"], e["record"]) for file in files for e in lines(file)]
    assert sorted(found) == [(n, i) for n in ("a", "b") for i in range(100)]


def test_old_files_go_and_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path, max_bytes=200, kept=3)
    for i in range(40):
        audit.write(record=i)
    audit.flush()
    older = sorted(tmp_path.glob("audit-*.jsonl"))
    assert len(older) == 3
    assert [e["record"] for f in [*older, path] for e in lines(f)][-1] == 39
    full = AuditLog(tmp_path / "absent" / "audit.jsonl")
    full.write(record=1)
    full.flush()  # lost, and told
    (tmp_path / "absent").mkdir()
    full.write(record=2)
    full.flush()
    assert [e["record"] for e in lines(full.path)] == [2]
