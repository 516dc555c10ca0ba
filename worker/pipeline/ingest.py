"""Ingest an uploaded file: decode it, assign errors, check it and publish its rows."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.domain.errors import DecodeError
from model.domain.observations import validate_table
from worker.contract import traces
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.layout import Layout
from worker.contract.uploads import upload_store
from worker.observations.columns import count_pairs, count_values, float_column, set_column
from worker.observations.decoders.base import DecodeContext, Decoded
from worker.observations.decoders.decode import FileToDecode, decode_in_one_child, decode_limited
from worker.observations.errors import ErrorTable, assign_errors, load_errors
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import QCReport, run_checks
from worker.observations.store.files import BatchManifest
from worker.observations.store.group_commit import NewBatch, publish_many
from worker.observations.store.store import ObservationStore
from worker.sandbox import Limits

__all__ = [
    "Arrived",
    "Effective",
    "IngestOptions",
    "IngestReport",
    "decode_small",
    "ingest",
    "ingest_batch",
    "options_of",
    "prepare",
]

Overrides = Mapping[str, Any] | str | Path | None


def _no_check() -> None:
    pass


@dataclass(frozen=True)
class IngestOptions:
    """How a file is read, with the overrides of this deployment and this upload.

    Attributes:
        format: Name of a format; None recognises it.
        report_type: Network of rows that name none.
        file_name: Name given by the sender, if the path has another name.
        decoder: Options of the format's decoder.
        errors: Observation errors, deployment first, then upload.
        checks: Parameters of quality control, deployment first, then upload.
        limits: Bounds of the decoding process.
        processes: Decoding processes for one large BUFR file.
        version: Number of announced updates of its data: the least correction number of its rows.
    """

    format: str | None = None
    report_type: str | None = None
    file_name: str = ""
    decoder: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[Overrides, ...] = ()
    checks: tuple[Overrides, ...] = ()
    limits: Limits | None = None
    processes: int = 1
    version: int = 0


@dataclass(frozen=True)
class IngestReport:
    """Counts of one upload: messages, rows, outcomes.

    Attributes:
        manifest: Its rows in the store.
        summary: Counts by variable, network and rejecting check, and the decoder's report.
    """

    manifest: BatchManifest
    summary: IngestSummary


def ingest(
    batch_id: str,
    raw_path: str | Path,
    *,
    store: ObservationStore,
    received_time: datetime,
    options: IngestOptions | None = None,
    check_lease: Callable[[], None] = _no_check,
) -> IngestReport:
    """Decode one upload, assign errors, check and publish its rows; idempotent.

    Arguments:
        batch_id: The upload; a batch that is in the store already is not read again.
        raw_path: Its bytes.
        store: Where the rows go.
        received_time: Arrival at the gateway (aware, UTC).
        options: How to read it.
        check_lease: Called between the steps; raises to stop, for example when a lease is lost.

    Raises:
        DecodeError: If the file gives no row at all; the decoder's report is in its context.
        ConfigurationError: If overrides are faulty.
        StorageError: If the store cannot be written; a retry is safe.
    """
    options = options or IngestOptions()
    if (published := store.files.manifest(batch_id)) is not None:
        return IngestReport(published, published.summary)
    traces.phase("decoding")
    effective = Effective()
    effective.of(options)  # before the work of decoding
    context = _context(batch_id, received_time, options)
    decoded = decode_limited(
        Path(raw_path), options.format, context, options.limits, options.processes
    )
    check_lease()
    traces.phase("checking")
    rows, summary = prepare(decoded, context, options, effective)
    check_lease()
    traces.phase("storing")
    return IngestReport(publish_many(store.files, [rows])[0], summary)


@dataclass
class Effective:
    """Effective error tables and parameters, cached for uploads with the same overrides."""

    _read: dict[str, tuple[ErrorTable, dict[str, dict[str, Any]]]] = field(default_factory=dict)

    def of(self, options: IngestOptions) -> tuple[ErrorTable, dict[str, dict[str, Any]]]:
        """Return the observation errors and the parameters of the checks.

        Raises:
            ConfigurationError: If overrides are faulty.
        """
        key = json.dumps([options.errors, options.checks], default=str, sort_keys=True)
        if key not in self._read:
            self._read[key] = load_errors(*options.errors), load_parameters(*options.checks)
        return self._read[key]


def prepare(
    decoded: Decoded,
    context: DecodeContext,
    options: IngestOptions,
    effective: Effective | None = None,
) -> tuple[NewBatch, IngestSummary]:
    """Assign errors to the rows of one upload and check them; return them ready to publish.

    Arguments:
        decoded: Its decoded rows.
        context: Context of the decoding.
        options: Options of the ingest.
        effective: Cache of error tables and parameters.

    Raises:
        DecodeError: If there is no row; the decoder's report is in its context.
        ConfigurationError: If overrides are faulty.
    """
    _require_rows(decoded)
    errors, parameters = (effective or Effective()).of(options)
    table = assign_errors(_updated(validate_table(decoded.table), options.version), errors)
    table, checked = run_checks(table, "pre", QCContext(parameters=parameters))
    summary = _summarise(table, decoded, checked)
    provenance = {
        "summary": summary.model_dump(mode="json"),
        "options": _described(options),
        "representativeness": errors.representativeness.model_dump(),
        "quality_control": parameters,
    }
    return NewBatch(table, context.batch_id, context.received_time, provenance), summary


def _updated(table: pa.Table, version: int) -> pa.Table:
    """Return the table with a correction number of at least `version` in every row.

    Data that are announced as updated supersede the earlier ones with the same identifier, even if the
    bulletin is not marked as a correction.
    """
    if not version:
        return table
    own = np.nan_to_num(float_column(table, "update_sequence"), nan=0.0)
    return set_column(table, "update_sequence", np.maximum(own, version))


def _context(batch_id: str, received_time: datetime, options: IngestOptions) -> DecodeContext:
    wanted = dict(options.decoder)
    if options.report_type is not None:
        wanted["report_type"] = options.report_type
    return DecodeContext(
        batch_id=batch_id,
        received_time=received_time,
        file_name=options.file_name,
        options=wanted,
    )


def _require_rows(decoded: Decoded) -> None:
    if decoded.table.num_rows == 0:
        reasons = ", ".join(f"{n} {reason}" for reason, n in decoded.report.rejected.items())
        details = [q.detail for q in decoded.report.quarantined[:1] if q.detail]
        raise DecodeError(
            f"Expected at least one observation in the upload; got none ({reasons or 'no rows'})."
            + "".join(f" {detail}" for detail in details),
            reason=next(iter(decoded.report.rejected), "no_values"),
            decode_report=decoded.report.model_dump(mode="json"),
        )


def _summarise(table: pa.Table, decoded: Decoded, checked: QCReport) -> IngestSummary:
    report = decoded.report
    return IngestSummary(
        messages=report.messages,
        undecoded=sum(report.rejected.values()),
        observations=table.num_rows,
        used=checked.used,
        by_variable=_counts(table, "variable"),
        by_report_type=_counts(table, "report_type"),
        by_rejection=_counts(table, "rejected_by"),
        rejected_by_report_type=count_pairs(table, "report_type", "rejected_by"),
        decode_report=report.model_dump(mode="json"),
    )


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    return dict(sorted(count_values(table, column).items()))


def _described(options: IngestOptions) -> dict[str, Any]:
    return {
        "format": options.format,
        "report_type": options.report_type,
        "file_name": options.file_name,
        "decoder": dict(options.decoder),
        "errors": [e if isinstance(e, Mapping) else str(e) for e in options.errors if e],
    }


def ingest_batch(
    batch: BatchRecord, layout: Layout, check_lease: Callable[[], None]
) -> IngestSummary:
    """Decode, check and store an upload, and record the outcome; idempotent.

    Arguments:
        batch: The record of the upload.
        layout: Where its bytes and the store are.
        check_lease: Raises when another worker has taken over.

    Raises:
        DecodeError: If the upload gives no row.
        StorageError: If the store cannot be written, or a bucket does not answer.
        FileNotFoundError: If its bytes are not kept.
    """
    store = ObservationStore.of(layout)
    if (published := store.files.manifest(batch.id)) is not None:  # its bytes may be gone
        return published.summary
    with upload_store(layout).local({batch.id: batch.sha256}) as found:
        report = ingest(
            batch.id,
            found[batch.id],
            store=store,
            received_time=batch.created,
            options=options_of(batch, layout),
            check_lease=check_lease,
        )
    return report.summary


def options_of(batch: BatchRecord, layout: Layout) -> IngestOptions:
    """Return the options of an upload, from its sender and this installation."""
    return IngestOptions(
        format=batch.container,
        report_type=batch.options.get("report_type"),
        file_name=batch.file_name,
        decoder=batch.options.get("decoder", {}),
        errors=(layout.errors_file, batch.options.get("errors")),
        checks=(layout.checks_file,),
        version=batch.version,
    )


SMALL_LIMITS = Limits(address_space=1_500_000_000, cpu_seconds=5, wall_seconds=20.0)
"""Limits of decoding one small upload; one that exceeds them is decoded alone."""


SENDER_SECONDS = 10.0
"""Wall-clock time for the small uploads of one sender together; the rest is decoded alone."""


@dataclass(frozen=True)
class Arrived:
    """A small upload with its decoded rows, if decoding succeeded.

    Attributes:
        batch: The upload.
        options: Options of the ingest.
        context: Context of the decoding.
        decoded: Rows and report; None if it crashed its child.
    """

    batch: BatchRecord
    options: IngestOptions
    context: DecodeContext
    decoded: Decoded | None


def decode_small(batches: Sequence[BatchRecord], layout: Layout) -> Iterator[Arrived]:
    """Decode small uploads, those of each sender in one child; yield each with its result.

    A child is forked for each sender and replaced after a crash. The upload that caused the crash is
    not retried here, so that it delays nobody; the others are, while the sender has time left. Uploads
    whose bytes are not kept have no result. Senders with the fewest uploads come first.

    Raises:
        StorageError: If a child met a full disk or a failing device, or a bucket does not answer.
        OSError: If no child can be started.
    """
    senders: dict[str, list[Arrived]] = {}
    for batch in batches:
        options = options_of(batch, layout)
        context = _context(batch.id, batch.created, options)
        senders.setdefault(batch.api_key, []).append(Arrived(batch, options, context, None))
    uploads = upload_store(layout)
    for waiting in sorted(senders.values(), key=len):
        wanted = {one.batch.id: one.batch.sha256 for one in waiting}
        with uploads.local(wanted, missing_ok=True) as paths:
            yield from (one for one in waiting if one.batch.id not in paths)
            kept = [one for one in waiting if one.batch.id in paths]
            yield from _decode_of_sender(kept, paths)


def _decode_of_sender(waiting: list[Arrived], paths: Mapping[str, Path]) -> Iterator[Arrived]:
    """Decode the small uploads of one sender, as long as it has time; yield all."""
    end = time.monotonic() + SENDER_SECONDS
    while waiting and (left := end - time.monotonic()) > 0:
        files = [
            FileToDecode(paths[one.batch.id], one.options.format, one.context) for one in waiting
        ]
        found = decode_in_one_child(files, SMALL_LIMITS, left)
        for one, decoded in zip(waiting, found, strict=False):
            yield replace(one, decoded=decoded)
        yield from waiting[len(found) : len(found) + 1]
        waiting = waiting[len(found) + 1 :]
    yield from waiting
