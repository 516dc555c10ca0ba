"""Write a file that a killed process must not leave behind: under a temporary name, locked.

The lock lasts as long as the process, so that others can distinguish files in use from leftovers
(`sweep`).
"""

import fcntl
import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from model.domain.files import move_into_place, sync_folder

__all__ = ["PartFile", "sweep"]


class PartFile:
    """A file under a temporary name, locked while its process lives; removed at the end of a `with`.

    Arguments:
        path: Where the bytes are written; on the file system they will stay on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "xb", buffering=0)  # lives as long as the upload
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes | bytearray) -> None:
        """Append `data` and include it in the hash."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Return the hash of the bytes written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def publish(self, target: Path) -> None:
        """Make the bytes durable, then visible as `target` in one step."""
        target.parent.mkdir(parents=True, exist_ok=True)
        move_into_place(self.path, target)
        sync_folder(target.parent.parent)
        self._file.close()

    def discard(self) -> None:
        """Remove the part file and close it."""
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


def sweep(folder: Path, pattern: str = "upload-*") -> int:
    """Remove the parts that no living process is writing; return how many."""
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
