"""Provide storage backends for the observation store: a folder, or a bucket.

The store writes immutable files, lists folders and reads small files; `place_of` returns one of two
backends for this. A folder has temporary names, renames and locks; a bucket makes objects visible
atomically, and has conditional writes. `worker.observations.store.files` defines the files.

Parquet files of a bucket are cached in the data folder when they are read, up to a size limit: they are
immutable, and their names contain a prefix of their SHA-256.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from model.domain.errors import ConfigurationError, StorageError
from model.domain.files import sync_folder, write_atomic
from worker.contract.buckets import open_bucket
from worker.contract.file_cache import FileCache
from worker.contract.layout import HIDDEN

if TYPE_CHECKING:
    from worker.contract.objects import Bucket

__all__ = ["BucketPlace", "FolderPlace", "StorageBackend", "place_of"]

_AT_ONCE = 8
"""Maximum number of concurrent downloads."""


class StorageBackend(Protocol):
    """Folder or bucket of a store's files; names are relative to its root, with `/`."""

    def names(self, folder: str) -> list[str]:
        """Return the names of files and folders in a folder, sorted; none if it does not exist.

        Raises:
            StorageError: If it cannot be listed.
        """

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it does not exist.

        Raises:
            StorageError: If it cannot be read.
        """

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Return what `read` does for each of several files."""

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> None:
        """Write a file atomically.

        Raises:
            FileExistsError: If `exclusive` is set and it exists.
            OSError: If the disk fails.
            StorageError: If a bucket does not answer.
        """

    def remove(self, names: Sequence[str]) -> None:
        """Delete files; one that does not exist is no error."""

    def remove_folder(self, folder: str) -> bool:
        """Delete a folder with all that is in it; return whether it was there."""

    def sizes(self, folder: str) -> int:
        """Return the bytes of all files in a folder and those below it."""

    def written(self, name: str) -> datetime | None:
        """Return when a file was written (real time, UTC); None if it does not exist."""

    def local(self, names: Sequence[str]) -> list[Path]:
        """Return data files as files on this machine.

        Raises:
            FileNotFoundError: If one does not exist.
        """


@dataclass(frozen=True)
class FolderPlace:
    """Files below a folder of this machine.

    Attributes:
        root: The folder.
    """

    root: Path

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(
                f"Cannot list '{folder}' in the observation store: {error}."
            ) from error

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"Cannot read '{name}' of the observation store: {error}."
            ) from error

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.read(name) for name in names]

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content, exclusive=exclusive)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> bool:
        hidden = self.root.parent / "tmp" / f"{HIDDEN}{folder.replace('/', '-')}"
        hidden.parent.mkdir(exist_ok=True)
        try:
            (self.root / folder).rename(hidden)
        except FileNotFoundError:
            return False
        sync_folder((self.root / folder).parent)
        shutil.rmtree(hidden, ignore_errors=True)
        return True

    def sizes(self, folder: str) -> int:
        return sum(p.stat().st_size for p in (self.root / folder).rglob("*") if p.is_file())

    def written(self, name: str) -> datetime | None:
        try:
            return datetime.fromtimestamp((self.root / name).stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def local(self, names: Sequence[str]) -> list[Path]:
        return [self.root / name for name in names]


@dataclass(frozen=True)
class BucketPlace:
    """Objects of an S3-compatible bucket, with a disk cache.

    Attributes:
        url: Such as `s3://bucket/prefix`.
        cache: Folder of the disk cache.
        cache_bytes: Size limit of the cache.
    """

    url: str
    cache: Path
    cache_bytes: int

    @property
    def bucket(self) -> "Bucket":
        """Return the client of this process."""
        return open_bucket(self.url)

    @property
    def copies(self) -> FileCache:
        """Return the disk cache."""
        lock = self.cache.with_name(f".{self.cache.name}.trim")
        return FileCache(self.cache, self.cache_bytes, lock, _parquet)

    def names(self, folder: str) -> list[str]:
        return self.bucket.children(folder)

    def read(self, name: str) -> bytes | None:
        try:
            return self.bucket.read(name)
        except FileNotFoundError:
            return None

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self.read, names))

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> None:
        if not exclusive:
            self.bucket.send(content, name)
        elif not self.bucket.create(name, content) and self.read(name) != content:
            # the same content: the response to our own first request was lost
            raise FileExistsError(name)

    def remove(self, names: Sequence[str]) -> None:
        self.bucket.delete(list(names))

    def remove_folder(self, folder: str) -> bool:
        found = [one.name for one in self.bucket.list(folder)]
        # without its manifest a merged file is ignored, and its hour is read from the others
        self.remove([name for name in found if not name.endswith(".parquet")])
        self.remove([name for name in found if name.endswith(".parquet")])
        shutil.rmtree(self.cache / folder, ignore_errors=True)
        return bool(found)

    def sizes(self, folder: str) -> int:
        return sum(one.size for one in self.bucket.list(folder))

    def written(self, name: str) -> datetime | None:
        try:
            return self.bucket.stat(name).written
        except FileNotFoundError:
            return None

    def local(self, names: Sequence[str]) -> list[Path]:
        copies, paths = self.copies, {name: self.cache / name for name in names}
        missing = [name for name, path in paths.items() if not copies.use(path)]
        if missing:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(self._fetch, missing))
        return list(paths.values())

    def _fetch(self, name: str) -> None:
        path = self.cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = name.removesuffix(".parquet").rsplit("__", 1)[-1]
        self.copies.put(path, digest, self.bucket.content(name))


def _parquet(folder: Path) -> Iterator[Path]:
    yield from folder.glob("date=*/hour=*/[!.]*.parquet")


@lru_cache(maxsize=16)
def place_of(url: str, cache: str, cache_bytes: int) -> StorageBackend:
    """Return the storage backend of a store.

    Arguments:
        url: A folder, or `s3://bucket/prefix`.
        cache: Folder for the disk cache of a bucket.
        cache_bytes: Size limit of the cache.

    Raises:
        ConfigurationError: If the address is none of these.
    """
    if url.startswith("s3://"):
        if not cache:
            raise ConfigurationError(f"Expected a folder for copies of what lies in {url}.")
        return BucketPlace(url, Path(cache), cache_bytes)
    if "://" in url:
        raise ConfigurationError(f"Expected a folder or s3://bucket/prefix; got '{url}'.")
    return FolderPlace(Path(url))
