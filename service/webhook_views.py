"""Subscriptions as they are asked for and shown: by the gateway and by its client."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from worker.jobs.event_log import EventType
from worker.jobs.webhook import Webhook

__all__ = ["CreatedWebhook", "NewWebhook", "WebhookView"]


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
