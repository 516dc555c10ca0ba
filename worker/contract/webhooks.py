"""Define webhooks: subscriptions, deliveries, signatures, and the addresses they may be sent to.

Signatures follow Standard Webhooks 1.0.0 and are made by its reference implementation. The signed
text is `<id>.<timestamp>.<body>`; the key is the base64 part of `whsec_…`; the header
`webhook-signature` holds one or more `v1,<base64 of the HMAC-SHA256>`, separated by spaces.
See https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

A webhook's address is chosen by whoever registers it; without the check for public addresses it
could make the service send requests into its own network (server-side request forgery).
"""

import base64
import binascii
import ipaddress
import re
import secrets
import socket
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import urlsplit

from pydantic import Field
from standardwebhooks.webhooks import EmptyWebhookSecretError
from standardwebhooks.webhooks import Webhook as Signer

from model.domain.errors import InvalidInput
from worker.contract.events import STREAM_START, EventType
from worker.contract.records import Record, utc_now

__all__ = [
    "AddressRefused",
    "Attempt",
    "Delivery",
    "DeliveryState",
    "Webhook",
    "check_url",
    "is_public",
    "new_secret",
    "public_addresses",
    "sign",
    "signed_headers",
]


class DeliveryState(StrEnum):
    """State of a delivery: due again, accepted by the receiver, or given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Webhook(Record):
    """One subscription, as it is stored: with its secret."""

    id: str = Field(description="Unique, sorts by creation time.")
    url: str = Field(description="Where events are posted to.")
    events: list[EventType] = Field(min_length=1, description="Types of events that are sent.")
    description: str = Field(default="", description="For people.")
    secret: str = Field(description="Signs the messages.")
    created: datetime = Field(default_factory=utc_now, description="UTC.")
    api_key: str = Field(default="", description="Id of the API key that made it.")
    since: str = Field(
        default=STREAM_START, description="Entry in the stream of events; only later ones are sent."
    )
    disabled: str = Field(
        default="", description="Why deliveries have stopped; empty while they continue."
    )


class Attempt(Record):
    """One try to deliver a message."""

    time: datetime = Field(default_factory=utc_now, description="When it began (UTC).")
    status: int | None = Field(default=None, description="HTTP status of the answer, if one came.")
    error: str = Field(
        default="", description="Why it does not count as delivered; empty if it does."
    )
    milliseconds: int = Field(default=0, ge=0, description="How long it took.")


class Delivery(Record):
    """The message about one event to one webhook, with its attempts."""

    event_id: str = Field(description="Sent as `webhook-id`; the same at every attempt.")
    webhook_id: str = Field(description="The subscription.")
    type: EventType = Field(description="Types of events that are sent.")
    created: datetime = Field(default_factory=utc_now, description="When it was queued (UTC).")
    state: DeliveryState = Field(default=DeliveryState.PENDING, description="What became of it.")
    attempts: list[Attempt] = Field(default=[], description="Tries so far, oldest first.")
    earlier: int = Field(
        default=0,
        ge=0,
        description="How many of them were made before it was given up and asked for again.",
    )
    next_attempt: datetime | None = Field(
        default=None, description="When it is retried (UTC); null when it is not."
    )
    body: str = Field(description="The exact text that is sent and signed.")


_PREFIX = "whsec_"


def new_secret() -> str:
    """Return a secret of 256 random bits in the form `whsec_<base64>`."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of one message, `v1,<base64 of the HMAC-SHA256>`.

    Arguments:
        secret: Secret of the webhook, as `new_secret` makes it.
        message_id: The same at every attempt to deliver the message.
        timestamp: Unix time of the attempt.
        body: UTF-8 text, signed as it is sent.

    Raises:
        InvalidInput: If the secret is not of that form, or the body not UTF-8.
    """
    try:
        signer, text = Signer(secret), body.decode()
    except (binascii.Error, EmptyWebhookSecretError):
        raise InvalidInput(
            f"Expected a webhook secret of the form '{_PREFIX}<base64>'; got another text.",
            field="secret",
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"Expected a message in UTF-8; {error}.", field="body") from None
    return signer.sign(message_id, datetime.fromtimestamp(timestamp, UTC), text)


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a signed message; see `sign`."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, message_id, timestamp, body),
    }


class AddressRefused(InvalidInput):
    """An address that webhooks must not be sent to."""

    code = "address_refused"


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
_SPECIAL = _networks(
    "192.0.0.0/24",  # protocol assignments
    "192.88.99.0/24",  # relays of 6to4
    "2001::/23",  # protocol assignments
    "2001:db8::/32",  # documentation
    "3fff::/20",  # documentation
)
"""Special-purpose networks of the IANA registries that `ipaddress` treats as global."""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet.

    IPv6 addresses are public only within 2000::/3, which leaves out IPv4-compatible, site-local,
    unique local, local translation (64:ff9b:1::/48) and discard addresses.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that embed an IPv4 address may be translated to it (NAT64, 6to4).
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:
            return False
    special = any(ip in network for network in _SPECIAL if network.version == ip.version)
    return ip.is_global and not ip.is_multicast and not special


def public_addresses(
    host: str,
    port: int,
    *,
    allow_private: bool = False,
    advice: str = "Set APPA_WEBHOOK_ALLOW_PRIVATE=true to allow this network.",
) -> list[str]:
    """Return the addresses of `host` after checking that each may be connected to.

    Arguments:
        host: Name or address.
        port: TCP port.
        allow_private: Whether addresses of private networks are allowed.
        advice: What to do about a refusal, the last sentence of the error.

    Raises:
        AddressRefused: If one of them is not public and that is not allowed.
        OSError: If the name has none.
    """
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    private = [] if allow_private else [a for a in addresses if not is_public(a)]
    if private:
        raise AddressRefused(
            f"Expected a host on the public internet; '{host}' is {', '.join(private)}. {advice}",
            field="url",
        )
    return addresses


_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,253}")


def _is_host(host: str) -> bool:
    """Return whether this is an address, or a name that some machine may know."""
    try:
        return not getattr(ipaddress.ip_address(host), "scope_id", None)  # of one machine alone
    except ValueError:
        pass
    try:
        return _NAME.fullmatch(host.encode("idna")) is not None  # labels of 1 to 63 characters
    except UnicodeError:
        return False


def check_url(url: str, *, allow_private: bool = False) -> None:
    """Check that a webhook may have this URL; a name that cannot be resolved now is allowed.

    Raises:
        AddressRefused: If it is no http URL or leads to a private network.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise AddressRefused(f"Expected a URL; got '{url}'.", field="url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AddressRefused(
            f"Expected an http or https URL with a host; got '{url}'.", field="url"
        )
    if not _is_host(parts.hostname) or parts.port == 0:
        raise AddressRefused(
            f"Expected a host and a port that can exist; got '{url}'.", field="url"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise AddressRefused(
            "Expected a URL without user, password and fragment; requests are signed instead.",
            field="url",
        )
    try:
        public_addresses(parts.hostname, port, allow_private=allow_private)
    except (OSError, UnicodeError):
        return  # resolved again before each delivery
