"""Store the manifests of many small batches in hourly logs, where one line publishes several batches.

    commits/date=2026-03-01/hour=06.log             in a folder
    commits/date=2026-03-01/hour=06/000001.log      in a bucket, in parts

The hour is that in the ids of the batches, so that an id tells where its manifest is. A line holds
its checksum, the id of the commit, the ids of its batches, the hours of their rows and the
manifests. Readers cache a log and only read what was appended since. A batch is published once,
because a writer has read all earlier lines before it appends one.

In a folder a line is appended and flushed under a lock; a line left incomplete by a crash is truncated
by the next writer and never read. A bucket has neither locks nor appends: there a line is added by
rewriting the last part on condition that it has not changed since it was read (`If-Match`), and when a
part is full by creating the next one (`If-None-Match: *`). A refused writer reads the new lines and
retries.

For ids without a time each batch has a manifest of its own (`worker.observations.store.files`).
"""

import fcntl
import json
import os
import re
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from model.domain.errors import StorageError
from model.domain.files import sync_folder
from worker.contract.buckets import open_bucket

__all__ = [
    "FULL",
    "BucketLog",
    "Commit",
    "CommitLog",
    "FileLog",
    "commit_hour",
    "hour_of_batch",
    "hour_of_log",
    "log_of",
]

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
        part: Number of the part of the log that holds the line, from 1.
        start: First byte of the line in that part.
        length: Bytes of the line.
    """

    name: str
    batches: tuple[str, ...]
    hours: tuple[datetime, ...]
    part: int
    start: int
    length: int


class CommitLog(ABC):
    """The commits of one hour. Safe for threads and processes.

    Arguments:
        name: Relative to the root of the store.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._commits: dict[str, Commit] = {}
        self._by_batch: dict[str, Commit] = {}
        self._part = 1
        self._read = 0
        self._guard = threading.Lock()

    def find(self, name: str) -> Commit | None:
        """Return a commit; None while it is not published."""
        return self._commits.get(name) or self._refreshed()._commits.get(name)

    def of_batch(self, batch_id: str) -> Commit | None:
        """Return the commit that published a batch; None while there is none."""
        return self._by_batch.get(batch_id) or self._refreshed()._by_batch.get(batch_id)

    def of_batches(self, batch_ids: Iterable[str]) -> dict[str, Commit]:
        """Return the commits that published batches, by batch; new lines are read only once."""
        known = self._refreshed()._by_batch
        return {name: known[name] for name in batch_ids if name in known}

    def commits(self) -> list[Commit]:
        """Return all commits, the oldest first, after reading those that are new."""
        return list(self._refreshed()._commits.values())

    def content(self, commit: Commit) -> list[dict[str, Any]]:
        """Return the manifests of a commit's batches as JSON values."""
        return list(self.contents([commit]))

    @abstractmethod
    def contents(self, commits: Iterable[Commit]) -> Iterator[dict[str, Any]]:
        """Yield the manifests of the batches of some commits, reading each file or object once."""

    def append(
        self, name: str, hours: Sequence[datetime], manifests: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Publish batches atomically, unless some are published already.

        Arguments:
            name: Id of the commit.
            hours: Full hours (UTC) to which a file is added.
            manifests: Manifests by the ids of their batches.

        Returns:
            The batches that are published already; if there are any, nothing was written.

        Raises:
            StorageError: If the line cannot be written; a retry is safe.
        """
        line = _line(name, tuple(manifests), hours, list(manifests.values()))
        try:
            while True:
                with self._turn() as held:
                    end = self._refreshed()._end()  # not newer than what is checked below
                    if name in self._commits:  # the response to our own request was lost
                        return []
                    if known := [batch for batch in manifests if batch in self._by_batch]:
                        return known
                    if self._write(held, end, line):
                        return []
        except OSError as error:
            raise StorageError(
                f"Cannot write '{self.name}' of the observation store: {error}."
            ) from error

    @abstractmethod
    def _turn(self) -> AbstractContextManager[Any]:
        """Hold the lock on the log, if there is one."""

    @abstractmethod
    def _end(self) -> Any:
        """Return the end of the lines that were read."""

    @abstractmethod
    def _write(self, held: Any, end: Any, line: bytes) -> bool:
        """Write a line at `end`; return False if somebody else has."""

    def _refreshed(self) -> "CommitLog":
        """Read what was appended since the last call; return this log."""
        with self._guard:
            try:
                self._read_on()
            except OSError as error:
                raise StorageError(
                    f"Cannot read '{self.name}' of the observation store: {error}."
                ) from error
            return self

    @abstractmethod
    def _read_on(self) -> None:
        """Read the lines after the last one read."""

    def _take(self, data: bytes) -> None:
        """Parse the complete lines at the beginning of `data`; stop at a wrong checksum."""
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at : end + 1]
            parts = line.split(b"\t", 4)
            if len(parts) != 5 or parts[0] != _checksum(line[9:]):
                return
            batches = tuple(parts[2].decode().split(","))
            hours = tuple(map(_parse_hour, parts[3].decode().split(","))) if parts[3] else ()
            commit = Commit(parts[1].decode(), batches, hours, self._part, self._read, len(line))
            self._commits[commit.name] = commit
            self._by_batch.update(dict.fromkeys(batches, commit))
            self._read += len(line)
            at = end + 1


class FileLog(CommitLog):
    """A log that is a file, with a lock.

    Arguments:
        root: Folder of the store.
        name: Relative to it; the file may not exist yet.
    """

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(name)
        self.path = root / name
        self._inode = 0

    def contents(self, commits: Iterable[Commit]) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for commit in sorted(commits, key=lambda commit: commit.start):
                file.seek(commit.start)
                yield from _manifests(file.read(commit.length))

    @contextmanager
    def _turn(self) -> Iterator[IO[bytes]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _end(self) -> int:
        return self._read

    def _write(self, held: IO[bytes], end: int, line: bytes) -> bool:
        descriptor = held.fileno()
        if os.fstat(descriptor).st_size > end:
            os.ftruncate(descriptor, end)  # remove an incomplete line after a crash
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
        return True

    def _read_on(self) -> None:
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

    def _forget(self, inode: int) -> None:
        self._commits, self._by_batch, self._read, self._inode = {}, {}, 0, inode


FULL = 256 * 1024
"""Size in bytes at which a part is full. It must never change, because all writers have to agree."""


class BucketLog(CommitLog):
    """A log in parts, which are objects of a bucket.

    Arguments:
        url: URL of the store.
        name: Relative to it, ending in `.log`; the parts lie in the folder of that name without it.
    """

    def __init__(self, url: str, name: str) -> None:
        super().__init__(name)
        self.url = url
        self._tag = ""
        self._content = b""

    def contents(self, commits: Iterable[Commit]) -> Iterator[dict[str, Any]]:
        by_part: dict[int, list[Commit]] = {}
        for commit in commits:
            by_part.setdefault(commit.part, []).append(commit)
        for part, some in sorted(by_part.items()):
            content = open_bucket(self.url).read(self._object(part))
            for commit in sorted(some, key=lambda commit: commit.start):
                yield from _manifests(content[commit.start : commit.start + commit.length])

    def _object(self, part: int) -> str:
        return f"{self.name.removesuffix('.log')}/{part:06d}.log"

    def _turn(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _end(self) -> tuple[int, bytes, str]:
        with self._guard:
            return self._part, self._content[: self._read], self._tag

    def _write(self, held: None, end: tuple[int, bytes, str], line: bytes) -> bool:
        bucket, (part, content, tag) = open_bucket(self.url), end
        if tag:
            return bucket.swap(self._object(part), content + line, tag)
        return bucket.create(self._object(part), line)

    def _read_on(self) -> None:
        while True:
            try:
                found = open_bucket(self.url).read_changed(self._object(self._part), self._tag)
            except FileNotFoundError:  # no further part yet
                return
            if found is not None:
                self._content, self._tag = found
                self._take(self._content[self._read :])
            if len(self._content) < FULL:
                return
            self._part, self._read, self._content, self._tag = self._part + 1, 0, b"", ""


def _manifests(line: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(line.split(b"\t", 4)[4])
    return found


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


def hour_of_log(name: str) -> datetime:
    """Return the hour (UTC) of a log by the end of its name, `date=2026-03-01/hour=06`."""
    day, hour = name.removesuffix(".log").split("/")[-2:]
    return datetime.strptime(f"{day} {hour}", "date=%Y-%m-%d hour=%H").replace(tzinfo=UTC)


def log_of(root: str, hour: datetime) -> CommitLog:
    """Return the log of an hour of the store at `root`, cached in this process."""
    name = f"commits/date={hour:%Y-%m-%d}/hour={hour:%H}.log"
    return _bucket_log(root, name) if root.startswith("s3://") else _file_log(root, name)


@lru_cache(maxsize=12)
def _file_log(root: str, name: str) -> FileLog:
    return FileLog(Path(root), name)


@lru_cache(maxsize=30)  # a day and some: reading one again takes requests
def _bucket_log(url: str, name: str) -> BucketLog:
    return BucketLog(url, name)
