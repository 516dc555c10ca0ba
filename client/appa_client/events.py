"""Define events: those of a job, those of the installation, and the webhooks that deliver them.

Webhook messages are signed after Standard Webhooks 1.0.0 and verified against the bytes as they
came: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from httpx_sse import ServerSentEvent
from pydantic import Field

from appa_client.errors import BadSignature
from appa_client.records import Answer, Job, Progress

__all__ = [
    "Attempt",
    "CreatedWebhook",
    "Delivery",
    "Event",
    "EventType",
    "FeedEvent",
    "JobEvent",
    "Webhook",
    "read_webhook",
]


@dataclass(frozen=True)
class JobEvent:
    """An event of a job.

    Attributes:
        type: `snapshot`, `state`, `progress`, `queue` or `done`.
        data: As the gateway sent it.
        id: Place in the stream, to resume after; None before the first place is known.
    """

    type: str
    data: dict[str, Any]
    id: str | None = None

    @classmethod
    def of(cls, sent: ServerSentEvent) -> Self:
        """Return the event that a job's stream sent; its data must be JSON."""
        return cls(sent.event, sent.json(), sent.id or None)

    @property
    def job(self) -> Job | None:
        """The whole job, for `snapshot` and `done`; None for other types."""
        return Job.model_validate(self.data) if self.type in ("snapshot", "done") else None

    @property
    def progress(self) -> Progress | None:
        """Progress of the job, unless the event says nothing about it."""
        if self.type in ("progress", "queue"):
            return Progress.model_validate(self.data)
        job = self.job
        return job.progress if job else None


class EventType(StrEnum):
    """Types of event that webhooks and `AppaClient.events` may ask for."""

    ANALYSIS_PUBLISHED = "analysis.published"
    CYCLE_FAILED = "cycle.failed"
    CYCLE_OUTSIDE_LIMITS = "cycle.outside_limits"
    CYCLE_WORSE_THAN_COLD = "cycle.worse_than_cold"
    CHALLENGER_DECIDED = "challenger.decided"
    CHALLENGER_ENDED = "challenger.ended"


class Event(Answer):
    """An event of the installation, as streams and webhooks deliver it.

    Attributes:
        id: The same each time the event is delivered: discard repeats by it.
        type: One of `EventType`, or a newer type.
        time: When it happened (UTC, ISO 8601).
        data: The subject of the event.
    """

    id: str
    type: str
    time: str
    data: dict[str, Any]


class Webhook(Answer):
    """A subscription, without its secret.

    Attributes:
        id: Unique; ids sort by creation time.
        url: Address that events are posted to.
        events: Types of event delivered.
        description: A note for people.
        created: When it was created.
        disabled: Why nothing is delivered any more; empty while it is active.
    """

    id: str
    url: str
    events: list[str]
    description: str
    created: datetime
    disabled: str


class CreatedWebhook(Webhook):
    """A new subscription, with the `secret` that `read_webhook` needs. It is shown only once."""

    secret: str = Field(repr=False)


class Attempt(Answer):
    """An attempt to deliver a message: HTTP status (None without an answer), error, duration."""

    time: datetime
    status: int | None = None
    error: str = ""
    milliseconds: int = 0


class Delivery(Answer):
    """A message to a webhook.

    Attributes:
        event_id: Id of the event, sent as `webhook-id`.
        webhook_id: The subscription.
        type: Type of the event.
        created: When it was queued.
        state: `pending`, `delivered` or `failed`.
        attempts: Attempts so far, oldest first.
        earlier: Of these, those made before it was given up and asked for again.
        next_attempt: When it is retried; None when it is not.
        body: The signed text.
    """

    event_id: str
    webhook_id: str
    type: str
    created: datetime
    state: str
    attempts: list[Attempt] = []
    earlier: int = 0
    next_attempt: datetime | None = None
    body: str


@dataclass(frozen=True)
class FeedEvent:
    """An event of the installation at its place in the stream.

    Attributes:
        type: One of `EventType`, a newer type, or `gap`: events were lost because the listener was
            away for too long.
        id: Place in the stream; pass it as `after` to continue from there. Empty for a gap.
        event: The event, as webhooks deliver it; None for a gap.
    """

    type: str
    id: str
    event: Event | None

    @classmethod
    def of(cls, sent: ServerSentEvent) -> Self:
        """Return the event that the installation's stream sent, or a gap."""
        if sent.event == "gap":
            return cls("gap", "", None)
        return cls(sent.event, sent.id, Event.model_validate_json(sent.data))


_SECRET_PREFIX = "whsec_"  # noqa: S105


def _signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(
            f"Expected a webhook secret of the form '{_SECRET_PREFIX}<base64>'; got another text."
        ) from None
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def read_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = 300.0
) -> Event:
    """Verify a webhook message and return its event.

    Arguments:
        secret: `whsec_…`, from the creation of the webhook.
        headers: Headers of the request; names in any case.
        body: Body of the request, byte for byte: parsed and serialised JSON has other bytes.
        tolerance: Largest accepted difference in seconds between the message's time and this
            machine's clock.

    Raises:
        BadSignature: If the message was not signed with `secret`, or is too old.
        ValueError: If `secret` is malformed.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = given["webhook-id"], int(given["webhook-timestamp"])
        signatures = given["webhook-signature"].split()
    except (KeyError, ValueError):
        raise BadSignature(
            "Expected the headers webhook-id, webhook-timestamp (seconds) and webhook-signature."
        ) from None
    if abs(time.time() - timestamp) > tolerance:
        raise BadSignature(
            f"Expected a message sent within {tolerance:.0f} s; got the time {timestamp}."
        )
    expected = _signature(secret, message_id, timestamp, body).encode()
    if not any([hmac.compare_digest(expected, s.encode()) for s in signatures]):
        raise BadSignature("Expected a signature made with this webhook's secret; got another.")
    return Event.model_validate_json(body)
