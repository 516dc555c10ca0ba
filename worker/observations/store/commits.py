"""Keep the manifests of many small batches in one log an hour, where one line publishes them all.

    <root>/commits/date=2026-03-01/hour=06.log

The hour is that in the ids of the batches, so that an id tells where its manifest is. A line holds
its checksum, the id of the commit, the ids of its batches, the hours of their rows and the
manifests, and is appended and flushed under a lock; a line that a crash left torn is cut off by
the next writer and never read. Readers keep what they have read of a log and only read what was
appended since. A batch is published once: whoever holds the lock sees whether another attempt was
faster.

Logs need a file system with locks. Elsewhere, and for ids without a time, each batch has a
manifest of its own (`worker.observations.store.files`).
"""

import fcntl
import json
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from model.domain.errors import StorageError
from model.domain.files import sync_folder

__all__ = ["Commit", "CommitLog", "commit_hour", "hour_of_batch", "log_of"]

_BATCH = re.compile(r"batch-(\d{8})t(\d{2})\d{7}-[0-9a-f]{8}")
_COMMIT = re.compile(r"commit-(\d{8})t(\d{2})-[0-9a-f]{16}")


def hour_of_batch(batch_id: str) -> datetime | None:
    """Return the hour (UTC) that an id names; None if it names none."""
    return _hour(_BATCH.fullmatch(batch_id))


def commit_hour(name: str) -> datetime | None:
    """Return the hour (UTC) of the log that holds a commit; None if `name` is no commit."""
    return _hour(_COMMIT.fullmatch(name))


def _hour(found: "re.Match[str] | None") -> datetime | None:
    if found is None:
        return None
    try:
        return _parse_hour("".join(found.groups()))
    except ValueError:
        return None


def _parse_hour(text: str) -> datetime:
    year, rest = int(text[:-6]), text[-6:]
    return datetime(year, int(rest[:2]), int(rest[2:4]), int(rest[4:]), tzinfo=UTC)


@dataclass(frozen=True)
class Commit:
    """A line of a log.

    Attributes:
        name: Its id.
        batches: Ids of its batches.
        hours: Hours that gained a file by it (UTC).
        start: First byte of the line.
        length: Bytes of the line.
    """

    name: str
    batches: tuple[str, ...]
    hours: tuple[datetime, ...]
    start: int
    length: int


@dataclass
class CommitLog:
    """The commits of one hour. Safe for threads and processes.

    Attributes:
        path: The file; it may not exist yet.
    """

    path: Path
    _commits: dict[str, Commit] = field(default_factory=dict)
    _by_batch: dict[str, Commit] = field(default_factory=dict)
    _read: int = 0
    _inode: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def find(self, name: str) -> Commit | None:
        """Return a commit; None while it is not published."""
        return self._commits.get(name) or self._refreshed()._commits.get(name)

    def of_batch(self, batch_id: str) -> Commit | None:
        """Return the commit that published a batch; None while there is none."""
        return self._by_batch.get(batch_id) or self._refreshed()._by_batch.get(batch_id)

    def commits(self) -> list[Commit]:
        """Return all commits, in order."""
        return list(self._refreshed()._commits.values())

    def content(self, commit: Commit) -> list[dict[str, Any]]:
        """Return the manifests of a commit's batches as JSON values."""
        return list(self.contents([commit]))

    def contents(self, commits: Iterable[Commit]) -> Iterator[dict[str, Any]]:
        """Yield the manifests of the batches of some commits, the file opened once."""
        with self.path.open("rb") as file:
            for commit in sorted(commits, key=lambda commit: commit.start):
                file.seek(commit.start)
                yield from json.loads(file.read(commit.length).split(b"\t", 4)[4])

    def append(
        self, name: str, hours: Sequence[datetime], manifests: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Publish batches in one step, unless some are published already.

        Arguments:
            name: Id of the commit.
            hours: Full hours (UTC) that gain a file.
            manifests: Manifests by the ids of their batches.

        Returns:
            The batches that are published already; if there are any, nothing was written.

        Raises:
            StorageError: If the line cannot be written; trying again is safe.
        """
        line = _line(name, tuple(manifests), hours, list(manifests.values()))
        try:
            with self._locked() as file:
                self._refreshed()
                if known := [batch for batch in manifests if batch in self._by_batch]:
                    return known
                self._write(file, line)
        except OSError as error:
            raise StorageError(
                f"Cannot write '{self.path.name}' of the observation store: {error}."
            ) from error
        return []

    def _write(self, file: IO[bytes], line: bytes) -> None:
        descriptor, end = file.fileno(), self._read
        if os.fstat(descriptor).st_size > end:
            os.ftruncate(descriptor, end)  # what a crash left of a line
        new = end == 0
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(descriptor, line[written:], end + written)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
        if new:
            sync_folder(self.path.parent)
            sync_folder(self.path.parent.parent)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _refreshed(self) -> "CommitLog":
        """Read what was appended since the last call; return this log."""
        with self._guard:
            try:
                with self.path.open("rb") as file:
                    about = os.fstat(file.fileno())
                    if about.st_ino != self._inode or about.st_size < self._read:
                        self._forget(about.st_ino)
                    if about.st_size > self._read:
                        file.seek(self._read)
                        self._take(file.read())
            except FileNotFoundError:
                self._forget(0)
            except OSError as error:
                raise StorageError(
                    f"Cannot read '{self.path.name}' of the observation store: {error}."
                ) from error
            return self

    def _forget(self, inode: int) -> None:
        self._commits, self._by_batch, self._read, self._inode = {}, {}, 0, inode

    def _take(self, data: bytes) -> None:
        """Add the whole lines at the beginning of `data`; stop at one that is not as written."""
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at : end + 1]
            parts = line.split(b"\t", 4)
            if len(parts) != 5 or parts[0] != _checksum(line[9:]):
                return
            batches = tuple(parts[2].decode().split(","))
            hours = tuple(map(_parse_hour, parts[3].decode().split(","))) if parts[3] else ()
            commit = Commit(parts[1].decode(), batches, hours, self._read, len(line))
            self._commits[commit.name] = commit
            self._by_batch.update(dict.fromkeys(batches, commit))
            self._read += len(line)
            at = end + 1


def _line(
    name: str,
    batches: Sequence[str],
    hours: Sequence[datetime],
    manifests: Sequence[Mapping[str, Any]],
) -> bytes:
    content = json.dumps(manifests, separators=(",", ":"))
    when = ",".join(f"{hour:%Y%m%d%H}" for hour in hours)
    body = f"{name}\t{','.join(batches)}\t{when}\t{content}\n".encode()
    return _checksum(body) + b"\t" + body


def _checksum(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x}".encode()


@lru_cache(maxsize=12)
def log_of(root: str, hour: datetime) -> CommitLog:
    """Return the log of an hour below the folder `root`; this process keeps what it has read."""
    return CommitLog(Path(root) / "commits" / f"date={hour:%Y-%m-%d}" / f"hour={hour:%H}.log")
