"""Store accepted uploads as received: in the data folder, or in a bucket.

All code that stores, reads or deletes the bytes of an upload uses `upload_store(layout)`. The bytes
are stored with the record of the upload, from which it is restored if Redis loses its data. There are
two kinds of store.

In the data folder an upload is a folder, `raw/BATCH`, completed by an atomic rename of its bytes. In a
bucket it is two objects, by the day in its id:

    content/20260301/BATCH          the bytes, written first
    records/20260301/BATCH.json     the record, written last: it completes the upload

Bytes without a record were left by a gateway that died before it accepted them. No client was told
that they are stored, and they are deleted after a day. Deletion is in the opposite order.
"""

import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from model.domain.files import file_digest, sync_folder, write_atomic
from worker.contract import clock
from worker.contract.batches import BatchRecord
from worker.contract.buckets import BucketUnavailable, open_bucket
from worker.contract.layout import Layout
from worker.contract.part_file import PartFile, sweep

__all__ = ["KeptUpload", "UploadStore", "send_uploads", "upload_store"]


@dataclass(frozen=True)
class KeptUpload:
    """A stored upload.

    Attributes:
        id: Id of the batch.
        size: Bytes.
        written: When it was stored (aware, UTC, real time).
    """

    id: str
    size: int
    written: datetime


class UploadStore(Protocol):
    """Store of uploads as received."""

    def keep(self, part: PartFile, record: BatchRecord) -> None:
        """Store a completely received file durably, with its record.

        Raises:
            OSError: If it cannot be stored; nothing is left.
            BucketUnavailable: If a bucket does not respond; it may be stored or not.
        """

    def forget(self, batch_id: str) -> bool:
        """Delete an upload; return whether it was there.

        Raises:
            OSError: If the disk fails.
            BucketUnavailable: If a bucket does not respond; it may still be there.
        """

    def has(self, batch_id: str) -> bool:
        """Return whether an upload is kept."""

    def record(self, batch_id: str) -> BatchRecord | None:
        """Return the record of an upload as received; None if it is not stored."""

    def written(self, batch_id: str) -> datetime | None:
        """Return when an upload was stored (real time, UTC); None if it is not kept."""

    def local(
        self, wanted: Mapping[str, str], *, missing_ok: bool = False
    ) -> AbstractContextManager[dict[str, Path]]:
        """Provide the bytes of uploads as local files, by their ids, within a block.

        Arguments:
            wanted: Ids with the SHA-256 of their bytes; empty where that is not known.
            missing_ok: Leave out those whose bytes are not kept.

        Raises:
            FileNotFoundError: If the bytes of one are not kept, unless that is `missing_ok`.
            BucketUnavailable: If one cannot be fetched now, or has another SHA-256.
        """

    def names(self) -> Iterator[str]:
        """Yield the ids of the uploads that are kept, newest first."""

    def kept(self, until: datetime | None = None) -> Iterator[KeptUpload]:
        """Yield the uploads that are kept.

        Arguments:
            until: Those that were stored later, by the operational clock, may be left out.
        """

    def sweep(self, older_than: float) -> int:
        """Delete leftovers of killed processes older than this many seconds; return their number."""


class FolderUploads:
    """Uploads as folders of the data folder, completed by a rename of their bytes."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def keep(self, part: PartFile, record: BatchRecord) -> None:
        beside = self.layout.raw_record(record.id)
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(beside, record.model_dump_json())
        part.publish(self.layout.raw_file(record.id))

    def forget(self, batch_id: str) -> bool:
        hidden = self.layout.hidden(batch_id)
        try:
            self.layout.raw_batch(batch_id).rename(hidden)
        except FileNotFoundError:
            return False
        sync_folder(self.layout.raw)
        shutil.rmtree(hidden, ignore_errors=True)
        return True

    def has(self, batch_id: str) -> bool:
        return self.layout.raw_file(batch_id).is_file()

    def record(self, batch_id: str) -> BatchRecord | None:
        try:
            return BatchRecord.model_validate_json(self.layout.raw_record(batch_id).read_bytes())
        except FileNotFoundError:
            return None

    def written(self, batch_id: str) -> datetime | None:
        try:
            return datetime.fromtimestamp(self.layout.raw_file(batch_id).stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    @contextmanager
    def local(
        self, wanted: Mapping[str, str], *, missing_ok: bool = False
    ) -> Iterator[dict[str, Path]]:
        paths = {name: self.layout.raw_file(name) for name in wanted}
        yield _kept({n: p if p.is_file() else None for n, p in paths.items()}, missing_ok)

    def names(self) -> Iterator[str]:
        with os.scandir(self.layout.raw) as entries:
            folders = [entry.name for entry in entries if entry.is_dir()]
        yield from sorted(folders, reverse=True)

    def kept(self, until: datetime | None = None) -> Iterator[KeptUpload]:
        for folder in self.layout.raw.iterdir() if self.layout.raw.is_dir() else ():
            try:
                files = [path.stat() for path in folder.iterdir()]
                written = max([folder.stat().st_mtime, *(file.st_mtime for file in files)])
            except (FileNotFoundError, NotADirectoryError):
                continue
            size = sum(file.st_size for file in files)
            yield KeptUpload(folder.name, size, datetime.fromtimestamp(written, UTC))

    def sweep(self, older_than: float) -> int:
        return 0  # the reconciler creates records for leftovers


_CONTENT, _RECORDS = "content", "records"
_FETCHED = "fetched-"
"""Prefix of local copies in `tmp`, which exist while they are read."""

_AT_ONCE = 16
"""Maximum number of concurrent downloads."""

_SWEPT_BACK = timedelta(days=7)
"""How far back the sweep looks; retention deletes older bytes without a record."""

_DAY_OF_ID = re.compile(r"batch-(\d{8})t\d{9}-[0-9a-f]{8}")
_UNDATED = "undated"


def _day(batch_id: str) -> str:
    found = _DAY_OF_ID.fullmatch(batch_id)
    return found[1] if found else _UNDATED


def _content(batch_id: str) -> str:
    return f"{_CONTENT}/{_day(batch_id)}/{batch_id}"


def _record(batch_id: str) -> str:
    return f"{_RECORDS}/{_day(batch_id)}/{batch_id}.json"


def _id(name: str) -> str:
    """Return the id of the upload that an object belongs to."""
    return name.rsplit("/", 1)[-1].removesuffix(".json")


def _start(day: str) -> datetime | None:
    """Return the first moment of a folder's day; None for the folder of ids without a day."""
    return None if day == _UNDATED else datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)


class BucketUploads:
    """Uploads as objects of an S3-compatible bucket; copies here only while they are read.

    Arguments:
        layout: The data folder, whose `tmp` takes the copies, and the address of the bucket.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.bucket = open_bucket(layout.uploads_url)
        sweep(layout.tmp, f"{_FETCHED}*")

    def keep(self, part: PartFile, record: BatchRecord) -> None:
        self.put(part.path, record)

    def put(self, path: Path, record: BatchRecord) -> None:
        """Store a file and its record; see `keep`."""
        self.bucket.send(path, _content(record.id))
        # False: a retry after a lost response of our own first request, because ids are unique
        self.bucket.create(_record(record.id), record.model_dump_json().encode())

    def forget(self, batch_id: str) -> bool:
        there = self._stat(_content(batch_id)) is not None
        self.bucket.delete([_record(batch_id)])
        self.bucket.delete([_content(batch_id)])
        return there

    def has(self, batch_id: str) -> bool:
        return self._stat(_record(batch_id)) is not None

    def record(self, batch_id: str) -> BatchRecord | None:
        try:
            return BatchRecord.model_validate_json(self.bucket.read(_record(batch_id)))
        except FileNotFoundError:
            return None

    def written(self, batch_id: str) -> datetime | None:
        return self._stat(_record(batch_id))

    def _stat(self, name: str) -> datetime | None:
        try:
            return self.bucket.stat(name).written
        except FileNotFoundError:
            return None

    @contextmanager
    def local(
        self, wanted: Mapping[str, str], *, missing_ok: bool = False
    ) -> Iterator[dict[str, Path]]:
        with ExitStack() as stack:
            parts = {
                name: stack.enter_context(
                    PartFile(self.layout.tmp / f"{_FETCHED}{name}-{secrets.token_hex(4)}")
                )
                for name in wanted
            }
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = list(pool.map(self._fetch, parts, wanted.values(), parts.values()))
            yield _kept(dict(zip(parts, found, strict=True)), missing_ok)

    def _fetch(self, batch_id: str, sha256: str, part: PartFile) -> Path | None:
        """Copy the bytes of an upload; return where they are, None if they are not kept."""
        try:
            for content in self.bucket.content(_content(batch_id)):
                part.write(content)
        except FileNotFoundError:
            return None
        if sha256 and part.sha256 != sha256:
            raise BucketUnavailable(
                f"Expected the bytes of upload '{batch_id}' with the SHA-256 {sha256} in "
                f"{self.bucket.url}; got {part.sha256}.",
                batch_id=batch_id,
            )
        return part.path

    def names(self) -> Iterator[str]:
        for day in reversed(self.bucket.folders(_RECORDS)):
            found = [_id(one.name) for one in self.bucket.list(f"{_RECORDS}/{day}")]
            yield from sorted(found, reverse=True)

    def kept(self, until: datetime | None = None) -> Iterator[KeptUpload]:
        for day in self.bucket.folders(_CONTENT):
            start = _start(day)
            if until is not None and start is not None and clock.operational(start) > until:
                continue
            for one in self.bucket.list(f"{_CONTENT}/{day}"):
                yield KeptUpload(_id(one.name), one.size, one.written)

    def sweep(self, older_than: float) -> int:
        last, left = datetime.now(UTC) - timedelta(seconds=older_than), list[str]()
        for day in self.bucket.folders(_CONTENT):
            start = _start(day)
            if start is not None and not last - _SWEPT_BACK <= start <= last:
                continue
            old = [o.name for o in self.bucket.list(f"{_CONTENT}/{day}") if o.written < last]
            known = {_id(one.name) for one in self.bucket.list(f"{_RECORDS}/{day}")}
            left += [name for name in old if _id(name) not in known and not self.has(_id(name))]
        self.bucket.delete(left)
        return len(left)


def _kept(found: Mapping[str, Path | None], missing_ok: bool) -> dict[str, Path]:
    """Return the files of uploads without those that are None.

    Raises:
        FileNotFoundError: If one is None, unless that is `missing_ok`.
    """
    kept = {name: path for name, path in found.items() if path is not None}
    if len(kept) < len(found) and not missing_ok:
        gone = next(name for name in found if name not in kept)
        raise FileNotFoundError(f"the bytes of upload '{gone}' are not kept")
    return kept


_opening = threading.Lock()


def upload_store(layout: Layout) -> UploadStore:
    """Return the store of uploads of an installation: one object for each process.

    Raises:
        ConfigurationError: If they lie in a bucket whose address is not understood, or the extra
            `objects` is not installed.
    """
    with _opening:
        return _open(layout, os.getpid())


@lru_cache(maxsize=8)
def _open(layout: Layout, process: int) -> UploadStore:
    return BucketUploads(layout) if layout.uploads_url else FolderUploads(layout)


def send_uploads(layout: Layout) -> tuple[int, dict[str, str]]:
    """Move the uploads of the data folder to the bucket; safe to run twice.

    Returns:
        Number of uploads sent, and the reason for each that was not.

    Raises:
        BucketUnavailable: If the bucket does not answer; what was sent stays there.
        OSError: If the disk fails.
    """
    bucket, folder = BucketUploads(layout), FolderUploads(layout)
    sent, left = 0, dict[str, str]()
    for name in folder.names():
        record, path = folder.record(name), layout.raw_file(name)
        if record is None or not path.is_file():
            left[name] = "nothing was kept about it" if record is None else "its bytes are gone"
        elif file_digest(path) != record.sha256:
            left[name] = "its bytes are not those that were received"
        else:
            bucket.put(path, record)
            folder.forget(name)
            sent += 1
    return sent, left
