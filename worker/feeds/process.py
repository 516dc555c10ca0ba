"""Run the feeds of an installation: one process for all its sources and its announcements.

The sources are read again when their file changes, so that adding and removing one takes effect at
once. Exactly one such process runs in an installation: each source is one session with its broker.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable

import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError, ConfigurationError
from worker.contract.acceptance import Intake
from worker.contract.feeds import FEEDS, SourceStatus
from worker.contract.logs import configure_logs
from worker.contract.records import utc_now
from worker.contract.trace_export import export_traces, finish_traces
from worker.feeds.announcements import Announcer
from worker.feeds.backlog import Backlog, only_one
from worker.feeds.feed import Feed
from worker.feeds.sources import Source, SourceFile
from worker.process import message_sender
from worker.runtime import Runtime, open_runtime
from worker.settings import WorkerSettings

__all__ = ["FeedProcess", "run_feeds"]

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
    """All sources of an installation at work.

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
        """Work until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        announcing = self._announce()
        self.runtime.report.ready = True
        self.runtime.start_reporting()
        log.info("ready", worker=self.runtime.report.name)
        self._read()
        self.backlog.keep(self._sources)
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
        """Start the feeds of new sources, and end those of sources that are gone or changed."""
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
        """Read the sources again if their file has changed; a damaged file changes nothing."""
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
            self.backlog.note_line(status)
        return statuses

    def _report(self) -> None:
        """Show in the registration how many announcements wait, and that the loop goes on."""
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
    """Run again what ends by an error, after a pause."""
    while True:
        try:
            await run()
        except Exception:  # cancelling is none of these
            log.exception("feed ended", feed=name, again_in=_RESTART_SECONDS)
        await asyncio.sleep(_RESTART_SECONDS)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
