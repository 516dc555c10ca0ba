"""API keys, scopes, rates and quotas; a gateway that others can reach never runs open."""

import json
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import acting_worker
import httpx
import pytest
from gateway_process import REPOSITORY, GatewayProcess
from typer.testing import CliRunner

from deploy.commands.admin import keys_app
from model.domain.errors import ConfigurationError, InvalidInput
from service.errors import NotFound
from service.keys import KeyFile, Scope
from service.settings import GatewaySettings
from worker.contract.store import open_stores

FILTERING = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}


def call(
    gateway: GatewayProcess, key: str | None, method: str, path: str, **more
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, gateway.url + path, headers=headers, timeout=30, **more)


def make(gateway: GatewayProcess, *scopes: Scope, **more) -> str:
    return KeyFile(gateway.layout.keys_file).create("test", list(scopes), **more)[0]


def test_no_key_no_service(guarded: GatewayProcess) -> None:
    for method, path in (
        ("POST", "/v1/observations"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/analyses"),
        ("GET", "/v1/capabilities"),
    ):
        answer = call(guarded, None, method, path)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert call(guarded, None, "GET", "/health/live").status_code == 200


def test_scopes(guarded: GatewayProcess) -> None:
    sender = make(guarded, Scope.OBSERVATIONS_WRITE)
    reader = make(guarded, Scope.ANALYSES_READ)
    admin = make(guarded, Scope.ADMIN)
    data = b"BUFR" + bytes(100)
    assert call(guarded, reader, "POST", "/v1/observations", content=data).status_code == 403
    batch = call(guarded, sender, "POST", "/v1/observations", content=data)
    assert batch.status_code == 202
    assert batch.json()["api_key"] == sender.split("_")[1]
    assert call(guarded, sender, "GET", batch.headers["location"]).status_code == 200
    assert call(guarded, sender, "GET", "/v1/analyses").status_code == 403
    assert call(guarded, sender, "POST", "/v1/jobs", json=FILTERING).json()["code"] == "forbidden"
    assert call(guarded, reader, "GET", "/v1/analyses").status_code == 200
    assert call(guarded, reader, "GET", "/v1/jobs").status_code == 200
    for path in ("/v1/analyses", "/v1/jobs"):
        assert call(guarded, admin, "GET", path).status_code == 200


def test_key_ids_are_shown_to_their_holders_and_to_operators(guarded: GatewayProcess) -> None:
    sender = make(guarded, Scope.OBSERVATIONS_WRITE)
    everyones, admin = make(guarded, Scope.ALL_READ), make(guarded, Scope.ADMIN)
    batch = call(guarded, sender, "POST", "/v1/observations", content=b"BUFR" + bytes(77)).json()
    assert not {"token", "publishing"} & set(batch)
    own = sender.split("_")[1]
    for key in (sender, everyones, admin):
        one = call(guarded, key, "GET", f"/v1/observations/{batch['id']}").json()
        assert one == batch | {"api_key": own}
        listed = call(guarded, key, "GET", "/v1/batches").json()["items"]
        assert one in listed


def test_key_in_its_own_header(guarded: GatewayProcess) -> None:
    key = make(guarded, Scope.ANALYSES_READ)
    answer = httpx.get(f"{guarded.url}/v1/jobs", headers={"X-API-Key": key})
    assert answer.status_code == 200


def test_wrong_revoked_and_expired_keys(guarded: GatewayProcess) -> None:
    keys = KeyFile(guarded.layout.keys_file)
    key, record = keys.create("test", [Scope.ADMIN])
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = make(guarded, Scope.ADMIN, expires=past)
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    for bad in (wrong, expired, "appa_x_y", "appa", "", key.replace("appa_", "apfa_")):
        assert call(guarded, bad or "-", "GET", "/v1/jobs").status_code == 401, bad
    assert call(guarded, key, "GET", "/v1/jobs").status_code == 200
    keys.revoke(record.id)
    deadline = datetime.now(UTC) + timedelta(seconds=5)
    while call(guarded, key, "GET", "/v1/jobs").status_code == 200:
        assert datetime.now(UTC) < deadline


def test_the_secret_is_not_kept(tmp_path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, record = keys.create("operator", [Scope.ADMIN])
    text = keys.path.read_text()
    assert key.split("_")[2] not in text
    assert record.sha256 in text
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert keys.check(key).id == record.id


def test_rate(guarded: GatewayProcess) -> None:
    key = make(guarded, Scope.ANALYSES_READ, requests_per_minute=5)
    # Two windows of a minute may be touched: ten requests pass at most, so eleven do not.
    answers = [call(guarded, key, "GET", "/v1/jobs") for _ in range(11)]
    assert answers[0].status_code == 200
    # Which one is refused depends on where the minute ends: the last may be the first of the next.
    refused = next(answer for answer in answers if answer.status_code != 200)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    other = make(guarded, Scope.ANALYSES_READ)
    assert call(guarded, other, "GET", "/v1/jobs").status_code == 200


def test_queue_quota(guarded: GatewayProcess) -> None:
    stores = open_stores(guarded.redis_url, guarded.prefix)
    acting_worker.report(stores)
    key = make(guarded, Scope.JOBS_WRITE, queued_jobs=2)
    jobs = [call(guarded, key, "POST", "/v1/jobs", json=FILTERING) for _ in range(3)]
    assert [j.status_code for j in jobs] == [202, 202, 429]
    assert jobs[2].json()["code"] == "queue_quota"
    assert jobs[2].headers["retry-after"]
    call(guarded, key, "DELETE", jobs[0].headers["location"])
    assert call(guarded, key, "POST", "/v1/jobs", json=FILTERING).status_code == 202
    stores.redis.close()


def test_open_only_on_loopback() -> None:
    assert not GatewaySettings(host="127.0.0.1").keys_required
    assert not GatewaySettings(host="::1").keys_required
    assert GatewaySettings(host="0.0.0.0").keys_required
    assert GatewaySettings(host="gateway.example").keys_required
    with pytest.raises(ConfigurationError, match="appa keys create"):
        GatewaySettings(host="0.0.0.0", require_keys=False)


def test_open_gateway_refuses_to_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env={"APPA_HOST": "0.0.0.0", "APPA_REQUIRE_KEYS": "false", "PATH": ""},
        cwd=REPOSITORY,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert b"appa keys create" in done.stderr


def test_settings_are_closed() -> None:
    with pytest.raises(ValueError, match="maximum"):
        GatewaySettings(maximum=1)


def test_metrics_need_their_scope(guarded: GatewayProcess) -> None:
    scraper = make(guarded, Scope.METRICS_READ, requests_per_minute=1)
    reader, admin = make(guarded, Scope.ANALYSES_READ), make(guarded, Scope.ADMIN)
    asked = call(guarded, None, "GET", "/metrics")
    assert (asked.status_code, asked.json()["code"]) == (401, "unauthenticated")
    refused = call(guarded, reader, "GET", "/metrics")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for key in (scraper, scraper, scraper, admin):  # scrapes are not counted
        answer = call(guarded, key, "GET", "/metrics")
        assert answer.status_code == 200 and "appa_records" in answer.text
    assert call(guarded, scraper, "GET", "/v1/jobs").status_code == 403


def test_metrics_tell_when_each_sender_last_sent_something_new(guarded: GatewayProcess) -> None:
    """Of keys that may upload, by their names; a repetition is nothing new, a revoked key is gone."""
    keys, name = KeyFile(guarded.layout.keys_file), "appa_sender_last_upload_timestamp_seconds"
    admin = make(guarded, Scope.ADMIN)
    sender, record = keys.create("office-7", [Scope.OBSERVATIONS_WRITE])
    keys.create("quiet-7", [Scope.OBSERVATIONS_WRITE])

    def last() -> dict[str, float]:
        text = call(guarded, admin, "GET", "/metrics").text
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
        return {key: float(when) for key, when in rows}

    sent = time.time()
    content = b"BUFR" + b"office-7" + bytes(100)
    assert call(guarded, sender, "POST", "/v1/observations", content=content).status_code == 202
    series = f'{name}{{key="office-7"}}'
    first = last()
    assert first[series] == pytest.approx(sent, abs=30)
    assert not [one for one in first if "quiet-7" in one]
    assert call(guarded, sender, "POST", "/v1/observations", content=content).status_code == 200
    assert last()[series] == first[series]
    keys.revoke(record.id)
    deadline = time.monotonic() + 30
    while series in last():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_description_of_the_api_needs_any_key(guarded: GatewayProcess) -> None:
    assert call(guarded, None, "GET", "/openapi.json").status_code == 401
    document = call(guarded, make(guarded, Scope.METRICS_READ), "GET", "/openapi.json").json()
    assert "/v1/jobs" in document["paths"]
    assert call(guarded, None, "GET", "/redoc").status_code == 404


def test_without_keys_metrics_and_description_are_open(http: httpx.Client) -> None:
    assert http.get("/metrics").status_code == http.get("/openapi.json").status_code == 200


def keys_command(gateway: GatewayProcess, *arguments: str) -> dict:
    done = CliRunner().invoke(
        keys_app, [*arguments, "--json", "--data", str(gateway.data_dir)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def soon(gateway: GatewayProcess, key: str, path: str, status: int) -> bool:
    """Whether a call is answered so once the gateway has read the keys again."""
    end = time.monotonic() + 10
    while call(gateway, key, "GET", path).status_code != status:
        if time.monotonic() > end:
            return False
    return True


def test_a_key_is_rotated_while_its_holder_goes_on(guarded: GatewayProcess) -> None:
    made = keys_command(guarded, "create", "archive", "--scope", "observations:write")
    old, key_id = made["key"], made["id"]
    batch = call(guarded, old, "POST", "/v1/observations", content=b"BUFR rotated").headers
    path = batch["location"]
    new = keys_command(guarded, "rotate", key_id)
    assert (new["id"], new["scopes"]) == (key_id, made["scopes"])
    until = datetime.fromisoformat(new["replaced_until"]) - datetime.now(UTC)
    assert timedelta(hours=23) < until <= timedelta(hours=24)
    assert soon(guarded, new["key"], path, 200)  # its uploads are still its own
    assert call(guarded, old, "GET", path).status_code == 200
    assert not {old.split("_")[2], new["key"].split("_")[2]} & set(
        guarded.layout.keys_file.read_text().split('"')
    )
    leaked = new["key"]
    newest = keys_command(guarded, "rotate", key_id, "--overlap-hours", "0")["key"]
    assert soon(guarded, newest, path, 200)
    for gone in (old, leaked):
        assert call(guarded, gone, "GET", path).status_code == 401


def test_the_secret_before_is_taken_until_its_time(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    old, record = keys.create("a", [Scope.ADMIN])
    new, _ = keys.rotate(record.id, timedelta(hours=2))
    entry = keys.all()[record.id]
    digests = {name: sha256(k.split("_")[2].encode()).hexdigest() for name, k in
               (("old", old), ("new", new), ("other", "appa_x_y"))}  # fmt: skip
    for hours, taken in ((1, {"old", "new"}), (3, {"new"})):
        now = datetime.now(UTC) + timedelta(hours=hours)
        assert {name for name, d in digests.items() if entry.has_secret(d, now)} == taken


def test_scopes_of_a_key_are_changed(guarded: GatewayProcess) -> None:
    other = make(guarded, Scope.OBSERVATIONS_WRITE)
    path = call(guarded, other, "POST", "/v1/observations", content=b"BUFR o").headers["location"]
    made = keys_command(guarded, "create", "reader", "--scope", "analyses:read")
    assert call(guarded, made["key"], "GET", path).status_code == 404
    changed = keys_command(guarded, "change", made["id"], "--add", "all:read")
    assert changed["scopes"] == ["all:read", "analyses:read"]
    assert soon(guarded, made["key"], path, 200)
    keys_command(guarded, "change", made["id"], "--drop", "all:read")
    assert soon(guarded, made["key"], path, 404)
    keys = KeyFile(guarded.layout.keys_file)
    with pytest.raises(InvalidInput, match="Revoke it"):
        keys.change(made["id"], add=(), drop=[Scope.ANALYSES_READ])
    with pytest.raises(InvalidInput, match="both for admin"):
        keys.change(made["id"], add=[Scope.ADMIN], drop=[Scope.ADMIN])
    with pytest.raises(NotFound, match="Known"):
        keys.change("absent", add=[Scope.ADMIN], drop=())
