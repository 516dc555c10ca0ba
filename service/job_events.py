"""The event stream of a job: where it stands, then what happens, until it is done.

Ids of events are those of the job's stream in Redis, so a client that lost its connection resumes
after the last event it saw, on any gateway. One subscription per process feeds all listeners.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from anyio import to_thread
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from service.event_stream import known_id, order, sse, stream
from service.gateway import Gateway
from worker.jobs.event_feed import Event
from worker.jobs.job import TERMINAL, JobRecord, JobState

QUEUE_SECONDS = 1.0
MOST_PLACES = 10_000


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
    seen = known_id(last_event_id)
    newest = await to_thread.run_sync(_newest_event, gateway, job_id)
    job = await to_thread.run_sync(jobs.read, job_id)
    if seen is not None and job.done and order(seen) >= order(newest):
        return Response(status_code=204)  # tells EventSource not to come back
    events = _events(gateway, job, seen, newest)
    return stream(gateway, events, f"/v1/jobs/{job_id}")


def _newest_event(gateway: Gateway, job_id: str) -> str:
    key = gateway.stores.keys.events("job", job_id)
    last: Any = gateway.stores.redis.xrevrange(key, count=1)
    return str(last[0][0]) if last else "0-0"


async def _events(
    gateway: Gateway, job: JobRecord, seen: str | None, newest: str
) -> AsyncIterator[ServerSentEvent]:
    if seen is None:
        yield sse("snapshot", job.model_dump_json(), newest)
    if job.done:
        if seen is not None:
            missed = await to_thread.run_sync(gateway.stores.jobs.events, job.id, seen)
            for event_id, kind, data in missed:
                yield sse(kind, json.dumps(data), event_id)
        yield sse("done", job.model_dump_json(), newest)
        return
    state: JobState = job.state
    async with aclosing(_with_pauses(gateway, job.id, seen or newest)) as events:
        async for event in events:
            if event is None:
                if state is JobState.QUEUED:
                    place = await _place(gateway, job.id)
                    if place is not None:
                        yield sse("queue", json.dumps({"queue_position": place}))
                continue
            yield sse(event.type, json.dumps(event.data), event.id)
            if event.type == "state":
                state = JobState(event.data["state"])
                if state in TERMINAL:
                    ended = await to_thread.run_sync(gateway.stores.jobs.read, job.id)
                    yield sse("done", ended.model_dump_json(), event.id)
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
