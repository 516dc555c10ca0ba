"""Deliver webhooks: signed, with bounded attempts and growing pauses.

At every tick the scheduler starts the deliveries that are due. Messages are sent concurrently in a
separate thread, so that a slow receiver delays nothing else.

The destinations are untrusted. Names are resolved here, every address is checked, and the connection
goes to the address that was checked, which defeats DNS rebinding. Redirects are not followed, proxies
from the environment are not used, and the body of the response is not read.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import httpcore
import httpx
import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError
from model.domain.files import code_version
from worker.contract.measures import Measures
from worker.contract.record_store import NoSuchRecord
from worker.contract.records import utc_now
from worker.contract.webhook_store import WebhookStore
from worker.contract.webhooks import (
    Attempt,
    Delivery,
    DeliveryState,
    Webhook,
    public_addresses,
    signed_headers,
)
from worker.settings import WorkerSettings

__all__ = ["CheckedBackend", "MAX_PAUSE", "WebhookSender", "pause_after", "post"]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Network backend of httpcore that connects to checked addresses only.

    Arguments:
        allow_private: Whether addresses of private networks are allowed.
        advice: What to do about a refusal; see `public_addresses`.
    """

    def __init__(self, *, allow_private: bool, advice: str | None = None) -> None:
        self.allow_private = allow_private
        self._advice = {} if advice is None else {"advice": advice}
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return a connection to the first address of `host` that answers.

        Raises:
            AddressRefused: If one of its addresses is private.
            OSError: If it has none.
        """
        found = await asyncio.to_thread(
            public_addresses, host, port, allow_private=self.allow_private, **self._advice
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
        """Raise an error: URLs have hosts, not sockets."""
        raise OSError(f"Expected a host; got the socket '{path}'.")

    async def sleep(self, seconds: float) -> None:
        """Sleep without blocking the event loop, as httpcore asks between its retries."""
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
    """Send a POST request and return the status of the answer.

    Arguments:
        url: Absolute URL; the certificate is checked against its host name.
        headers: Headers in addition to those that HTTP requires.
        body: Sent unchanged.
        seconds: Total timeout, from name resolution to the headers of the response.
        allow_private: Whether addresses of private networks are allowed.
        tls: Certificates to trust.

    Raises:
        AddressRefused: If the host is not public.
        TimeoutError: If it took longer.
        httpcore.NetworkError, httpcore.ProtocolError, OSError: If it failed.
    """
    parts = httpx.URL(url)  # handles international names and escaping
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


log = structlog.get_logger()

MAX_PAUSE = 6 * 3600.0
_MAX_CONCURRENT = 64
_GONE = 410


def pause_after(attempts: int, settings: WorkerSettings) -> float | None:
    """Return the seconds to wait after so many failed attempts; None after the last one."""
    if attempts >= settings.webhook_attempts:
        return None
    return float(min(settings.webhook_backoff_seconds * 4.0 ** (attempts - 1), MAX_PAUSE))


class WebhookSender:
    """Deliver the messages that are due in the store of webhooks.

    Arguments:
        store: Subscriptions and messages.
        settings: Timeouts, attempts, pauses.
        measures: Counters of the outcomes.
    """

    def __init__(
        self, store: WebhookStore, settings: WorkerSettings, measures: Measures | None = None
    ) -> None:
        self.store = store
        self.settings = settings
        self.measures = measures or Measures()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tls = ssl.create_default_context()
        self._sending: set[Future[None]] = set()

    def tick(self) -> int:
        """Queue deliveries of new events, start sending those that are due; return the latter's number."""
        self.store.fan_out()
        self._sending = {future for future in self._sending if not future.done()}
        free = _MAX_CONCURRENT - len(self._sending)
        if free <= 0:
            return 0
        # A claim outlives the slowest attempt, so that no message is sent twice concurrently.
        claimed = self.store.claim(free, 3 * self.settings.webhook_timeout_seconds + 10)
        for webhook, delivery in claimed:
            sent = asyncio.run_coroutine_threadsafe(self._send(webhook, delivery), self._running())
            self._sending.add(sent)
        return len(claimed)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=self._loop.run_forever, name="webhook-sender", daemon=True
            )
            thread.start()
        return self._loop

    async def _send(self, webhook: Webhook, delivery: Delivery) -> None:
        attempt = await self._attempt(webhook, delivery)
        try:
            await asyncio.to_thread(self._settle, webhook, delivery, attempt)
        except (RedisError, AppaError) as error:  # claimed again when its lease has expired
            log.warning("webhook outcome not stored", id=webhook.id, error=str(error))
        except Exception:
            log.exception("webhook outcome not stored", id=webhook.id)

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> Attempt:
        begun, clock = utc_now(), time.monotonic()
        status, error = None, ""
        body = delivery.body.encode()
        headers = signed_headers(webhook.secret, delivery.event_id, int(time.time()), body)
        headers |= {
            "content-type": "application/json",
            "user-agent": f"appa-service/{code_version()}",
        }
        try:
            status = await post(
                webhook.url,
                headers,
                body,
                seconds=self.settings.webhook_timeout_seconds,
                allow_private=self.settings.webhook_allow_private,
                tls=self._tls,
            )
            error = _refusal(status)
        except TimeoutError:
            error = f"no answer within {self.settings.webhook_timeout_seconds:g} s"
        except AppaError as refused:
            error = refused.message
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:300]
        except Exception as unforeseen:  # a bug must never lose a message
            log.exception("webhook attempt failed", id=webhook.id)
            error = f"{type(unforeseen).__name__}: {unforeseen}"[:300]
        took = round(1000 * (time.monotonic() - clock))
        return Attempt(time=begun, status=status, error=error, milliseconds=took)

    def _settle(self, webhook: Webhook, delivery: Delivery, attempt: Attempt) -> None:
        state, pause = DeliveryState.DELIVERED, None
        if attempt.error:
            made = len(delivery.attempts) - delivery.earlier + 1
            pause = pause_after(made, self.settings)
            pause = None if attempt.status == _GONE else pause
            state = DeliveryState.FAILED if pause is None else DeliveryState.PENDING
        self.store.settle(delivery, attempt, state, pause)
        outcome = "retried" if state is DeliveryState.PENDING else state.value
        self.measures.webhooks.labels(outcome).inc()
        if state is DeliveryState.DELIVERED:
            delay = (utc_now() - delivery.created).total_seconds()
            self.measures.webhook_delay.observe(max(0.0, delay))
        about = {
            "id": webhook.id,
            "message": delivery.event_id,
            "attempt": len(delivery.attempts) + 1,
        }
        if not attempt.error:
            log.info("webhook delivered", **about, status=attempt.status)
            return
        log.warning("webhook failed", **about, reason=attempt.error, again_in=pause)
        if attempt.status == _GONE:
            try:
                self.store.disable(webhook.id, "the receiver answered 410 Gone")
            except NoSuchRecord:
                return


def _refusal(status: int) -> str:
    """Return why a status does not count as delivered; empty if it does."""
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return f"HTTP {status}: redirects are not followed; register the final address"
    return f"HTTP {status}"
