"""Publish a result: all of it or nothing, once, by the newest attempt only.

The folder is complete, with its manifest written last, before it gets its public name, which is
one rename. A worker that was taken for dead and comes back is stopped by the gate in the job
store, or, should it have passed the gate before, by the name being taken. Staging folders of
workers that died are swept once they are old.

`latest.json` in the data folder names the newest results, for those who read files: an entry for
each kind (`filtering`), and one for each kind and flavour (`filtering/early`, `filtering/final`),
so that a reader who wants only final analyses is not given an early one.
"""

import errno
import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from model.domain.errors import StorageError
from model.domain.files import sync_file, sync_folder, write_atomic
from worker.contract.jobs import JobRecord, JobStore, Phase
from worker.contract.layout import Layout
from worker.lease import ProgressReporter
from worker.results.manifest import AnalysisManifest, describe_file, read_manifest

__all__ = [
    "publish",
    "renew_latest",
    "staging_folder",
    "sweep_leftovers",
    "update_latest",
    "write_manifest",
]

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
        sync_file(folder / file.name)
        found = describe_file(folder / file.name, file.role)
        if found.sha256 != file.sha256:
            raise OSError(errno.EIO, f"file changed after it was written: {file.name}")
    write_atomic(folder / "manifest.json", manifest.model_dump_json(indent=2))


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


_STAGING = re.compile(r"an-.*\.\d+")


def sweep_leftovers(layout: Layout, older_than: float = 86_400.0) -> int:
    """Removes staging folders untouched for `older_than` seconds; returns how many.

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


def update_latest(layout: Layout, manifest: AnalysisManifest) -> bool:
    """Replaces the entries of the result's kind and flavour that are older; whether one was.

    Newer is a later valid time, then a higher revision, then a later end of the job. An entry
    whose result was deleted counts as none.
    """
    path = layout.latest_file
    with _locked(layout) as entries:
        entry = _entry(manifest)
        names = _names(manifest)
        older = [name for name in names if _age(layout, entries.get(name)) < _age(None, entry)]
        if not older:
            return False
        _write(path, entries | dict.fromkeys(older, entry))
        return True


def renew_latest(layout: Layout) -> None:
    """Puts the newest result that is left in place of entries whose result was deleted."""
    with _locked(layout) as entries:
        gone = {name for name, e in entries.items() if not layout.manifest(e["id"]).exists()}
        if not gone:
            return
        left = {name: entry for name, entry in entries.items() if name not in gone}
        for path in layout.analyses.glob("*/manifest.json"):
            try:
                manifest = read_manifest(layout, path.parent.name)
            except (OSError, ValidationError, StorageError):
                continue
            for name in gone.intersection(_names(manifest)):
                entry = _entry(manifest)
                if _age(None, left.get(name)) < _age(None, entry):
                    left[name] = entry
        _write(layout.latest_file, left)


@contextmanager
def _locked(layout: Layout) -> Iterator[dict[str, Any]]:
    """The entries, while nobody else changes them."""
    with (layout.root / ".latest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = layout.latest_file
        yield json.loads(path.read_text()) if path.exists() else {}


def _names(manifest: AnalysisManifest) -> list[str]:
    flavoured = [f"{manifest.kind}/{manifest.flavour}"] if manifest.flavour else []
    return [manifest.kind, *flavoured]


def _entry(manifest: AnalysisManifest) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "valid_time": manifest.valid_time.isoformat(),
        "revision": manifest.revision,
        "created": manifest.created.isoformat(),
        "flavour": manifest.flavour,
        "files": {file.name: {"sha256": file.sha256, "size": file.size} for file in manifest.files},
    }


def _write(path: Path, entries: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(entries, indent=1))


def _age(layout: Layout | None, entry: dict[str, Any] | None) -> tuple[str, int, str]:
    """Sorts entries by age; with a layout, one whose result is gone is the oldest."""
    if entry is None or (layout is not None and not layout.manifest(entry["id"]).exists()):
        return "", 0, ""
    return str(entry["valid_time"]), int(entry["revision"]), str(entry["created"])
