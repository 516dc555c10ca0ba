"""Ingest an uploaded file: decode it, assign errors, check it and publish its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.domain.errors import DecodeError
from model.domain.observations import validate_table
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.layout import Layout
from worker.observations.columns import count_values
from worker.observations.decoders.base import DecodeContext, Decoded
from worker.observations.decoders.decode import decode_limited
from worker.observations.errors import assign_errors, load_errors
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import QCReport, run_checks
from worker.observations.store.files import BatchManifest
from worker.observations.store.store import ObservationStore
from worker.sandbox import Limits

__all__ = ["IngestOptions", "IngestReport", "ingest", "ingest_batch", "summary_of"]

Overrides = Mapping[str, Any] | str | Path | None


def _no_check() -> None:
    pass


@dataclass(frozen=True)
class IngestOptions:
    """How a file is read, and what this deployment and this upload change.

    Attributes:
        format: Name of a format; None recognises it.
        report_type: Network of rows that name none.
        file_name: As the sender called the file, where its path has another name.
        decoder: Options of the format's decoder.
        errors: Observation errors, deployment first, then upload.
        checks: Parameters of quality control, deployment first, then upload.
        limits: Bounds of the decoding process.
        processes: Decoding processes for one large BUFR file.
    """

    format: str | None = None
    report_type: str | None = None
    file_name: str = ""
    decoder: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[Overrides, ...] = ()
    checks: tuple[Overrides, ...] = ()
    limits: Limits | None = None
    processes: int = 1


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
        StorageError: If the store cannot be written; trying again is safe.
    """
    options = options or IngestOptions()
    if (published := store.files.manifest(batch_id)) is not None:
        return IngestReport(published, summary_of(published))
    errors, parameters = load_errors(*options.errors), load_parameters(*options.checks)
    decoded = _decode(batch_id, Path(raw_path), received_time, options)
    check_lease()
    table = assign_errors(validate_table(decoded.table), errors)
    table, checked = run_checks(table, "pre", QCContext(parameters=parameters))
    check_lease()
    summary = _summarise(table, decoded, checked)
    provenance = {
        "summary": summary.model_dump(mode="json"),
        "options": _described(options),
        "representativeness": errors.representativeness.model_dump(),
        "quality_control": parameters,
    }
    manifest = store.publish(table, batch_id, received_time, provenance)
    return IngestReport(manifest, summary)


def _decode(batch_id: str, path: Path, received_time: datetime, options: IngestOptions) -> Decoded:
    wanted = dict(options.decoder)
    if options.report_type is not None:
        wanted["report_type"] = options.report_type
    context = DecodeContext(
        batch_id=batch_id,
        received_time=received_time,
        file_name=options.file_name,
        options=wanted,
    )
    decoded = decode_limited(path, options.format, context, options.limits, options.processes)
    if decoded.table.num_rows == 0:
        reasons = ", ".join(f"{n} {reason}" for reason, n in decoded.report.rejected.items())
        details = [q.detail for q in decoded.report.quarantined[:1] if q.detail]
        raise DecodeError(
            f"Expected at least one observation in the upload; got none ({reasons or 'no rows'})."
            + "".join(f" {detail}" for detail in details),
            reason=next(iter(decoded.report.rejected), "no_values"),
            decode_report=decoded.report.model_dump(mode="json"),
        )
    return decoded


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
        decode_report=report.model_dump(mode="json"),
    )


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    return dict(sorted(count_values(table, column).items()))


def summary_of(manifest: BatchManifest) -> IngestSummary:
    """Return what came out of an upload, as its rows in the store tell it."""
    kept = manifest.provenance.get("summary")
    if kept is None:
        return IngestSummary(observations=manifest.rows)
    return IngestSummary.model_validate(kept)


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
        batch: The upload, with what its sender said about it.
        layout: Where its bytes and the store are.
        check_lease: Raises when another worker has taken over.

    Raises:
        DecodeError: If the upload gives no row.
        StorageError: If the store cannot be written.
    """
    errors = batch.options.get("errors")
    options = IngestOptions(
        format=batch.container,
        report_type=batch.options.get("report_type"),
        file_name=batch.file_name,
        decoder=batch.options.get("decoder", {}),
        errors=(layout.errors_file, errors),
        checks=(layout.checks_file,),
    )
    report = ingest(
        batch.id,
        layout.raw_file(batch.id),
        store=ObservationStore(str(layout.observations)),
        received_time=batch.created,
        options=options,
        check_lease=check_lease,
    )
    return report.summary
