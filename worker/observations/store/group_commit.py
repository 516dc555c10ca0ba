"""Publish several batches in one commit: one file per hour for all of them, then one line in a log.

Publishing a small bulletin alone costs one file per hour and a flush of each to disk; bulletins that
arrive together share this cost. Readers see each batch as if it were published alone.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from model.domain.observations import OBSERVATION_SCHEMA, validate_table
from worker.contract import traces
from worker.observations.columns import count_values
from worker.observations.store.commits import hour_of_batch
from worker.observations.store.files import (
    SHARED,
    BatchManifest,
    StoredFile,
    StoreFiles,
    shared_path,
)
from worker.observations.store.store import (
    by_hour,
    check_identity,
    publish,
    put_hour,
    remove_files,
    write_file,
)

__all__ = ["NewBatch", "publish_many"]


@dataclass(frozen=True)
class NewBatch:
    """Rows to publish.

    Attributes:
        table: Its rows; `batch_id` and `received_time` of every row must be the ones given.
        batch_id: The upload.
        received_time: Its arrival (aware, UTC).
        provenance: How the rows were made; JSON-able.
    """

    table: pa.Table
    batch_id: str
    received_time: datetime
    provenance: dict[str, Any] = field(default_factory=dict)


def publish_many(files: StoreFiles, batches: Sequence[NewBatch]) -> list[BatchManifest]:
    """Publish batches with one file per hour for all of them, and one commit; return their manifests.

    Each batch is published atomically and once, as by `publish`: those that another attempt has
    published meanwhile are unchanged. Batches whose ids name no hour are published one by one.

    Raises:
        InvalidInput: If rows do not belong to their batch, or spread over too many hours.
        StorageError: If writing fails; a retry is safe.
    """
    together: dict[datetime, list[NewBatch]] = {}
    for batch in batches:
        hour = hour_of_batch(batch.batch_id)
        if hour is not None:
            together.setdefault(hour, []).append(batch)
    found: dict[str, BatchManifest] = {}
    for hour, some in together.items():
        with traces.step("commit rows", **{"appa.uploads": len(some)}):
            found.update(_commit(files, hour, some))
    for batch in batches:
        if batch.batch_id not in found:
            about = (batch.batch_id, batch.received_time, batch.provenance)
            with traces.step("commit rows"):
                found[batch.batch_id] = publish(files, batch.table, *about)
    return [found[batch.batch_id] for batch in batches]


def _commit(
    files: StoreFiles, hour: datetime, batches: Sequence[NewBatch]
) -> dict[str, BatchManifest]:
    """Publish batches whose ids name the same hour; return all of their manifests."""
    found: dict[str, BatchManifest] = {}
    waiting = {batch.batch_id: batch for batch in batches}
    while True:
        found |= files.manifests(waiting)
        waiting = {name: batch for name, batch in waiting.items() if name not in found}
        if not waiting:
            return found
        commit = f"commit-{hour:%Y%m%dt%H}-{secrets.token_hex(8)}"
        hours, made = _put_batches(files, commit, list(waiting.values()))
        contents = {
            name: _with_shared(files, manifest.model_dump(mode="json"))
            for name, manifest in made.items()
        }
        if not files.log(hour).append(commit, hours, contents):
            return found | made
        remove_files(files, sorted({f.path for manifest in made.values() for f in manifest.files}))


def _put_batches(
    files: StoreFiles, commit: str, batches: Sequence[NewBatch]
) -> tuple[list[datetime], dict[str, BatchManifest]]:
    """Write the rows of batches, one file per hour, unpublished yet; return hours and manifests."""
    tables = [
        batch.table if batch.table.schema == OBSERVATION_SCHEMA else validate_table(batch.table)
        for batch in batches
    ]
    for batch, table in zip(batches, tables, strict=True):
        check_identity(table, batch.batch_id)
    merged = validate_table(pa.concat_tables(tables))
    arrival = min(batch.received_time for batch in batches)
    hours = by_hour(merged)
    stored = [put_hour(files, part, hour, commit, arrival) for hour, part in hours]
    counts = [count_values(part, "batch_id") for _, part in hours]
    created = datetime.now(UTC)
    return [hour for hour, _ in hours], {
        batch.batch_id: BatchManifest(
            batch_id=batch.batch_id,
            received_time=batch.received_time,
            created=created,
            content_hash=_rows_digest(table),
            rows=len(table),
            files=tuple(
                StoredFile(path=file.path, rows=count[batch.batch_id], sha256=file.sha256)
                for file, count in zip(stored, counts, strict=True)
                if count[batch.batch_id]
            ),
            provenance=batch.provenance,
        )
        for batch, table in zip(batches, tables, strict=True)
    }


def _rows_digest(table: pa.Table) -> str:
    """Return the SHA-256 of rows, independent of the file that holds them."""
    sink = pa.BufferOutputStream()
    plain = pa.Table.from_batches(table.combine_chunks().to_batches(), table.schema)
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    return hashlib.sha256(sink.getvalue()).hexdigest()


_SHARED_LENGTH = 512
_shared_before: set[tuple[str, str]] = set()


def _with_shared(files: StoreFiles, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest in which long shared values are replaced by their digest."""
    provenance = dict(manifest["provenance"])
    for key in _SHARED_KEYS & provenance.keys():
        text = json.dumps(provenance[key], sort_keys=True)
        if len(text) < _SHARED_LENGTH:
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        if (files.url, digest) not in _shared_before:
            if files.read_text(shared_path(digest)) != text:
                write_file(files, shared_path(digest), text.encode())
            _shared_before.add((files.url, digest))
        provenance[key] = {SHARED: digest}
    return {**manifest, "provenance": provenance}


_SHARED_KEYS = frozenset({"quality_control", "representativeness"})
