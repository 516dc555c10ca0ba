"""`appa doctor`: what it finds right on a good machine, and each thing that is made wrong on purpose."""

import http.server
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy.commands import doctor
from deploy.commands.doctor import CHECKS, Setting, doctor_app
from model.checkpoints.bundle import WEIGHTS
from tests.service.gateway_process import free_port
from worker.contract.layout import Layout
from worker.protections import Protection
from worker.settings import WorkerSettings

RUNNER = CliRunner()


@pytest.fixture
def healthy(own_broker, tmp_path, monkeypatch) -> Setting:
    """A broker that is set up as it must be, a data folder, a free port, all packages."""
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: ["typer>=0.1"])
    monkeypatch.setenv("APPA_REDIS_URL", own_broker.url)
    layout = Layout(tmp_path / "data").create()
    os.chmod(layout.broker, 0o700)
    settings = WorkerSettings(redis_url=own_broker.url, data_dir=layout.root)
    return Setting(settings, "127.0.0.1", free_port())


def amiss(setting: Setting, *areas: str) -> dict[str, str]:
    """What is no `ok`, by name: what was found and the advice."""
    found = [one for area in areas for one in CHECKS[area](setting)]
    assert all(one.advice for one in found if one.state == "problem")
    return {one.name: f"{one.found} {one.advice}" for one in found if one.state != "ok"}


def test_a_good_machine_is_told_so(healthy: Setting) -> None:
    where = ["--data", healthy.settings.data_dir, "--port", healthy.port]
    result = RUNNER.invoke(doctor_app, [*map(str, where), "--json"])
    told = json.loads(result.stdout)
    problems = [one for one in told["findings"] if one["state"] != "ok"]
    assert (result.exit_code, told["ok"], problems) == (0, True, [])
    assert {one["area"] for one in told["findings"]} == set(CHECKS)


def test_lines_fit_and_a_problem_is_the_exit_status(healthy: Setting, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"storage": CHECKS["storage"], "port": CHECKS["port"]})
    monkeypatch.setattr(doctor, "out", Console(width=80))
    result = RUNNER.invoke(doctor_app, ["--data", str(healthy.settings.data_dir / "none")])
    assert result.exit_code == 1
    assert "problem" in result.stdout
    assert "APPA_DATA_DIR" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_numbers_have_their_nouns(healthy: Setting, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"storage": CHECKS["storage"]})
    healthy.settings.layout.keys_file.write_text("{}")
    healthy.settings.layout.keys_file.chmod(0o644)
    where = ["--data", str(healthy.settings.data_dir)]

    def last_line() -> str:
        return RUNNER.invoke(doctor_app, where).stdout.splitlines()[-1]

    assert last_line().endswith(" ok, 0 warnings, 1 problem")
    healthy.settings.layout.broker.chmod(0o755)
    assert last_line().endswith(" ok, 0 warnings, 2 problems")


def test_a_broker_that_loses_data(healthy: Setting, own_broker) -> None:
    with doctor.connect(own_broker.url) as redis:
        redis.config_set("maxmemory", 3_000_000)
        redis.config_set("maxmemory-policy", "allkeys-lru")
        redis.config_set("appendonly", "no")
        for number in range(2_000):
            redis.set(f"k{number}", "x" * 3_000)
    found = [one for one in CHECKS["broker"](healthy) if one.state == "problem"]
    told = " ".join(f"{one.name}: {one.found} {one.advice}" for one in found)
    assert "maxmemory-policy is 'allkeys-lru'" in told
    assert "CONFIG SET maxmemory-policy noeviction" in told
    assert "CONFIG SET appendonly yes" in told
    assert "evicted keys" in told


def test_a_broker_that_is_off(healthy: Setting, own_broker) -> None:
    own_broker.kill()
    assert "APPA_REDIS_URL" in amiss(healthy, "broker")["reachable"]
    assert "unknown" in amiss(healthy, "clock")["skew"]


def test_the_password_of_the_broker_is_not_shown() -> None:
    assert doctor._without_password("redis://me:secret@host:1/0") == "redis://host:1/0"


def test_secrets_that_others_can_read(healthy: Setting) -> None:
    keys = Layout(healthy.settings.data_dir).keys_file
    keys.write_text("{}")
    keys.chmod(0o644)
    assert f"keys.json is -rw-r--r-- chmod go= '{keys}'" in amiss(healthy, "storage")["permissions"]
    keys.chmod(0o600)
    assert not amiss(healthy, "storage")


def test_a_disk_without_room(healthy: Setting) -> None:
    full = healthy.settings.model_copy(update={"disk_low_percent": 100.0})
    setting = Setting(full, healthy.host, healthy.port)
    assert "appa retention plan" in amiss(setting, "storage")["free space"]


def test_a_checkpoint_with_a_changed_file(healthy: Setting, tmp_path: Path) -> None:
    bundle = next(WEIGHTS.glob("*/card.yaml")).parent
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, copy_function=os.symlink)
    weights = min(copy.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    settings = healthy.settings.model_copy(update={"models": [str(copy)]})
    told = amiss(Setting(settings, healthy.host, healthy.port), "model")
    assert f"of {weights}" in told[str(copy)]
    assert "appa checkpoint import" in told[str(copy)]


@pytest.mark.parametrize(("seconds", "state"), [(5.0, "warning"), (40.0, "problem")])
def test_a_clock_that_is_ahead(healthy: Setting, monkeypatch, seconds: float, state: str) -> None:
    now = time.time
    monkeypatch.setattr(doctor.time, "time", lambda: now() + seconds)
    [found] = CHECKS["clock"](healthy)
    assert found.state == state
    assert f"{seconds:.0f} s ahead of the broker's" in found.found


def test_missing_packages_and_extras(healthy: Setting, monkeypatch) -> None:
    wanted = [
        "typer",
        "no-such-package>=2",
        'typer; extra == "ingest"',
        'appa-service[ingest]; extra == "model"',
        'no-other-package; extra == "model"',
        'appa-service[model]; extra == "local"',
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: wanted)
    found = {one.name: one for one in CHECKS["environment"](healthy)}
    assert found["packages"].state == "problem"
    assert "no-such-package" in found["packages"].found
    assert found["extras"].found == "installed: ingest; not: model, local"


def test_an_extra_that_is_not_installed_ends_no_other_examination(healthy, monkeypatch) -> None:
    monkeypatch.setitem(doctor.sys.modules, "torch", None)
    found = [one for one in doctor.examine(healthy) if one.area in ("model", "port")]
    assert [(one.area, one.state) for one in found] == [("model", "warning"), ("port", "ok")]
    assert "appa-service[model]" in found[0].advice


def test_a_kernel_that_holds_nothing_back(healthy: Setting, monkeypatch) -> None:
    weak = [Protection("network", False, "seccomp filters"), Protection("time", True, "limits")]
    monkeypatch.setattr("worker.protections.protections", lambda: weak)
    told = amiss(healthy, "sandbox")
    assert list(told) == ["network"]
    assert "NOT held back" in told["network"]
    assert "seccomp filters" in told["network"]


def test_a_port_that_another_program_has(healthy: Setting) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = Setting(healthy.settings, "127.0.0.1", server.server_port)
        told = amiss(where, "port")
        server.shutdown()
    assert "another program listens" in told[f"127.0.0.1:{server.server_port}"]
