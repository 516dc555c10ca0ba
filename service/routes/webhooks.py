"""Webhooks: who is told of new analyses over HTTP. For operators."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.dependencies import AnyCaller, GatewayDep
from service.keys import ApiKey, Scope
from service.openapi import problems
from worker.jobs.event_log import EventType
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


class NewWebhook(BaseModel):
    """A subscription as it is asked for."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        description="Where events are posted to (http or https, a public host).",
        min_length=1,
        max_length=2000,
        examples=["https://example.org/hooks/appa"],
    )
    events: list[EventType] = Field(
        default=[EventType.ANALYSIS_PUBLISHED], min_length=1, description="What to tell."
    )
    description: str = Field(default="", max_length=500, description="For people.")


class WebhookView(BaseModel):
    """A subscription, without its secret."""

    id: str = Field(description="Unique, sorts by creation time.")
    url: str = Field(description="Where events are posted to.")
    events: list[EventType] = Field(description="What is told.")
    description: str = Field(description="For people.")
    created: datetime = Field(description="UTC.")
    disabled: str = Field(description="Why nothing is sent any more; empty while it is.")

    @classmethod
    def of(cls, webhook: Webhook) -> "WebhookView":
        """What is shown of `webhook`."""
        return cls.model_validate(webhook.model_dump(include=set(cls.model_fields)))


class CreatedWebhook(WebhookView):
    """A new subscription; the secret is shown this once."""

    secret: str = Field(description="Verify messages with it; `whsec_` and base64.")


@router.post("/webhooks", status_code=201, responses=problems("too_large"))
def create_webhook(
    request: Request, response: Response, gateway: GatewayDep, key: Operator, wanted: NewWebhook
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
    webhook = gateway.stores.webhooks.create(webhook)
    root = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root}/v1/webhooks/{webhook.id}"
    return CreatedWebhook(secret=webhook.secret, **WebhookView.of(webhook).model_dump())


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
