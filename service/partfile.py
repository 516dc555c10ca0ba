"""A file while it is being received: hashed, counted and locked, until it is published whole."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self


class PartFile:
    """Bytes on their way in, under a name that nobody reads.

    The file is locked while its process lives, so that another start of the gateway can tell
    uploads that are under way from those a killed process left behind (`sweep`).

    Arguments:
        path: Where the bytes are received; on the file system they will stay on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "xb", buffering=0)  # lives as long as the upload
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes | bytearray) -> None:
        """Appends `data` and includes it in the hash."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of the bytes written so far."""
        return self._hash.hexdigest()

    def publish(self, target: Path) -> None:
        """Makes the bytes durable, then visible as `target` in one step."""
        os.fsync(self._file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, target)
        for folder in (target.parent, target.parent.parent):
            sync_folder(folder)
        self._file.close()

    def discard(self) -> None:
        """Leaves nothing."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            self.discard()


def sync_folder(folder: Path) -> None:
    """Makes names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, pattern: str = "upload-*") -> int:
    """Removes the parts that no living process is writing; returns how many."""
    removed = 0
    for path in folder.glob(pattern):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                removed += 1
        except OSError:  # being written, or gone
            continue
    return removed


def free_bytes(folder: Path) -> int:
    """Space left on the disk of `folder`."""
    return shutil.disk_usage(folder).free
