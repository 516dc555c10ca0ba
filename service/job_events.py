"""The event stream of a job: where it stands, then what happens, until it is done.

Ids of events are those of the job's stream in Redis, so a client that lost its connection resumes
after the last event it saw, on any gateway. One subscription per process feeds all listeners.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import structlog
from anyio import to_thread
from redis.exceptions import RedisError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from service.errors import Unavailable
from service.gateway import Gateway
from worker.jobs.event_feed import Event
from worker.jobs.job import TERMINAL, JobRecord, JobState

EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
QUEUE_SECONDS = 1.0
MOST_PLACES = 10_000
log = structlog.get_logger()


async def follow_job(gateway: Gateway, job_id: str, last_event_id: str | None) -> Response:
    """The stream of a job's events.

    Arguments:
        gateway: This process.
        job_id: The job.
        last_event_id: What came with Last-Event-ID; ill-formed ones count as none.

    Raises:
        NoSuchRecord: If there is no such job.
        Unavailable: If this process has as many listeners as it may.
    """
    jobs = gateway.stores.jobs
    seen = last_event_id if EVENT_ID.fullmatch(last_event_id or "") else None
    newest = await to_thread.run_sync(_newest_event, gateway, job_id)
    job = await to_thread.run_sync(jobs.read, job_id)
    if seen is not None and job.done and _order(seen) >= _order(newest):
        return Response(status_code=204)  # tells EventSource not to come back
    if gateway.listeners >= gateway.settings.max_listeners:
        raise Unavailable(
            f"Expected fewer than {gateway.settings.max_listeners} open event streams; poll "
            f"GET /v1/jobs/{job_id} instead.",
            code="too_many_listeners",
        )
    return EventSourceResponse(
        _counted(gateway, _events(gateway, job, seen, newest)),
        ping=gateway.settings.ping_seconds,
        headers={"Cache-Control": "no-store"},
    )


def _newest_event(gateway: Gateway, job_id: str) -> str:
    key = gateway.stores.keys.events("job", job_id)
    last: Any = gateway.stores.redis.xrevrange(key, count=1)
    return str(last[0][0]) if last else "0-0"


def _order(event_id: str) -> tuple[int, int]:
    first, _, second = event_id.partition("-")
    return int(first), int(second)


async def _counted(
    gateway: Gateway, events: AsyncIterator[ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    gateway.listeners += 1
    gateway.metrics.listeners.inc()
    try:
        async for event in events:
            yield event
    except RedisError as error:  # the client comes back and resumes where this ended
        log.warning("event_stream_ended", error=str(error))
    finally:
        gateway.listeners -= 1
        gateway.metrics.listeners.dec()


async def _events(
    gateway: Gateway, job: JobRecord, seen: str | None, newest: str
) -> AsyncIterator[ServerSentEvent]:
    if seen is None:
        yield _sse("snapshot", job.model_dump_json(), newest)
    if job.done:
        if seen is not None:
            missed = await to_thread.run_sync(gateway.stores.jobs.events, job.id, seen)
            for event_id, kind, data in missed:
                yield _sse(kind, json.dumps(data), event_id)
        yield _sse("done", job.model_dump_json(), newest)
        return
    state: JobState = job.state
    async with aclosing(_with_pauses(gateway, job.id, seen or newest)) as events:
        async for event in events:
            if event is None:
                if state is JobState.QUEUED:
                    place = await _place(gateway, job.id)
                    if place is not None:
                        yield _sse("queue", json.dumps({"queue_position": place}))
                continue
            yield _sse(event.type, json.dumps(event.data), event.id)
            if event.type == "state":
                state = JobState(event.data["state"])
                if state in TERMINAL:
                    ended = await to_thread.run_sync(gateway.stores.jobs.read, job.id)
                    yield _sse("done", ended.model_dump_json(), event.id)
                    return


async def _with_pauses(
    gateway: Gateway, job_id: str, after: str
) -> AsyncGenerator[Event | None, None]:
    """The job's events after `after`; None whenever nothing came for a while."""
    following = cast(AsyncGenerator[Event, None], gateway.feed.follow(job_id, after=after))
    async with aclosing(following) as events:
        coming: asyncio.Future[Event] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait({coming}, timeout=2 * QUEUE_SECONDS)
                if not done:
                    yield None
                    continue
                event, coming = coming.result(), None
                yield event
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait({coming})


async def _place(gateway: Gateway, job_id: str) -> int | None:
    """Place in the queue, asked at most once a second for all listeners of a job."""
    now, places = time.monotonic(), gateway.places
    asked, place = places.get(job_id, (-QUEUE_SECONDS, None))
    if now - asked >= QUEUE_SECONDS:
        if len(places) > MOST_PLACES:
            places.clear()
        places[job_id] = (now, place)  # before asking: the others need not ask too
        place = await to_thread.run_sync(gateway.stores.jobs.position, job_id)
        places[job_id] = (now, place)
    return place


def _sse(name: str, data: str, event_id: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data=data, event=name, id=event_id)
