"""Making a result visible: all of it or nothing, once, by the newest attempt only.

The folder is complete, with its manifest written last, before it gets its public name; giving it
that name is one rename. A worker that was taken for dead and comes back is stopped by the gate in
the job store, or, should it have passed the gate before, by the name being taken.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from worker.jobs.job import JobRecord, Phase
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, describe_file
from worker.jobs.store import JobStore
from worker.progress import ProgressReporter

__all__ = ["publish", "staging_folder", "sync_folder", "write_manifest"]

log = structlog.get_logger()


@contextmanager
def staging_folder(job: JobRecord, layout: Layout) -> Iterator[Path]:
    """An empty folder for the files of this attempt, removed unless it was published.

    Leftovers of earlier attempts, which died, are removed, too.
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
    """Writes `manifest.json` after checking that the files it names are as it says.

    Raises:
        OSError: If a file cannot be read or the disk is full.
    """
    for file in manifest.files:
        with (folder / file.name).open("rb+") as stream:
            os.fsync(stream.fileno())
        found = describe_file(folder / file.name, file.role)
        if found.sha256 != file.sha256:
            raise OSError(errno.EIO, f"file changed after it was written: {file.name}")
    path = folder / "manifest.json"
    with path.open("w") as stream:
        stream.write(manifest.model_dump_json(indent=2))
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(folder)


def publish(
    job: JobRecord, store: JobStore, layout: Layout, staging: Path, progress: ProgressReporter
) -> None:
    """Gives the finished folder its public name.

    Raises:
        LeaseLost: If a newer attempt holds the job.
        MoveRefused: If the job is being cancelled.
    """
    progress.phase(Phase.PUBLISHING)
    store.open_gate(job.id, job.token)
    target = layout.analysis(job.analysis_id)
    try:
        staging.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # an earlier attempt published and died before it could say so
        log.info("already published", id=job.id, analysis=job.analysis_id)
        with suppress(OSError):
            shutil.rmtree(staging)
    sync_folder(layout.analyses)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
