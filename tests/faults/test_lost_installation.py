"""A Redis that lost all, and a machine that is left for another: real gateway, workers, servers."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from deploy.commands.backup import backup_app, recover_app, restore_app
from service.keys import KeyFile, Scope
from tests.faults.steps import submit_job, wait_phase, wait_state
from tests.service.gateway_process import GatewayProcess
from tests.worker.conftest import BrokerProcess
from tests.worker.processes import Processes, wait_for
from worker.archivist import Archivist
from worker.contract.jobs import JobState, Phase
from worker.contract.layout import Layout
from worker.contract.store import Stores, open_stores
from worker.observations.store.store import ObservationStore
from worker.process import message_sender
from worker.results.catalogue import Catalogue
from worker.settings import WorkerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
PREFIX = "lost"


def csv(temperature: float) -> bytes:
    return (
        "time,lat,lon,station_id,report_type,variable,obs_value\n"
        f"2025-01-01T06:00:00Z,48.2,16.4,11035,synop,2m_temperature,{temperature}\n"
    ).encode()


@dataclass
class Machine:
    """One installation: a server, a data folder, a gateway and workers."""

    broker: BrokerProcess
    layout: Layout
    gateway: GatewayProcess
    workers: Processes
    stores: Stores
    key: str = ""

    @classmethod
    def make(cls, broker: BrokerProcess, folder: Path) -> "Machine":
        gateway = GatewayProcess(
            broker.url, folder, prefix=PREFIX, environment={"APPA_REQUIRE_KEYS": "true"}
        )
        workers = Processes(broker.url, PREFIX, folder, {"APPA_RECONCILE_SECONDS": "0.5"})
        layout = Layout(folder)
        return cls(broker, layout, gateway, workers, open_stores(broker.url, PREFIX, layout))

    def end(self) -> None:
        self.workers.end()
        self.gateway.stop()
        self.stores.redis.close()

    def call(self, method: str, path: str, **options) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"{self.gateway.url}{path}"
        return httpx.request(method, url, headers=headers, timeout=60, **options)

    def upload(self, temperature: float) -> str:
        answer = self.call("POST", "/v1/observations", content=csv(temperature))
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def upload_state(self, name: str) -> str:
        return self.call("GET", f"/v1/observations/{name}").json().get("state", "unknown")

    def rows(self, name: str) -> int:
        found = ObservationStore(str(self.layout.observations)).files.manifest(name)
        return 0 if found is None else found.rows

    def results(self) -> list[str]:
        with Catalogue(self.layout) as catalogue:
            return sorted(entry.id for entry in catalogue.entries())

    def submit(self):
        return submit_job(self.stores, self.workers)

    def command(self, monkeypatch, app, *words: str):
        monkeypatch.setenv("APPA_REDIS_URL", self.broker.url)
        monkeypatch.setenv("APPA_REDIS_PREFIX", PREFIX)
        return CliRunner().invoke(app, [*words, "--data", str(self.layout.root)])


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    yield
    structlog.reset_defaults()


@pytest.fixture
def machine(own_broker, tmp_path):
    """One with an upload and a result, a job under way, and an upload that waits."""
    made = Machine.make(own_broker, tmp_path / "old")
    try:
        made.layout.create()
        made.key, _ = KeyFile(made.layout.keys_file).create(
            "everything", [*Scope], requests_per_minute=0
        )
        made.gateway.start()
        yield made
    finally:
        made.end()


@dataclass
class Under:
    """What is under way on a machine."""

    ingest: subprocess.Popen
    stored: str
    waiting: str
    done: str
    running: str
    queued: str

    @property
    def jobs(self) -> list[str]:
        return [self.done, self.running, self.queued]


def begin(machine: Machine) -> Under:
    """An upload stored and one waiting; a job done, one running, one queued."""
    settings = WorkerSettings(redis_url=machine.broker.url, redis_prefix=PREFIX)
    hook = {"url": "https://example.org/hook", "events": ["analysis.published"]}
    assert machine.call("POST", "/v1/webhooks", json=hook).status_code == 201
    with message_sender(settings) as sender:  # what a scheduler does all the time
        Archivist(machine.stores, machine.layout, sender).tick()
    machine.workers.stub_worker(APPA_STUB_STEPS="2")
    ingest = machine.workers.appa("worker", "ingest")
    stored, done = machine.upload(271.0), machine.submit()
    wait_state(machine.stores, done.id, JobState.SUCCEEDED, seconds=60)
    (machine.layout.root / "pause-sampling").touch()
    running, queued = machine.submit(), machine.submit()
    wait_phase(machine.stores, running.id, Phase.SAMPLING)
    wait_for(lambda: machine.upload_state(stored) == "ingested", 60)
    os.killpg(ingest.pid, signal.SIGSTOP)
    waiting = machine.upload(272.0)
    return Under(ingest, stored, waiting, done.id, running.id, queued.id)


def require_ended(machine: Machine, work: Under, seconds: float = 90) -> None:
    wait_for(lambda: machine.upload_state(work.waiting) == "ingested", seconds)
    for job in work.jobs:
        assert wait_state(machine.stores, job, JobState.SUCCEEDED, seconds=seconds)
    assert [machine.rows(work.stored), machine.rows(work.waiting)] == [1, 1]
    expected = sorted(job.replace("job", "an", 1) for job in work.jobs)
    assert machine.results() == expected
    listed = machine.call("GET", "/v1/analyses").json()
    assert (listed["total"], sorted(i["id"] for i in listed["items"])) == (3, expected)


def test_one_command_rebuilds_what_a_flushed_redis_held(machine, monkeypatch):
    work = begin(machine)
    machine.stores.redis.flushall()
    assert machine.upload_state(work.stored) == "unknown"
    done = machine.command(monkeypatch, recover_app, "--grace", "0")
    assert done.exit_code == 0, done.output
    assert "1 result in the catalogue" in done.stdout
    assert "uploads: 1 received, 1 ingested" in done.stdout
    (jobs,) = re.findall("jobs: (.+)", done.stdout)  # a worker may have taken one by now
    assert "1 succeeded" in jobs and ("2 queued" in jobs or "1 queued, 1 running" in jobs)
    assert "1 webhook; records brought back: 2 batch, 3 job, 0 cycle" in done.stdout
    (machine.layout.root / "pause-sampling").unlink()
    os.killpg(work.ingest.pid, signal.SIGCONT)
    require_ended(machine, work)  # without a scheduler
    # the processes that were running go on, and content that was stored is known
    assert machine.call("POST", "/v1/observations", content=csv(271.0)).json()["id"] == work.stored
    new = machine.upload(273.0)
    wait_for(lambda: machine.upload_state(new) == "ingested", 60)
    again = machine.command(monkeypatch, recover_app, "--grace", "0", "--json")
    assert '"restored": {"batch": 0, "job": 0, "cycle": 0}' in again.stdout


def copied_folders() -> list[str]:
    """The folders that the page says to copy, in its order."""
    (line,) = re.findall(r"^for folder in (.+); do$", PAGE, re.MULTILINE)
    return line.split()


def test_an_installation_moves_to_another_machine_as_the_page_says(machine, tmp_path, monkeypatch):
    work = begin(machine)
    policy = "analyses: {manual: {days: 5, keep: 1}}\n"
    machine.layout.retention_file.write_text(policy)
    backup = tmp_path / "backup.tar.gz"
    made = machine.command(monkeypatch, backup_app, str(backup))  # while it runs
    assert made.exit_code == 0, made.output
    assert "of one moment" in made.stdout
    after = machine.upload(274.0)  # between the backup and the copy
    machine.workers.end()
    machine.gateway.stop()

    second = BrokerProcess(Path(tempfile.mkdtemp(prefix="appa-broker-"))).start()
    new = Machine.make(second, tmp_path / "new")
    new.key = machine.key
    try:
        move(machine, new, backup, monkeypatch)
        assert new.layout.retention_file.read_text() == policy
        (new.layout.root / "pause-sampling").unlink()  # a file like any other
        new.gateway.start()
        for process in (("scheduler",), ("ingest",)):
            new.workers.appa("worker", *process)
        new.workers.stub_worker(APPA_STUB_STEPS="2")
        require_ended(new, work)
        wait_for(lambda: new.upload_state(after) == "ingested", 60)
        assert new.call("POST", "/v1/observations", content=csv(271.0)).json()["id"] == work.stored
        assert len(new.call("GET", "/v1/webhooks").json()) == 1
    finally:
        new.end()
        second.kill()
        shutil.rmtree(second.folder, ignore_errors=True)


def move(old: Machine, new: Machine, backup: Path, monkeypatch) -> None:
    """Restore, copy what the page names, check."""
    restored = new.command(monkeypatch, restore_app, str(backup))
    assert restored.exit_code == 0, restored.output
    early = new.command(monkeypatch, restore_app, str(backup), "--check")
    assert early.exit_code == 1
    assert "3 items missing or damaged" in early.stderr  # a result and two uploads
    for name in copied_folders():
        source = old.layout.root / name
        if source.exists():
            shutil.copytree(source, new.layout.root / name, dirs_exist_ok=True)
    checked = new.command(monkeypatch, restore_app, str(backup), "--check", "--digests")
    assert checked.exit_code == 0, checked.output
    assert "1 result with 1 file, 2 uploads" in checked.stdout
