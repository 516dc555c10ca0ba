"""Merge the small files of an hour soon after they came, so that reading it stays quick.

Small bulletins come several a second and leave a file a commit. The merger counts, from what was
appended to the logs of commits since its last turn, how many files each hour has gained, and
merges an hour once they are too many; `compact_hour` says why readers, crashes and queries of past
states are safe. It keeps nothing that matters: a new one counts the files of recent hours once.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from model.domain.errors import StorageError
from worker.observations.store.files import StoreFiles, hour_of, parse_name, partition_path
from worker.observations.store.store import compact_hour, sweep_hour, sweep_unpublished

__all__ = ["MergeReport", "SmallFileMerger"]

_RECENT = timedelta(hours=2)
"""Logs of so many hours may still grow: retries are told by the id of their first attempt."""


@dataclass
class MergeReport:
    """Counts of one turn: hours merged, files that were merged, files removed."""

    hours: int = 0
    files_merged: int = 0
    files_removed: int = 0


@dataclass
class SmallFileMerger:
    """Merges hours that have gained many files: call `turn` every few seconds.

    Attributes:
        files: The store.
        most_files: New files that an hour may have.
        grace: Merged files stay so long, for readers that have listed them.
        turn_seconds: Longest time of one turn; the next one goes on.
        look_back: How far back files are counted at the first turn, by the time observed.
    """

    files: StoreFiles
    most_files: int = 24
    grace: timedelta = timedelta(minutes=2)
    turn_seconds: float = 10.0
    look_back: timedelta = timedelta(hours=72)
    _seen: dict[str, int] = field(default_factory=dict)
    _gained: Counter[datetime] = field(default_factory=Counter)
    _merged: dict[datetime, float] = field(default_factory=dict)
    _started: bool = False

    def turn(self) -> MergeReport:
        """Merge the hours with too many files, fullest first, then remove what was merged before."""
        report, end = MergeReport(), time.monotonic() + self.turn_seconds
        if not self._started:
            self._count_present()
        self._count_new()
        for hour, gained in self._gained.most_common():
            if gained < self.most_files or time.monotonic() > end:
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
        except StorageError:  # another one was faster, or the disk is full: at a later turn
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
            self._seen[str(log.path)] = len(log.commits())
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
            for commit in commits[self._seen.get(str(log.path), 0) :]:
                self._gained.update(commit.hours)
            self._seen[str(log.path)] = len(commits)
        for path in self._seen.keys() - {str(log.path) for log in logs}:
            del self._seen[path]
