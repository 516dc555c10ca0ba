"""Publish batches into the observation store, compact its hours and read windows.

A batch becomes one file an hour, then its manifest, after which readers see all of it. Compaction
turns the many small files of an hour into one; readers see the old ones or the new one, never
both. Files appear whole or not at all.
"""

import hashlib
import io
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput, StorageError
from model.domain.files import write_atomic
from model.domain.observations import validate_table
from model.domain.windows import AssimilationWindow
from worker.observations.columns import time_column
from worker.observations.store.commits import commit_hour
from worker.observations.store.files import (
    BatchManifest,
    Compaction,
    StoredFile,
    StoreFiles,
    hour_of,
    parse_name,
    partition_path,
)
from worker.observations.store.query import ObservationQuery, read_files, read_rows

__all__ = [
    "CompactionReport",
    "MAX_HOURS",
    "ObservationStore",
    "ROW_GROUP",
    "compact",
    "compact_hour",
    "by_hour",
    "check_identity",
    "encode_rows",
    "publish",
    "put_hour",
    "remove_files",
    "write_file",
    "sweep_hour",
]


def write_file(
    files: StoreFiles, relative: str, content: bytes, *, exclusive: bool = False
) -> None:
    """Write one file: temporary name, fsync, rename on disks; one upload on object stores.

    Arguments:
        files: The store.
        relative: Path below its root.
        content: All of it.
        exclusive: Refuse to replace a file that exists.

    Raises:
        StorageError: If it cannot be written, or exists and `exclusive` is set.
    """
    path = files.path(relative)
    protocol = files.filesystem.protocol
    try:
        if "file" in ((protocol,) if isinstance(protocol, str) else protocol):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(Path(path), content, exclusive=exclusive)
            return
        if exclusive and files.filesystem.exists(path):
            raise FileExistsError(path)
        # Object stores show an object only when its upload is complete.
        files.filesystem.pipe_file(path, content)
    except FileExistsError as error:
        raise StorageError(
            f"Expected no '{relative}' yet; it exists: another writer won."
        ) from error
    except OSError as error:
        raise StorageError(
            f"Cannot write '{relative}' of the observation store: {error}."
        ) from error


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
    """Publish a batch and return its manifest, after which readers see all of it.

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
    """Write the rows of one hour and owner as a file, not published yet."""
    content = encode_rows(part)
    digest = hashlib.sha256(content).hexdigest()
    stamp = f"{received_time.astimezone(UTC):%Y%m%dT%H%M%S%fZ}"
    path = f"{partition_path(hour)}/{stamp}__{owner}__{digest[:16]}.parquet"
    write_file(files, path, content)
    return StoredFile(path=path, rows=len(part), sha256=digest)


@dataclass
class CompactionReport:
    """Counts of a compaction: hours rewritten, files read and removed, rows kept."""

    hours: int = 0
    files_before: int = 0
    files_removed: int = 0
    rows: int = 0


def compact(
    files: StoreFiles,
    start: datetime,
    end: datetime,
    *,
    least_files: int = 4,
    grace: timedelta = timedelta(minutes=15),
) -> CompactionReport:
    """Compact every hour of [start, end] that has at least `least_files` files.

    Arguments:
        files: The store. Only one compaction may run at a time; a second one stops with an error.
        start: First hour.
        end: Last hour.
        least_files: Hours with fewer files are left as they are.
        grace: Replaced files are removed when their replacement is at least this old, so that
            readers who have listed them can finish.
    """
    report = CompactionReport()
    for hour in files.hours(hour_of(start), end):
        report.files_removed += sweep_hour(files, hour, grace) + sweep_unpublished(files, hour)
        if len(files.visible(hour).paths) >= least_files:
            compaction = compact_hour(files, hour)
            report.hours += 1
            report.files_before += len(compaction.replaces)
            report.rows += compaction.file.rows
            report.files_removed += sweep_hour(files, hour, grace)
    return report


def compact_hour(files: StoreFiles, hour: datetime) -> Compaction:
    """Merge the published files of one hour; the compaction manifest switches readers over.

    A crash before the manifest leaves a file that readers ignore; the next run replaces it.

    Raises:
        StorageError: If another compaction of the same hour won.
    """
    folder = partition_path(hour)
    names = files.names(folder)
    previous = files.compaction(hour, names)
    paths = files.visible(hour).paths
    table = read_files(files, paths)
    table = table.take(np.argsort(time_column(table), kind="stable"))
    content = encode_rows(table)
    digest = hashlib.sha256(content).hexdigest()
    generation = 1 if previous is None else previous.generation + 1
    arrival = min(parsed[0] for path in paths if (parsed := parse_name(path.rsplit("/", 1)[1])))
    name = f"{arrival:%Y%m%dT%H%M%S%fZ}__compacted-{generation:06d}__{digest[:16]}.parquet"
    still_there = set(names) & set(() if previous is None else previous.replaces)
    compaction = Compaction(
        generation=generation,
        created=datetime.now(UTC),
        file=StoredFile(path=f"{folder}/{name}", rows=len(table), sha256=digest),
        replaces=tuple(sorted(still_there | {path.rsplit("/", 1)[1] for path in paths})),
        batches=tuple(sorted(table["batch_id"].unique().to_pylist())),
    )
    write_file(files, compaction.file.path, content)
    try:
        manifest = compaction.model_dump_json(indent=1).encode()
        write_file(files, f"{folder}/_compaction-{generation:06d}.json", manifest, exclusive=True)
    except StorageError:
        winner = files.compaction(hour)
        if winner is None or winner.file.path != compaction.file.path:
            remove_files(files, [compaction.file.path])
        raise
    return compaction


def sweep_hour(files: StoreFiles, hour: datetime, grace: timedelta) -> int:
    """Remove files that a compaction older than `grace` has replaced; return how many."""
    folder = partition_path(hour)
    names = files.names(folder)
    compaction = files.compaction(hour, names)
    if compaction is None or datetime.now(UTC) - compaction.created < grace:
        return 0
    replaced = [f"{folder}/{name}" for name in compaction.replaces if name in names]
    older = [
        f"{folder}/{name}"
        for name in names
        if name.startswith("_compaction-") and name < f"_compaction-{compaction.generation:06d}"
    ]
    remove_files(files, replaced)
    remove_files(files, older)
    return len(replaced)


_ORPHANED = timedelta(days=1)


def sweep_unpublished(files: StoreFiles, hour: datetime) -> int:
    """Remove files of commits that never came about, a day after they were written."""
    if not files.local:
        return 0
    folder, removed = partition_path(hour), 0
    for name in files.names(folder):
        parsed = parse_name(name)
        if parsed is None or commit_hour(parsed[1]) is None:
            continue
        path = Path(files.path(f"{folder}/{name}"))
        with suppress(FileNotFoundError):
            old = time.time() - path.stat().st_mtime > _ORPHANED.total_seconds()
            if old and files.owned(folder, name, parsed[1]) is None:
                path.unlink()
                removed += 1
    return removed


def remove_files(files: StoreFiles, paths: list[str]) -> None:
    """Remove files that are still there."""
    for path in paths:
        try:
            files.filesystem.rm_file(files.path(path))
        except FileNotFoundError:
            continue


@dataclass(frozen=True)
class ObservationStore:
    """Hourly Parquet files below `url`, a folder or an fsspec URL."""

    url: str

    @property
    def files(self) -> StoreFiles:
        """Names and manifests of the files below the root."""
        return StoreFiles(str(self.url))

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
            window: The time.
            cut_off: Only rows that had arrived by then: any past state of the store.
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
        return read_rows(str(self.url), query, max_rows)

    def compact(
        self,
        start: datetime,
        end: datetime,
        *,
        least_files: int = 4,
        grace: timedelta = timedelta(minutes=15),
    ) -> CompactionReport:
        """Compact every hour of [start, end] that has at least `least_files` files."""
        return compact(self.files, start, end, least_files=least_files, grace=grace)
