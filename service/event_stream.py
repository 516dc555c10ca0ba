"""What all event streams share: ids of events, the limit of listeners, and how a stream ends."""

import re
from collections.abc import AsyncIterator

import structlog
from redis.exceptions import RedisError
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.errors import Unavailable
from service.gateway import Gateway

EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
log = structlog.get_logger()


def known_id(last_event_id: str | None) -> str | None:
    """What came with Last-Event-ID; ill-formed ones count as none."""
    return last_event_id if EVENT_ID.fullmatch(last_event_id or "") else None


def order(event_id: str) -> tuple[int, int]:
    """An event's id as numbers, which sort by time."""
    first, _, second = event_id.partition("-")
    return int(first), int(second)


def sse(name: str, data: str, event_id: str | None = None) -> ServerSentEvent:
    """One event on the wire."""
    return ServerSentEvent(data=data, event=name, id=event_id)


def stream(
    gateway: Gateway, events: AsyncIterator[ServerSentEvent], instead: str
) -> EventSourceResponse:
    """The response that sends `events`.

    Arguments:
        gateway: This process.
        events: What to send.
        instead: What a client may ask for when there are too many listeners.

    Raises:
        Unavailable: If this process has as many listeners as it may.
    """
    if gateway.listeners >= gateway.settings.max_listeners:
        raise Unavailable(
            f"Expected fewer than {gateway.settings.max_listeners} open event streams; poll "
            f"GET {instead} instead.",
            code="too_many_listeners",
        )
    return EventSourceResponse(
        _counted(gateway, events),
        ping=gateway.settings.ping_seconds,
        headers={"Cache-Control": "no-store"},
    )


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
