"""One uploaded batch into the observation store: what the ingest task does."""

from collections.abc import Callable

from worker.jobs.batch import BatchRecord, IngestSummary
from worker.jobs.layout import Layout
from worker.observation_store.store import ObservationStore
from worker.pipeline.ingest import IngestOptions, ingest

__all__ = ["ingest_batch"]


def ingest_batch(
    batch: BatchRecord, layout: Layout, still_wanted: Callable[[], None]
) -> IngestSummary:
    """Decodes, checks and stores the upload; safe to run twice.

    Arguments:
        batch: The upload, with what its sender said about it.
        layout: Where its bytes and the store are.
        still_wanted: Raises when another worker has taken over.

    Raises:
        DecodeError: If the upload gives no row.
        StorageError: If the store cannot be written.
    """
    errors = batch.options.get("errors")
    options = IngestOptions(
        report_type=batch.options.get("report_type"),
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
        still_wanted=still_wanted,
    )
    return report.summary
