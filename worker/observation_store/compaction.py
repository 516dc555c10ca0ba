"""Many small files of an hour become one; readers see the old ones or the new one, never both."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from model.domain.errors import StorageError
from worker.columns import times
from worker.jobs.observation_files import StoreFiles, hour_of, parse_name, partition_path
from worker.jobs.observation_manifests import Compaction, StoredFile
from worker.jobs.observation_query import read_files
from worker.observation_store.atomic import put
from worker.observation_store.publish import encode_rows

__all__ = ["CompactionReport", "compact", "compact_hour", "sweep_hour"]


@dataclass
class CompactionReport:
    """What a compaction did: hours rewritten, files read, written and removed, rows kept."""

    hours: int = 0
    files_before: int = 0
    files_removed: int = 0
    rows: int = 0


def compact(
    files: StoreFiles,
    start: datetime,
    end: datetime,
    *,
    least_files: int = 4,
    grace: timedelta = timedelta(minutes=15),
) -> CompactionReport:
    """Compacts every hour of [start, end] that has at least `least_files` files.

    Arguments:
        files: The store. Only one compaction may run at a time; a second one stops with an error.
        start, end: Of the hours.
        least_files: Hours with fewer files are left as they are.
        grace: Replaced files are removed when their replacement is at least this old, so that
            readers who have listed them can finish.
    """
    report = CompactionReport()
    for hour in files.hours(hour_of(start), end):
        report.files_removed += sweep_hour(files, hour, grace)
        if len(files.visible(hour).paths) >= least_files:
            compaction = compact_hour(files, hour)
            report.hours += 1
            report.files_before += len(compaction.replaces)
            report.rows += compaction.file.rows
            report.files_removed += sweep_hour(files, hour, grace)
    return report


def compact_hour(files: StoreFiles, hour: datetime) -> Compaction:
    """Merges the published files of one hour; the compaction manifest switches readers over.

    A crash before the manifest leaves a file that nobody reads; the next run replaces it.

    Raises:
        StorageError: If another compaction of the same hour won.
    """
    folder = partition_path(hour)
    names = files.names(folder)
    previous = files.compaction(hour, names)
    paths = files.visible(hour).paths
    table = read_files(files, paths)
    table = table.take(np.argsort(times(table), kind="stable"))
    content = encode_rows(table)
    digest = hashlib.sha256(content).hexdigest()
    generation = 1 if previous is None else previous.generation + 1
    arrival = min(parsed[0] for path in paths if (parsed := parse_name(path.rsplit("/", 1)[1])))
    name = f"{arrival:%Y%m%dT%H%M%S%fZ}__compacted-{generation:06d}__{digest[:16]}.parquet"
    still_there = set(names) & set(() if previous is None else previous.replaces)
    compaction = Compaction(
        generation=generation,
        created=datetime.now(UTC),
        file=StoredFile(path=f"{folder}/{name}", rows=len(table), sha256=digest),
        replaces=tuple(sorted(still_there | {path.rsplit("/", 1)[1] for path in paths})),
        batches=tuple(sorted(table["batch_id"].unique().to_pylist())),
    )
    put(files, compaction.file.path, content)
    try:
        manifest = compaction.model_dump_json(indent=1).encode()
        put(files, f"{folder}/_compaction-{generation:06d}.json", manifest, exclusive=True)
    except StorageError:
        winner = files.compaction(hour)
        if winner is None or winner.file.path != compaction.file.path:
            _remove(files, [compaction.file.path])
        raise
    return compaction


def sweep_hour(files: StoreFiles, hour: datetime, grace: timedelta) -> int:
    """Removes files that a compaction older than `grace` has replaced; returns how many."""
    folder = partition_path(hour)
    names = files.names(folder)
    compaction = files.compaction(hour, names)
    if compaction is None or datetime.now(UTC) - compaction.created < grace:
        return 0
    replaced = [f"{folder}/{name}" for name in compaction.replaces if name in names]
    older = [
        f"{folder}/{name}"
        for name in names
        if name.startswith("_compaction-") and name < f"_compaction-{compaction.generation:06d}"
    ]
    _remove(files, replaced)
    _remove(files, older)
    return len(replaced)


def _remove(files: StoreFiles, paths: list[str]) -> None:
    for path in paths:
        try:
            files.filesystem.rm_file(files.path(path))
        except FileNotFoundError:
            continue
