"""Puts the rows of one batch into the store: one file an hour, then the manifest."""

import hashlib
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput
from model.domain.observations import validate_table
from worker.columns import times
from worker.jobs.observation_files import StoreFiles, partition_path
from worker.jobs.observation_manifests import BatchManifest, StoredFile
from worker.observation_store.atomic import put

__all__ = ["MAX_HOURS", "ROW_GROUP", "encode_rows", "publish"]

MAX_HOURS = 20_000
"""Most hours one batch may spread over: each becomes a file."""

ROW_GROUP = 65_536
"""Rows of a row group: small enough to skip most of an hour by time."""

_HOUR = 3_600_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def publish(
    files: StoreFiles,
    table: pa.Table,
    batch_id: str,
    received_time: datetime,
    provenance: dict[str, Any] | None = None,
) -> BatchManifest:
    """The manifest of the batch, after which readers see all of it.

    Publishing the same batch again changes nothing and returns the manifest of the first time; a
    crash before the manifest leaves files that nobody reads and that the next attempt rewrites.

    Arguments:
        files: The store.
        table: Its rows; `batch_id` and `received_time` of every row must be the ones given.
        batch_id: The upload.
        received_time: Its arrival (aware, UTC).
        provenance: How the rows were made; JSON-able.

    Raises:
        InvalidInput: If the rows do not belong to the batch, or spread over too many hours.
        StorageError: If writing fails; trying again is safe.
    """
    if (existing := files.manifest(batch_id)) is not None:
        return existing
    table = validate_table(table)
    _check_identity(table, batch_id)
    stored = [
        _put_hour(files, part, hour, batch_id, received_time) for hour, part in _by_hour(table)
    ]
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
    put(files, files.batch_path(batch_id), manifest.model_dump_json(indent=1).encode())
    return manifest


def encode_rows(table: pa.Table) -> bytes:
    """The table as Parquet bytes, the same for the same rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def _check_identity(table: pa.Table, batch_id: str) -> None:
    found = table["batch_id"].unique().to_pylist()
    if found not in ([], [batch_id]):
        raise InvalidInput(
            f"Expected rows of batch '{batch_id}' only; got {', '.join(map(str, found[:3]))}.",
            batch_id=batch_id,
        )


def _by_hour(table: pa.Table) -> list[tuple[datetime, pa.Table]]:
    """The rows of each hour, sorted by time; equal times keep the order of decoding."""
    time = times(table)
    order = np.argsort(time, kind="stable")
    hours, first = np.unique(time[order] // _HOUR, return_index=True)
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


def _put_hour(
    files: StoreFiles, part: pa.Table, hour: datetime, batch_id: str, received_time: datetime
) -> StoredFile:
    content = encode_rows(part)
    digest = hashlib.sha256(content).hexdigest()
    stamp = f"{received_time.astimezone(UTC):%Y%m%dT%H%M%S%fZ}"
    path = f"{partition_path(hour)}/{stamp}__{batch_id}__{digest[:16]}.parquet"
    put(files, path, content)
    return StoredFile(path=path, rows=len(part), sha256=digest)
