"""Compact hours of the store: merge their small files into one, soon after they were written.

Readers see either the old files of an hour or the new one, never both. Small bulletins arrive several
times a second and each commit writes a file, so that an hour has many files long before it is over:
`SmallFileMerger` counts the new files of each hour from the commit logs, and merges an hour once it
has too many. It has no persistent state: a new one counts the files of recent hours once.
"""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from model.domain.errors import StorageError
from worker.contract.buckets import BucketUnavailable
from worker.contract.records import utc_now
from worker.observations.columns import time_column
from worker.observations.store.commits import commit_hour
from worker.observations.store.files import (
    Compaction,
    StoredFile,
    StoreFiles,
    hour_of,
    parse_name,
    partition_path,
)
from worker.observations.store.query import read_files
from worker.observations.store.store import encode_rows, remove_files, write_file

__all__ = [
    "CompactionReport",
    "MergeReport",
    "SmallFileMerger",
    "compact",
    "compact_hour",
    "sweep_hour",
    "sweep_unpublished",
]


@dataclass
class CompactionReport:
    """Counts of a compaction: hours rewritten, files read and removed, rows kept."""

    hours: int = 0
    files_before: int = 0
    files_removed: int = 0
    rows: int = 0


def compact(
    files: StoreFiles,
    start: datetime,
    end: datetime,
    *,
    min_files: int = 4,
    grace: timedelta = timedelta(minutes=15),
) -> CompactionReport:
    """Compact every hour of [start, end] that has at least `min_files` files.

    Arguments:
        files: The store. Only one compaction may run at a time; a second one stops with an error.
        start: First hour.
        end: Last hour.
        min_files: Hours with fewer files are not compacted.
        grace: Age of the replacement at which replaced files are removed, so that readers who have
            listed them can finish.
    """
    report = CompactionReport()
    for hour in files.hours(hour_of(start), end):
        report.files_removed += sweep_hour(files, hour, grace) + sweep_unpublished(files, hour)
        if len(files.visible(hour).paths) >= min_files:
            compaction = compact_hour(files, hour)
            report.hours += 1
            report.files_before += len(compaction.replaces)
            report.rows += compaction.file.rows
            report.files_removed += sweep_hour(files, hour, grace)
    return report


def compact_hour(files: StoreFiles, hour: datetime) -> Compaction:
    """Merge the published files of one hour; the compaction manifest switches readers over.

    A crash before the manifest leaves a file that readers ignore; the next run replaces it.

    Raises:
        StorageError: If another compaction of the same hour won.
    """
    folder = partition_path(hour)
    names = files.names(folder)
    previous = files.compaction(hour, names)
    paths = files.visible(hour).paths
    table = read_files(files, paths)
    table = table.take(np.argsort(time_column(table), kind="stable"))
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
    write_file(files, compaction.file.path, content)
    manifest = f"{folder}/_compaction-{generation:06d}.json"
    try:
        text = compaction.model_dump_json(indent=1).encode()
        write_file(files, manifest, text, exclusive=True)
    except BucketUnavailable:  # it may have been written nevertheless
        raise
    except StorageError:
        # Read it by name: the listing on which we lost may not show it yet. Its file may have the
        # same name as ours, because the rows are the same.
        if compaction.file.path not in (files.read_text(manifest) or ""):
            remove_files(files, [compaction.file.path])
        raise
    return compaction


def sweep_hour(files: StoreFiles, hour: datetime, grace: timedelta) -> int:
    """Remove files replaced by a compaction older than `grace`; return their number."""
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
    remove_files(files, replaced)
    remove_files(files, older)
    return len(replaced)


_ORPHANED = timedelta(days=1)


def sweep_unpublished(files: StoreFiles, hour: datetime) -> int:
    """Remove files of commits that were never published, a day after they were written."""
    folder, removed = partition_path(hour), 0
    for name in files.names(folder):
        parsed = parse_name(name)
        if parsed is None or commit_hour(parsed[1]) is None:
            continue
        if files.owned(folder, name, parsed[1]) is not None:
            continue
        written = files.place.written(f"{folder}/{name}")
        if written is not None and utc_now() - written > _ORPHANED:
            remove_files(files, [f"{folder}/{name}"])
            removed += 1
    return removed


_RECENT = timedelta(hours=2)
"""Age up to which logs may still grow: retries are logged in the hour of their batch's id."""


@dataclass
class MergeReport:
    """Counts of one turn: hours merged, files that were merged, files removed."""

    hours: int = 0
    files_merged: int = 0
    files_removed: int = 0


@dataclass
class SmallFileMerger:
    """Merge hours with many new files: call `turn` every few seconds.

    Attributes:
        files: The store.
        max_files: Maximum number of new files of an hour.
        grace: Time that merged files stay, for readers that have listed them.
        turn_seconds: Maximum duration of one turn; the next one continues.
        look_back: How far back files are counted at the first turn, by observation time.
    """

    files: StoreFiles
    max_files: int = 24
    grace: timedelta = timedelta(minutes=2)
    turn_seconds: float = 10.0
    look_back: timedelta = timedelta(hours=72)
    _seen: dict[str, int] = field(default_factory=dict)
    _gained: Counter[datetime] = field(default_factory=Counter)
    _merged: dict[datetime, float] = field(default_factory=dict)
    _started: bool = False

    def turn(self) -> MergeReport:
        """Merge the hours with too many files, fullest first; remove files merged before."""
        report, end = MergeReport(), time.monotonic() + self.turn_seconds
        if not self._started:
            self._count_present()
        self._count_new()
        for hour, gained in self._gained.most_common():
            if gained < self.max_files or time.monotonic() > end:
                break
            self._merge(hour, report)
        for hour, since in list(self._merged.items()):
            if time.monotonic() - since > self.grace.total_seconds():
                report.files_removed += sweep_hour(self.files, hour, self.grace)
                report.files_removed += sweep_unpublished(self.files, hour)
                del self._merged[hour]
        return report

    def _merge(self, hour: datetime, report: MergeReport) -> None:
        try:
            compaction = compact_hour(self.files, hour)
        except StorageError:  # another was faster, or disk full: retry later
            self._gained[hour] //= 2
            raise
        report.hours += 1
        report.files_merged += len(compaction.replaces)
        self._gained[hour] = 0
        self._merged.setdefault(hour, time.monotonic())

    def _count_present(self) -> None:
        """Count the files of the recent hours, once."""
        now = datetime.now(UTC)
        for log in self.files.logs(now - _RECENT):
            self._seen[log.name] = len(log.commits())
        for hour in self.files.existing(hour_of(now - self.look_back), hour_of(now)):
            names = self.files.names(partition_path(hour))
            compaction = self.files.compaction(hour, names)
            merged = set() if compaction is None else {*compaction.replaces}
            loose = sum(name not in merged and parse_name(name) is not None for name in names)
            self._gained[hour] = loose - (compaction is not None)
            if compaction is not None:
                self._merged[hour] = time.monotonic()
        self._started = True

    def _count_new(self) -> None:
        logs = list(self.files.logs(datetime.now(UTC) - _RECENT))
        for log in logs:
            commits = log.commits()
            for commit in commits[self._seen.get(log.name, 0) :]:
                self._gained.update(commit.hours)
            self._seen[log.name] = len(commits)
        for path in self._seen.keys() - {log.name for log in logs}:
            del self._seen[path]
