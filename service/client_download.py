"""A download that can be taken up again, and that ends only with the right SHA-256."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx

from service.client_errors import IntegrityError
from worker.jobs.manifest import ManifestFile

__all__ = ["Download", "OnBytes"]

BLOCK = 1 << 20
OnBytes = Callable[[str, int, int], None]
"""Called with the file's name, the bytes there are, and the bytes there will be."""


def _hash_of(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest


class Download:
    """One published file on its way into a folder.

    What was received before a lost connection stays in `<name>.part` and is not fetched again,
    also after a new start of the program.

    Arguments:
        entry: From the manifest.
        folder: Where the file goes; made if it is not there.
        on_bytes: Told about every block.
    """

    def __init__(self, entry: ManifestFile, folder: Path, on_bytes: OnBytes | None = None) -> None:
        self.entry = entry
        self.target = folder / entry.name
        self.part = folder / f"{entry.name}.part"
        self._on_bytes = on_bytes or (lambda name, done, total: None)
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def done(self) -> bool:
        """Whether the right file is there already."""
        right_size = self.target.is_file() and self.target.stat().st_size == self.entry.size
        return right_size and _hash_of(self.target).hexdigest() == self.entry.sha256

    def headers(self) -> dict[str, str]:
        """Asks for what is missing, of this very version."""
        self._size = self.part.stat().st_size if self.part.exists() else 0
        if not 0 < self._size < self.entry.size:
            return {}
        return {"Range": f"bytes={self._size}-", "If-Range": f'"{self.entry.sha256}"'}

    def begin(self, response: httpx.Response) -> None:
        """Appends to what is there if the gateway sends the rest, else starts anew."""
        resumed = response.status_code == 206
        self._digest = _hash_of(self.part) if resumed else hashlib.sha256()
        self._size = self._size if resumed else 0
        self._file = self.part.open("ab" if resumed else "wb")

    def write(self, block: bytes) -> None:
        """Keeps a block."""
        assert self._file is not None, "begin comes first"  # noqa: S101
        self._file.write(block)
        self._digest.update(block)
        self._size += len(block)
        self._on_bytes(self.entry.name, self._size, self.entry.size)

    def pause(self) -> None:
        """Keeps what has arrived."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> Path:
        """The file, under its name.

        Raises:
            IntegrityError: If its hash is not that of the manifest; nothing is kept.
        """
        self.pause()
        got = self._digest.hexdigest()
        if got != self.entry.sha256:
            self.part.unlink(missing_ok=True)
            raise IntegrityError(
                f"Expected '{self.entry.name}' with SHA-256 {self.entry.sha256}; got {got}. "
                "It was removed; fetch it again.",
                code="integrity_error",
            )
        os.replace(self.part, self.target)
        return self.target
