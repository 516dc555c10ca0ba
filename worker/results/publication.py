"""Publish a result atomically, once, and only by the newest attempt.

The folder is complete, with its manifest written last, before it is published: by one rename in the
data folder, by one conditional write of the manifest in a bucket (`worker.results.store`). A worker
that lost its lease and resumes is stopped by the fencing token in the job store
(`begin_publication`), or, if it had passed that before, because the name is taken. Leftovers of dead
workers are swept after a day.

`latest.json` in the data folder names the newest results, for programs that read files: an entry
for each kind (`filtering`), and one for each kind and flavour (`filtering/early`,
`filtering/final`), so that a reader who wants only final analyses is not given an early one.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from model.domain.files import file_digest, write_atomic
from worker.contract import traces
from worker.contract.buckets import BucketUnavailable
from worker.contract.jobs import JobRecord, JobStore, Phase
from worker.contract.layout import Layout
from worker.lease import ProgressReporter
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest, ManifestFile
from worker.results.store import PublishOutcome, result_store

__all__ = [
    "publish",
    "send_folders",
    "staging_folder",
    "sweep_leftovers",
    "update_latest",
    "write_manifest",
]

log = structlog.get_logger()
T = TypeVar("T")

PATIENCE_SECONDS = 900.0
"""Seconds for which publication is retried while a bucket is unavailable, so that no result is lost."""

MAX_PAUSE_SECONDS = 30.0


@contextmanager
def staging_folder(job: JobRecord, layout: Layout) -> Iterator[Path]:
    """Provide an empty folder for the files of this attempt; removed unless it was published.

    Leftovers of earlier attempts are removed as well.
    """
    for left in layout.tmp.glob(f"{job.analysis_id}.*"):
        if left.name != layout.staging(job.analysis_id, job.token).name:
            shutil.rmtree(left, ignore_errors=True)
    folder = layout.staging(job.analysis_id, job.token)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: AnalysisManifest) -> None:
    """Make the files of a result durable, then write its `manifest.json`.

    Sizes are compared with the manifest; the hashes in it are not computed again.

    Raises:
        OSError: If a file is missing or has another size, or the disk is full.
    """
    for file in manifest.files:
        with (folder / file.name).open("rb+") as stream:
            os.fsync(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            raise OSError(errno.EIO, f"file changed after it was written: {file.name}")
    write_atomic(folder / "manifest.json", manifest.model_dump_json(indent=2))


def publish(
    job: JobRecord,
    store: JobStore,
    layout: Layout,
    staging: Path,
    progress: ProgressReporter,
    patience: float = PATIENCE_SECONDS,
) -> PublishOutcome:
    """Make the finished folder visible under its public name, and return the outcome.

    Arguments:
        job: The claimed job.
        store: The job store; only the newest attempt passes `begin_publication`.
        layout: The data folder, and where results are published.
        staging: The folder with all files and the manifest.
        progress: Checked for a cancel while a bucket is unavailable.
        patience: Seconds for which an unavailable bucket is retried.

    Raises:
        LeaseLost: If a newer attempt holds the job.
        MoveRefused: If the job is being cancelled.
        BucketUnavailable: If a bucket stays unavailable; the job is retried later.
    """
    progress.phase(Phase.PUBLISHING)
    results = result_store(layout)
    _patiently(partial(results.prepare, staging), progress, patience)
    with traces.step("open gate"):
        store.begin_publication(job.id, job.token)
    outcome = _patiently(partial(results.publish, staging, job.analysis_id), progress, patience)
    if outcome is PublishOutcome.ALREADY_PUBLISHED:
        # an earlier attempt published and died before it could report success
        log.info("already published", id=job.id, analysis=job.analysis_id)
    return outcome


def _patiently(step: Callable[[], T], progress: ProgressReporter, patience: float) -> T:
    """Return what `step` returns, with retries while the bucket is unavailable."""
    end, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return step()
        except BucketUnavailable as error:
            if time.monotonic() >= end:
                raise
            log.warning("waits for the storage of results", reason=error.message)
        until = time.monotonic() + pause
        while time.monotonic() < until:
            progress.wait()
            time.sleep(0.2)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


def send_folders(layout: Layout) -> tuple[int, dict[str, str]]:
    """Move results published in the data folder to the bucket; idempotent.

    The local files become part of the cache of the bucket.

    Returns:
        Number of results sent, and the reason for each that was not.

    Raises:
        BucketUnavailable: If the bucket does not respond; results sent so far stay there.
        OSError: If the disk fails.
    """
    results, sent, left = result_store(layout), 0, dict[str, str]()
    for path in sorted(Layout(layout.root).analyses.glob("*/manifest.json")):
        folder, name = path.parent, path.parent.name
        manifest = AnalysisManifest.model_validate_json(path.read_bytes())
        changed = [file.name for file in manifest.files if not _is_whole(folder, file)]
        if changed:
            left[name] = f"not as its manifest says: {', '.join(changed)}"
            continue
        results.prepare(folder)
        if results.publish(folder, name) is PublishOutcome.ALREADY_PUBLISHED:
            left[name] = "another result of this name is in the bucket"
            continue
        shutil.rmtree(folder, ignore_errors=True)  # where it could not be moved
        sent += 1
    return sent, left


def _is_whole(folder: Path, file: ManifestFile) -> bool:
    path = folder / file.name
    return path.is_file() and file_digest(path) == file.sha256


_STAGING = re.compile(r"an-.*\.\d+")


def sweep_leftovers(layout: Layout, older_than: float = 86_400.0) -> int:
    """Remove leftovers of attempts, unchanged for `older_than` seconds; return their number.

    The time must be longer than any job, because the folder of a running job must stay.
    """
    removed = result_store(layout).sweep(older_than)
    for folder in layout.tmp.iterdir():
        try:
            if _STAGING.fullmatch(folder.name) and time.time() - _touched(folder) > older_than:
                shutil.rmtree(folder)
                log.info("leftover removed", folder=folder.name)
                removed += 1
        except FileNotFoundError:  # removed by its own job meanwhile
            continue
    return removed


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def update_latest(layout: Layout) -> bool:
    """Write the newest results to `latest.json`; return whether that changed anything.

    Results are ordered by valid time, then revision, then the end of the job.
    """
    path = layout.latest_file
    with (layout.root / ".latest.lock").open("w") as lock, Catalogue(layout) as catalogue:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = json.dumps(_latest_entries(catalogue), indent=1)
        if path.exists() and path.read_text() == text:
            return False
        write_atomic(path, text)
        return True


def _latest_entries(catalogue: Catalogue) -> dict[str, Any]:
    """Return the newest result by kind, and by kind and flavour."""
    found: dict[str, Any] = {}
    for kind, flavour in catalogue.kinds():
        name = f"{kind}/{flavour}" if flavour else kind
        wanted = ResultFilter(kind, flavour or None)
        if (manifest := catalogue.latest(wanted)) is not None:
            found[name] = _describe(manifest)
    return found


def _describe(manifest: AnalysisManifest) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "valid_time": manifest.valid_time.isoformat(),
        "revision": manifest.revision,
        "created": manifest.created.isoformat(),
        "flavour": manifest.flavour,
        "files": {file.name: {"sha256": file.sha256, "size": file.size} for file in manifest.files},
    }
