"""Index the published analyses: read from their manifests and kept in memory."""

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import ValidationError

from model.domain.errors import StorageError
from service.errors import NotFound
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, ManifestFile, read_manifest

log = structlog.get_logger()


def sort_key(manifest: AnalysisManifest) -> str:
    """Sorts by valid time, then revision, then creation; as text it serves as a cursor."""
    times = f"{manifest.valid_time:%Y%m%dT%H%M%S}_{manifest.revision:06d}"
    return f"{times}_{manifest.created:%Y%m%dT%H%M%S%f}_{manifest.id}"


class Wanted(Protocol):
    """A question to the index."""

    def accepts(self, manifest: AnalysisManifest) -> bool:
        """Whether `manifest` is wanted."""
        ...


@dataclass(frozen=True)
class AnalysisFilter:
    """Which analyses are wanted; None and empty mean all."""

    kind: str | None = None
    flavour: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None

    def accepts(self, manifest: AnalysisManifest) -> bool:
        """Whether `manifest` is wanted."""
        return (
            (self.kind is None or manifest.kind == self.kind)
            and (self.flavour is None or manifest.flavour == self.flavour)
            and (self.valid_from is None or manifest.valid_time >= self.valid_from)
            and (self.valid_to is None or manifest.valid_time <= self.valid_to)
        )


class AnalysisIndex:
    """Published analyses, newest valid time first. Safe to use from several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._manifests: dict[str, AnalysisManifest] = {}
        self._order: list[str] = []
        self._waiting: set[str] = set()
        self._stamps: dict[str, int] = {}
        self._stamp: int | None = None

    def find(self, analysis_id: str) -> AnalysisManifest | None:
        """The manifest of a published analysis, or None."""
        if analysis_id not in self._manifests:
            self._refresh()
        known = self._manifests.get(analysis_id)
        if known is None:
            return None
        stamp = self._time_of(analysis_id)
        if not stamp:
            return None
        return known if stamp == self._stamps.get(analysis_id) else self._again(known)

    def get(self, analysis_id: str) -> AnalysisManifest:
        """The manifest of a published analysis.

        Raises:
            NotFound: If there is none.
        """
        manifest = self.find(analysis_id)
        if manifest is None:
            raise NotFound(
                f"Expected the id of a published analysis; got '{analysis_id}'. "
                "List them with GET /v1/analyses.",
                analysis_id=analysis_id,
            )
        return manifest

    def file(self, analysis_id: str, name: str) -> tuple[ManifestFile, Path]:
        """A published file and where it lies; only files that a manifest lists are found.

        Raises:
            NotFound: If there is no such analysis or file.
        """
        manifest = self.get(analysis_id)
        for entry in manifest.files:
            if entry.name == name:
                return entry, self._layout.analysis_file(analysis_id, name)
        names = ", ".join(f.name for f in manifest.files) or "none"
        raise NotFound(f"Expected a file of '{analysis_id}'; got '{name}'. Its files: {names}.")

    def select(self, wanted: Wanted, cursor: str | None, limit: int) -> "AnalysisPage":
        """A page of the analyses that `wanted` accepts, after `cursor`."""
        found = self._all(wanted)
        rest = [m for m in found if cursor is None or sort_key(m) < cursor]
        page = rest[:limit]
        return AnalysisPage(page, sort_key(page[-1]) if len(rest) > limit else None, len(found))

    def latest(self, wanted: Wanted) -> AnalysisManifest | None:
        """The newest wanted analysis: latest valid time, then highest revision."""
        return next(iter(self._all(wanted)), None)

    def _all(self, wanted: Wanted) -> list[AnalysisManifest]:
        self._refresh()
        manifests = self._manifests
        found = (manifests.get(i) for i in self._order)
        return [m for m in found if m is not None and wanted.accepts(m)]

    def _refresh(self) -> None:
        with self._lock:
            try:
                stamp = self._layout.analyses.stat().st_mtime_ns
            except FileNotFoundError:
                self._manifests, self._order, self._stamp = {}, [], None
                return
            if stamp != self._stamp:
                present = {entry.name for entry in self._layout.analyses.iterdir()}
                gone = self._manifests.keys() - present
                gone |= {i for i in self._manifests if self._stamps.get(i) != self._time_of(i)}
                # New dictionaries: other threads may be reading the old ones.
                self._manifests = {i: m for i, m in self._manifests.items() if i not in gone}
                self._stamps = {i: s for i, s in self._stamps.items() if i not in gone}
                self._waiting = present - self._manifests.keys()
                # A change within the clock's tick after this listing would leave the same stamp.
                self._stamp = stamp if time.time_ns() - stamp > 1_000_000_000 else None
            read = {i: m for i in self._waiting if (m := self._read(i)) is not None}
            self._waiting -= read.keys()
            if read or len(self._order) != len(self._manifests):
                self._manifests = {**self._manifests, **read}
                newest_first = sorted(self._manifests.values(), key=sort_key, reverse=True)
                self._order = [m.id for m in newest_first]

    def _again(self, known: AnalysisManifest) -> AnalysisManifest:
        with self._lock:
            manifest = self._read(known.id) or known
            self._manifests = {**self._manifests, known.id: manifest}
            return manifest

    def _time_of(self, name: str) -> int:
        """When the manifest was written; 0 if there is none."""
        try:
            return self._layout.manifest(name).stat().st_mtime_ns
        except OSError:
            return 0

    def _read(self, name: str) -> AnalysisManifest | None:
        try:
            stamp = self._time_of(name)
            if not stamp:
                return None
            self._stamps[name] = stamp  # of before reading: a change since is seen next time
            manifest = read_manifest(self._layout, name)
        except (ValidationError, ValueError, OSError, StorageError) as error:
            log.warning("manifest_unreadable", analysis_id=name, error=str(error)[:300])
            return None
        return manifest if manifest.id == name else None


@dataclass(frozen=True)
class AnalysisPage:
    """Some analyses, newest first."""

    items: list[AnalysisManifest]
    next_cursor: str | None
    total: int
