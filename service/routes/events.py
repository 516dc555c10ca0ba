"""Publish events: a stream of those of the whole installation, and webhooks for operators."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse

from service.auth import AnyCaller, GatewayDep, Reader
from service.events import follow_installation
from service.keys import ApiKey, Scope
from service.openapi import problem_responses
from service.schemas import MAX_ITEMS, CreatedWebhook, DeliveryView, NewWebhook, WebhookView
from worker.contract.batches import IdempotencyConflict
from worker.contract.events import EventType
from worker.contract.records import new_id
from worker.contract.webhooks import Webhook, check_url, new_secret

router = APIRouter(prefix="/v1", tags=["analyses"])


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses={
        **problem_responses("too_many_listeners"),
        200: {
            "description": "Server-sent events `analysis.published`, `cycle.failed` and "
            "`cycle.outside_limits`, each with the document that webhooks deliver; `gap` when events "
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


webhooks_router = APIRouter(prefix="/v1", tags=["webhooks"])
WebhookId = Annotated[str, Path(description="Id of the webhook.", max_length=100)]


async def operator(key: AnyCaller) -> ApiKey:
    """Return the caller, who may choose where the service sends requests.

    Raises:
        Forbidden: If the key lacks the scope `admin`.
    """
    return key.need(Scope.ADMIN)


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
