"""`appa cycles` against a real gateway."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from gateway_process import GatewayProcess
from test_gateway_cycles import DONE, publish, put
from typer.testing import CliRunner

from deploy.commands import cycles
from worker.contract.cycles import CycleState
from worker.cycling.policy import read_policy

RUNNER = CliRunner()
DAY = datetime(2012, 1, 1, tzinfo=UTC)


def run(*arguments: object, status: int = 0) -> str:
    result = RUNNER.invoke(cycles.app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(autouse=True)
def address(gateway: GatewayProcess, monkeypatch) -> None:
    monkeypatch.setenv("APPA_URL", gateway.url)
    monkeypatch.delenv("APPA_API_KEY", raising=False)
    gateway.layout.cycles_file.write_text("start: 2009-01-01T00:00:00Z")


def test_list(stores):
    put(stores, DAY, "early", *DONE, analysis_id="an-1", published=DAY + timedelta(minutes=21))
    period = ("--start", "2012-01-01", "--end", "2012-01-01T00:00:00")
    [record] = json.loads(run("list", *period, "--json"))
    assert record["id"] == "20120101T00Z_early"
    table = run("list", *period)
    assert "20120101T00Z_early" in table
    assert "60 s" in table  # from 00:20 to 00:21


def test_explain(gateway, stores):
    time = DAY + timedelta(days=1)
    rows = [
        ("b", 0, "synop", time, None),
        ("b", 1, "temp", time + timedelta(hours=4), "late"),
        ("b", 2, "ship", time, "track"),
    ]
    publish(gateway, "an-explained", time, "final", 2, rows)
    put(stores, time, "final", *DONE, analysis_id="an-explained")
    text = run("explain", "2012-01-02T00")
    assert "inconsistent with the platform's own track" in text
    assert "arrived 01-02 04:00" in text
    assert json.loads(run("explain", "20120102T00Z_final", "--json"))["used"] == {"synop": 1}
    run("explain", "yesterday", status=2)
    assert "not_found" in run("explain", "2012-01-02T01", status=1)


def test_rerun(stores):
    time = DAY + timedelta(days=2)
    put(stores, time, "final", *DONE)
    told = json.loads(run("rerun", "2012-01-03T00", "--cut-off", "2012-01-03T05:00", "--json"))
    assert (told["state"], told["revision"]) == ("due", 3)
    assert told["cut_off"] == "2012-01-03T05:00:00Z"


def test_watch_tells_every_move_until_the_end(stores):
    time = datetime(2200, 1, 1, tzinfo=UTC)  # newer than all others
    record = put(stores, time, "final")

    def move_on() -> None:
        for state in (CycleState.DUE, CycleState.SUBMITTED, CycleState.PUBLISHED):
            pause.wait(0.4)
            stores.cycles.change(stores.cycles.get(record.id), state)

    pause = threading.Event()
    thread = threading.Thread(target=move_on)
    thread.start()
    lines = run("watch", "--json", "--seconds", "0.1", "--last", "1", "--until", record.id)
    thread.join()
    states = [json.loads(line)["state"] for line in lines.splitlines()]
    assert states == ["waiting", "due", "submitted", "published"]


def test_init_writes_a_policy_that_is_one(tmp_path):
    run("init", "--data", tmp_path, "--start", "2003-10-01T06")
    policy = read_policy(tmp_path / "cycles.yaml")
    six = datetime(2003, 10, 1, 6, tzinfo=UTC)
    assert policy.start == six
    assert policy.cut_off(six, "early") == six + timedelta(minutes=20)
    midnight = six.replace(hour=0)
    assert policy.cut_off(midnight, "early") == midnight + timedelta(minutes=40)
    assert "there already" in run("init", "--data", tmp_path, status=1)
    run("init", "--data", tmp_path, "--force")
    assert read_policy(tmp_path / "cycles.yaml").start > six
