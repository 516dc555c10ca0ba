"""From the body of a request to a batch in the store and a message to the ingest workers."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from anyio import to_thread
from starlette.requests import ClientDisconnect, Request

from model.domain.errors import AppaError
from service.errors import RequestError
from service.gateway import Gateway
from service.multipart import FilePart, boundary_of, file_chunks
from service.partfile import PartFile
from service.upload_options import upload_options
from service.uploads import StoredUpload, check_length, receive_upload
from worker.jobs.batch import BatchRecord, BatchState
from worker.jobs.disk import require_space
from worker.jobs.ids import new_id
from worker.jobs.queues import INGEST_BATCH, submit

log = structlog.get_logger()


@dataclass(frozen=True)
class Sender:
    """Who sends, and what is said about the upload."""

    api_key: str
    idempotency_key: str
    file_name: str
    report_type: str | None
    errors: str | None
    decoder: str | None


class Disconnected(RequestError):
    """The client went away; nobody reads this answer."""


async def receive_batch(
    request: Request, gateway: Gateway, sender: Sender
) -> tuple[BatchRecord, bool]:
    """Receives the body, stores it as a batch and tells the ingest workers.

    The upload becomes visible only whole: received under `tmp/`, moved, then recorded. The same
    content with the same options is the same batch.

    Returns:
        The batch, and whether it is new.
    """
    upload_options(sender.report_type, sender.errors, sender.decoder)  # before a byte is read
    limits = gateway.upload_limits
    await to_thread.run_sync(require_space, gateway.layout, gateway.settings)
    check_length(request.headers.get("content-length"), gateway.layout.tmp, limits)
    boundary = boundary_of(request.headers.get("content-type", ""))
    form = FilePart(boundary) if boundary else None
    chunks = file_chunks(form, request.stream()) if form else _nonempty(request.stream())
    batch_id = new_id("batch")
    try:
        with PartFile(gateway.layout.upload(batch_id)) as part:
            upload = await receive_upload(chunks, part, limits)
            batch = _record(batch_id, upload, request, sender, form)
            return await to_thread.run_sync(_keep, gateway, part, batch, sender.idempotency_key)
    except ClientDisconnect:
        gateway.metrics.uploads.labels("disconnected").inc()
        log.info("upload_disconnected", batch_id=batch_id)
        raise Disconnected("The client went away during the upload; nothing was kept.") from None
    except RequestError as error:
        gateway.metrics.uploads.labels(error.code).inc()
        raise


async def _nonempty(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in stream:
        if chunk:
            yield chunk


def _record(
    batch_id: str, upload: StoredUpload, request: Request, sender: Sender, form: FilePart | None
) -> BatchRecord:
    fields = form.fields if form else {}
    given = {
        name: getattr(sender, name) or fields.get(name)
        for name in ("report_type", "errors", "decoder")
    }
    name = sender.file_name or (form.filename if form else None) or ""
    return BatchRecord(
        id=batch_id,
        sha256=upload.sha256,
        size=upload.size,
        container=upload.container.name,
        file_name="".join(c for c in name if c.isprintable())[:255],
        options=upload_options(**given),
        api_key=sender.api_key,
        request_id=request.scope.get("appa.request_id", ""),
    )


def _keep(
    gateway: Gateway, part: PartFile, record: BatchRecord, idempotency_key: str
) -> tuple[BatchRecord, bool]:
    """File first, record second, message last: what exists at each moment is consistent."""
    target = gateway.layout.raw_file(record.id)
    try:
        part.publish(target)
    except OSError:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise
    try:
        batch, created = gateway.stores.batches.create(record, idempotency_key=idempotency_key)
    except AppaError:  # not when Redis was lost: the record may exist and need its file
        _forget(gateway, record.id)
        raise
    if created:
        gateway.metrics.upload_bytes.inc(record.size)
    else:
        _forget(gateway, record.id)
    if batch.state is BatchState.RECEIVED:  # again for a duplicate: its message may be lost
        submit(gateway.sender, INGEST_BATCH, batch.id)
    gateway.metrics.uploads.labels("created" if created else "known").inc()
    log.info("upload", batch_id=batch.id, created=created, size=record.size, sha256=record.sha256)
    return batch, created


def _forget(gateway: Gateway, batch_id: str) -> None:
    gateway.layout.raw_file(batch_id).unlink(missing_ok=True)
    gateway.layout.raw_batch(batch_id).rmdir()
