"""Cache immutable files of a bucket on local disk, least recently used first out.

Files are deleted when their total size exceeds the limit; readers that have one open can go on
reading. Any number of processes may share a cache.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from model.domain.files import replaced_file
from worker.contract.buckets import BucketUnavailable

__all__ = ["FileCache"]

log = structlog.get_logger()

_JUST_USED_SECONDS = 600.0
"""Time after its last use during which a file is not deleted: a caller may be about to open it."""

_LOCKS = tuple(threading.Lock() for _ in range(32))
"""Striped locks, so that threads which need the same file fetch it once."""


@dataclass(frozen=True)
class FileCache:
    """Disk cache in a folder.

    Attributes:
        folder: Where the files are.
        max_bytes: Maximum total size.
        lock: Lock file of the process that deletes; created if absent.
        files: Yields the paths of the cached files in a folder.
    """

    folder: Path
    max_bytes: int
    lock: Path
    files: Callable[[Path], Iterable[Path]]

    def use(self, path: Path) -> bool:
        """Return whether a file is cached, and record its use."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def put(self, path: Path, sha256: str, content: Iterable[bytes]) -> None:
        """Copy a file, unless another thread has just done so.

        Arguments:
            path: Its place, in a folder that exists.
            sha256: SHA-256 of its bytes, or a prefix of it.
            content: Its bytes.

        Raises:
            BucketUnavailable: If the content has another SHA-256.
            OSError: If the disk is full.
        """
        with _LOCKS[hash(path) % len(_LOCKS)]:
            if self.use(path):
                return
            digest = hashlib.sha256()
            with replaced_file(path) as temporary, temporary.open("wb") as stream:
                for chunk in content:
                    digest.update(chunk)
                    stream.write(chunk)
                if not digest.hexdigest().startswith(sha256):
                    raise BucketUnavailable(
                        f"Expected {path.name} in the bucket with the SHA-256 {sha256}; got "
                        f"{digest.hexdigest()}.",
                        file=path.name,
                    )
        self.trim()

    def trim(self) -> int:
        """Delete the least recently used files until the rest fits; return their number."""
        with self.lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is trimming
                return 0
            return self._trim()

    def _trim(self) -> int:
        found = sorted(self._described())
        held, removed = sum(size for _, size, _ in found), 0
        for used, size, path in found:
            if held <= self.max_bytes or time.time() - used < _JUST_USED_SECONDS:
                break
            path.unlink(missing_ok=True)
            held -= size
            removed += 1
        if removed:
            log.info("copies removed", folder=self.folder.name, count=removed, kept_bytes=held)
        return removed

    def _described(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each file was used last, its size and its path."""
        for path in self.files(self.folder):
            with suppress(OSError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path
