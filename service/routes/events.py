"""Events of the whole installation, sent as they happen."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from sse_starlette import EventSourceResponse

from service.dependencies import GatewayDep, Reader
from service.installation_events import follow_installation
from service.openapi import problems
from worker.jobs.event_log import EventType

router = APIRouter(prefix="/v1", tags=["analyses"])


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses={
        **problems("too_many_listeners"),
        200: {
            "description": "Server-sent events `analysis.published`, `cycle.failed` and "
            "`cycle.outside_limits`, each with the document that webhooks get; `gap` when events "
            "after `Last-Event-ID` are no longer kept.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
async def installation_events(
    gateway: GatewayDep,
    _: Reader,
    event_type: Annotated[
        list[EventType] | None, Query(alias="type", description="Only these; all when absent.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="Last event seen; later ones are sent.", max_length=60)
    ] = None,
) -> Response:
    """New analyses and failed cycles from now on, or after `Last-Event-ID`; it does not end."""
    return await follow_installation(gateway, last_event_id, event_type)
