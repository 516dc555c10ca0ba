"""The event stream of the installation, read by a real client."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from gateway_process import StartGateway
from test_gateway_events import parse

from worker.contract.store import open_stores


@pytest.fixture
def system(start_gateway: StartGateway) -> Iterator[tuple]:
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        yield http, stores
    stores.redis.close()


def publish(stores, name: str) -> None:
    assert stores.events.emit("analysis.published", name, {"analysis_id": name})


def follow(http: httpx.Client, count: int, after: str | None = None, **params) -> list[dict]:
    headers = {"Last-Event-ID": after} if after else {}
    with http.stream("GET", "/v1/events", headers=headers, params=params) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = parse(answer.iter_lines())
        return [next(events) for _ in range(count)]


def listening(http: httpx.Client, count: int) -> None:
    deadline = time.monotonic() + 20
    while f"appa_event_listeners {count}.0" not in http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_new_analyses_as_they_come_to_every_listener(system) -> None:
    http, stores = system
    publish(stores, "before")
    heard: list[list[dict]] = []
    threads = [threading.Thread(target=lambda: heard.append(follow(http, 3))) for _ in range(5)]
    for thread in threads:
        thread.start()
    listening(http, 5)
    for name in ("one", "two", "three"):
        publish(stores, name)
        assert not stores.events.emit("analysis.published", name, {})  # a task that ran twice
    for thread in threads:
        thread.join(30)
    assert len(heard) == 5
    assert all(events == heard[0] for events in heard)
    assert [e["event"] for e in heard[0]] == ["analysis.published"] * 3
    assert [e["data"]["data"]["analysis_id"] for e in heard[0]] == ["one", "two", "three"]


def test_resume_after_the_last_event_seen(system) -> None:
    http, stores = system
    for name in ("one", "two", "three"):
        publish(stores, name)
    places = [place for place, _ in stores.events.after("0-0")]
    resumed = follow(http, 2, after=places[0])
    assert [e["id"] for e in resumed] == places[1:]
    assert [e["data"]["data"]["analysis_id"] for e in resumed] == ["two", "three"]


def test_only_the_types_asked_for(system) -> None:
    http, stores = system
    publish(stores, "one")
    stores.events.emit("cycle.failed", "20250101T06Z_early:1", {"key": "20250101T06Z_early"})
    (event,) = follow(http, 1, after="0-1", type="cycle.failed")
    assert event["event"] == "cycle.failed"
    assert event["data"]["data"]["key"] == "20250101T06Z_early"
    assert http.get("/v1/events", params={"type": "job.failed"}).status_code == 422


def test_a_client_that_was_away_too_long_is_told(system) -> None:
    http, stores = system
    for number in range(5):
        publish(stores, f"an-{number}")
    first = stores.events.after("0-0")[0][0]
    stores.redis.xtrim(stores.events.stream, maxlen=2, approximate=False)
    events = follow(http, 3, after=first)
    assert [e["event"] for e in events] == ["gap", "analysis.published", "analysis.published"]


def test_a_client_of_a_lost_stream_is_told_and_goes_on(system) -> None:
    http, stores = system
    publish(stores, "one")
    place = stores.events.after("0-0")[0][0]
    ahead = f"{int(place.partition('-')[0]) + 3_600_000}-0"  # the former clock was an hour ahead
    headers = {"Last-Event-ID": ahead}
    with http.stream("GET", "/v1/events", headers=headers) as answer:
        events = parse(answer.iter_lines())
        assert next(events)["event"] == "gap"
        publish(stores, "two")
        assert next(events)["data"]["data"]["analysis_id"] == "two"


def test_the_newest_events_are_listed_newest_first(system) -> None:
    http, stores = system
    assert http.get("/v1/events/newest").json() == {"items": []}
    for i in range(3):
        publish(stores, f"an-newest-{i}")
    items = http.get("/v1/events/newest", params={"limit": 2}).json()["items"]
    assert [item["data"]["analysis_id"] for item in items] == ["an-newest-2", "an-newest-1"]
    assert items[0]["type"] == "analysis.published"
    assert http.get("/v1/events/newest", params={"limit": 0}).status_code == 422
