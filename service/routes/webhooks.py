"""Webhooks: who is told of new analyses over HTTP. For operators."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from service.dependencies import AnyCaller, GatewayDep
from service.keys import ApiKey, Scope
from service.openapi import problems
from service.webhook_views import CreatedWebhook, NewWebhook, WebhookView
from worker.jobs.batch_store import IdempotencyConflict
from worker.jobs.ids import new_id
from worker.jobs.public_address import check_url
from worker.jobs.signature import new_secret
from worker.jobs.webhook import Delivery, Webhook

router = APIRouter(prefix="/v1", tags=["webhooks"])
WebhookId = Annotated[str, Path(description="From its creation or the list.", max_length=100)]


async def operator(key: AnyCaller) -> ApiKey:
    """A caller that may say where the service sends requests."""
    return key.need(Scope.ADMIN)


Operator = Annotated[ApiKey, Depends(operator)]


@router.post(
    "/webhooks",
    status_code=201,
    responses={
        **problems("too_large", "idempotency_conflict"),
        200: {
            "description": "The same Idempotency-Key came before: that webhook.",
            "model": CreatedWebhook,
        },
    },
)
def create_webhook(
    request: Request,
    response: Response,
    gateway: GatewayDep,
    key: Operator,
    wanted: NewWebhook,
    idempotency_key: Annotated[
        str, Header(description="Sending it again within a day gives the same.", max_length=255)
    ] = "",
) -> CreatedWebhook:
    """Subscribes an address to events from now on. The answer holds the secret: keep it."""
    check_url(wanted.url, allow_private=gateway.settings.webhook_allow_private)
    webhook = Webhook(
        id=new_id("wh"),
        url=wanted.url,
        events=list(dict.fromkeys(wanted.events)),
        description=wanted.description,
        secret=new_secret(),
        api_key=key.id,
    )
    unique = f"{key.id}:{idempotency_key}" if idempotency_key else ""
    webhook, created = gateway.stores.webhooks.create(webhook, unique_key=unique)
    if not created:
        _same_as_before(webhook, wanted, idempotency_key)
        response.status_code = 200
    root = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root}/v1/webhooks/{webhook.id}"
    return CreatedWebhook(secret=webhook.secret, **WebhookView.of(webhook).model_dump())


def _same_as_before(known: Webhook, wanted: NewWebhook, idempotency_key: str) -> None:
    asked = (wanted.url, set(wanted.events), wanted.description)
    if asked != (known.url, set(known.events), known.description):
        raise IdempotencyConflict(
            f"Expected the same webhook under Idempotency-Key '{idempotency_key}' as before "
            f"('{known.id}'); got another one. Use a new key for it.",
            field="Idempotency-Key",
        )


@router.get("/webhooks", responses=problems())
def list_webhooks(gateway: GatewayDep, _: Operator) -> list[WebhookView]:
    """All subscriptions, oldest first."""
    return [WebhookView.of(webhook) for webhook in gateway.stores.webhooks.all()]


@router.get("/webhooks/{webhook_id}", responses=problems("not_found"))
def read_webhook(webhook_id: WebhookId, gateway: GatewayDep, _: Operator) -> WebhookView:
    """One subscription."""
    return WebhookView.of(gateway.stores.webhooks.get(webhook_id))


@router.delete("/webhooks/{webhook_id}", responses=problems("not_found"))
def delete_webhook(webhook_id: WebhookId, gateway: GatewayDep, _: Operator) -> WebhookView:
    """Ends a subscription; what was not sent yet never is."""
    return WebhookView.of(gateway.stores.webhooks.delete(webhook_id))


@router.get("/webhooks/{webhook_id}/deliveries", responses=problems("not_found"))
def list_deliveries(
    webhook_id: WebhookId,
    gateway: GatewayDep,
    _: Operator,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[Delivery]:
    """The newest messages, each with its attempts: status, error, duration, next attempt."""
    return gateway.stores.webhooks.deliveries(webhook_id, limit)
