"""What an upload sends: a file, bytes or an open stream, in blocks, as often as needed."""

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from service.client_download import OnBytes

__all__ = ["Source", "UploadBody"]

BLOCK = 1 << 20
Source = str | Path | bytes | BinaryIO
"""A path, the content itself, or an open file that can be rewound."""


class UploadBody:
    """The body of an upload; each `blocks()` starts from the beginning."""

    def __init__(self, source: Source, on_bytes: OnBytes | None = None) -> None:
        self._source = Path(source) if isinstance(source, str) else source
        self._on_bytes = on_bytes
        self.name = self._source.name if isinstance(self._source, Path) else ""
        self.size = self._length()

    def _length(self) -> int:
        if isinstance(self._source, Path):
            return self._source.stat().st_size
        if isinstance(self._source, bytes):
            return len(self._source)
        return self._source.seek(0, io.SEEK_END)

    def _open(self) -> BinaryIO:
        if isinstance(self._source, Path):
            return self._source.open("rb")
        if isinstance(self._source, bytes):
            return io.BytesIO(self._source)
        self._source.seek(0)
        return self._source

    def blocks(self) -> Iterator[bytes]:
        """The content, a block at a time."""
        done = 0
        file = self._open()
        try:
            while block := file.read(BLOCK):
                yield block
                done += len(block)
                if self._on_bytes:
                    self._on_bytes(self.name, done, self.size)
        finally:
            if file is not self._source:
                file.close()


async def as_async(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks for asyncio; a block is read quickly enough not to need a thread."""
    for block in blocks:
        yield block
