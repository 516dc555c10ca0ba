"""Webhooks: who is told of events over HTTP, and what became of each message."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from worker.jobs.event_log import EventType
from worker.jobs.job import Record, utc_now

__all__ = ["Attempt", "Delivery", "DeliveryState", "Webhook"]


class DeliveryState(StrEnum):
    """Where a message is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Webhook(Record):
    """One subscription, as it is kept: with its secret."""

    id: str = Field(description="Unique, sorts by creation time.")
    url: str = Field(description="Where events are posted to.")
    events: list[EventType] = Field(min_length=1, description="What is told.")
    description: str = Field(default="", description="For people.")
    secret: str = Field(description="Signs the messages.")
    created: datetime = Field(default_factory=utc_now, description="UTC.")
    api_key: str = Field(default="", description="Id of the API key that made it.")
    since: str = Field(default="0-0", description="Place in the stream of events; later ones go.")
    disabled: str = Field(
        default="", description="Why nothing is sent any more; empty while it is."
    )


class Attempt(Record):
    """One try to deliver a message."""

    time: datetime = Field(default_factory=utc_now, description="When it began (UTC).")
    status: int | None = Field(default=None, description="HTTP status of the answer, if one came.")
    error: str = Field(default="", description="Why it does not count as delivered.")
    milliseconds: int = Field(default=0, ge=0, description="How long it took.")


class Delivery(Record):
    """One message to one webhook."""

    event_id: str = Field(description="Sent as `webhook-id`; the same at every attempt.")
    webhook_id: str = Field(description="The subscription.")
    type: EventType = Field(description="What is told.")
    created: datetime = Field(default_factory=utc_now, description="When it was queued (UTC).")
    state: DeliveryState = Field(default=DeliveryState.PENDING, description="What became of it.")
    attempts: list[Attempt] = Field(default=[], description="Tries so far, oldest first.")
    next_attempt: datetime | None = Field(
        default=None, description="When it is tried again (UTC); null when it is not."
    )
    body: str = Field(description="The exact text that is sent and signed.")
