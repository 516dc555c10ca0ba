"""The event stream of the whole installation: new analyses, failed cycles, as they happen.

Its ids are those of one stream in Redis, so that a client resumes on any gateway.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from anyio import to_thread
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from service.event_stream import known_id, sse, stream
from service.gateway import Gateway
from worker.jobs.event_feed import Event
from worker.jobs.event_log import FEED, EventType, LoggedEvent

FEED_NOUN, FEED_ID = FEED


async def follow_installation(
    gateway: Gateway, last_event_id: str | None, wanted: list[EventType] | None
) -> Response:
    """The stream of events; it does not end by itself.

    Arguments:
        gateway: This process.
        last_event_id: The last event seen; without it the stream begins now.
        wanted: Only these; None for all.

    Raises:
        Unavailable: If this process has as many listeners as it may.
    """
    log = gateway.stores.events
    after = known_id(last_event_id)
    if after is None:
        after = await to_thread.run_sync(log.newest)
    whole = await to_thread.run_sync(log.reaches_back_to, after)
    return stream(gateway, _events(gateway, after, wanted, whole), "/v1/analyses")


async def _events(
    gateway: Gateway, after: str, wanted: list[EventType] | None, whole: bool
) -> AsyncIterator[ServerSentEvent]:
    if not whole:
        yield sse("gap", '{"message": "Older events are not kept; list the analyses once."}')
    following = cast(
        AsyncGenerator[Event, None],
        gateway.feed.follow(FEED_ID, after=after, noun=FEED_NOUN, complete=True),
    )
    async with aclosing(following) as events:
        async for event in events:
            if wanted is None or event.type in wanted:
                told = LoggedEvent.model_validate(event.data)
                yield sse(event.type, told.model_dump_json(), event.id)
