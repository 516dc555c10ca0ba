"""The client's methods for webhooks, and their asyncio twins. They need a key of an operator."""

import uuid
from collections.abc import Sequence

from service.client_calls import Call
from service.client_connection import GatewayConnection
from service.client_connection_async import AsyncGatewayConnection
from service.webhook_views import CreatedWebhook, WebhookView
from worker.jobs.event_log import EventType
from worker.jobs.webhook import Delivery

__all__ = ["AsyncWebhookMethods", "WebhookMethods"]

PATH = "/v1/webhooks"
_DEFAULT = (EventType.ANALYSIS_PUBLISHED,)


def _create(url: str, events: Sequence[str], description: str, idempotency_key: str | None) -> Call:
    """Without a key of the caller's own a random one makes repeats safe."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    body = {"url": url, "events": [str(e) for e in events], "description": description}
    return Call("POST", PATH, headers=headers, json=body)


def _deliveries(webhook_id: str, limit: int) -> Call:
    return Call("GET", f"{PATH}/{webhook_id}/deliveries", {"limit": str(limit)})


class WebhookMethods(GatewayConnection):
    """Webhooks, for `AppaClient`."""

    def webhooks(self) -> list[WebhookView]:
        """All subscriptions, oldest first."""
        return [WebhookView.model_validate(item) for item in self._get(PATH)]

    def webhook(self, webhook_id: str) -> WebhookView:
        """One subscription."""
        return WebhookView.model_validate(self._get(f"{PATH}/{webhook_id}"))

    def create_webhook(
        self,
        url: str,
        events: Sequence[str] = _DEFAULT,
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> CreatedWebhook:
        """Subscribes an address to events from now on. Keep the secret of the answer.

        Arguments:
            url: Where events are posted to.
            events: What to tell.
            description: For people.
            idempotency_key: The same key gives the same webhook.
        """
        call = _create(url, events, description, idempotency_key)
        return CreatedWebhook.model_validate(self._json(call))

    def delete_webhook(self, webhook_id: str) -> WebhookView:
        """Ends a subscription; what was not sent yet never is."""
        return WebhookView.model_validate(self._json(Call("DELETE", f"{PATH}/{webhook_id}")))

    def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """The newest messages of a webhook, each with its attempts."""
        return [Delivery.model_validate(d) for d in self._json(_deliveries(webhook_id, limit))]


class AsyncWebhookMethods(AsyncGatewayConnection):
    """Webhooks, for `AsyncAppaClient`; see `WebhookMethods`."""

    async def webhooks(self) -> list[WebhookView]:
        """All subscriptions, oldest first."""
        return [WebhookView.model_validate(item) for item in await self._get(PATH)]

    async def webhook(self, webhook_id: str) -> WebhookView:
        """One subscription."""
        return WebhookView.model_validate(await self._get(f"{PATH}/{webhook_id}"))

    async def create_webhook(
        self,
        url: str,
        events: Sequence[str] = _DEFAULT,
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> CreatedWebhook:
        """Subscribes an address to events from now on. Keep the secret of the answer."""
        call = _create(url, events, description, idempotency_key)
        return CreatedWebhook.model_validate(await self._json(call))

    async def delete_webhook(self, webhook_id: str) -> WebhookView:
        """Ends a subscription; what was not sent yet never is."""
        return WebhookView.model_validate(await self._json(Call("DELETE", f"{PATH}/{webhook_id}")))

    async def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """The newest messages of a webhook, each with its attempts."""
        found = await self._json(_deliveries(webhook_id, limit))
        return [Delivery.model_validate(d) for d in found]
