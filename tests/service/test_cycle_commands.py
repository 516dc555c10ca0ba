"""`appa cycles` against a real gateway."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta
from time import monotonic

import acting_worker
import numpy as np
import pyarrow.parquet as pq
import pytest
from gateway_process import GatewayProcess
from test_gateway_cycles import DONE, publish, put
from typer.testing import CliRunner

from deploy.commands import cycles
from tests.worker.verification.feedback_of import make_feedback
from worker.contract.cycles import CycleState
from worker.contract.jobs import JobRecord
from worker.cycling.policy import read_policy
from worker.results.manifest import read_manifest

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


def withheld_feedback(departure: float) -> bytes:
    """Three withheld values of radiosondes, all with the same departure from the analysis."""
    table = make_feedback(
        3, "withheld", {"analysis_departure": np.array([departure, -departure, departure])},
        time=np.full(3, np.datetime64("2012-01-04T00", "ns")), report_type="temp",
        variable="temperature",
    )  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_deny_makes_a_cycle_again_without_a_network(gateway, stores):
    time = DAY + timedelta(days=3)
    folder = acting_worker.publish(
        gateway.layout, "an-denied", {"obsfb.parquet": withheld_feedback(1.0)}, valid=time,
        flavour="final", revision=2,
    )  # fmt: skip
    manifest = read_manifest(gateway.layout, "an-denied")
    manifest.files[0].role = "feedback"
    manifest.scores = {"impact": {"synop": 0.3}}
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    put(stores, time, "final", *DONE, analysis_id="an-denied")
    acting_worker.report(stores)
    asked: list[JobRecord] = []
    others = set(stores.jobs.ids("queued"))  # of tests before this one

    def work() -> None:
        end = monotonic() + 30
        while not (waiting := [i for i in stores.jobs.ids("queued") if i not in others]):
            assert monotonic() < end
            pause.wait(0.1)
        job = acting_worker.start(stores, waiting[0])
        asked.append(job)
        files = {"obsfb.parquet": withheld_feedback(2.0)}
        target = acting_worker.publish(gateway.layout, job.analysis_id, files, valid=time)
        made = read_manifest(gateway.layout, job.analysis_id)
        made.files[0].role = "feedback"
        (target / "manifest.json").write_text(made.model_dump_json())
        acting_worker.finish(stores, job)

    pause = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    result = RUNNER.invoke(cycles.deny_app, ["synop", "2012-01-04T00", "--json"])
    worker.join()
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    [job] = asked
    assert (job.spec.observations.deny, job.spec.outputs) == (["synop"], ["feedback"])
    assert (told["estimate"], told["analysis_id"]) == (0.3, job.analysis_id)
    # Errors double without the network.
    assert told["change_without"] == pytest.approx(1.0)
    [line] = told["errors"]
    assert (line["network"], line["error"], line["error_without"]) == ("temp", 1.0, 2.0)
