"""Stream events over HTTP: those of one job until it ends, and those of the whole installation.

All streams share the format of event ids, Last-Event-ID, and the limit of listeners.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, cast

import structlog
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.auth import AnyCaller, GatewayDep, Reader, find_job
from service.errors import Unavailable
from service.event_feed import Event
from service.gateway import Gateway
from service.keys import ApiKey, Scope
from service.openapi import problem_responses
from service.schemas import (
    MAX_ITEMS,
    CreatedWebhook,
    DeliveryView,
    JobView,
    NewWebhook,
    WebhookView,
)
from worker.contract.batches import IdempotencyConflict
from worker.contract.events import FEED, EventType, LoggedEvent, StreamId
from worker.contract.jobs import TERMINAL, JobRecord, JobState
from worker.contract.records import new_id
from worker.contract.webhooks import Webhook, check_url, new_secret

EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
log = structlog.get_logger()


def parse_event_id(last_event_id: str | None) -> str | None:
    """Return the value of Last-Event-ID; None if it is absent or malformed."""
    return last_event_id if EVENT_ID.fullmatch(last_event_id or "") else None


def sse(name: str, data: str, event_id: str | None = None) -> ServerSentEvent:
    """Return a server-sent event; `event_id` lets listeners resume after it."""
    return ServerSentEvent(data=data, event=name, id=event_id)


def stream(
    gateway: Gateway, events: AsyncIterator[ServerSentEvent], instead: str
) -> EventSourceResponse:
    """Return the response that streams `events`.

    Arguments:
        gateway: This process.
        events: What to send.
        instead: Path to poll instead, named when there are too many listeners.

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


QUEUE_SECONDS = 1.0
MAX_PLACES = 10_000


async def follow_job(
    gateway: Gateway, job_id: str, last_event_id: str | None, caller: ApiKey
) -> Response:
    """Stream the events of a job until it is done.

    Arguments:
        gateway: This process.
        job_id: The job.
        last_event_id: Value of Last-Event-ID; ignored if malformed, or later than all events.
        caller: Who listens.

    Raises:
        NoSuchRecord: If there is no such job, or none that the caller sees.
        Unavailable: If this process has as many listeners as it may.
    """
    jobs = gateway.stores.jobs
    seen = parse_event_id(last_event_id)
    newest = await to_thread.run_sync(jobs.newest_event, job_id)
    job = await to_thread.run_sync(find_job, gateway, caller, job_id)
    if seen is not None:
        place, end = StreamId.parse(seen), StreamId.parse(newest)
        if job.done and place >= end:
            return Response(status_code=204)  # EventSource does not reconnect
        if place > end:
            seen = None  # of a stream that was lost: no event of this job would come after it
    events = _job_events(gateway, job, seen, newest, caller)
    return stream(gateway, events, f"/v1/jobs/{job_id}")


async def _job_events(
    gateway: Gateway, job: JobRecord, seen: str | None, newest: str, caller: ApiKey
) -> AsyncIterator[ServerSentEvent]:
    def whole(name: str, record: JobRecord, event_id: str) -> ServerSentEvent:
        return sse(name, JobView.of(record, caller).model_dump_json(), event_id)

    if seen is None:
        yield whole("snapshot", job, newest)
    if job.done:
        if seen is not None:
            missed = await to_thread.run_sync(gateway.stores.jobs.events, job.id, seen)
            for event_id, kind, data in missed:
                yield sse(kind, json.dumps(data), event_id)
        yield whole("done", job, newest)
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
                    yield whole("done", ended, event.id)
                    return


async def _with_pauses(
    gateway: Gateway, job_id: str, after: str
) -> AsyncGenerator[Event | None, None]:
    """Yield the events of a job after `after`, and None whenever nothing came for a while."""
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
    """Return the queue position, read at most once a second for all listeners of a job."""
    now, places = time.monotonic(), gateway.places
    asked, place = places.get(job_id, (-QUEUE_SECONDS, None))
    if now - asked >= QUEUE_SECONDS:
        if len(places) > MAX_PLACES:
            places.clear()
        places[job_id] = (now, place)  # before reading, so that the other listeners do not read too
        place = await to_thread.run_sync(gateway.stores.jobs.position, job_id)
        places[job_id] = (now, place)
    return place


FEED_NOUN, FEED_ID = FEED


async def follow_installation(
    gateway: Gateway, last_event_id: str | None, types: list[EventType] | None
) -> Response:
    """Stream the events of the installation, without end.

    Arguments:
        gateway: This process.
        last_event_id: Last event seen; without it the stream begins now.
        types: Only these types; None for all.

    Raises:
        Unavailable: If this process has as many listeners as it may.
    """
    seen = parse_event_id(last_event_id)
    after, complete = await to_thread.run_sync(gateway.stores.events.resume, seen)
    return stream(gateway, _installation_events(gateway, after, types, complete), "/v1/analyses")


async def _installation_events(
    gateway: Gateway, after: str, types: list[EventType] | None, complete: bool
) -> AsyncIterator[ServerSentEvent]:
    if not complete:
        yield sse("gap", '{"message": "Older events are not kept; list the analyses once."}')
    following = cast(
        AsyncGenerator[Event, None],
        gateway.feed.follow(FEED_ID, after=after, noun=FEED_NOUN, complete=True),
    )
    async with aclosing(following) as events:
        async for event in events:
            if types is None or event.type in types:
                logged = LoggedEvent.model_validate(event.data)
                yield sse(event.type, logged.model_dump_json(), event.id)


router = APIRouter(prefix="/v1", tags=["analyses"])


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses={
        **problem_responses("too_many_listeners"),
        200: {
            "description": "Server-sent events `analysis.published`, `cycle.failed`, "
            "`cycle.outside_limits`, `cycle.worse_than_cold`, `challenger.decided` and "
            "`challenger.ended`, each with the document that webhooks deliver; `gap` when events "
            "after `Last-Event-ID` are no longer kept.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
async def installation_events(
    gateway: GatewayDep,
    _: Reader,
    event_type: Annotated[
        list[EventType] | None, Query(alias="type", description="Only these types; by default all.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="Resume after this event.", max_length=60)
    ] = None,
) -> Response:
    """Stream events from now on, or after `Last-Event-ID`; the stream does not end."""
    return await follow_installation(gateway, last_event_id, event_type)


class NewestEvents(BaseModel):
    """The newest events of the installation."""

    items: list[LoggedEvent] = Field(description="Newest first.")


@router.get("/events/newest", responses=problem_responses())
def newest_events(
    gateway: GatewayDep,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=500, description="Most events.")] = 20,
) -> NewestEvents:
    """Return the newest events that are still kept, for pages and scripts that do not listen."""
    return NewestEvents(items=gateway.stores.events.last(limit))


webhooks_router = APIRouter(prefix="/v1", tags=["webhooks"])
WebhookId = Annotated[str, Path(description="Id of the webhook.", max_length=100)]


async def operator(key: AnyCaller) -> ApiKey:
    """Return the caller, who may choose where the service sends requests.

    Raises:
        Forbidden: If the key lacks the scope `admin`.
    """
    return key.require(Scope.ADMIN)


Operator = Annotated[ApiKey, Depends(operator)]


@webhooks_router.post(
    "/webhooks",
    status_code=201,
    responses={
        **problem_responses("too_large", "idempotency_conflict"),
        200: {
            "description": "The Idempotency-Key was used before: that webhook.",
            "model": CreatedWebhook,
        },
    },
)
def create_webhook(
    request: Request,
    response: Response,
    gateway: GatewayDep,
    key: Operator,
    body: NewWebhook,
    idempotency_key: Annotated[
        str, Header(description="The same key gives the same webhook for a day.", max_length=255)
    ] = "",
) -> CreatedWebhook:
    """Subscribe an address to events from now on. Only this answer holds the secret."""
    check_url(body.url, allow_private=gateway.settings.webhook_allow_private)
    webhook = Webhook(
        id=new_id("wh"),
        url=body.url,
        events=list(dict.fromkeys(body.events)),
        description=body.description,
        secret=new_secret(),
        api_key=key.id,
    )
    unique = f"{key.id}:{idempotency_key}" if idempotency_key else ""
    webhook, created = gateway.stores.webhooks.create(webhook, unique_key=unique)
    if not created:
        _require_same(webhook, body, idempotency_key)
        response.status_code = 200
    root = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root}/v1/webhooks/{webhook.id}"
    return CreatedWebhook.of(webhook)


def _require_same(known: Webhook, body: NewWebhook, idempotency_key: str) -> None:
    requested = (body.url, set(body.events), body.description)
    if requested != (known.url, set(known.events), known.description):
        raise IdempotencyConflict(
            f"Expected the same webhook under Idempotency-Key '{idempotency_key}' as before "
            f"('{known.id}'); got another one. Use a new key for it.",
            field="Idempotency-Key",
        )


@webhooks_router.get("/webhooks", responses=problem_responses())
def list_webhooks(gateway: GatewayDep, _: Operator) -> list[WebhookView]:
    """Return all webhooks without their secrets, oldest first."""
    return [WebhookView.of(webhook) for webhook in gateway.stores.webhooks.all()]


@webhooks_router.get("/webhooks/{webhook_id}", responses=problem_responses("not_found"))
def read_webhook(webhook_id: WebhookId, gateway: GatewayDep, _: Operator) -> WebhookView:
    """Return one webhook, without its secret."""
    return WebhookView.of(gateway.stores.webhooks.get(webhook_id))


@webhooks_router.delete("/webhooks/{webhook_id}", responses=problem_responses("not_found"))
def delete_webhook(webhook_id: WebhookId, gateway: GatewayDep, _: Operator) -> WebhookView:
    """Delete a webhook; messages that are still queued are discarded."""
    return WebhookView.of(gateway.stores.webhooks.delete(webhook_id))


@webhooks_router.get("/webhooks/{webhook_id}/deliveries", responses=problem_responses("not_found"))
def list_deliveries(
    webhook_id: WebhookId,
    gateway: GatewayDep,
    _: Operator,
    limit: Annotated[int, Query(ge=1, le=200, description=MAX_ITEMS)] = 50,
) -> list[DeliveryView]:
    """Return the newest messages, each with its attempts: status, error, duration."""
    messages = gateway.stores.webhooks.deliveries(webhook_id, limit)
    return [DeliveryView.model_validate(message) for message in messages]


@webhooks_router.post(
    "/webhooks/{webhook_id}/deliveries/{event_id}/retry",
    status_code=202,
    responses=problem_responses("not_found", "move_refused"),
)
def retry_delivery(
    webhook_id: WebhookId,
    event_id: Annotated[str, Path(description="Id of the event.", max_length=100)],
    gateway: GatewayDep,
    _: Operator,
) -> DeliveryView:
    """Send a message again that was given up: the same message, and as many attempts as a new one."""
    return DeliveryView.model_validate(gateway.stores.webhooks.retry(webhook_id, event_id))
