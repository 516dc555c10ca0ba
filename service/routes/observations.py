"""Serve observations: uploads, batches, queries of stored rows, and example files."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

from model.domain.errors import InvalidInput
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.answer_limits import RowAnswer
from service.auth import (
    AnyCaller,
    GatewayDep,
    ObservationWriter,
    Reader,
    UploadReader,
    charge_of,
    find_batch,
)
from service.errors import NotAcceptable, NotFound
from service.gateway import Gateway
from service.keys import ApiKey
from service.openapi import BATCH, example_page, example_response, problem_responses
from service.query_parameters import check_known, check_years, listed_names, parse_box
from service.schemas import MAX_ITEMS, BatchPage, BatchView
from service.upload_requests import UploadOrigin, UploadQuota, receive_batch, retry_ingest
from worker.contract.batches import BatchState
from worker.contract.feeds import SourceStatus
from worker.contract.kinds import UtcTime
from worker.contract.records import NOBODY, first_id
from worker.observations.export import ROW_FORMATS, TEMPLATES, RowFormat
from worker.observations.formats import FORMATS
from worker.observations.store.files import StoreFiles
from worker.observations.store.query import MAX_PAGE, ObservationQuery, query_observations

KNOWN: dict[str, tuple[str, Collection[str]]] = {
    "variables": ("variables", VARIABLES),
    "report_types": ("networks", REPORT_TYPES),
    "rejected_by": ("rejected_by", QC_FLAGS),
    "columns": ("columns", OBSERVATION_SCHEMA.names),
}
"""Fields whose names are checked: the name of the parameter, and the known values."""


def observation_query(
    start: datetime,
    end: datetime,
    box: str | None,
    cut_off: datetime | None,
    outcome: Literal["all", "used", "rejected"],
    limit: int,
    offset: int,
    **names: list[str] | None,
) -> ObservationQuery:
    """Return the query that the parameters of a request ask for.

    Raises:
        InvalidInput: Naming the parameter and what is possible.
    """
    values: dict[str, Any] = {k: tuple(listed_names(v)) for k, v in names.items()}
    for field, (parameter, known) in KNOWN.items():
        for name in values.get(field, ()):
            check_known(parameter, name, known)
    for field, time in (("start", start), ("end", end), ("cut_off", cut_off)):
        check_years(field, time)
    if end <= start:
        raise InvalidInput(f"Expected 'end' after 'start' ({start}); got {end}.", field="end")
    return ObservationQuery(
        start=start,
        end=end,
        box=parse_box(box),
        cut_off=cut_off,
        outcome=outcome,
        limit=limit,
        offset=offset,
        **values,
    )


async def upload_quota(gateway: Gateway, key: ApiKey, length: str | None) -> UploadQuota | None:
    """Return what a key may still send today; None for who has no key.

    Raises:
        QuotaExceeded: If it has no rows left, or not the bytes that the upload announces.
    """
    if not key.id:
        return None
    today = await to_thread.run_sync(gateway.stores.usage.read, key.id)
    announced = int(length) if length and length.isdigit() else 0
    today.require(charge_of(gateway, key, "rows", 0))
    charge = charge_of(gateway, key, "bytes", announced)
    today.require(charge)
    return UploadQuota(today, charge.limit)


def choose_format(name: str | None, accept: str) -> RowFormat:
    """Return the format asked for by name, else the best one of an Accept header.

    Raises:
        NotAcceptable: If none of the formats is accepted.
    """
    if name is not None:
        return ROW_FORMATS[name]
    ranked: list[tuple[float, RowFormat]] = []
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media, _, parameters = part.strip().partition(";")
        quality = _quality(parameters)
        for entry in ROW_FORMATS.values():
            if quality > 0 and _matches(media.strip().lower(), entry.media_type):
                ranked.append((quality, entry))
    if not ranked:
        offered = ", ".join(f.media_type for f in ROW_FORMATS.values())
        raise NotAcceptable(f"Expected to be asked for one of {offered}; got '{accept[:200]}'.")
    return max(ranked, key=lambda pair: pair[0])[1]


def _matches(pattern: str, media_type: str) -> bool:
    return pattern in ("*/*", media_type, media_type.split("/")[0] + "/*")


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


router = APIRouter(prefix="/v1", tags=["observations"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "One file."},
        "report_type": {"type": "string"},
        "errors": {"type": "string"},
        "decoder": {"type": "string"},
    },
}
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself. Its first bytes decide the format, not the media type. "
        + " ".join(f"`{f.name}`: {f.description}." for f in FORMATS.values()),
        "content": {
            "application/octet-stream": _BINARY,
            "application/bufr": _BINARY,
            "text/csv": {
                "schema": {"type": "string"},
                "example": "time,lat,lon,station_id,variable,obs_value\n"
                "2025-01-01T06:00:00Z,48.2,16.4,11035,2m_temperature,274.3\n",
            },
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
_LOCATION = {"Location": {"description": "Path of the upload.", "schema": {"type": "string"}}}
_BATCH = {
    "application/json": {
        "schema": {"$ref": "#/components/schemas/BatchView"},
        "example": BATCH,
    }
}


@router.post(
    "/observations",
    status_code=202,
    response_model=BatchView,
    responses={
        **problem_responses(
            "upload_stalled",
            "too_large",
            "unsupported_content",
            "idempotency_conflict",
            "storage_error",
            "disk_low",
            "disk_full",
            "quota_exceeded",
        ),
        200: {
            "description": "The same content was sent before: that batch.",
            "headers": _LOCATION,
            "content": _BATCH,
        },
        202: {
            "description": "Received whole; ingest follows.",
            "headers": _LOCATION,
            **example_response(BATCH | {"state": "received", "summary": None}),
        },
    },
    openapi_extra=UPLOAD_BODY,
)
async def upload_batch(
    request: Request,
    response: Response,
    gateway: GatewayDep,
    key: ObservationWriter,
    report_type: Annotated[
        str | None, Query(description="Network of all reports, for formats that name none.")
    ] = None,
    errors: Annotated[
        str | None,
        Query(description="Observation errors of this upload (JSON).", max_length=65536),
    ] = None,
    decoder: Annotated[
        str | None, Query(description="Options of the decoder (JSON).", max_length=65536)
    ] = None,
    file_name: Annotated[str, Query(description="A name for people.", max_length=255)] = "",
    idempotency_key: Annotated[
        str, Header(description="The same key gives the same batch.", max_length=255)
    ] = "",
) -> BatchView:
    """Receive one file of observations, stream it to disk, and queue it for ingest."""
    quota = await upload_quota(gateway, key, request.headers.get("content-length"))
    sender = UploadOrigin(key.id, idempotency_key, file_name, report_type, errors, decoder, quota)
    batch, created = await receive_batch(request, gateway, sender)
    response.status_code = 202 if created else 200
    response.headers["Location"] = (
        f"{request.scope.get('root_path', '')}/v1/observations/{batch.id}"
    )
    return BatchView.of(batch, key)


@router.get(
    "/observations",
    response_class=Response,
    responses={
        **problem_responses("not_acceptable", "storage_error", "too_many_rows"),
        200: {
            "description": "Rows of the observation table, ordered by hour and arrival.",
            "headers": {
                "X-Next-Offset": {
                    "description": "Pass it as `offset` to get the next rows; absent on the last page.",
                    "schema": {"type": "integer"},
                }
            },
            "content": {f.media_type: _BINARY for f in ROW_FORMATS.values()},
        },
    },
)
async def query_stored(
    request: Request,
    gateway: GatewayDep,
    _: Reader,
    start: Annotated[UtcTime, Query(description="Observed after this time (UTC, exclusive).")],
    end: Annotated[UtcTime, Query(description="Observed up to this time (UTC, inclusive).")],
    box: Annotated[
        str | None,
        Query(description="`west,south,east,north` in degrees.", examples=["-10,35,30,60"]),
    ] = None,
    variables: Annotated[list[str] | None, Query(description="Variable ids.")] = None,
    networks: Annotated[list[str] | None, Query(description="Report types.")] = None,
    stations: Annotated[list[str] | None, Query(description="Station ids.")] = None,
    batches: Annotated[list[str] | None, Query(description="Uploads.")] = None,
    outcome: Annotated[
        Literal["all", "used", "rejected"], Query(description="Outcome of quality control.")
    ] = "all",
    rejected_by: Annotated[
        list[str] | None, Query(description="Only values rejected by these checks.")
    ] = None,
    cut_off: Annotated[
        UtcTime | None, Query(description="Only what had arrived by then; makes pages repeatable.")
    ] = None,
    columns: Annotated[list[str] | None, Query(description="Columns to return.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Maximum number of rows.")] = 10_000,
    offset: Annotated[int, Query(ge=0, le=2**40, description="Rows to skip.")] = 0,
    format: Annotated[
        Literal["parquet", "geojson", "csv"] | None,
        Query(description="Format of the answer; by default `Accept` decides."),
    ] = None,
) -> Response:
    """Return stored observations by time, box, variable, network, station and outcome.

    Lists are comma-separated or repeat the parameter.
    """
    chosen = choose_format(format, request.headers.get("accept", ""))
    query = observation_query(
        start,
        end,
        box,
        cut_off,
        outcome,
        min(limit, gateway.settings.query_max_rows, chosen.max_rows or MAX_PAGE),
        offset,
        variables=variables,
        report_types=networks,
        stations=stations,
        batches=batches,
        rejected_by=rejected_by,
        columns=columns,
    )
    return await to_thread.run_sync(
        _answer_rows, gateway, query, chosen, limiter=gateway.rows.readers
    )


def _answer_rows(gateway: Gateway, query: ObservationQuery, chosen: RowFormat) -> Response:
    held = gateway.rows.hold()
    page = query_observations(StoreFiles.of(gateway.layout), query, held.add)
    held.keep(page.table)
    headers = {"Vary": "Accept", "X-Rows": str(page.table.num_rows)}
    if page.next_offset is not None:
        headers["X-Next-Offset"] = str(page.next_offset)
    return RowAnswer(chosen.write, page.table, held, media_type=chosen.media_type, headers=headers)


@router.get(
    "/batches", responses={**problem_responses(), 200: example_response(example_page(BATCH))}
)
def list_batches(
    gateway: GatewayDep,
    key: UploadReader,
    state: Annotated[BatchState | None, Query(description="Only uploads in this state.")] = None,
    sender: Annotated[
        str | None,
        Query(
            description="Only what this API key sent, by its id; `-`: what came without one, from "
            "sources among it.",
            max_length=100,
        ),
    ] = None,
    arrived_from: Annotated[UtcTime | None, Query(description="Earliest arrival (UTC).")] = None,
    arrived_to: Annotated[UtcTime | None, Query(description="Latest arrival (UTC).")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description=MAX_ITEMS)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", max_length=100)
    ] = None,
) -> BatchPage:
    """Return the uploads that the caller sees, in any state, newest first."""
    check_years("arrived_from", arrived_from)
    check_years("arrived_to", arrived_to)
    owners = key.owners
    if sender is not None:
        asked = frozenset({NOBODY if sender == "-" else sender})
        owners = asked if owners is None else asked & owners
    page = gateway.stores.batches.page(
        state=state or "",
        owners=owners,
        low=first_id("batch", arrived_from) if arrived_from else "",
        high=first_id("batch", arrived_to + timedelta(milliseconds=1)) if arrived_to else "",
        cursor=cursor or "",
        limit=limit,
    )
    items = [BatchView.of(batch, key) for batch in page.items]
    return BatchPage(items=items, next_cursor=page.next_cursor, total=page.total)


@router.get(
    "/observations/{batch_id}",
    responses={
        **problem_responses("not_found"),
        200: example_response(BATCH),
    },
)
def read_batch(
    batch_id: Annotated[str, Path(description="Id of the upload.")],
    gateway: GatewayDep,
    key: UploadReader,
) -> BatchView:
    """Return the state of an upload; once ingested, counts by variable, network and check."""
    return BatchView.of(find_batch(gateway, key, batch_id), key)


@router.post(
    "/observations/{batch_id}/retry",
    status_code=202,
    responses={
        **problem_responses("not_found", "move_refused"),
        202: example_response(BATCH | {"state": "received", "summary": None}),
    },
)
def retry_batch(
    batch_id: Annotated[str, Path(description="Id of the upload.")],
    gateway: GatewayDep,
    key: ObservationWriter,
) -> BatchView:
    """Ingest an upload anew that failed, was rejected, or waits after a fault."""
    find_batch(gateway, key, batch_id, change=True)
    return BatchView.of(retry_ingest(gateway, batch_id), key)


class TemplateView(BaseModel):
    """An example file of observations in one format."""

    name: str = Field(description="Name of the template.")
    file_name: str = Field(description="Suggested file name.")
    description: str = Field(description="What it shows.")
    media_type: str = Field(description="Media type of the file.")
    url: str = Field(description="Path on this gateway.")


@router.get("/templates", responses=problem_responses())
def list_templates(request: Request, _: AnyCaller) -> list[TemplateView]:
    """Return the example files; all hold the same ten observations."""
    root = request.scope.get("root_path", "")
    return [
        TemplateView(
            name=name,
            file_name=template.file_name,
            description=template.description,
            media_type=template.media_type,
            url=f"{root}/v1/templates/{name}",
        )
        for name, template in TEMPLATES.items()
    ]


@router.get(
    "/templates/{name}",
    response_class=Response,
    responses={
        **problem_responses("not_found"),
        200: {
            "description": "The file; it can be uploaded as it is.",
            "content": {
                template.media_type: {"schema": {"type": "string", "format": "binary"}}
                for template in TEMPLATES.values()
            },
        },
    },
)
def read_template(
    name: Annotated[str, Path(description="Name of the template.", max_length=40)], _: AnyCaller
) -> Response:
    """Return an example file of observations."""
    if name not in TEMPLATES:
        raise NotFound(
            f"Expected one of {', '.join(TEMPLATES)}; got '{name}'. Examples of IODA and ODB-2 are "
            "written by `appa observations template ioda` (or odb2): they need libraries that the "
            "gateway does not load.",
            known=list(TEMPLATES),
        )
    template = TEMPLATES[name]
    return Response(
        template.write(),
        media_type=template.media_type,
        headers={"Content-Disposition": f'attachment; filename="{template.file_name}"'},
    )


@router.get("/sources", responses=problem_responses())
def list_sources(gateway: GatewayDep, _: Reader) -> list[SourceStatus]:
    """Return the sources that fill the store by themselves: connection, backlog, lag, counts."""
    return gateway.stores.sources.read()
