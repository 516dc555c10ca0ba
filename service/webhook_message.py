"""For receivers of webhooks: is this message genuine, and what does it say."""

from collections.abc import Mapping

from worker.jobs.event_log import LoggedEvent
from worker.jobs.signature import BadSignature, verify

__all__ = ["BadSignature", "LoggedEvent", "read_webhook"]


def read_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = 300.0
) -> LoggedEvent:
    """The event that a genuine message tells.

    Arguments:
        secret: `whsec_…` from the creation of the webhook.
        headers: Of the request.
        body: Its bytes as they came: JSON that was parsed and written again has other bytes.
        tolerance: Seconds the message's time may differ from this machine's clock.

    Raises:
        BadSignature: If it did not come from the holder of the secret, or is too old.
    """
    verify(secret, headers, body, tolerance=tolerance)
    return LoggedEvent.model_validate_json(body)
