"""Webhooks against real receivers: signed, tried again, told once, and not sent just anywhere."""

import asyncio
import json
import socket
import ssl
import threading
from datetime import UTC, datetime

import httpcore
import pytest
from receiver import Receiver
from standardwebhooks.webhooks import Webhook as Reference

from tests.worker.processes import wait_for
from worker.contract.events import EventType
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.record_store import MoveRefused, NoSuchRecord
from worker.contract.records import new_id
from worker.contract.webhooks import Delivery, DeliveryState, Webhook, new_secret
from worker.notifications import WebhookSender, pause_after, post
from worker.results.manifest import AnalysisManifest
from worker.settings import WorkerSettings
from worker.tasks.products import announce

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
PUBLISHED = EventType.ANALYSIS_PUBLISHED


def settings(**changes) -> WorkerSettings:
    values = {
        "webhook_allow_private": True,
        "webhook_timeout_seconds": 5.0,
        "webhook_backoff_seconds": 0.01,
        "webhook_attempts": 4,
    }
    return WorkerSettings(**(values | changes))


def subscribe(stores, url: str, *events: EventType) -> Webhook:
    hook = Webhook(
        id=new_id("wh"), url=url, events=list(events or (PUBLISHED,)), secret=new_secret()
    )
    return stores.webhooks.create(hook)[0]


def settled(stores, courier: WebhookSender, hook: Webhook, count: int = 1) -> list[Delivery]:
    """The messages of `hook`, once `count` of them have come to an end."""

    def ended() -> list[Delivery]:
        courier.tick()
        found = stores.webhooks.deliveries(hook.id)
        return [d for d in found if d.state is not DeliveryState.PENDING]

    wait_for(lambda: len(ended()) >= count)
    return ended()


def manifest(name: str = "an-1", flags: tuple[str, ...] = ()) -> AnalysisManifest:
    return AnalysisManifest(
        id=name,
        job_id="job-1",
        kind="filtering",
        valid_time=NOON,
        times=[NOON],
        files=[],
        members=2,
        flags=list(flags),
        spec=FilteringSpec(valid_time=NOON),
    )


def test_fails_twice_then_arrives_with_one_identity_and_a_valid_signature(stores):
    with Receiver(answers=[500, 503]) as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {"analysis_id": "an-1", "kind": "filtering"})
        courier = WebhookSender(stores.webhooks, settings())
        (delivery,) = settled(stores, courier, hook)
    counted = courier.measures.registry.get_sample_value
    for outcome, times in (("retried", 2), ("delivered", 1), ("failed", 0)):
        assert counted("appa_webhook_attempts_total", {"outcome": outcome}) == times
    assert counted("appa_webhook_delay_seconds_count") == 1
    assert delivery.state is DeliveryState.DELIVERED
    assert [a.status for a in delivery.attempts] == [500, 503, 200]
    assert delivery.next_attempt is None
    assert len({r.headers["webhook-id"] for r in receiver.received}) == 1
    assert len({r.body for r in receiver.received}) == 1
    for message in receiver.received:  # the reference implementation is the judge
        told = Reference(hook.secret).verify(message.body, message.headers)
    assert told["type"] == "analysis.published"
    assert told["data"]["analysis_id"] == "an-1"
    assert told["id"] == receiver.received[0].headers["webhook-id"]


def test_attempts_end(stores):
    with Receiver(answers=[500] * 20) as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {})
        (delivery,) = settled(stores, WebhookSender(stores.webhooks, settings()), hook)
    assert delivery.state is DeliveryState.FAILED
    assert [a.status for a in delivery.attempts] == [500] * 4
    assert len(receiver.received) == 4


def test_what_was_given_up_is_sent_again_as_the_same_message_with_as_many_attempts(stores):
    with Receiver(answers=[500] * 4 + [503] * 3) as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {"analysis_id": "an-1"})
        courier = WebhookSender(stores.webhooks, settings())
        (given_up,) = settled(stores, courier, hook)
        assert stores.webhooks.waiting() == 0
        again = stores.webhooks.retry(hook.id, given_up.event_id)
        assert (again.state, again.earlier) == (DeliveryState.PENDING, 4)
        assert stores.webhooks.retry(hook.id, given_up.event_id) == again  # it waits already
        assert stores.webhooks.waiting() == 1
        (delivery,) = settled(stores, courier, hook)
    assert delivery.state is DeliveryState.DELIVERED
    assert [a.status for a in delivery.attempts] == [500] * 4 + [503] * 3 + [200]
    assert len(receiver.received) == 8
    assert {r.headers["webhook-id"] for r in receiver.received} == {given_up.event_id}
    assert {r.body for r in receiver.received} == {given_up.body.encode()}
    for message in receiver.received:
        Reference(hook.secret).verify(message.body, message.headers)
    with pytest.raises(MoveRefused, match="delivered"):
        stores.webhooks.retry(hook.id, given_up.event_id)


def test_it_can_be_given_up_and_sent_again_more_than_once(stores):
    with Receiver(answers=[500] * 20) as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {})
        courier = WebhookSender(stores.webhooks, settings(webhook_attempts=2))
        for made in (2, 4, 6):
            (delivery,) = settled(stores, courier, hook)
            assert (delivery.state, len(delivery.attempts)) == (DeliveryState.FAILED, made)
            stores.webhooks.retry(hook.id, delivery.event_id)
        assert len(receiver.received) == 6


def test_nothing_is_sent_again_to_who_is_gone_or_unknown(stores):
    with Receiver(answers=[410]) as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {})
        (delivery,) = settled(stores, WebhookSender(stores.webhooks, settings()), hook)
    with pytest.raises(MoveRefused, match="410"):
        stores.webhooks.retry(hook.id, delivery.event_id)
    with pytest.raises(NoSuchRecord, match="evt_0"):
        stores.webhooks.retry(hook.id, "evt_0")
    with pytest.raises(NoSuchRecord, match="wh-0"):
        stores.webhooks.retry("wh-0", delivery.event_id)
    assert stores.webhooks.waiting() == 0


def test_messages_of_a_release_that_could_not_send_again_are_read(stores):
    hook = subscribe(stores, "http://127.0.0.1:1/hook")
    stores.events.emit(PUBLISHED, "an-1", {})
    stores.webhooks.fan_out()
    (delivery,) = stores.webhooks.deliveries(hook.id)
    before = delivery.model_dump(mode="json", exclude={"earlier"}) | {"state": "failed"}
    name = stores.keys.deliveries(hook.id)
    stores.redis.hset(name, delivery.event_id, json.dumps(before))
    stores.redis.delete(stores.keys.webhooks_due)
    assert stores.webhooks.retry(hook.id, delivery.event_id).state is DeliveryState.PENDING


def test_pauses_grow_up_to_a_bound():
    pauses = [pause_after(n, WorkerSettings(webhook_attempts=9)) for n in range(1, 10)]
    assert pauses == [5, 20, 80, 320, 1280, 5120, 20480, 21600, None]


def test_a_slow_receiver_is_given_up_and_keeps_nobody_waiting(stores):
    release = threading.Event()
    with Receiver(pause=lambda: release.wait(20)) as slow, Receiver() as quick:
        first, second = subscribe(stores, slow.url), subscribe(stores, quick.url)
        stores.events.emit(PUBLISHED, "an-1", {})
        courier = WebhookSender(
            stores.webhooks, settings(webhook_timeout_seconds=1.0, webhook_attempts=1)
        )
        (delivery,) = settled(stores, courier, second)
        assert delivery.state is DeliveryState.DELIVERED
        assert stores.webhooks.deliveries(first.id)[0].state is DeliveryState.PENDING
        (delivery,) = settled(stores, courier, first)
        release.set()
    assert delivery.state is DeliveryState.FAILED
    assert delivery.attempts[0].error == "no answer within 1 s"


def test_redirects_are_not_followed(stores):
    with Receiver() as other, Receiver(answers=[307], location=other.url) as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {})
        (delivery,) = settled(
            stores, WebhookSender(stores.webhooks, settings(webhook_attempts=1)), hook
        )
    assert (delivery.state, delivery.attempts[0].status) == (DeliveryState.FAILED, 307)
    assert "redirects are not followed" in delivery.attempts[0].error
    assert other.received == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_refused_unless_allowed(stores, host):
    with Receiver() as receiver:
        port = receiver.server.server_port
        hook = subscribe(stores, f"http://{host}:{port}/hook")
        stores.events.emit(PUBLISHED, "an-1", {})
        careful = settings(webhook_allow_private=False, webhook_attempts=1)
        (delivery,) = settled(stores, WebhookSender(stores.webhooks, careful), hook)
    assert delivery.state is DeliveryState.FAILED
    assert "public internet" in delivery.attempts[0].error
    assert receiver.received == []


def test_a_name_leads_to_the_address_that_was_checked_whatever_it_means_later(monkeypatch):
    """It means a public address when it is checked, and this machine ever after."""
    asked, connected = [], []

    def changing(host, port, *_, **__):
        asked.append(host)
        address = "127.0.0.1" if len(asked) > 1 else "9.9.9.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def record(self, host, port, *_, **__):
        connected.append(host)
        raise httpcore.ConnectError("not connected in this test")

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", record)
    sent = post(
        "http://changing.example/hook",
        {},
        b"{}",
        seconds=5.0,
        allow_private=False,
        tls=ssl.create_default_context(),
    )
    with pytest.raises(httpcore.ConnectError):
        asyncio.run(sent)
    assert (asked, connected) == (["changing.example"], ["9.9.9.9"])


def test_nobody_listens_there(stores):
    with Receiver() as receiver:
        url = receiver.url
    hook = subscribe(stores, url)
    stores.events.emit(PUBLISHED, "an-1", {})
    (delivery,) = settled(
        stores, WebhookSender(stores.webhooks, settings(webhook_attempts=2)), hook
    )
    assert [a.status for a in delivery.attempts] == [None, None]
    assert "ConnectError" in delivery.attempts[0].error


def test_a_message_outlives_the_sender_that_claimed_it(stores):
    with Receiver() as receiver:
        hook = subscribe(stores, receiver.url)
        stores.events.emit(PUBLISHED, "an-1", {})
        stores.webhooks.fan_out()
        assert len(stores.webhooks.claim(10, 0.2)) == 1  # … and then it died
        assert stores.webhooks.claim(10, 0.2) == []
        (delivery,) = settled(stores, WebhookSender(stores.webhooks, settings()), hook)
    assert delivery.state is DeliveryState.DELIVERED


def test_two_schedulers_tell_each_event_once(stores):
    with Receiver() as receiver:
        hook = subscribe(stores, receiver.url)
        couriers = [WebhookSender(stores.webhooks, settings()) for _ in range(2)]
        for number in range(30):
            for _ in range(2):  # a task that ran twice
                stores.events.emit(PUBLISHED, f"an-{number}", {"number": number})
            couriers[number % 2].tick()
        wait_for(
            lambda: couriers[0].tick() + couriers[1].tick() == 0 and len(receiver.received) >= 30
        )
        assert len(settled(stores, couriers[0], hook, 30)) == 30
    numbers = sorted(json.loads(r.body)["data"]["number"] for r in receiver.received)
    assert numbers == list(range(30))


def test_only_wanted_and_later_events_are_sent(stores):
    stores.events.emit(PUBLISHED, "before", {})
    with Receiver() as receiver:
        hook = subscribe(stores, receiver.url, EventType.CYCLE_FAILED)
        stores.events.emit(PUBLISHED, "an-1", {})
        stores.events.emit(EventType.CYCLE_FAILED, "20250101T12Z_early:1", {"message": "no disk"})
        (delivery,) = settled(stores, WebhookSender(stores.webhooks, settings()), hook)
    assert delivery.type is EventType.CYCLE_FAILED
    assert len(receiver.received) == 1


def test_a_receiver_that_is_gone_gets_nothing_more(stores):
    with Receiver(answers=[410]) as receiver:
        hook, deleted = subscribe(stores, receiver.url), subscribe(stores, receiver.url)
        stores.webhooks.delete(deleted.id)
        courier = WebhookSender(stores.webhooks, settings())
        stores.events.emit(PUBLISHED, "an-1", {})
        (delivery,) = settled(stores, courier, hook)
        assert delivery.state is DeliveryState.FAILED
        wait_for(lambda: stores.webhooks.get(hook.id).disabled)
        stores.events.emit(PUBLISHED, "an-2", {})
        assert courier.tick() == 0
    assert len(receiver.received) == 1


def test_the_log_of_messages_is_bounded(stores, monkeypatch):
    monkeypatch.setattr("worker.contract.webhook_store.MAX_DELIVERIES", 5)
    hook = subscribe(stores, "http://192.0.2.1/hook")
    for number in range(12):
        stores.events.emit(PUBLISHED, f"an-{number}", {"number": number})
    stores.webhooks.fan_out()
    kept = [json.loads(d.body)["data"]["number"] for d in stores.webhooks.deliveries(hook.id)]
    assert sorted(kept) == [7, 8, 9, 10, 11]
    assert len(stores.webhooks.claim(100, 60.0)) == 5


def test_a_result_is_announced_once_and_outside_its_limits_twice(stores, tmp_path):
    layout = Layout(tmp_path).create()
    for _ in range(2):
        announce(layout, stores.events, manifest("an-1"))
        announce(layout, stores.events, manifest("an-2", ("outside_control_limits",)))
    told = [(e.type.value, e.data["analysis_id"]) for _, e in stores.events.after("0-0")]
    assert told == [
        ("analysis.published", "an-1"),
        ("analysis.published", "an-2"),
        ("cycle.outside_limits", "an-2"),
    ]
