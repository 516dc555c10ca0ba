"""Publish results in a bucket, without a rename: files first, the manifest last and once.

    files/ID/SHA256/NAME     the files, named by their content: two attempts never share an object
    manifests/ID.json        the manifest, written by `If-None-Match: *`: a second writer is refused

A result is published when its manifest exists. Files without one belong to a running attempt, or are
leftovers of a killed one; those are deleted once they are older than any job. Deletion is in the
opposite order: the manifest first, then the files.

The folder `Layout.analyses` is a cache (`LocalCache`): all manifests, from which the catalogue is built,
and files that were read or written here, up to a size limit. Copies of manifests are compared with the
bucket periodically, because other machines publish and delete as well.
"""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from pydantic import ValidationError

from model.domain.errors import InvalidInput
from worker.contract import traces
from worker.contract.buckets import BucketUnavailable, StoredObject, open_bucket
from worker.contract.file_cache import FileCache
from worker.contract.layout import HIDDEN, Layout
from worker.results.manifest import AnalysisManifest, ManifestFile
from worker.results.store import PublishOutcome, Read, take_into

__all__ = ["BucketStore", "file_object", "manifest_object"]

log = structlog.get_logger()

_MANIFESTS, _FILES = "manifests", "files"
_MANIFEST = "manifest.json"
_SECOND = 1_000_000_000
_REFRESH_SECONDS = 30.0
_AT_ONCE = 16
"""Maximum number of concurrent downloads of manifests."""


def manifest_object(analysis_id: str) -> str:
    """Return the name of the object with the manifest of a result."""
    return f"{_MANIFESTS}/{analysis_id}.json"


def file_object(analysis_id: str, file: ManifestFile) -> str:
    """Return the name of the object with a file of a result."""
    return f"{_FILES}/{analysis_id}/{file.sha256}/{file.name}"


def _objects(manifest: AnalysisManifest) -> set[str]:
    return {file_object(manifest.id, file) for file in manifest.files}


class LocalCache:
    """Local cache below `Layout.analyses`; any number of processes may share it.

    A file is downloaded when it is needed on this machine (xarray, a restart, feedback), and its SHA-256
    is compared with the manifest. The least recently used files are deleted when the total exceeds the
    limit; readers that have one open can go on reading.

    Arguments:
        layout: The data folder, and the size limit of the files.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        bound, lock = layout.results_cache_bytes, layout.tmp / "results.trim"
        self.cache = FileCache(layout.analyses, bound, lock, _copied_files)

    # -- manifests

    def names(self) -> set[str]:
        """Return the results whose manifests are cached."""
        with suppress(FileNotFoundError):
            return set(os.listdir(self.layout.analyses))
        return set()

    def has(self, analysis_id: str, listed: StoredObject) -> bool:
        """Return whether the cached manifest is the one in the bucket, by size and time."""
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
                os.utime(self.layout.analyses)  # makes catalogues rescan manifests
                return
            self.layout.analyses.mkdir(exist_ok=True)
            with suppress(OSError):  # another process was quicker
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def date(self, manifest: Path, written: datetime) -> None:
        """Set the modification time of a manifest to the second in which the bucket's was written.

        The fraction of the second is local, so that catalogues distinguish two versions of one second.
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
        """Return whether a file is cached, and record its use."""
        return self.cache.use(path)

    def put_file(self, path: Path, entry: ManifestFile, content: Iterable[bytes]) -> None:
        """Copy a file of a result, unless another thread has just done so.

        Raises:
            BucketUnavailable: If the content does not match the manifest.
            OSError: If the disk is full.
        """
        self.cache.put(path, entry.sha256, content)

    def trim(self) -> int:
        """Delete the least recently used files until the rest fits; return their number."""
        return self.cache.trim()


def _copied_files(analyses: Path) -> Iterator[Path]:
    yield from (p for p in analyses.glob("*/*") if p.name != _MANIFEST and p.is_file())


class BucketStore:
    """Results as objects of an S3-compatible bucket, with a cache in the data folder.

    Arguments:
        layout: The data folder, and the address of the bucket.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.bucket = open_bucket(layout.results_url)
        self.copies = LocalCache(layout)
        self._comparing = threading.Lock()
        self._compared = float("-inf")
        self._hidden: dict[str, bytes] = {}

    # -- publication

    def prepare(self, staging: Path) -> None:
        manifest = _read(staging / "manifest.json")
        # Each takes one or more round trips: in parallel, a result only waits for the longest.
        with traces.step("send files"), ThreadPoolExecutor(_AT_ONCE) as pool:
            places = [
                (staging / file.name, file_object(manifest.id, file)) for file in manifest.files
            ]
            list(pool.map(lambda place: self.bucket.send(*place), places))

    def publish(self, staging: Path, analysis_id: str) -> PublishOutcome:
        text = (staging / "manifest.json").read_bytes()
        name = manifest_object(analysis_id)
        with traces.step("put manifest"):
            new = self.bucket.create(name, text)
        if not new:
            there = self._manifest_text(analysis_id)
            if there != text:  # equal: the response to our own request was lost
                self._drop_own(AnalysisManifest.model_validate_json(text), there)
                self.fetch_manifest(analysis_id)
                return PublishOutcome.ALREADY_PUBLISHED
        with suppress(OSError, BucketUnavailable):  # the cache is optional
            written = self.bucket.stat(name).written
            self.copies.date(staging / "manifest.json", written)
            take_into(self.layout, staging, analysis_id)
            self.copies.trim()
        return PublishOutcome.PUBLISHED

    def _manifest_text(self, analysis_id: str) -> bytes | None:
        try:
            return self.bucket.read(manifest_object(analysis_id))
        except FileNotFoundError:
            return None

    def _drop_own(self, own: AnalysisManifest, there: bytes | None) -> None:
        """Delete the files of an attempt that came second, except those shared with the first."""
        kept = _objects(AnalysisManifest.model_validate_json(there)) if there else set()
        with suppress(BucketUnavailable):  # they are swept later
            self.bucket.delete(sorted(_objects(own) - kept))

    # -- copies of manifests

    def fetch_manifest(self, analysis_id: str) -> bool:
        if self.layout.manifest(analysis_id).exists():
            return True
        name = manifest_object(analysis_id)
        try:
            text, written = self.bucket.read(name), self.bucket.stat(name).written
        except FileNotFoundError:
            return False
        self.copies.put_manifest(analysis_id, text, written)
        return True

    def refresh(self, *, now: bool = False) -> None:
        if now:
            self._compare(raises=True)
        elif self._is_due() and not self._comparing.locked():
            if not self.layout.results_listed.exists():  # nothing is cached yet
                self._compare()
                return
            self._compared = time.monotonic()
            name = "results-refresh"  # in the background: a slow bucket must not block queries
            threading.Thread(target=self._compare, name=name, daemon=True).start()

    def _is_due(self) -> bool:
        if time.monotonic() - self._compared < _REFRESH_SECONDS:
            return False
        try:  # the last comparison by any process of this data folder
            age = time.time() - self.layout.results_listed.stat().st_mtime
        except FileNotFoundError:
            return True
        return not 0 <= age < _REFRESH_SECONDS

    def _compare(self, *, raises: bool = False) -> None:
        """Fetch missing or changed manifests, and drop those that are gone from the bucket."""
        with self._comparing:
            self._compared = time.monotonic()
            before = self.copies.names()  # these were published, so a later list has them
            try:
                listed = {_result_of(one): one for one in self.bucket.list(_MANIFESTS)}
                stale = [one for name, one in listed.items() if not self.copies.has(name, one)]
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    list(pool.map(self._cache_manifest, stale))
            except BucketUnavailable as error:
                if raises:
                    raise
                log.warning("results not compared with the bucket", reason=error.message)
                return
            for name in before - set(listed):
                self.copies.forget(name)
            self.layout.results_listed.touch()

    def _cache_manifest(self, one: StoredObject) -> None:
        # deleted since it was listed, or an unrelated object
        with suppress(FileNotFoundError, InvalidInput):
            self.copies.put_manifest(_result_of(one), self.bucket.read(one.name), one.written)

    # -- files

    def file(self, analysis_id: str, name: str) -> Path:
        path = self.layout.analysis_file(analysis_id, name)
        entry = None if self.copies.use(path) else self._entry(analysis_id, name)
        if entry is not None:
            with suppress(FileNotFoundError):
                source = self.bucket.stream(file_object(analysis_id, entry), 0, entry.size - 1)
                self.copies.put_file(path, entry, source)
        return path

    def _entry(self, analysis_id: str, name: str) -> ManifestFile | None:
        if not self.fetch_manifest(analysis_id):
            return None
        manifest = _read(self.layout.manifest(analysis_id))
        return next((file for file in manifest.files if file.name == name), None)

    def remote(self, analysis_id: str, file: ManifestFile) -> Read | None:
        if self.copies.use(self.layout.analysis_file(analysis_id, file.name)):
            return None
        name = file_object(analysis_id, file)
        return lambda first, last: self.bucket.stream(name, first, last)

    def stored_bytes(self, analysis_id: str, file: ManifestFile) -> int | None:
        try:
            return self.bucket.stat(file_object(analysis_id, file)).size
        except FileNotFoundError:
            return None

    def size(self, analysis_id: str) -> int:
        try:
            return sum(file.size for file in _read(self.layout.manifest(analysis_id)).files)
        except FileNotFoundError:
            return 0

    # -- change and deletion

    def replace_manifest(self, manifest: AnalysisManifest) -> None:
        text, name = manifest.model_dump_json(indent=2).encode(), manifest_object(manifest.id)
        self.bucket.replace(name, text)
        self.copies.put_manifest(manifest.id, text, self.bucket.stat(name).written)

    def remove_files(self, analysis_id: str, files: list[ManifestFile]) -> None:
        self.bucket.delete([file_object(analysis_id, file) for file in files])
        for file in files:
            self.layout.analysis_file(analysis_id, file.name).unlink(missing_ok=True)

    def unpublish(self, analysis_id: str) -> bool:
        text = self._manifest_text(analysis_id)
        if text is None:
            self.copies.forget(analysis_id)
            return False
        self._hidden[analysis_id] = text
        self.bucket.delete([manifest_object(analysis_id)])
        with suppress(FileNotFoundError):  # another process has just removed it
            self.layout.analysis(analysis_id).rename(self.layout.hidden(analysis_id))
        return True

    def republish(self, analysis_id: str) -> None:
        self.bucket.create(manifest_object(analysis_id), self._hidden.pop(analysis_id))
        with suppress(FileNotFoundError):
            self.layout.hidden(analysis_id).rename(self.layout.analysis(analysis_id))
        self.fetch_manifest(analysis_id)

    def delete_hidden(self, analysis_id: str) -> None:
        self._hidden.pop(analysis_id, None)
        names = [one.name for one in self.bucket.list(f"{_FILES}/{analysis_id}")]
        self.bucket.delete(names)
        shutil.rmtree(self.layout.hidden(analysis_id), ignore_errors=True)

    def sweep(self, older_than: float) -> int:
        """Delete files that no manifest lists and that are older than `older_than` seconds."""
        last = datetime.now(UTC) - timedelta(seconds=older_than)
        old = [one.name for one in self.bucket.list(_FILES) if one.written < last]
        by_result: dict[str, list[str]] = {}
        for name in old:
            by_result.setdefault(name.split("/")[1], []).append(name)
        left = [name for names in by_result.items() for name in self._unlisted(*names)]
        self.bucket.delete(left)
        if left:
            log.info("leftover objects removed", count=len(left))
        return len(left)

    def _unlisted(self, analysis_id: str, names: list[str]) -> Iterator[str]:
        text = self._manifest_text(analysis_id)
        try:
            kept = _objects(AnalysisManifest.model_validate_json(text)) if text else set()
        except ValidationError:  # of a newer version, or damaged: delete nothing
            return
        yield from (name for name in names if name not in kept)


def _result_of(one: StoredObject) -> str:
    return one.name.removeprefix(f"{_MANIFESTS}/").removesuffix(".json")


def _read(path: Path) -> AnalysisManifest:
    return AnalysisManifest.model_validate_json(path.read_bytes())
