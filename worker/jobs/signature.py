"""Signatures of webhooks, after Standard Webhooks 1.0.0.

The signed text is `<id>.<timestamp>.<body>`; the key is the base64 part of `whsec_…`; the header
`webhook-signature` holds one or more `v1,<base64 of the HMAC-SHA256>`, parted by blanks.
See https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping

from model.domain.errors import InvalidInput

__all__ = ["BadSignature", "new_secret", "sign", "signed_headers", "verify"]

_PREFIX = "whsec_"


class BadSignature(InvalidInput):
    """A message that did not come from the holder of the secret, or is too old."""

    code = "bad_signature"


def new_secret() -> str:
    """A secret of 256 random bits."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise InvalidInput(
            f"Expected a webhook secret of the form '{_PREFIX}<base64>'; got another text.",
            field="secret",
        ) from None


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of one message, `v1,…`."""
    text = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(_key(secret), text, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a signed message."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, message_id, timestamp, body),
    }


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance: float = 300.0,
    now: float | None = None,
) -> None:
    """Returns if the message is genuine and fresh.

    Arguments:
        secret: From the creation of the webhook.
        headers: Of the request; names in any case.
        body: Its bytes as they came, before any parsing.
        tolerance: Seconds its time may differ from ours.
        now: Unix time; the present when absent.

    Raises:
        BadSignature: If it is not.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp = given["webhook-id"], int(given["webhook-timestamp"])
        signatures = given["webhook-signature"].split()
    except (KeyError, ValueError):
        raise BadSignature(
            "Expected the headers webhook-id, webhook-timestamp (seconds) and webhook-signature."
        ) from None
    if abs((time.time() if now is None else now) - stamp) > tolerance:
        raise BadSignature(
            f"Expected a message sent within {tolerance:.0f} s; got the time {stamp}."
        )
    wanted = sign(secret, message_id, stamp, body).encode()
    if not any([hmac.compare_digest(wanted, got.encode()) for got in signatures]):
        raise BadSignature("Expected a signature made with this webhook's secret; got another.")
