"""The events of published results, told when they are published and again if that was missed."""

import os
import time
from contextlib import suppress
from typing import Any

from model.domain.errors import StorageError
from worker.jobs.event_log import EventLog, EventType
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, read_manifest
from worker.jobs.verification_series import OUTSIDE_FLAG
from worker.latest import update_latest
from worker.verification.series import append_to_series

__all__ = ["MissedResults", "announce", "tell_published"]


def announce(layout: Layout, events: EventLog, manifest: AnalysisManifest) -> None:
    """Does all that follows from a published result; safe to run twice.

    Raises:
        OSError: If `latest.json` cannot be written.
        StorageError: If the series of verification cannot be.
    """
    update_latest(layout, manifest)
    append_to_series(layout, manifest)
    tell_published(events, manifest)


def tell_published(events: EventLog, manifest: AnalysisManifest) -> bool:
    """Tells of a published result, and of a cycle outside its limits; returns whether it was news."""
    about = describe(manifest)
    news = events.emit(EventType.ANALYSIS_PUBLISHED, manifest.id, about)
    if OUTSIDE_FLAG in manifest.flags:
        control = {"control": manifest.scores.get("control")}
        events.emit(EventType.CYCLE_OUTSIDE_LIMITS, manifest.id, about | control)
    return news


def describe(manifest: AnalysisManifest) -> dict[str, Any]:
    """What is told of a result: enough to decide whether to fetch it, and what."""
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
    """Finds results that nobody told of, because a process died in between.

    Arguments:
        layout: The data folder.
        events: What was told.
        every: Seconds between two looks.
        back: Results older than so many seconds are left alone.
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
        self._looked = float("-inf")
        self._seen: set[str] = set()

    def tick(self) -> int:
        """Looks once in a while; returns how many were missed."""
        if time.monotonic() - self._looked < self.every:
            return 0
        self._looked = time.monotonic()
        missed = 0
        for name in self._recent():
            if name in self._seen:
                continue
            if not self.events.told(EventType.ANALYSIS_PUBLISHED, name):
                try:
                    announce(self.layout, self.events, read_manifest(self.layout, name))
                except (StorageError, ValueError):
                    continue
                missed += 1
            self._seen.add(name)
        return missed

    def _recent(self) -> list[str]:
        """Results of the last day that are old enough to have been told of."""
        now, found = time.time(), []
        for entry in os.scandir(self.layout.analyses):
            with suppress(FileNotFoundError):  # deleted this moment
                age = now - entry.stat().st_mtime
                if self.every / 2 < age < self.back:
                    found.append(entry.name)
        self._seen &= set(found)
        return found
