"""API keys as clients present them: bearer token, `X-API-Key`, or the password of HTTP basic.

Clients such as netCDF's OPeNDAP reader know user names and passwords only (`.netrc`, or
`http://user:password@host`); the user name is not looked at.
"""

import base64
import binascii

import structlog
from anyio import to_thread
from starlette.datastructures import Headers

from service.errors import RateLimited, Unauthenticated
from service.gateway import Gateway
from service.keys import OPEN, ApiKey

READ_FACTOR = 20
"""Reading a data set or a file piece by piece takes many small requests, counted apart."""


def presented_key(headers: Headers) -> str | None:
    """The key in the headers of a request, if there is one."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic" and value:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key")


def needs_challenge(headers: Headers) -> bool:
    """Whether the client waits to be asked for a password; a browser would open a dialog."""
    return "mozilla" not in headers.get("user-agent", "").lower()


async def authenticate(gateway: Gateway, headers: Headers, *, pieces: bool = False) -> ApiKey:
    """The key of a request, counted against its rate.

    Arguments:
        gateway: Keys, quotas and settings.
        headers: Of the request.
        pieces: Whether it reads a small piece of something larger; `READ_FACTOR` times as many of
            these are allowed.

    Raises:
        Unauthenticated: Without a key where one is needed, or with a wrong one.
        RateLimited: Above the key's rate.
    """
    presented = presented_key(headers)
    basic = needs_challenge(headers)
    if presented is None:
        if not gateway.settings.keys_required:
            return OPEN
        raise Unauthenticated(
            "Expected an API key in 'Authorization: Bearer …' or 'X-API-Key'; got none. Ask the "
            "operator for one (`appa keys create`).",
            basic=basic,
        )
    try:
        key = gateway.keys.check(presented)
    except Unauthenticated as error:
        raise Unauthenticated(error.message, basic=basic) from error
    structlog.contextvars.bind_contextvars(api_key=key.id)
    limit = key.requests_per_minute
    limit = gateway.settings.requests_per_minute if limit is None else limit
    name = f"{key.id}:pieces" if pieces else key.id
    limit *= READ_FACTOR if pieces else 1
    if limit:
        allowance = await to_thread.run_sync(gateway.stores.quotas.take, name, limit)
        if not allowance.allowed:
            raise RateLimited(
                f"Expected at most {limit} requests a minute with key '{key.id}'; try again in "
                f"{allowance.retry_after} s.",
                allowance.retry_after,
            )
    return key
