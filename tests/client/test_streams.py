"""Event streams and retries of both clients, against responses written by hand."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from appa_client import (
    AppaClient,
    AsyncAppaClient,
    AuthenticationError,
    RateLimitedError,
    UnavailableError,
)

JOB = {
    "id": "job-1",
    "spec": {"kind": "filtering", "members": 2, "seed": 0, "observations": {}, "outputs": []},
    "state": "succeeded",
    "created": "2025-01-01T06:00:00Z",
    "analysis_id": "an-1",
}
Respond = Callable[[httpx.Request], httpx.Response]


def stream(*events: str) -> httpx.Response:
    return httpx.Response(
        200, headers={"Content-Type": "text/event-stream"}, text="".join(f"{e}\n\n" for e in events)
    )


def event(kind: str, data: object, place: str = "") -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}" + (f"\nid: {place}" if place else "")


class Gateway:
    """Answers requests with the given responses, in order, and records them."""

    def __init__(self, *responses: httpx.Response | Exception) -> None:
        self.responses: Iterator[httpx.Response | Exception] = iter(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = next(self.responses)
        if isinstance(response, Exception):
            raise response
        return response


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Seconds both clients would have waited."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("appa_client._sync.client.time.sleep", found.append)
    monkeypatch.setattr("appa_client._async.client.asyncio.sleep", sleep)
    return found


def connect(gateway: Gateway, attempts: int = 3) -> AppaClient:
    client = AppaClient("http://gateway", attempts=attempts)
    client._http = httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(gateway))
    return client


def interrupted() -> list[httpx.Response | Exception]:
    return [
        stream(
            event("snapshot", JOB | {"state": "queued"}, "1-0"),
            ": ping",
            event("queue", {"queue_position": 4}),
        ),
        httpx.ConnectError("refused"),
        httpx.Response(503, headers={"Retry-After": "7"}, json={"code": "too_many_listeners"}),
        stream(event("state", {"state": "succeeded"}, "2-0"), event("done", JOB, "2-0")),
    ]


def check(gateway: Gateway, events: list, pauses: list[float]) -> None:
    assert [e.type for e in events] == ["snapshot", "queue", "state", "done"]
    assert [e.id for e in events] == ["1-0", "1-0", "2-0", "2-0"]
    assert events[0].job.state == "queued"
    assert events[1].progress.queue_position == 4
    assert events[2].progress is None
    assert events[3].job.done
    resumed = [r.headers.get("last-event-id") for r in gateway.requests]
    assert resumed == [None, "1-0", "1-0", "1-0"]
    assert pauses == [0.4, 0.8, 7.0]  # the gateway's own wish in the end


def test_watch_resumes_and_waits_as_asked(pauses: list[float]) -> None:
    gateway = Gateway(*interrupted())
    with connect(gateway, attempts=4) as client:
        check(gateway, list(client.watch("job-1")), pauses)


async def test_the_asyncio_client_does_the_same(pauses: list[float]) -> None:
    gateway = Gateway(*interrupted())
    async with AsyncAppaClient("http://gateway", attempts=4) as client:
        client._http = httpx.AsyncClient(
            base_url="http://gateway", transport=httpx.MockTransport(gateway)
        )
        check(gateway, [e async for e in client.watch("job-1")], pauses)


def test_watch_asks_for_the_job_when_its_last_event_was_seen(pauses: list[float]) -> None:
    seen = stream(event("state", {"state": "succeeded"}, "2-0"))
    gateway = Gateway(seen, httpx.Response(204), httpx.Response(200, json=JOB))
    with connect(gateway) as client:
        events = list(client.watch("job-1"))
    assert [(e.type, e.id) for e in events] == [("state", "2-0"), ("done", "2-0")]
    assert events[1].job.state == "succeeded"
    assert gateway.requests[-1].url.path == "/v1/jobs/job-1"


def test_a_line_separator_inside_the_data_ends_no_line(pauses: list[float]) -> None:
    text = 'event: progress\ndata: {"phase": "sampling", "message": "a\u2028b"}\nid: 1-0'
    with connect(Gateway(stream(text))) as client:
        assert next(client.watch("job-1")).progress.message == "a\u2028b"


def test_installation_events_and_gaps(pauses: list[float]) -> None:
    published = {"id": "evt_1", "type": "analysis.published", "time": "t", "data": {"a": 1}}
    gateway = Gateway(
        stream(event("gap", {"message": "lost"}), event("analysis.published", published, "5-0")),
        httpx.Response(401, json={"code": "unauthenticated", "detail": "Expected a key."}),
    )
    with connect(gateway) as client:
        events = client.events(after="4-0", types=["analysis.published", "cycle.failed"])
        gap, event_ = next(events), next(events)
        with pytest.raises(AuthenticationError, match="Expected a key"):
            next(events)
    assert (gap.type, gap.id, gap.event) == ("gap", "", None)
    assert (event_.id, event_.event.data) == ("5-0", {"a": 1})
    types = gateway.requests[0].url.params.get_list("type")
    assert types == ["analysis.published", "cycle.failed"]
    assert [r.headers["last-event-id"] for r in gateway.requests] == ["4-0", "5-0"]


@pytest.mark.parametrize(
    ("failure", "attempts", "error"),
    [
        (httpx.ReadTimeout("slow"), 3, UnavailableError),
        (httpx.Response(503, json={}), 3, UnavailableError),
        (httpx.Response(429, headers={"Retry-After": "2"}, json={}), 3, RateLimitedError),
        (httpx.Response(429, headers={"Retry-After": "3600"}, json={}), 1, RateLimitedError),
        (httpx.Response(507, json={}), 1, UnavailableError),
        (httpx.Response(401, json={}), 1, AuthenticationError),
    ],
)
def test_which_failures_are_retried(failure, attempts: int, error, pauses: list[float]) -> None:
    for use in (
        lambda client: client.job("job-1"),
        lambda client: list(client.watch("job-1")),
        lambda client: next(client.events()),
    ):
        pauses.clear()
        gateway = Gateway(*[failure] * 3)
        with connect(gateway) as client, pytest.raises(error):
            use(client)
        assert len(gateway.requests) == attempts
        assert len(pauses) == attempts - 1
