"""One HTTP request to an address that somebody else chose.

Names are resolved here, every address is checked, and the connection goes to the address that was
checked: a name that changes its meaning in between leads nowhere. Redirects are not followed,
proxies of the environment are not used, the answer's body is not read.
"""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore
import httpx

from worker.jobs.public_address import public_addresses

__all__ = ["post"]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only.

    Arguments:
        allow_private: Whether addresses of private networks will do.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host` that answers.

        Raises:
            AddressRefused: If one of its addresses is private.
            OSError: If it has none.
        """
        found = await asyncio.to_thread(
            public_addresses, host, port, allow_private=self.allow_private
        )
        failure: Exception | None = None
        for address in found:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
        raise failure or OSError(f"'{host}' has no address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never: a URL names no socket."""
        raise OSError(f"Expected a host; got the socket '{path}'.")

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


async def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    seconds: float,
    allow_private: bool,
    tls: ssl.SSLContext,
) -> int:
    """The status of the answer to a POST.

    Arguments:
        url: With host; its certificate is checked against that name.
        headers: Besides those that HTTP needs.
        body: Sent as it is.
        seconds: For everything, from the name to the answer's first line and headers.
        allow_private: See `CheckedBackend`.
        tls: Whom to trust.

    Raises:
        AddressRefused: If the host is not public.
        TimeoutError: If it took longer.
        httpcore.NetworkError, httpcore.ProtocolError, OSError: If it failed.
    """
    parts = httpx.URL(url)  # takes care of international names and of what must be escaped
    target = httpcore.URL(
        scheme=parts.raw_scheme, host=parts.raw_host, port=parts.port, target=parts.raw_path
    )
    backend = CheckedBackend(allow_private=allow_private)
    async with (
        asyncio.timeout(seconds),
        httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=backend) as pool,
        pool.stream("POST", target, headers=list(headers.items()), content=body) as answer,
    ):
        return int(answer.status)
