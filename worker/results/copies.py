"""Keep copies of results that lie in a bucket: every manifest, and the files read last.

A file is fetched whole when something needs it on this machine (xarray, a restart, feedback), its
SHA-256 is compared with the manifest, and it stays to be read again. What nobody used for longest
is deleted when the files exceed the bound; readers that hold it open go on reading.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from worker.contract.buckets import StoredObject
from worker.contract.file_cache import FileCache
from worker.contract.layout import HIDDEN, Layout
from worker.results.manifest import ManifestFile

__all__ = ["Copies"]

_MANIFEST = "manifest.json"
_SECOND = 1_000_000_000


class Copies:
    """The copies below `Layout.analyses`; any number of processes may share them.

    Arguments:
        layout: The data folder, and the bound of the files.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        bound, lock = layout.results_cache_bytes, layout.tmp / "results.trim"
        self.cache = FileCache(layout.analyses, bound, lock, _files)

    # -- manifests

    def names(self) -> set[str]:
        """Return the results whose manifests are here."""
        with suppress(FileNotFoundError):
            return set(os.listdir(self.layout.analyses))
        return set()

    def has(self, analysis_id: str, listed: StoredObject) -> bool:
        """Return whether the manifest here is the one in the bucket, by size and time."""
        try:
            found = (self.layout.analyses / analysis_id / _MANIFEST).stat()
        except OSError:
            return False
        return (found.st_size, int(found.st_mtime)) == (
            listed.size,
            int(listed.written.timestamp()),
        )

    def put_manifest(self, analysis_id: str, text: bytes, written: datetime) -> None:
        """Copy a manifest that was written at `written`."""
        folder = self.layout.analysis(analysis_id)
        new = self.layout.tmp / f"manifest-{secrets.token_hex(8)}"
        new.mkdir(parents=True)
        try:
            (new / _MANIFEST).write_bytes(text)
            self.date(new / _MANIFEST, written)
            with suppress(FileNotFoundError, NotADirectoryError):
                (new / _MANIFEST).replace(folder / _MANIFEST)
                os.utime(self.layout.analyses)  # catalogues look at manifests again then
                return
            self.layout.analyses.mkdir(exist_ok=True)
            with suppress(OSError):  # another process was quicker
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def date(self, manifest: Path, written: datetime) -> None:
        """Give a manifest the second in which it was written in the bucket.

        The rest of the time is our own: catalogues tell two versions of one second apart by it.
        """
        stamp = int(written.timestamp()) * _SECOND + time.time_ns() % _SECOND
        os.utime(manifest, ns=(stamp, stamp))

    def forget(self, analysis_id: str) -> None:
        """Delete the copies of a result."""
        gone = self.layout.tmp / f"{HIDDEN}{secrets.token_hex(8)}"
        with suppress(OSError):
            (self.layout.analyses / analysis_id).rename(gone)
            shutil.rmtree(gone)

    # -- files

    def use(self, path: Path) -> bool:
        """Return whether a file is here, and note that it is used."""
        return self.cache.use(path)

    def put_file(self, path: Path, entry: ManifestFile, content: Iterable[bytes]) -> None:
        """Copy a file of a result, unless another thread has just done so.

        Raises:
            BucketUnavailable: If the content is not what the manifest says.
            OSError: If the disk is full.
        """
        self.cache.put(path, entry.sha256, content)

    def trim(self) -> int:
        """Delete the files that were not used for longest until the rest fits; return how many."""
        return self.cache.trim()


def _files(analyses: Path) -> Iterator[Path]:
    yield from (p for p in analyses.glob("*/*") if p.name != _MANIFEST and p.is_file())
