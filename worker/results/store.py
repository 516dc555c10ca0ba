"""Provide storage backends for published results: the data folder, or a bucket.

All code that publishes, reads or deletes results uses `result_store(layout)`. In the data folder a
result is a folder, and publication is one rename. In a bucket (`worker.results.bucket`) its files are
objects, and publication is one conditional write of its manifest. Both maintain a folder of manifests,
`Layout.analyses`, from which the catalogue is built.
"""

import errno
import importlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from model.domain.files import sync_folder, write_atomic
from worker.contract import traces
from worker.contract.layout import Layout

if TYPE_CHECKING:
    from worker.results.manifest import AnalysisManifest, ManifestFile

__all__ = [
    "FolderStore",
    "PublishOutcome",
    "Read",
    "ResultStore",
    "result_store",
    "take_into",
]

Read = Callable[[int, int], Iterator[bytes]]
"""Function that returns the bytes of a file from the first to the last position, both included."""


class PublishOutcome(StrEnum):
    """Result of an attempt to publish."""

    PUBLISHED = "published"
    ALREADY_PUBLISHED = "already published"


class ResultStore(Protocol):
    """Store in which results are published, and from which they are read."""

    def prepare(self, staging: Path) -> None:
        """Move the files of a finished folder to their destination, not visible yet.

        Raises:
            BucketUnavailable: Nothing is visible; may be retried.
        """

    def publish(self, staging: Path, analysis_id: str) -> PublishOutcome:
        """Make a prepared result visible atomically, unless another attempt has published it.

        Raises:
            BucketUnavailable: It may be visible or not; may be retried.
        """

    def refresh(self, *, now: bool = False) -> None:
        """Synchronise the folder of manifests with the published results; soon, or `now`.

        Raises:
            BucketUnavailable: Only `now`.
        """

    def fetch_manifest(self, analysis_id: str) -> bool:
        """Fetch the manifest of a result into that folder; return whether it is published."""

    def file(self, analysis_id: str, name: str) -> Path:
        """Return the local path of a file of a result; the path does not exist if there is no such file.

        Raises:
            BucketUnavailable: If it cannot be fetched now.
        """

    def remote(self, analysis_id: str, file: "ManifestFile") -> Read | None:
        """Return a function that reads a file from the bucket; None if it is on this machine."""

    def stored_bytes(self, analysis_id: str, file: "ManifestFile") -> int | None:
        """Return the size of a file in its store; None if it is missing."""

    def size(self, analysis_id: str) -> int:
        """Return the bytes that deleting a result would free."""

    def replace_manifest(self, manifest: "AnalysisManifest") -> None:
        """Replace the manifest of a published result atomically."""

    def remove_files(self, analysis_id: str, files: "list[ManifestFile]") -> None:
        """Delete files of a result that its manifest no longer lists."""

    def unpublish(self, analysis_id: str) -> bool:
        """Unpublish a result; return whether it was published."""

    def republish(self, analysis_id: str) -> None:
        """Republish a result that was just hidden."""

    def delete_hidden(self, analysis_id: str) -> None:
        """Delete the files of a hidden result."""

    def sweep(self, older_than: float) -> int:
        """Delete leftovers of dead attempts older than this many seconds; return their number."""


def take_into(layout: Layout, staging: Path, analysis_id: str) -> bool:
    """Rename a finished folder into the folder of results; return False if its name is taken.

    Raises:
        OSError: If the disk fails.
    """
    try:
        staging.rename(layout.analysis(analysis_id))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with suppress(OSError):
            shutil.rmtree(staging)
        return False
    with traces.step("sync folder"):
        sync_folder(layout.analyses)
    return True


class FolderStore:
    """Results as folders of the data folder, published by renaming complete folders."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def prepare(self, staging: Path) -> None:
        return None

    def publish(self, staging: Path, analysis_id: str) -> PublishOutcome:
        new = take_into(self.layout, staging, analysis_id)
        return PublishOutcome.PUBLISHED if new else PublishOutcome.ALREADY_PUBLISHED

    def refresh(self, *, now: bool = False) -> None:
        return None

    def fetch_manifest(self, analysis_id: str) -> bool:
        return self.layout.manifest(analysis_id).exists()

    def file(self, analysis_id: str, name: str) -> Path:
        return self.layout.analysis_file(analysis_id, name)

    def remote(self, analysis_id: str, file: "ManifestFile") -> Read | None:
        return None

    def stored_bytes(self, analysis_id: str, file: "ManifestFile") -> int | None:
        path = self.layout.analysis_file(analysis_id, file.name)
        return path.stat().st_size if path.is_file() else None

    def size(self, analysis_id: str) -> int:
        folder = self.layout.analysis(analysis_id)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def replace_manifest(self, manifest: "AnalysisManifest") -> None:
        write_atomic(self.layout.manifest(manifest.id), manifest.model_dump_json(indent=2))
        os.utime(self.layout.analyses)  # makes catalogues rescan manifests

    def remove_files(self, analysis_id: str, files: "list[ManifestFile]") -> None:
        for file in files:
            self.layout.analysis_file(analysis_id, file.name).unlink(missing_ok=True)

    def unpublish(self, analysis_id: str) -> bool:
        try:
            self.layout.analysis(analysis_id).rename(self.layout.hidden(analysis_id))
        except FileNotFoundError:
            return False
        sync_folder(self.layout.analyses)
        return True

    def republish(self, analysis_id: str) -> None:
        self.layout.hidden(analysis_id).rename(self.layout.analysis(analysis_id))
        sync_folder(self.layout.analyses)

    def delete_hidden(self, analysis_id: str) -> None:
        shutil.rmtree(self.layout.hidden(analysis_id), ignore_errors=True)

    def sweep(self, older_than: float) -> int:
        return 0  # leftovers are in `tmp`, for both kinds of store


_opening = threading.Lock()


def result_store(layout: Layout) -> ResultStore:
    """Return the result store of an installation: one object for each process.

    Raises:
        ConfigurationError: If they lie in a bucket, and the extra `objects` is not installed.
    """
    with _opening:
        return _open(layout, os.getpid())


@lru_cache(maxsize=8)
def _open(layout: Layout, process: int) -> ResultStore:
    """Open a store; the client of a bucket does not survive a fork."""
    if not layout.results_url:
        return FolderStore(layout)
    store: ResultStore = importlib.import_module("worker.results.bucket").BucketStore(layout)
    return store
