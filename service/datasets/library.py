"""The data sets that are open: found by analysis id or by a `latest-…` name, bounded, closed in time."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from service.analysis_index import AnalysisFilter, AnalysisIndex
from service.datasets.opening import OpenDataset, open_file
from service.errors import NotFound
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, ManifestFile

log = structlog.get_logger()

LATEST: dict[str, AnalysisFilter] = {
    "latest-filtering": AnalysisFilter("filtering"),
    "latest-early": AnalysisFilter("filtering", "early"),
    "latest-final": AnalysisFilter("filtering", "final"),
    "latest-forecast": AnalysisFilter("forecast"),
    "latest-reanalysis": AnalysisFilter("reanalysis"),
}
"""Names that move on to the newest analysis of their kind."""

_SUFFIXES = (".nc", ".zarr.zip")


def data_file(manifest: AnalysisManifest) -> ManifestFile | None:
    """The file that is served as a data set: NetCDF where there is one, else zarr."""
    for suffix in _SUFFIXES:
        for file in manifest.files:
            if file.role == "data" and file.name.endswith(suffix):
                return file
    return None


@dataclass
class _Held:
    dataset: OpenDataset
    used: float


class DatasetLibrary:
    """Open data sets of published analyses. Safe to use from several threads.

    Arguments:
        analyses: What is published.
        layout: The data folder.
        capacity: Data sets held open at once.
        idle_seconds: One that nobody asked for so long is closed.
    """

    def __init__(
        self,
        analyses: AnalysisIndex,
        layout: Layout,
        *,
        capacity: int = 16,
        idle_seconds: float = 300.0,
    ) -> None:
        self._analyses = analyses
        self._layout = layout
        self._capacity = capacity
        self._idle = idle_seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def names(self) -> list[str]:
        """All ids, newest first, after the names that move."""
        found = [m for m in self._matching(AnalysisFilter()) if data_file(m)]
        moving = [name for name, wanted in LATEST.items() if any(map(wanted.accepts, found))]
        return moving + [m.id for m in found]

    def resolve(self, name: str) -> str:
        """The analysis id that `name` stands for now.

        Raises:
            NotFound: If no analysis of that kind is published.
        """
        wanted = LATEST.get(name)
        if wanted is None:
            return name
        for manifest in self._matching(wanted):
            if data_file(manifest):
                return manifest.id
        raise NotFound(f"Expected a published analysis for '{name}'; there is none yet.")

    def get(self, name: str) -> OpenDataset:
        """The data set of an analysis.

        Raises:
            NotFound: If there is no such analysis, or it has no NetCDF or zarr file.
            StorageError: If its file cannot be read.
        """
        analysis_id = self.resolve(name)
        manifest = self._analyses.get(analysis_id)
        file = data_file(manifest)
        if file is None:
            raise NotFound(
                f"Expected an analysis with a NetCDF or zarr file; '{analysis_id}' has "
                f"{', '.join(f.name for f in manifest.files) or 'no file'}. Ask for the output "
                "`netcdf` when submitting the job.",
                analysis_id=analysis_id,
            )
        with self._lock:
            held = self._held.get(analysis_id)
            if held is None:
                path = self._layout.analysis_file(analysis_id, file.name)
                held = self._held[analysis_id] = _Held(open_file(path, analysis_id), 0.0)
            held.used = time.monotonic()
            self._held.move_to_end(analysis_id)
            while len(self._held) > self._capacity:
                self._close(next(iter(self._held)))
            return held.dataset

    def sweep(self) -> int:
        """Closes what is deleted or idle, so that deleted files free their space; returns how many."""
        with self._lock:
            now = time.monotonic()
            done = [
                name
                for name, held in self._held.items()
                if now - held.used > self._idle or not self._layout.manifest(name).exists()
            ]
            for name in done:
                self._close(name)
            return len(done)

    def close(self) -> None:
        """Closes all."""
        with self._lock:
            for name in list(self._held):
                self._close(name)

    def _close(self, name: str) -> None:
        try:
            self._held.pop(name).dataset.close()
        except (OSError, RuntimeError) as error:
            log.warning("dataset_not_closed", analysis_id=name, error=str(error))

    def _matching(self, wanted: AnalysisFilter) -> list[AnalysisManifest]:
        return self._analyses.select(wanted, None, 1_000_000).items
