"""Upload observations, list and read uploads, query what is stored, download templates."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from service.auth import AnyCaller, GatewayDep, ObservationWriter, Reader, UploadReader
from service.errors import NotFound
from service.observation_query import FORMATS, choose_format, observation_query
from service.openapi import BATCH, example_page, example_response, problem_responses
from service.schemas import BatchPage
from service.upload_requests import UploadOrigin, receive_batch
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.kinds import UtcTime
from worker.observations.export import TEMPLATES
from worker.observations.formats import FORMATS as FILE_FORMATS
from worker.observations.store.query import MAX_PAGE, query_observations

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
        "description": "The file itself; its first bytes tell the format, not the media type. "
        + " ".join(f"`{f.name}`: {f.description}." for f in FILE_FORMATS.values()),
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
_LOCATION = {"Location": {"description": "Where its state is.", "schema": {"type": "string"}}}
_BATCH = {
    "application/json": {
        "schema": {"$ref": "#/components/schemas/BatchRecord"},
        "example": BATCH,
    }
}


@router.post(
    "/observations",
    status_code=202,
    response_model=BatchRecord,
    responses={
        **problem_responses(
            "upload_stalled",
            "too_large",
            "unsupported_content",
            "idempotency_conflict",
            "storage_error",
            "disk_low",
            "disk_full",
        ),
        200: {
            "description": "The same content came before: that batch.",
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
        str | None, Query(description="Network of all reports, for forms that name none.")
    ] = None,
    errors: Annotated[
        str | None,
        Query(description="Observation errors of this upload, JSON.", max_length=65536),
    ] = None,
    decoder: Annotated[
        str | None, Query(description="Options of the decoder, JSON.", max_length=65536)
    ] = None,
    file_name: Annotated[str, Query(description="For people.", max_length=255)] = "",
    idempotency_key: Annotated[
        str, Header(description="Sending it again gives the same batch.", max_length=255)
    ] = "",
) -> BatchRecord:
    """Receives one file of observations, streamed to disk, and queues it for ingest."""
    sender = UploadOrigin(key.id, idempotency_key, file_name, report_type, errors, decoder)
    batch, created = await receive_batch(request, gateway, sender)
    response.status_code = 202 if created else 200
    response.headers["Location"] = (
        f"{request.scope.get('root_path', '')}/v1/observations/{batch.id}"
    )
    return batch


@router.get(
    "/observations",
    response_class=Response,
    responses={
        **problem_responses("not_acceptable", "storage_error"),
        200: {
            "description": "Rows of the observation table, in the order of hour and arrival.",
            "headers": {
                "X-Next-Offset": {
                    "description": "Give it as `offset` for the next rows; absent on the last.",
                    "schema": {"type": "integer"},
                }
            },
            "content": {f.media_type.split(";")[0]: _BINARY for f in FORMATS.values()},
        },
    },
)
def query_stored(
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
        Literal["all", "used", "rejected"], Query(description="By quality control.")
    ] = "all",
    rejected_by: Annotated[list[str] | None, Query(description="Rejecting checks.")] = None,
    cut_off: Annotated[
        UtcTime | None, Query(description="Only what had arrived by then; repeatable pages.")
    ] = None,
    columns: Annotated[list[str] | None, Query(description="Columns to return.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most rows.")] = 10_000,
    offset: Annotated[int, Query(ge=0, le=2**40, description="Rows to skip.")] = 0,
    format: Annotated[
        Literal["parquet", "geojson", "csv"] | None,
        Query(description="Form of the answer; `Accept` decides when absent."),
    ] = None,
) -> Response:
    """Stored observations by time, box, variable, network, station and outcome of the checks.

    Lists may be given with commas or by repeating the parameter.
    """
    chosen = choose_format(format, request.headers.get("accept", ""))
    query = observation_query(
        start,
        end,
        box,
        cut_off,
        outcome,
        min(limit, gateway.settings.query_max_rows),
        offset,
        variables=variables,
        report_types=networks,
        stations=stations,
        batches=batches,
        rejected_by=rejected_by,
        columns=columns,
    )
    page = query_observations(str(gateway.layout.observations), query)
    headers = {"Vary": "Accept", "X-Rows": str(page.table.num_rows)}
    if page.next_offset is not None:
        headers["X-Next-Offset"] = str(page.next_offset)
    return StreamingResponse(
        chosen.write(page.table), media_type=chosen.media_type, headers=headers
    )


@router.get(
    "/batches", responses={**problem_responses(), 200: example_response(example_page(BATCH))}
)
def list_batches(
    gateway: GatewayDep,
    _: UploadReader,
    state: Annotated[BatchState | None, Query(description="Only in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", max_length=100)
    ] = None,
) -> BatchPage:
    """Uploads, newest first."""
    page = gateway.stores.batches.page(state=state or "", cursor=cursor or "", limit=limit)
    return BatchPage(items=page.items, next_cursor=page.next_cursor, total=page.total)


@router.get(
    "/observations/{batch_id}",
    responses={
        **problem_responses("not_found"),
        200: example_response(BATCH),
    },
)
def read_batch(
    batch_id: Annotated[str, Path(description="From the answer to the upload.")],
    gateway: GatewayDep,
    _: UploadReader,
) -> BatchRecord:
    """State of an upload, and once ingested: counts by variable, network and rejecting check."""
    return gateway.stores.batches.get(batch_id)


_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".geojson": "application/geo+json",
}


class TemplateView(BaseModel):
    """One example file."""

    name: str = Field(description="The form it is in.")
    file_name: str = Field(description="What to call it.")
    description: str = Field(description="For people.")
    media_type: str = Field(description="Of the file.")
    url: str = Field(description="Path on this gateway.")


def _media_type(file_name: str) -> str:
    return _MEDIA_TYPES[file_name[file_name.rindex(".") :]]


@router.get("/templates", responses=problem_responses())
def list_templates(request: Request, _: AnyCaller) -> list[TemplateView]:
    """The forms there is an example file of; each says the same ten observations."""
    root = request.scope.get("root_path", "")
    return [
        TemplateView(
            name=name,
            file_name=template.file_name,
            description=template.description,
            media_type=_media_type(template.file_name),
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
            "description": "The file; uploaded as it is, it is taken in as ten observations.",
            "content": {
                media: {"schema": {"type": "string", "format": "binary"}}
                for media in _MEDIA_TYPES.values()
            },
        },
    },
)
def read_template(
    name: Annotated[str, Path(description="From the list.", max_length=40)], _: AnyCaller
) -> Response:
    """One example file."""
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
        media_type=_media_type(template.file_name),
        headers={"Content-Disposition": f'attachment; filename="{template.file_name}"'},
    )
