"""Send and receive files: uploads in blocks, downloads that resume and are checked by SHA-256.

An upload restarts from its beginning whenever the request is sent again. A download keeps what has
arrived in `<name>.part`, also across restarts of the program, and requests the rest of the same
version with Range and If-Range.
"""

import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import httpx

from appa_client.errors import IntegrityError, InvalidRequestError, NotFoundError
from appa_client.records import Analysis, AnalysisFile

__all__ = [
    "BLOCK",
    "Download",
    "OnBytes",
    "Source",
    "UploadBody",
    "cache_folder",
    "choose_files",
    "netcdf_name",
    "open_dataset",
]

BLOCK = 1 << 20
OnBytes = Callable[[str, int, int], None]
"""Called with the file's name, the number of bytes transferred, and the total."""


def _hash_of(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest


class Download:
    """A published file being downloaded into a folder.

    Arguments:
        entry: Name, size and hash of the file.
        folder: Target folder; created if it does not exist.
        on_bytes: Called after every block.
    """

    def __init__(self, entry: AnalysisFile, folder: Path, on_bytes: OnBytes | None = None) -> None:
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
        """Whether the published file is in the folder already."""
        right_size = self.target.is_file() and self.target.stat().st_size == self.entry.size
        return right_size and _hash_of(self.target).hexdigest() == self.entry.sha256

    def headers(self) -> dict[str, str]:
        """Return the headers that request the missing part of this version of the file."""
        self._size = self.part.stat().st_size if self.part.exists() else 0
        if not 0 < self._size < self.entry.size:
            return {}
        return {"Range": f"bytes={self._size}-", "If-Range": f'"{self.entry.sha256}"'}

    def begin(self, response: httpx.Response) -> None:
        """Append to the partial file if the gateway sends the rest of it, else start again."""
        resumed = response.status_code == 206
        self._digest = _hash_of(self.part) if resumed else hashlib.sha256()
        self._size = self._size if resumed else 0
        self._file = self.part.open("ab" if resumed else "wb")

    def write(self, block: bytes) -> None:
        """Append a block; `begin` must have been called."""
        assert self._file is not None, "begin comes first"  # noqa: S101
        self._file.write(block)
        self._digest.update(block)
        self._size += len(block)
        self._on_bytes(self.entry.name, self._size, self.entry.size)

    def pause(self) -> None:
        """Close the partial file, keeping what has arrived."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> Path:
        """Check the hash, rename the partial file to its final name, and return its path.

        Raises:
            IntegrityError: If the hash differs from the published one; the file is removed.
        """
        self.pause()
        got = self._digest.hexdigest()
        if got != self.entry.sha256:
            self.part.unlink(missing_ok=True)
            raise IntegrityError(
                f"Expected '{self.entry.name}' with SHA-256 {self.entry.sha256}; got {got}. "
                "It was removed; fetch it again."
            )
        os.replace(self.part, self.target)
        return self.target


Source = str | Path | bytes | BinaryIO
"""A path, the content itself, or an open file that can be rewound."""


class UploadBody:
    """The body of an upload.

    Arguments:
        source: What to send.
        on_bytes: Called after every block.

    Attributes:
        name: Name of the file; empty unless `source` is a path.
        size: Length in bytes.
    """

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
        """Yield the content in blocks, from its beginning."""
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

    async def async_blocks(self) -> AsyncIterator[bytes]:
        """Yield the same for asyncio; reading a block is fast enough to need no thread."""
        for block in self.blocks():
            yield block


def choose_files(
    analysis: Analysis, names: list[str] | None, roles: list[str] | None
) -> list[AnalysisFile]:
    """Return the files of `analysis` with one of `names` and one of `roles`; None allows all.

    Raises:
        InvalidRequestError: If one of `names` is no file of the analysis.
    """
    known = [f.name for f in analysis.files]
    if missing := sorted(set(names or ()) - set(known)):
        raise InvalidRequestError(
            f"Expected files of '{analysis.id}' ({', '.join(known)}); got {', '.join(missing)}."
        )
    return [
        f
        for f in analysis.files
        if (names is None or f.name in names) and (roles is None or f.role in roles)
    ]


def netcdf_name(analysis: Analysis) -> str:
    """Return the name of the file that holds the fields of `analysis`.

    Raises:
        NotFoundError: If the job was not asked for NetCDF.
    """
    for file in analysis.files:
        if file.name.endswith(".nc") and file.role == "data":
            return file.name
    raise NotFoundError(
        f"Expected a NetCDF file in '{analysis.id}'; its files: "
        f"{', '.join(f.name for f in analysis.files)}. Ask for the output 'netcdf'."
    )


def cache_folder(analysis_id: str) -> Path:
    """Return the folder for files that are opened without a folder of the caller's."""
    return Path.home() / ".cache" / "appa" / analysis_id


def open_dataset(path: Path, options: dict[str, Any]) -> Any:
    """Open a NetCDF file as an `xarray.Dataset`; needs the extra `xarray`."""
    import xarray  # heavy, and not needed to upload or to watch

    return xarray.open_dataset(path, **options)
