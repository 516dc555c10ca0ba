"""Talk to an Appa gateway: `AppaClient` and its asyncio twin `AsyncAppaClient`."""

from appa_client._async.client import AsyncAppaClient
from appa_client._sync.client import AppaClient
from appa_client.errors import (
    AuthenticationError,
    GatewayError,
    IntegrityError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
)
from appa_client.events import FeedEvent, JobEvent, read_webhook

__all__ = [
    "AppaClient",
    "AsyncAppaClient",
    "AuthenticationError",
    "FeedEvent",
    "GatewayError",
    "IntegrityError",
    "InvalidRequestError",
    "JobEvent",
    "JobFailedError",
    "NotFoundError",
    "RateLimitedError",
    "UnavailableError",
    "read_webhook",
]
