"""`appa webhooks` against a real gateway."""

import json
from datetime import UTC, datetime

import httpx
import pytest
from gateway_process import GatewayProcess
from typer.testing import CliRunner, Result

from deploy.commands import admin
from worker.contract.events import EventType
from worker.contract.webhooks import Attempt, DeliveryState

RUNNER = CliRunner()
URL = "https://8.8.8.8/hook"


def run(*arguments: object, status: int = 0) -> Result:
    result = RUNNER.invoke(admin.webhooks_app, [str(a) for a in arguments], env={"COLUMNS": "240"})
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(autouse=True)
def address(gateway: GatewayProcess, monkeypatch) -> None:
    monkeypatch.setenv("APPA_URL", gateway.url)
    monkeypatch.delenv("APPA_API_KEY", raising=False)


def test_add_list_remove(http: httpx.Client) -> None:
    events = ("--event", "cycle.failed", "--event", "analysis.published")
    made = json.loads(run("add", URL, *events, "--description", "ops", "--json").stdout)
    assert made["secret"].startswith("whsec_")
    assert (made["url"], made["description"]) == (URL, "ops")
    assert http.get(f"/v1/webhooks/{made['id']}").json()["events"] == [e for e in events[1::2]]
    listed = json.loads(run("list", "--json").stdout)
    assert {k: v for k, v in made.items() if k != "secret"} in listed
    table = run("list").stdout
    assert made["id"] in table
    assert URL in table
    assert made["secret"] not in table
    assert json.loads(run("remove", made["id"], "--json").stdout)["id"] == made["id"]
    assert http.get(f"/v1/webhooks/{made['id']}").status_code == 404
    assert "not_found" in run("remove", made["id"], status=1).stderr


def test_add_prints_the_secret_alone(stores) -> None:
    done = run("add", URL)
    secret = done.stdout.strip()
    [made] = [w for w in stores.webhooks.all() if w.secret == secret]
    assert made.events == [EventType.ANALYSIS_PUBLISHED]
    assert made.id in done.stderr
    assert f"removed {made.id}" in run("remove", made.id).stdout


def test_what_is_refused_is_a_sentence() -> None:
    assert "public" in run("add", "http://127.0.0.1/hook", status=1).stderr
    run("add", URL, "--event", "analysis.deleted", status=2)


def test_deliveries_show_every_message_and_its_last_attempt(stores) -> None:
    made = json.loads(run("add", URL, "--event", "cycle.failed", "--json").stdout)
    assert "no messages yet" in run("deliveries", made["id"]).stdout
    for subject in ("20130101T00Z_final", "20130101T01Z_final"):
        stores.events.emit(EventType.CYCLE_FAILED, subject, {"id": subject})
    stores.webhooks.fan_out()
    mine = [d for w, d in stores.webhooks.claim(100, 60.0) if w.id == made["id"]]
    time = datetime(2013, 1, 1, 4, tzinfo=UTC)
    answered = Attempt(time=time, status=204, milliseconds=17)
    refused = Attempt(time=time, status=503, error="Service Unavailable", milliseconds=4321)
    stores.webhooks.settle(mine[0], answered, DeliveryState.DELIVERED, None)
    stores.webhooks.settle(mine[1], refused, DeliveryState.PENDING, 3600.0)
    shown = json.loads(run("deliveries", made["id"], "--json").stdout)
    states = {d["event_id"]: (d["state"], [a["status"] for a in d["attempts"]]) for d in shown}
    assert states == {
        mine[0].event_id: ("delivered", [204]),
        mine[1].event_id: ("pending", [503]),
    }
    table = run("deliveries", made["id"]).stdout
    assert "204, 17 ms" in table
    assert "503, Service Unavailable, 4321 ms" in table
    assert len(json.loads(run("deliveries", made["id"], "--limit", 1, "--json").stdout)) == 1
    run("remove", made["id"])


def test_messages_that_were_given_up_are_sent_again(stores) -> None:
    made = json.loads(run("add", URL, "--event", "cycle.failed", "--json").stdout)
    assert "nothing to try again" in run("retry", made["id"]).stdout
    for subject in ("20130102T00Z_final", "20130102T01Z_final", "20130102T02Z_final"):
        stores.events.emit(EventType.CYCLE_FAILED, subject, {"id": subject})
    stores.webhooks.fan_out()
    mine = [d for w, d in stores.webhooks.claim(100, 60.0) if w.id == made["id"]]
    time = datetime(2013, 1, 2, 4, tzinfo=UTC)
    refused = Attempt(time=time, status=503, error="Service Unavailable", milliseconds=4321)
    answered = Attempt(time=time, status=204, milliseconds=17)
    for delivery in mine[:2]:
        stores.webhooks.settle(delivery, refused, DeliveryState.FAILED, None)
    stores.webhooks.settle(mine[2], answered, DeliveryState.DELIVERED, None)
    done = json.loads(run("retry", made["id"], mine[1].event_id, "--json").stdout)
    assert done == [{"event_id": mine[1].event_id, "state": "pending"}]
    assert f"{mine[0].event_id}: pending" in run("retry", made["id"]).stdout
    shown = json.loads(run("deliveries", made["id"], "--json").stdout)
    found = {d["event_id"]: (d["state"], d["earlier"], len(d["attempts"])) for d in shown}
    assert found == {
        mine[0].event_id: ("pending", 1, 1),
        mine[1].event_id: ("pending", 1, 1),
        mine[2].event_id: ("delivered", 0, 1),
    }
    assert "is delivered" in run("retry", made["id"], mine[2].event_id, status=1).stdout
    run("remove", made["id"])
