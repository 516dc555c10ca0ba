"""`appa retention`: the plan as a table and as JSON, pins, and a run; `appa catalogue`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import typer
from typer.testing import CliRunner

from deploy.commands.results import catalogue_app, retention_app
from model.domain.errors import AppaError
from tests.worker.retention import results
from worker.contract.layout import Layout

RULES = "analyses: {manual: {days: 5, keep: 1}}\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    layout = Layout(tmp_path).create()
    for hour in range(4):
        results.publish(layout, f"an-{hour}", age_days=9 - hour, hour=hour)
    layout.retention_file.write_text(RULES)
    return tmp_path


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def call(*words: str, app: typer.Typer = retention_app) -> str:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_plan_pin_and_run(data: Path) -> None:
    at = ("--data", str(data), "--stopped")
    plan = json.loads(call("plan", *at, "--json"))
    assert [item["name"] for item in plan["items"]] == ["an-0", "an-1", "an-2"]
    assert plan["kept"] == {"newest": 1}
    assert plan["bytes"] == sum(item["size"] for item in plan["items"])
    table = call("plan", *at)
    assert "an-0" in table and "older than 5" in table and "newest" in table
    pinned = json.loads(call("pin", "an-1", "--data", str(data), "--note", "storm", "--json"))
    assert pinned["note"] == "storm"
    assert "an-1" in call("pins", "--data", str(data))
    gone = json.loads(call("run", *at, "--json"))
    assert [item["name"] for item in gone["items"]] == ["an-0", "an-2"]
    assert sorted(p.name for p in (data / "analyses").iterdir()) == ["an-1", "an-3"]
    assert json.loads(call("unpin", "an-1", "--data", str(data), "--json"))["was_pinned"]
    assert CliRunner().invoke(retention_app, ["unpin", "an-1", "--data", str(data)]).exit_code == 1


def test_without_the_job_store_nothing_is_removed(data: Path, monkeypatch) -> None:
    monkeypatch.setenv("APPA_REDIS_URL", f"unix://{data}/none.sock")
    done = CliRunner().invoke(retention_app, ["run", "--data", str(data)])
    assert isinstance(done.exception, AppaError)
    assert "--stopped" in done.exception.message
    assert len(list((data / "analyses").iterdir())) == 4


def test_the_catalogue_is_shown_and_rebuilt(data: Path) -> None:
    at = ("--data", str(data))
    (data / "analyses" / "an-torn").mkdir()
    shown = json.loads(call("show", *at, "--limit", "2", "--json", app=catalogue_app))
    assert (shown["total"], [item["id"] for item in shown["items"]]) == (4, ["an-3", "an-2"])
    assert shown["unreadable"] == {"an-torn": "no manifest"}
    assert json.loads(call("show", *at, "--kind", "forecast", "--json", app=catalogue_app)) == {
        "total": 0, "items": [], "unreadable": shown["unreadable"],
    }  # fmt: skip
    table = call("show", *at, app=catalogue_app)
    assert all(f"an-{hour}" in table for hour in range(4)) and "4 in all" in table
    (data / "catalogue.sqlite").write_bytes(b"damaged" * 1000)
    assert "4 results" in call("rebuild", *at, app=catalogue_app)
    assert json.loads(call("show", *at, "--json", app=catalogue_app))["total"] == 4
