"""Try a source without storing anything: connect, subscribe, read a notification, fetch its data.

The session is a new one, so that the messages of the source's own session stay where they are.
"""

import asyncio
import queue
import secrets
import socket
import ssl
import time
from dataclasses import dataclass, field

from model.domain.errors import AppaError, InvalidInput
from worker.feeds.backlog import Item
from worker.feeds.fetch import Fetcher
from worker.feeds.notification import Notification, parse
from worker.feeds.sources import Source, parse_broker
from worker.feeds.subscription import Delivered, Subscription
from worker.observations.formats import HEAD_BYTES, recognise

__all__ = ["Trial", "try_source"]

_TRIES = 5
"""Announced data that are tried before the trial ends without any."""


@dataclass
class Trial:
    """What a trial found.

    Attributes:
        good: Whether the source works as far as could be seen.
        steps: What was done, and what came of it.
    """

    good: bool = False
    steps: list[tuple[str, str]] = field(default_factory=list)

    def note(self, step: str, found: str) -> None:
        """Add a step."""
        self.steps.append((step, found))


def try_source(source: Source, seconds: float) -> Trial:
    """Try a source for so many seconds and return what was found."""
    trial = Trial()
    inbox: queue.Queue[Delivered] = queue.Queue()
    update = {"client_id": f"appa-test-{secrets.token_hex(6)}"}
    subscription = Subscription(source.model_copy(update=update), inbox.put, keep=False)
    subscription.start()
    end = time.monotonic() + seconds
    try:
        if _subscribed(subscription, trial, end):
            _listen(source, inbox, trial, end)
    finally:
        subscription.end()
    return trial


def _subscribed(subscription: Subscription, trial: Trial, end: float) -> bool:
    """Wait for the broker's answer to the subscriptions."""
    while not subscription.granted and time.monotonic() < end:
        if subscription.detail.startswith("refused"):
            break
        time.sleep(0.05)
    address = subscription.source.address
    if not subscription.granted:
        why = subscription.detail if subscription.connected else _why(subscription)
        trial.note("broker", f"{address}: {why}")
        return False
    trial.note("broker", f"{address}: connected")
    answers = zip(subscription.source.topics, subscription.granted, strict=True)
    for topic, answer in answers:
        trial.note("topic", f"{topic}: {answer}")
    trial.good = not subscription.detail
    return trial.good


def _why(subscription: Subscription) -> str:
    """Return why there is no connection, found out by a plain one: the client does not say."""
    source = subscription.source
    broker = parse_broker(source.broker)
    try:
        with socket.create_connection((broker.host, broker.port), 5) as line:
            if broker.tls:
                trusted = ssl.create_default_context(cafile=source.ca_file or None)
                trusted.wrap_socket(line, server_hostname=broker.host).close()
    except OSError as error:
        return f"no connection: {error}"
    return subscription.detail


def _listen(source: Source, inbox: "queue.Queue[Delivered]", trial: Trial, end: float) -> None:
    """Fetch the first data that are announced in time."""
    tries = 0
    while tries < _TRIES and (left := end - time.monotonic()) > 0:
        try:
            message = inbox.get(timeout=left)
        except queue.Empty:
            break
        try:
            notification = parse(message.payload)
        except InvalidInput as error:
            trial.note("notification", f"{message.topic}: {error.message}")
            continue
        if notification.deletes:
            continue
        tries += 1
        trial.note("notification", f"{message.topic}: {notification.properties.data_id}")
        trial.good = _fetched(source, notification, trial)
        if trial.good:
            return
    if not tries:
        trial.note("data", "none announced in this time; wait longer with --seconds")


def _fetched(source: Source, notification: Notification, trial: Trial) -> bool:
    properties = notification.properties
    item = Item(
        data_id=properties.data_id,
        notification=str(notification.id),
        file_name=notification.file_name,
        links=tuple(notification.data_links),
        integrity=properties.integrity,
        content=properties.content,
        attempts=0,
        published=0.0,
        received=0.0,
    )

    async def fetch() -> str:
        async with Fetcher(source) as fetcher:
            found = await fetcher.fetch(item)
        format = recognise(found.data[:HEAD_BYTES]).name
        checked = "checksum right" if item.integrity else "no checksum given"
        return f"{len(found.data)} bytes of {format} from {found.origin}, {checked}"

    try:
        trial.note("data", asyncio.run(fetch()))
    except AppaError as error:
        trial.note("data", error.message)
        return False
    return True
