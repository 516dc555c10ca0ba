"""Run the feeds of an installation, or test one of its sources.

One process runs all sources and the announcements. The list of sources is reloaded when its file
changes, so that adding and removing one takes effect at once. Only one such process may run in an
installation, because each source has one session with its broker.

A test of a source stores nothing: it connects, subscribes, reads a notification and fetches its data.
It uses a separate session, so that no messages of the source's own session are consumed.
"""

import asyncio
import os
import queue
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError, ConfigurationError, InvalidInput
from worker.contract.acceptance import Intake
from worker.contract.feeds import FEEDS, SourceStatus
from worker.contract.logs import configure_logs
from worker.contract.records import utc_now
from worker.contract.trace_export import export_traces, finish_traces
from worker.feeds.announcements import Announcer
from worker.feeds.backlog import Backlog, BacklogItem, only_one
from worker.feeds.feed import Feed
from worker.feeds.fetch import Fetcher
from worker.feeds.notification import Notification, parse
from worker.feeds.sources import Source, SourceFile, parse_broker
from worker.feeds.subscription import Delivered, Subscription
from worker.observations.formats import HEAD_BYTES, recognise
from worker.process import message_sender
from worker.runtime import Runtime, open_runtime
from worker.settings import WorkerSettings

__all__ = [
    "FeedProcess",
    "SourceTrial",
    "run_feeds",
    "try_source",
]

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
_RESTART_SECONDS = 5.0
_FORGET_TURNS = 3600


def run_feeds(settings: WorkerSettings | None = None) -> None:
    """Run all sources until the process is asked to stop.

    Raises:
        ConfigurationError: If another process runs the feeds of this data folder.
    """
    settings = settings or WorkerSettings()
    configure_logs(settings)
    export_traces("sources")
    name = f"{FEEDS}.{os.getpid()}@{socket.gethostname()}"
    runtime = open_runtime(settings, [FEEDS], name, message_sender(settings))
    with only_one(runtime.layout.backlog_file) as alone:
        if not alone:
            raise ConfigurationError(
                f"Expected no other `appa worker sources` on '{settings.data_dir}'; one is running. "
                "Each source is one session with its broker."
            )
        asyncio.run(FeedProcess(runtime).run())
    runtime.leave()
    finish_traces()


class FeedProcess:
    """Process that runs all sources of an installation.

    Arguments:
        runtime: Settings, stores and registration.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.file = SourceFile(runtime.layout.sources_file)
        self.backlog = Backlog(runtime.layout.backlog_file)
        self.intake = Intake(runtime.layout, runtime.stores, runtime.sender)
        self._feeds: dict[str, tuple[Feed, asyncio.Task[None]]] = {}
        self._seen: object = None
        self._sources: dict[str, Source] = {}

    async def run(self) -> None:
        """Fetch announced data and announce results until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        announcing = self._announce()
        self.runtime.report.ready = True
        self.runtime.start_reporting()
        log.info("ready", worker=self.runtime.report.name)
        self._read()
        self.backlog.drop_others(self._sources)
        pause, turn = min(_LOOK_SECONDS, self.runtime.settings.report_seconds), 0
        while not stop.is_set():
            await self._tend()
            await asyncio.to_thread(self._write, self._statuses())
            self._report()
            turn += 1
            if turn % _FORGET_TURNS == 0:
                self.backlog.forget()
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                continue
        tasks = [task for _, task in self._feeds.values()] + ([announcing] if announcing else [])
        await _cancel(tasks)
        update = {"connected": False, "detail": "stopped"}
        self._write([status.model_copy(update=update) for status in self._statuses()])
        self.backlog.close()

    def _announce(self) -> asyncio.Task[None] | None:
        runtime = self.runtime
        if not runtime.settings.wis2_broker:
            return None
        backlog = Backlog(runtime.layout.backlog_file)
        announcer = Announcer(
            runtime.layout, runtime.stores.events, backlog, runtime.settings, runtime.measures
        )
        return asyncio.create_task(_for_ever("announcements", announcer.run))

    async def _tend(self) -> None:
        """Start the feeds of new sources, and stop those of removed or changed sources."""
        self._read()
        for name, (feed, task) in list(self._feeds.items()):
            if self._sources.get(name) != feed.source:
                del self._feeds[name]
                feed.subscription.end()
                await _cancel([task])
                self.backlog.drop(name)
                log.info("source removed", source=name)
        for name, source in self._sources.items():
            if name not in self._feeds:
                runtime = self.runtime
                feed = Feed(source, self.backlog, self.intake, runtime.settings, runtime.measures)
                self._feeds[name] = (feed, asyncio.create_task(_for_ever(name, feed.run)))
                log.info("source started", source=name, broker=source.address)

    def _read(self) -> None:
        """Reload the sources if their file has changed; a damaged file is ignored."""
        try:
            stat = self.file.path.stat()
            stamp: object = (stat.st_mtime_ns, stat.st_ino)
        except FileNotFoundError:
            stamp = "absent"
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._sources = self.file.all()
        except AppaError as error:
            log.error("sources not read", error=error.message)

    def _statuses(self) -> list[SourceStatus]:
        statuses = [feed.status() for feed, _ in self._feeds.values()]
        for status in statuses:
            self.backlog.store_connection(status)
        return statuses

    def _report(self) -> None:
        """Report the number of queued announcements, and that the event loop is alive."""
        figures = self.runtime.report.figures
        if self.runtime.settings.wis2_broker:
            figures.announcements, figures.announcement_age = self.backlog.unconfirmed()
        figures.turned = utc_now()

    def _write(self, statuses: list[SourceStatus]) -> None:
        try:
            self.runtime.stores.sources.write(statuses)
        except RedisError as error:
            log.warning("state of the sources not stored", error=str(error))


async def _for_ever(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Restart a coroutine after a pause whenever it ends by an error."""
    while True:
        try:
            await run()
        except Exception:  # CancelledError is none of these
            log.exception("feed ended", feed=name, again_in=_RESTART_SECONDS)
        await asyncio.sleep(_RESTART_SECONDS)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_TRIES = 5
"""Number of notifications whose data are tried before the test fails."""


@dataclass
class SourceTrial:
    """Result of testing a source.

    Attributes:
        good: Whether the source works, as far as it could be tested.
        steps: Steps of the test, with their results.
    """

    good: bool = False
    steps: list[tuple[str, str]] = field(default_factory=list)

    def note(self, step: str, found: str) -> None:
        """Append a step with its result."""
        self.steps.append((step, found))


def try_source(source: Source, seconds: float) -> SourceTrial:
    """Test a source for at most `seconds` and return the result."""
    trial = SourceTrial()
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


def _subscribed(subscription: Subscription, trial: SourceTrial, end: float) -> bool:
    """Wait for the broker's reply to the subscriptions."""
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
    """Return why there is no connection, from a plain TCP or TLS one: the client does not report it."""
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


def _listen(
    source: Source, inbox: "queue.Queue[Delivered]", trial: SourceTrial, end: float
) -> None:
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


def _fetched(source: Source, notification: Notification, trial: SourceTrial) -> bool:
    properties = notification.properties
    item = BacklogItem(
        data_id=properties.data_id,
        notification=str(notification.id),
        file_name=notification.file_name,
        links=tuple(notification.data_links),
        integrity=properties.integrity,
        content=properties.content,
        attempts=0,
        published=0.0,
        received=0.0,
        version=0,
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
