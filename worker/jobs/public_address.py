"""Which addresses webhooks may be sent to: those of the public internet, unless allowed otherwise.

A webhook's address is chosen by who registers it; without this check it could make the service
ask machines of its own network (server-side request forgery).
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from model.domain.errors import InvalidInput

__all__ = ["AddressRefused", "check_url", "is_public", "public_addresses"]


class AddressRefused(InvalidInput):
    """An address that webhooks must not be sent to."""

    code = "address_refused"


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that carry an IPv4 address lead to it on machines that translate them.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


def public_addresses(host: str, port: int, *, allow_private: bool = False) -> list[str]:
    """The addresses of `host`, each fit to connect to.

    Raises:
        AddressRefused: If one of them is not public and that is not allowed.
        OSError: If the name has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    private = [] if allow_private else [a for a in addresses if not is_public(a)]
    if private:
        raise AddressRefused(
            f"Expected a host on the public internet; '{host}' is {', '.join(private)}. Set "
            "APPA_WEBHOOK_ALLOW_PRIVATE=true to allow this network.",
            field="url",
        )
    return addresses


def check_url(url: str, *, allow_private: bool = False) -> None:
    """Returns if a webhook may have this URL; a name that cannot be resolved now may.

    Raises:
        AddressRefused: If it may not.
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
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise AddressRefused(
            "Expected a URL without user, password and fragment; requests are signed instead.",
            field="url",
        )
    try:
        public_addresses(parts.hostname, port, allow_private=allow_private)
    except (OSError, UnicodeError):
        return  # asked again before each delivery
