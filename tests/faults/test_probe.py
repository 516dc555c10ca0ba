"""`appa probe`, as health checks ask it: of a real scheduler that hangs, and of what workers report."""

import json
import os
import signal
import socket
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from deploy.commands.probe import probe_app
from tests.worker.processes import wait_for
from worker.contract.queues import ProcessFigures, WorkerReport
from worker.contract.records import utc_now


@pytest.fixture
def probe(shared_broker, prefix, monkeypatch):
    """Ask, and return exit status and what was said."""
    monkeypatch.setenv("APPA_REDIS_URL", shared_broker.url)
    monkeypatch.setenv("APPA_REDIS_PREFIX", prefix)

    def ask(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(probe_app, [*words])
        return done.exit_code, done.output

    return ask


def test_a_scheduler_that_hangs_is_not_well(probe, processes):
    assert probe("scheduler")[0] == 1
    scheduler = processes.appa("worker", "scheduler")
    wait_for(lambda: probe("scheduler")[0] == 0, 60)
    os.kill(scheduler.pid, signal.SIGSTOP)
    wait_for(lambda: probe("scheduler")[0] == 1)
    os.kill(scheduler.pid, signal.SIGCONT)
    wait_for(lambda: probe("scheduler")[0] == 0)


def test_what_counts_is_a_report_of_these_queues_from_this_machine(probe, stores):
    def report(name: str, *queues: str, host: str = "", **values: object) -> None:
        made = WorkerReport(
            name=name, queues=list(queues), host=host or socket.gethostname(), **values
        )
        stores.workers.register(made, timedelta(seconds=30))

    report("elsewhere", "gpu", host="another")
    report("other", "ingest", "products")
    status, said = probe("gpu")
    assert (status, "no worker of gpu reports" in said) == (1, True)
    assert probe("gpu", "--host", "another")[0] == 0
    assert probe("products", "ingest")[0] == 0
    report("mine", "gpu", draining=True)
    assert probe("gpu") == (0, "mine reports\n")
    status, said = probe("gpu", "--json")
    assert (status, json.loads(said)["workers"]) == (0, ["mine"])
    status, said = probe("ingest", "--json")
    assert (status, json.loads(said)["well"]) == (1, False)


def test_a_loop_that_does_not_go_round_is_not_well(probe, stores):
    turned = utc_now() - timedelta(seconds=100)
    made = WorkerReport(
        name="s", queues=["scheduler"], host=socket.gethostname(),
        figures=ProcessFigures(turned=turned),
    )  # fmt: skip
    stores.workers.register(made, timedelta(seconds=30))
    assert probe("scheduler")[0] == 0
    assert probe("scheduler", "--stalled", "60") == (1, "s: its loop does not go round\n")
    answer = json.loads(probe("scheduler", "--stalled", "60", "--json")[1])
    assert (answer["well"], answer["hanging"]) == (False, ["s"])


def test_a_redis_that_is_away_says_nothing_about_the_worker(probe, monkeypatch, tmp_path):
    monkeypatch.setenv("APPA_REDIS_URL", f"unix://{tmp_path}/none.sock")
    status, said = probe("gpu")
    assert (status, "Redis does not answer" in said) == (0, True)
    answer = json.loads(probe("gpu", "--json")[1])
    assert (answer["well"], answer["redis"]) == (True, False)
