"""Sends the messages of webhooks: signed, with bounded attempts and growing pauses.

The scheduler asks at every turn what is due. Sending goes on in a thread of its own, many messages
at once, so that a slow receiver keeps nothing else waiting.
"""

import asyncio
import ssl
import threading
import time
from concurrent.futures import Future

import httpcore
import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError
from worker.jobs.job import utc_now
from worker.jobs.record_store import NoSuchRecord
from worker.jobs.signature import signed_headers
from worker.jobs.webhook import Attempt, Delivery, DeliveryState, Webhook
from worker.jobs.webhook_store import WebhookStore
from worker.notifications.post import post
from worker.runtime import code_version
from worker.settings import WorkerSettings

__all__ = ["LONGEST_PAUSE", "Courier", "pause_after"]

log = structlog.get_logger()

LONGEST_PAUSE = 6 * 3600.0
_AT_ONCE = 64
_GONE = 410


def pause_after(attempts: int, settings: WorkerSettings) -> float | None:
    """Seconds to wait after so many failed attempts; None when there were enough."""
    if attempts >= settings.webhook_attempts:
        return None
    return float(min(settings.webhook_backoff_seconds * 4.0 ** (attempts - 1), LONGEST_PAUSE))


class Courier:
    """Delivers what the store of webhooks says is due.

    Arguments:
        store: Subscriptions and messages.
        settings: Timeouts, attempts, pauses.
    """

    def __init__(self, store: WebhookStore, settings: WorkerSettings) -> None:
        self.store = store
        self.settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tls = ssl.create_default_context()
        self._sending: set[Future[None]] = set()

    def tick(self) -> int:
        """Queues messages for new events and starts to send what is due; returns how many."""
        self.store.fan_out()
        self._sending = {future for future in self._sending if not future.done()}
        free = _AT_ONCE - len(self._sending)
        if free <= 0:
            return 0
        # A claim outlives the slowest attempt, so that no message is under way twice.
        claimed = self.store.claim(free, 3 * self.settings.webhook_timeout_seconds + 10)
        for webhook, delivery in claimed:
            sent = asyncio.run_coroutine_threadsafe(self._send(webhook, delivery), self._running())
            self._sending.add(sent)
        return len(claimed)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="courier", daemon=True)
            thread.start()
        return self._loop

    async def _send(self, webhook: Webhook, delivery: Delivery) -> None:
        attempt = await self._attempt(webhook, delivery)
        try:
            await asyncio.to_thread(self._settle, webhook, delivery, attempt)
        except (RedisError, AppaError) as error:  # claimed again when its lease has run out
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
            error = _complaint(status)
        except TimeoutError:
            error = f"no answer within {self.settings.webhook_timeout_seconds:g} s"
        except AppaError as refused:
            error = refused.message
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:300]
        except Exception as unforeseen:  # a message must never be lost to a bug
            log.exception("webhook attempt failed", id=webhook.id)
            error = f"{type(unforeseen).__name__}: {unforeseen}"[:300]
        took = round(1000 * (time.monotonic() - clock))
        return Attempt(time=begun, status=status, error=error, milliseconds=took)

    def _settle(self, webhook: Webhook, delivery: Delivery, attempt: Attempt) -> None:
        state, pause = DeliveryState.DELIVERED, None
        if attempt.error:
            pause = pause_after(len(delivery.attempts) + 1, self.settings)
            pause = None if attempt.status == _GONE else pause
            state = DeliveryState.FAILED if pause is None else DeliveryState.PENDING
        self.store.settle(delivery, attempt, state, pause)
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


def _complaint(status: int) -> str:
    """Why an answer does not count; empty if it does."""
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return f"HTTP {status}: redirects are not followed; register the final address"
    return f"HTTP {status}"
