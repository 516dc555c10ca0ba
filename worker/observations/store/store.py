"""Publish batches into the observation store, read windows, and send a whole store to a bucket.

A batch is written as one file per hour, then its manifest, after which readers see all of it. Files are
written atomically.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput, StorageError
from model.domain.observations import validate_table
from model.domain.windows import AssimilationWindow
from worker.contract.buckets import open_bucket
from worker.contract.layout import OBSERVATIONS_CACHE_BYTES, Layout
from worker.observations.columns import time_column
from worker.observations.store.commits import hour_of_log
from worker.observations.store.files import (
    BatchManifest,
    StoredFile,
    StoreFiles,
    partition_path,
)
from worker.observations.store.query import ObservationQuery, read_rows

__all__ = [
    "MAX_HOURS",
    "ObservationStore",
    "ROW_GROUP",
    "by_hour",
    "check_identity",
    "encode_rows",
    "publish",
    "put_hour",
    "remove_files",
    "send_store",
    "write_file",
]


def write_file(
    files: StoreFiles, relative: str, content: bytes, *, exclusive: bool = False
) -> None:
    """Write one file atomically.

    Arguments:
        files: The store.
        relative: Path below its root.
        content: All of it.
        exclusive: Refuse to replace a file that exists.

    Raises:
        StorageError: If it cannot be written, or exists and `exclusive` is set.
    """
    try:
        files.place.write(relative, content, exclusive=exclusive)
    except FileExistsError as error:
        raise StorageError(
            f"Expected no '{relative}' yet; it exists: another writer won."
        ) from error
    except OSError as error:
        raise StorageError(
            f"Cannot write '{relative}' of the observation store: {error}."
        ) from error


MAX_HOURS = 20_000
"""Maximum number of hours of one batch: each becomes a file."""

ROW_GROUP = 65_536
"""Number of rows of a row group: small enough to skip most of an hour by time."""

_HOUR = 3_600_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def publish(
    files: StoreFiles,
    table: pa.Table,
    batch_id: str,
    received_time: datetime,
    provenance: dict[str, Any] | None = None,
) -> BatchManifest:
    """Publish a batch and return its manifest, after which readers see all of it.

    Idempotent: publishing a batch again changes nothing and returns the first manifest. A crash before
    the manifest leaves files that are never read and that the next attempt overwrites.

    Arguments:
        files: The store.
        table: Its rows; `batch_id` and `received_time` of every row must be the ones given.
        batch_id: The upload.
        received_time: Its arrival (aware, UTC).
        provenance: How the rows were made; JSON-able.

    Raises:
        InvalidInput: If the rows do not belong to the batch, or spread over too many hours.
        StorageError: If writing fails; a retry is safe.
    """
    if (existing := files.manifest(batch_id)) is not None:
        return existing
    table = validate_table(table)
    check_identity(table, batch_id)
    stored = [put_hour(files, part, hour, batch_id, received_time) for hour, part in by_hour(table)]
    digest = hashlib.sha256("".join(f.sha256 for f in stored).encode()).hexdigest()
    manifest = BatchManifest(
        batch_id=batch_id,
        received_time=received_time,
        created=datetime.now(UTC),
        content_hash=digest,
        rows=len(table),
        files=tuple(stored),
        provenance=provenance or {},
    )
    write_file(files, files.batch_path(batch_id), manifest.model_dump_json(indent=1).encode())
    return manifest


def encode_rows(table: pa.Table) -> bytes:
    """Return the table as Parquet bytes, the same for the same rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def check_identity(table: pa.Table, batch_id: str) -> None:
    """Raise InvalidInput if rows are not of the batch."""
    found = table["batch_id"].unique().to_pylist()
    if found not in ([], [batch_id]):
        raise InvalidInput(
            f"Expected rows of batch '{batch_id}' only; got {', '.join(map(str, found[:3]))}.",
            batch_id=batch_id,
        )


def by_hour(table: pa.Table) -> list[tuple[datetime, pa.Table]]:
    """Return the rows of each hour, sorted by time; equal times keep the order of decoding."""
    observed = time_column(table)
    order = np.argsort(observed, kind="stable")
    hours, first = np.unique(observed[order] // _HOUR, return_index=True)
    if len(hours) > MAX_HOURS:
        raise InvalidInput(
            f"Expected at most {MAX_HOURS} different hours in one batch; got {len(hours)}. "
            "Split the upload, or check its times.",
            hours=len(hours),
        )
    ordered = table.take(order)
    ends = [*first[1:], len(order)][: len(first)]
    return [
        (_EPOCH + timedelta(hours=int(hour)), ordered.slice(start, end - start))
        for hour, start, end in zip(hours, first, ends, strict=True)
    ]


def put_hour(
    files: StoreFiles, part: pa.Table, hour: datetime, owner: str, received_time: datetime
) -> StoredFile:
    """Write the rows of one hour and owner as a file, unpublished yet."""
    content = encode_rows(part)
    digest = hashlib.sha256(content).hexdigest()
    stamp = f"{received_time.astimezone(UTC):%Y%m%dT%H%M%S%fZ}"
    path = f"{partition_path(hour)}/{stamp}__{owner}__{digest[:16]}.parquet"
    write_file(files, path, content)
    return StoredFile(path=path, rows=len(part), sha256=digest)


def remove_files(files: StoreFiles, paths: list[str]) -> None:
    """Remove files, if they exist."""
    files.place.remove(paths)


@dataclass(frozen=True)
class ObservationStore:
    """Hourly Parquet files below `url`, a folder or `s3://bucket/prefix`.

    Attributes:
        url: The root.
        cache: Local folder for the disk cache of a bucket.
        cache_bytes: Size limit of the cache.
    """

    url: str
    cache: str = ""
    cache_bytes: int = OBSERVATIONS_CACHE_BYTES

    @classmethod
    def of(cls, layout: Layout) -> "ObservationStore":
        """Return the store of an installation."""
        files = StoreFiles.of(layout)
        return cls(files.url, files.cache, files.cache_bytes)

    @property
    def files(self) -> StoreFiles:
        """Return the names and manifests of the files below the root."""
        return StoreFiles(str(self.url), self.cache, self.cache_bytes)

    def publish(
        self,
        table: pa.Table,
        batch_id: str,
        received_time: datetime,
        provenance: dict[str, Any] | None = None,
    ) -> BatchManifest:
        """Publish a batch and return its manifest, after which readers see all of it."""
        return publish(self.files, table, batch_id, received_time, provenance)

    def read_window(
        self,
        window: AssimilationWindow,
        *,
        cut_off: datetime | None = None,
        columns: Sequence[str] = (),
        report_types: Sequence[str] = (),
        variables: Sequence[str] = (),
        batches: Sequence[str] = (),
        used_only: bool = False,
        max_rows: int | None = None,
    ) -> pa.Table:
        """Return the rows observed in (start, end], in order of hour and arrival.

        Arguments:
            window: The time window.
            cut_off: Only rows that had arrived by then, to reproduce a past state of the store.
            columns: Names of the columns; empty for all.
            report_types: Only these networks; empty for all.
            variables: Only these variables; empty for all.
            batches: Only these uploads; empty for all.
            used_only: Leave out rows rejected at arrival.
            max_rows: Refuse larger answers.

        Raises:
            ResourceExhausted: If there are more than `max_rows`.
        """
        query = ObservationQuery(
            start=window.start,
            end=window.end,
            cut_off=cut_off,
            columns=tuple(columns),
            report_types=tuple(report_types),
            variables=tuple(variables),
            batches=tuple(batches),
            outcome="used" if used_only else "all",
        )
        return read_rows(self.files, query, max_rows)


def send_store(layout: Layout) -> int:
    """Copy the store from the data folder to the bucket, to move an installation; return the file count.

    Nobody may write to it meanwhile. Manifests are copied last, as in publication, so that it can be
    interrupted anywhere and run again. The folder is renamed to `observations-sent` at the end, to be
    deleted by hand.

    Raises:
        BucketUnavailable: If the bucket does not answer; run it again.
        OSError: If the disk fails.
    """
    source = layout.root / "observations"
    old, new = StoreFiles(str(source)), StoreFiles.of(layout)
    bucket, count = open_bucket(layout.observations_url), 0
    for path in _in_order(source):
        bucket.send(path, str(path.relative_to(source)))
        count += 1
    for log in old.logs():
        target = new.log(hour_of_log(log.name))
        for commit in log.commits():
            manifests = {one["batch_id"]: one for one in log.content(commit)}
            target.append(commit.name, commit.hours, manifests)
        count += 1
    if source.exists():
        source.rename(layout.root / "observations-sent")
    return count


def _in_order(source: Path) -> Iterator[Path]:
    """Yield the files to copy: rows, then values shared by manifests, then manifests."""
    for pattern in ("date=*/hour=*/[!._]*", "shared/[!.]*", "date=*/hour=*/_*", "batches/[!.]*"):
        yield from sorted(source.glob(pattern))
