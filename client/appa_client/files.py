"""Send and receive files: uploads in blocks, downloads that resume and end with a checked SHA-256.

An upload body restarts from its beginning whenever the request is sent again. A download keeps
what it has received in `<name>.part`, also across restarts of the program, and asks for the rest
of that very version with Range and If-Range.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import httpx

from appa_client.errors import IntegrityError, NotFoundError
from model.domain.errors import InvalidInput
from worker.results.manifest import AnalysisManifest, ManifestFile

__all__ = ["Download", "OnBytes", "Source", "UploadBody"]

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


def choose_files(
    manifest: AnalysisManifest, names: list[str] | None, roles: list[str] | None
) -> list[ManifestFile]:
    """The files of `manifest` that are wanted.

    Raises:
        InvalidInput: If one of `names` is not there.
    """
    there = [f.name for f in manifest.files]
    if missing := sorted(set(names or ()) - set(there)):
        raise InvalidInput(
            f"Expected files of '{manifest.id}' ({', '.join(there)}); got {', '.join(missing)}."
        )
    return [
        f
        for f in manifest.files
        if (names is None or f.name in names) and (roles is None or f.role in roles)
    ]


def netcdf_name(manifest: AnalysisManifest) -> str:
    """Name of the file that holds the fields.

    Raises:
        NotFoundError: If the job was not asked for NetCDF.
    """
    for file in manifest.files:
        if file.name.endswith(".nc") and file.role == "data":
            return file.name
    raise NotFoundError(
        f"Expected a NetCDF file in '{manifest.id}'; its files: "
        f"{', '.join(f.name for f in manifest.files)}. Ask for the output 'netcdf'.",
        code="not_found",
    )


def cache_folder(analysis_id: str) -> Path:
    """Where files opened without a folder of the caller's are kept."""
    return Path.home() / ".cache" / "appa" / analysis_id


def open_dataset(path: Path, options: dict[str, Any]) -> Any:
    """The file as an `xarray.Dataset`."""
    import xarray  # heavy, and not needed to upload or to watch

    return xarray.open_dataset(path, **options)
