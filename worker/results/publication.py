"""Publish a result: all of it or nothing, once, by the newest attempt only.

The folder is complete, with its manifest written last, before it gets its public name, which is
one rename. A worker that was taken for dead and comes back is stopped by the gate in the job
store, or, should it have passed the gate before, by the name being taken. Staging folders of
workers that died are swept once they are old.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from model.domain.files import sync_folder, write_atomic
from worker.contract import traces
from worker.contract.jobs import JobRecord, JobStore, Phase
from worker.contract.layout import Layout
from worker.lease import ProgressReporter
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest

__all__ = [
    "publish",
    "replace_manifest",
    "staging_folder",
    "sweep_leftovers",
    "update_latest",
    "write_manifest",
]

log = structlog.get_logger()


@contextmanager
def staging_folder(job: JobRecord, layout: Layout) -> Iterator[Path]:
    """Provide an empty folder for the files of this attempt; removed unless it was published.

    Leftovers of earlier attempts, which died, are removed as well.
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


def replace_manifest(layout: Layout, manifest: AnalysisManifest) -> None:
    """Replace the manifest of a published result atomically."""
    write_atomic(layout.manifest(manifest.id), manifest.model_dump_json(indent=2))
    os.utime(layout.analyses)  # catalogues look at manifests again when the folder was touched


def publish(
    job: JobRecord, store: JobStore, layout: Layout, staging: Path, progress: ProgressReporter
) -> None:
    """Rename the finished folder to its public name.

    Raises:
        LeaseLost: If a newer attempt holds the job.
        MoveRefused: If the job is being cancelled.
    """
    progress.phase(Phase.PUBLISHING)
    with traces.step("open gate"):
        store.open_gate(job.id, job.token)
    target = layout.analysis(job.analysis_id)
    try:
        staging.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # an earlier attempt published and died before it could report success
        log.info("already published", id=job.id, analysis=job.analysis_id)
        with suppress(OSError):
            shutil.rmtree(staging)
    with traces.step("sync folder"):
        sync_folder(layout.analyses)


_STAGING = re.compile(r"an-.*\.\d+")


def sweep_leftovers(layout: Layout, older_than: float = 86_400.0) -> int:
    """Remove staging folders untouched for `older_than` seconds; return how many.

    The time must be longer than any job, for a folder belongs to a job while it runs.
    """
    removed = 0
    for folder in layout.tmp.iterdir():
        try:
            if _STAGING.fullmatch(folder.name) and time.time() - _touched(folder) > older_than:
                shutil.rmtree(folder)
                log.info("leftover removed", folder=folder.name)
                removed += 1
        except FileNotFoundError:  # its own job was quicker
            continue
    return removed


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def update_latest(layout: Layout) -> bool:
    """Write the newest results to `latest.json`; return whether that changed anything.

    Newer is a later valid time, then a higher revision, then a later end of the job.
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
