"""Run the tasks of the queue `products`, which follow the publication of a result.

The events of a result are emitted when it is published, or later if that was missed.
"""

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from celery import Task, shared_task
from redis.exceptions import RedisError

from model.domain.errors import StorageError
from worker.contract import traces
from worker.contract.events import EventLog, EventType
from worker.contract.layout import Layout
from worker.contract.queues import ANNOUNCE_RESULT, MESSAGE_VERSION
from worker.contract.records import utc_now
from worker.contract.suites import CHALLENGER
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest, read_manifest
from worker.results.publication import update_latest
from worker.results.verification.series import OUTSIDE_FLAG, WORSE_FLAG, append_to_series
from worker.runtime import Runtime

__all__ = ["MissedResults", "announce", "announce_result_task", "tell_published"]

log = structlog.get_logger()

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


def announce(layout: Layout, events: EventLog, manifest: AnalysisManifest) -> None:
    """Update `latest.json` and the verification series, and emit the events; idempotent.

    No event is emitted for a challenger's result, which is only added to the series.

    Raises:
        OSError: If `latest.json` cannot be written.
        StorageError: If the verification series cannot be extended.
    """
    with traces.step("extend series"):
        append_to_series(layout, manifest)
    if manifest.flavour == CHALLENGER:
        return
    with traces.step("update latest.json"):
        update_latest(layout)
    with traces.step("emit events"):
        tell_published(events, manifest)


def tell_published(events: EventLog, manifest: AnalysisManifest) -> bool:
    """Emit the events of a published result, once; return whether they were new."""
    about = describe(manifest)
    news = events.emit(EventType.ANALYSIS_PUBLISHED, manifest.id, about)
    if OUTSIDE_FLAG in manifest.flags:
        control = {"control": manifest.scores.get("control")}
        events.emit(EventType.CYCLE_OUTSIDE_LIMITS, manifest.id, about | control)
    if WORSE_FLAG in manifest.flags:
        found = {"comparison": manifest.scores.get("comparison")}
        events.emit(EventType.CYCLE_WORSE_THAN_COLD, manifest.id, about | found)
    return news


def describe(manifest: AnalysisManifest) -> dict[str, Any]:
    """Return the data of a result's event, sufficient to decide what to fetch."""
    values = manifest.model_dump(mode="json")
    names = ("kind", "flavour", "revision", "valid_time", "created", "members", "flags", "job_id")
    return {
        "analysis_id": manifest.id,
        **{name: values[name] for name in names},
        "cycle": manifest.cycle.get("key"),
        "href": f"/v1/analyses/{manifest.id}",
        "files": values["files"],
    }


class MissedResults:
    """Announce results that were published but not announced because a process died in between.

    Only Redis stores which results were announced. After it has lost its data all results appear
    unannounced; then only those published from that time on are considered.

    Arguments:
        layout: The data folder.
        events: The events emitted so far.
        every: Seconds between two scans.
        back: Maximum age in seconds of results to consider.
    """

    def __init__(
        self,
        layout: Layout,
        events: EventLog,
        every: float = 60.0,
        back: float = 86_400.0,
    ) -> None:
        self.layout = layout
        self.events = events
        self.every = every
        self.back = back
        self._catalogue = Catalogue(layout)
        self._looked = float("-inf")
        self._seen: set[str] = set()

    def tick(self) -> int:
        """Scan if the last scan is old enough; return the number of announced results."""
        if time.monotonic() - self._looked < self.every:
            return 0
        self._looked = time.monotonic()
        missed = 0
        for name in self._recent():
            if name in self._seen:
                continue
            if not self.events.emitted(EventType.ANALYSIS_PUBLISHED, name):
                manifest = self._catalogue.find(name)
                if manifest is None:  # deleted just now
                    continue
                try:
                    announce(self.layout, self.events, manifest)
                except StorageError:
                    continue
                missed += 1
            self._seen.add(name)
        return missed

    def _recent(self) -> list[str]:
        """Return results of the last day whose announcement is overdue."""
        now = utc_now()
        last = now - timedelta(seconds=self.every / 2)
        first = max(now - timedelta(seconds=self.back), self._remembered_since(now))
        entries = self._catalogue.entries(ResultFilter(created_from=first, created_to=last))
        found = [entry.id for entry in entries]
        self._seen &= set(found)
        return found

    def _remembered_since(self, now: datetime) -> datetime:
        """Return since when Redis has recorded announcements; a marker file reveals lost records."""
        redis, marker = self.events.redis, self.layout.announced_file
        key = self.events.keys.once("announcements-since")
        kept: Any = redis.get(key)
        if kept is None:
            lost = marker.exists()
            if lost:
                log.warning("redis lost its data", announced="results from now on")
            redis.set(key, (now if lost else _EVER).isoformat(), nx=True)
            kept = redis.get(key)
        with suppress(OSError):  # disk full
            marker.touch()
        return datetime.fromisoformat(str(kept))


_MAY_PASS = (OSError, StorageError, RedisError)


@shared_task(
    name=ANNOUNCE_RESULT,
    bind=True,
    autoretry_for=_MAY_PASS,
    retry_backoff=5,
    retry_backoff_max=300,
    retry_jitter=True,
    max_retries=5,
    throws=_MAY_PASS,
)
def announce_result_task(self: "Task[Any, Any]", analysis_id: str, version: int) -> None:
    """Announce a new result; Celery retries with back-off, and the scheduler finds what is left."""
    runtime: Runtime = self.app.runtime
    if version != MESSAGE_VERSION:
        log.error("message refused", id=analysis_id, version=version)
        return
    try:
        manifest = read_manifest(runtime.layout, analysis_id)
    except StorageError as error:  # deleted meanwhile: a retry is pointless
        log.warning("not announced", id=analysis_id, reason=error.message)
        return
    with _for_the_job_of(runtime, manifest):
        try:
            announce(runtime.layout, runtime.stores.events, manifest)
        except _MAY_PASS as error:
            log.warning("not announced", id=analysis_id, reason=str(error))
            traces.failed(manifest.job_id, type(error).__name__, str(error))
            raise
        log.info("announced", id=analysis_id)
    delay = (utc_now() - manifest.created).total_seconds()
    runtime.measures.announced.observe(max(0.0, delay))


def _for_the_job_of(runtime: Runtime, manifest: AnalysisManifest) -> AbstractContextManager[None]:
    """Return a context that continues the trace of a result's job, if its record still exists."""
    try:
        job = runtime.stores.jobs.find(manifest.job_id)
    except RedisError:
        return nullcontext()
    attributes = {"appa.analysis": manifest.id}
    return traces.task_spans(ANNOUNCE_RESULT, job, **attributes) if job else nullcontext()
