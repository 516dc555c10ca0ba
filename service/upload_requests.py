"""Turn an upload request into a batch in the store and a message to the ingest workers.

The body is the file itself or one part of multipart/form-data, read piece by piece; options of
the sender (report type, observation errors, decoder) are checked before anything is stored.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from functools import partial
from typing import Any

import structlog
from anyio import to_thread
from pydantic import Field, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from starlette.requests import ClientDisconnect, Request

from model.domain.errors import DecodeError, InvalidInput
from model.domain.observations import REPORT_TYPES
from service.errors import NotFound, RequestError
from service.gateway import Gateway
from service.query_parameters import check_known, json_object
from service.uploads import StoredUpload, check_length, receive_upload
from worker.contract import traces
from worker.contract.batches import BatchRecord
from worker.contract.buckets import BucketUnavailable
from worker.contract.disk import require_space
from worker.contract.part_file import PartFile
from worker.contract.records import new_id
from worker.contract.usage import Charge, QuotaExceeded, Usage
from worker.observations.errors import ErrorEntry, ErrorTable
from worker.observations.formats import FileFormat

MAX_FIELD_BYTES = 64 * 1024


def _options(value: str) -> dict[str, str]:
    """Return the parameters of a header such as `form-data; name="file"; filename="a.bufr"`."""
    message = Message()
    message["content-disposition"] = value
    pairs = message.get_params(header="content-disposition", unquote=True) or []
    return {k.lower(): v for k, v in pairs[1:]}


def boundary_of(content_type: str) -> str | None:
    """Return the boundary, if `content_type` is multipart/form-data."""
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/form-data":
        return None
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70:
        raise RequestError("Expected a boundary of 1 to 70 characters in the Content-Type.")
    return boundary


class FilePart:
    """Collects the data of the one file part; other parts are small form fields."""

    def __init__(self, boundary: str) -> None:
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self.files = 0
        self.done = False
        self._pieces: list[bytes] = []
        self._header = [b"", b""]
        self._name: str | None = None
        self._field = bytearray()
        self._in_file = False
        self._parser = MultipartParser(
            boundary.encode("latin-1", "replace"),
            {
                "on_part_begin": self._part_begin,
                "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the pieces of the file that a chunk of the body holds."""
        self._pieces = []
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RequestError(f"Expected a multipart/form-data body; {error}.") from error
        return self._pieces

    def _part_begin(self) -> None:
        self._name, self._in_file, self._field = None, False, bytearray()
        self._header = [b"", b""]

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            options = _options(self._header[1].decode("utf-8", "replace"))
            self._name = options.get("name")
            if "filename" in options or self._name == "file":
                self.files += 1
                self._in_file = True
                self.filename = options.get("filename") or None
                if self.files > 1:
                    raise RequestError("Expected one file a request; got more. Upload each alone.")
        self._header = [b"", b""]

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])
        elif len(self._field) + end - start > MAX_FIELD_BYTES:
            raise RequestError(f"Expected form fields of at most {MAX_FIELD_BYTES} bytes.")
        else:
            self._field += data[start:end]

    def _part_end(self) -> None:
        if self._name and not self._in_file:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _end(self) -> None:
        self.done = True


async def file_chunks(part: FilePart, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the bytes of the file in `stream`.

    Raises:
        RequestError: If the body has no file part, more than one, or ends too early.
    """
    async for chunk in stream:
        for piece in part.feed(chunk):
            yield piece
    if not part.done:
        raise RequestError("Expected a complete multipart body; its closing boundary is missing.")
    if part.files == 0:
        raise RequestError("Expected a part with a filename, or named 'file'; got none.")


class UploadErrors(ErrorTable):
    """Observation errors of one upload; networks and variables not named keep the deployment's."""

    entries: tuple[ErrorEntry, ...] = Field(default=(), max_length=500)


def upload_options(
    report_type: str | None,
    errors: str | None,
    decoder: str | None,
    format: FileFormat | None = None,
) -> dict[str, Any]:
    """Return the options to store with the batch; only those given.

    Arguments:
        report_type: Network of rows that name none.
        errors: Observation errors as JSON.
        decoder: Options of the decoder as JSON.
        format: What the file was recognised as; None if that is not known yet.

    Raises:
        InvalidInput: Naming the option and what is possible.
    """
    options: dict[str, Any] = {}
    if report_type:
        check_known("report_type", report_type, REPORT_TYPES)
        options["report_type"] = report_type
    if errors:
        try:
            overrides = UploadErrors.model_validate(json_object("errors", errors))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["errors", *map(str, first["loc"])])
            raise InvalidInput(f"{place}: {first['msg']}.", field=place) from error
        options["errors"] = overrides.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    if decoder:
        options["decoder"] = json_object("decoder", decoder)
        if format is not None:
            _check_decoder(options["decoder"], format)
    return options


def _check_decoder(options: dict[str, Any], format: FileFormat) -> None:
    try:
        format.options.of(options)
    except DecodeError as error:
        place = f"decoder.{error.context['option']}"
        raise InvalidInput(f"{format.name}: {error.message}", field=place) from error


log = structlog.get_logger()


@dataclass(frozen=True)
class UploadQuota:
    """What the sender of an upload has used today, and the most bytes of a day (0: no limit)."""

    today: Usage
    limit: int

    def charge(self, size: int) -> Charge:
        """Return what an upload of so many bytes adds to the day."""
        return Charge("bytes", size, self.limit)

    async def within(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield `chunks` as long as they fit into the quota of the day.

        Raises:
            QuotaExceeded: As soon as it has none; the rest is not read.
        """
        received = 0
        async for chunk in chunks:
            received += len(chunk)
            self.today.require(self.charge(received))
            yield chunk


@dataclass(frozen=True)
class UploadOrigin:
    """The sender of an upload and the options that came with it."""

    api_key: str
    idempotency_key: str
    file_name: str
    report_type: str | None
    errors: str | None
    decoder: str | None
    quota: UploadQuota | None = None


class Disconnected(RequestError):
    """The client closed the connection; this answer is not delivered."""


async def receive_batch(
    request: Request, gateway: Gateway, sender: UploadOrigin
) -> tuple[BatchRecord, bool]:
    """Receive the body, store it as a batch and notify the ingest workers.

    The upload becomes visible only when complete: received under `tmp/`, stored, then recorded.
    Idempotent: the same content with the same options is the same batch.

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
    if sender.quota is not None:
        chunks = sender.quota.within(chunks)
    batch_id = new_id("batch")
    try:
        with PartFile(gateway.layout.upload(batch_id)) as part:
            with traces.step("receive"):
                upload = await receive_upload(chunks, part, limits)
            batch = _record(batch_id, upload, request, sender, form)
            keep = partial(_keep, gateway, part, batch, sender)
            return await to_thread.run_sync(keep, limiter=gateway.keepers)
    except ClientDisconnect:
        gateway.metrics.uploads.labels("disconnected").inc()
        log.info("upload_disconnected", batch_id=batch_id)
        raise Disconnected("The client went away during the upload; nothing was kept.") from None
    except (RequestError, QuotaExceeded, BucketUnavailable) as error:
        gateway.metrics.uploads.labels(error.code).inc()
        raise


async def _nonempty(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in stream:
        if chunk:
            yield chunk


def _record(
    batch_id: str,
    upload: StoredUpload,
    request: Request,
    sender: UploadOrigin,
    form: FilePart | None,
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
        container=upload.format.name,
        file_name="".join(c for c in name if c.isprintable())[:255],
        options=upload_options(**given, format=upload.format),
        api_key=sender.api_key,
        request_id=request.scope.get("appa.request_id", ""),
        trace=traces.traceparent(),
    )


def _keep(
    gateway: Gateway, part: PartFile, record: BatchRecord, sender: UploadOrigin
) -> tuple[BatchRecord, bool]:
    """Accept the upload, and record it in metrics and log."""
    charge = sender.quota.charge(record.size) if sender.quota is not None else None
    batch, created = gateway.intake.accept(
        part, record, idempotency_key=sender.idempotency_key, charge=charge
    )
    if created:
        gateway.metrics.upload_bytes.inc(record.size)
    gateway.metrics.uploads.labels("created" if created else "known").inc()
    log.info("upload", batch_id=batch.id, created=created, size=record.size, sha256=record.sha256)
    return batch, created


def retry_ingest(gateway: Gateway, batch_id: str) -> BatchRecord:
    """Retry the ingest of an upload that failed, was rejected, or waits after a fault.

    Raises:
        MoveRefused: If it is being ingested or was, or was sent again as another upload.
        NotFound: If there is no such upload, or its bytes are no longer kept.
    """
    batch = gateway.stores.batches.get(batch_id)
    if not gateway.intake.uploads.has(batch.id):
        raise NotFound(
            f"Expected the bytes of upload '{batch_id}' to be kept; retention has removed them. "
            "Send the file again."
        )
    batch = gateway.stores.batches.retry(batch_id)
    gateway.intake.send(batch, together=False)
    log.info("retry", batch_id=batch_id)
    return batch
