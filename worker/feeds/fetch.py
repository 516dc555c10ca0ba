"""Fetch announced data over HTTP, within limits, and check them.

The URL comes in an untrusted message, so the rules are those of webhooks: the host must be on the
source's list, its addresses must be public unless the source says otherwise, and the connection goes
to the address that was checked. Redirects are followed a few times, each under the same rules. No more
is read than a source allows.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpcore
import httpx
import stamina

from model.domain.errors import AppaError, DecodeError
from model.domain.files import code_version
from worker.contract.webhooks import AddressRefused
from worker.feeds.backlog import BacklogItem
from worker.feeds.notification import Link, MismatchedData
from worker.feeds.sources import Source
from worker.notifications import CheckedBackend

__all__ = ["FetchFailed", "Fetched", "Fetcher"]

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_LATER = frozenset({404, 408, 425, 429})
"""Transient statuses, worth a retry: a cache may announce data a moment before it has them."""

_ADVICE = "Name it with --host and add the source with --private to allow this network."


class FetchFailed(AppaError):
    """Data that could not be fetched.

    Attributes:
        reason: One word for counters.
        wait: Minimum seconds to wait, from `Retry-After`.
    """

    code = "fetch_failed"

    def __init__(
        self, reason: str, message: str, *, retryable: bool, wait: float | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.reason = reason
        self.retryable = retryable
        self.wait = wait


class _Unreachable(FetchFailed):
    """No response at all; worth an immediate retry."""


@dataclass(frozen=True)
class Fetched:
    """Checked data and where they came from."""

    data: bytes
    origin: str


class Fetcher:
    """Fetch the data of one source over connections that are kept open.

    Use it as an asynchronous context manager.

    Arguments:
        source: Hosts and bounds.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(source),
            max_connections=source.fetches,
            keepalive_expiry=30,
            network_backend=CheckedBackend(allow_private=source.private, advice=_ADVICE),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._pool.aclose()

    async def fetch(self, item: BacklogItem) -> Fetched:
        """Return the data of an item: those inside the notification, else from its links in turn.

        Raises:
            FetchFailed: If all links fail; transient if the failure of any link is.
        """
        failures: list[FetchFailed] = []
        if (inline := self._inline(item, failures)) is not None:
            return Fetched(inline, "the notification")
        for link in _rotated(item.links, item.attempts):
            try:
                data = await self._follow(link)
                self._check(item, data, link.length)
                return Fetched(data, link.href)
            except MismatchedData as error:
                failures.append(FetchFailed("integrity", error.message, retryable=True))
            except FetchFailed as error:
                failures.append(error)
        if not failures:
            failures.append(
                FetchFailed("no_link", "Expected a link over http or https.", retryable=False)
            )
        passing = [failure for failure in failures if failure.retryable]
        raise (passing or failures)[0]

    def _inline(self, item: BacklogItem, failures: list[FetchFailed]) -> bytes | None:
        if item.content is None:
            return None
        try:
            data = item.content.decode(self.source.max_bytes)
            self._check(item, data, None)
        except DecodeError as error:  # the links may have intact data
            failures.append(FetchFailed("inline_content", error.message, retryable=False))
            return None
        return data

    def _check(self, item: BacklogItem, data: bytes, length: int | None) -> None:
        if item.integrity is not None:
            item.integrity.check(data)
        elif length is not None and len(data) != length:
            raise MismatchedData(f"Expected {length} bytes as announced; got {len(data)}.")
        if not data:
            raise MismatchedData("Expected data; got none.")

    async def _follow(self, link: Link) -> bytes:
        if link.length is not None and link.length > self.source.max_bytes:
            raise self._too_large(f"{link.length} bytes")
        url = link.href
        for _ in range(_MAX_REDIRECTS + 1):
            found = await self._get(url)
            if isinstance(found, bytes):
                return found
            url = found
        raise FetchFailed(
            "redirects", f"Expected at most {_MAX_REDIRECTS} redirects; got more.", retryable=False
        )

    async def _get(self, url: str) -> bytes | str:
        """Return the data at a URL, or its redirect; a lost connection is retried once."""
        target = self._target(url)
        seconds = self.source.timeout_seconds
        async for attempt in stamina.retry_context(
            on=_Unreachable, attempts=2, wait_initial=0.1, wait_max=1.0, timeout=seconds
        ):
            with attempt:
                return await self._get_once(url, target)
        raise AssertionError("a retry context ends by a result or an error")

    def _target(self, url: str) -> httpcore.URL:
        try:
            parts = httpx.URL(url)  # handles international names and escaping
        except (httpx.InvalidURL, ValueError):
            raise _refused(f"Expected a URL; got '{url[:200]}'.") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise _refused(f"Expected an http or https URL with a host; got '{url[:200]}'.")
        if parts.userinfo:
            raise _refused("Expected a URL without user and password.")
        if not self.source.allows(parts.host):
            raise _refused(
                f"Expected one of the hosts of source '{self.source.name}' "
                f"({', '.join(self.source.hosts)}); got '{parts.host}'."
            )
        return httpcore.URL(
            scheme=parts.raw_scheme, host=parts.raw_host, port=parts.port, target=parts.raw_path
        )

    async def _get_once(self, url: str, target: httpcore.URL) -> bytes | str:
        headers = [
            ("user-agent", f"appa-service/{code_version()}"),
            ("accept-encoding", "identity"),
        ]
        seconds = self.source.timeout_seconds
        try:
            async with (
                asyncio.timeout(seconds),
                self._pool.stream("GET", target, headers=headers) as answer,
            ):
                fields = {
                    k.decode("latin-1").lower(): v.decode("latin-1") for k, v in answer.headers
                }
                if answer.status in _REDIRECTS and "location" in fields:
                    return str(httpx.URL(url).join(fields["location"]))
                if answer.status != 200:
                    raise _answered(answer.status, fields.get("retry-after", ""))
                if fields.get("content-encoding", "identity").lower() != "identity":
                    packed = fields["content-encoding"]
                    raise FetchFailed(
                        "encoding", f"Expected data as they are; got {packed}.", retryable=False
                    )
                return await self._read(answer, fields.get("content-length", ""))
        except TimeoutError:
            raise FetchFailed(
                "timeout", f"Expected an answer within {seconds:g} s; got none.", retryable=True
            ) from None
        except AddressRefused as error:
            raise _refused(error.message) from error
        except (
            httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError
        ) as error:  # fmt: skip
            detail = f"{type(error).__name__}: {error}"[:300]
            raise _Unreachable("connection", detail, retryable=True) from error

    async def _read(self, answer: httpcore.Response, length: str) -> bytes:
        limit = self.source.max_bytes
        if length.isdigit() and int(length) > limit:
            raise self._too_large(f"{length} bytes")
        data = bytearray()
        async for piece in answer.aiter_stream():
            data += piece
            if len(data) > limit:
                raise self._too_large("more")
        return bytes(data)

    def _too_large(self, got: str) -> FetchFailed:
        return FetchFailed(
            "too_large",
            f"Expected at most {self.source.max_bytes} bytes; got {got}. Raise --max-bytes.",
            retryable=False,
        )


def _tls(source: Source) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if source.ca_file:
        context.load_verify_locations(source.ca_file)
    return context


def _rotated(links: Sequence[Link], turn: int) -> list[Link]:
    """Return the links rotated, so that each attempt starts with another one."""
    start = turn % len(links) if links else 0
    return [*links[start:], *links[:start]]


def _refused(message: str) -> FetchFailed:
    return FetchFailed("host_refused", message, retryable=False)


def _answered(status: int, retry_after: str) -> FetchFailed:
    passes = status in _LATER or status >= 500
    reason = {404: "not_found", 410: "not_found", 429: "rate_limited"}.get(status, f"http_{status}")
    wait = _seconds(retry_after) if passes else None
    return FetchFailed(
        reason, f"Expected the data; got HTTP {status}.", retryable=passes, wait=wait
    )


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a `Retry-After` header; None if it is absent or malformed."""
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
