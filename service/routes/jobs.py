"""Submit, list, follow and cancel jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse

from service.auth import GatewayDep, JobReader, JobWriter
from service.events import follow_job
from service.jobs import submit_job
from service.openapi import JOB, example_page, example_response, problem_responses
from service.schemas import JobEvents, JobPage
from worker.contract.jobs import JobRecord, JobState
from worker.contract.kinds import KINDS, JobSpec, KindName

router = APIRouter(prefix="/v1", tags=["jobs"])

EXAMPLES: dict[str, Any] = {
    name: {"summary": kind.summary, "value": kind.example} for name, kind in KINDS.items()
}
_LOCATION = {"Location": {"description": "Where its state is.", "schema": {"type": "string"}}}
_JOB = {"application/json": {"schema": {"$ref": "#/components/schemas/JobRecord"}, "example": JOB}}
JobId = Annotated[str, Path(description="From the answer to the submission.", max_length=100)]


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobRecord,
    responses={
        **problem_responses(
            "too_large",
            "unknown_name",
            "idempotency_conflict",
            "queue_quota",
            "no_worker",
            "disk_low",
        ),
        200: {
            "description": "The same Idempotency-Key came before: that job.",
            "headers": _LOCATION,
            "content": _JOB,
        },
        202: {"description": "Queued.", "headers": _LOCATION, **example_response(JOB)},
    },
)
def create_job(
    request: Request,
    response: Response,
    gateway: GatewayDep,
    key: JobWriter,
    spec: Annotated[JobSpec, Body(openapi_examples=EXAMPLES)],
    idempotency_key: Annotated[
        str, Header(description="Sending it again gives the same job.", max_length=255)
    ] = "",
) -> JobRecord:
    """Queues a job, if running workers can do it."""
    request_id = request.scope.get("appa.request_id", "")
    job, created = submit_job(gateway, key, spec, idempotency_key, request_id)
    response.status_code = 202 if created else 200
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"
    return job


@router.get("/jobs", responses={**problem_responses(), 200: example_response(example_page(JOB))})
def list_jobs(
    gateway: GatewayDep,
    _: JobReader,
    state: Annotated[JobState | None, Query(description="Only in this state.")] = None,
    kind: Annotated[KindName | None, Query(description="Only these.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", max_length=100)
    ] = None,
) -> JobPage:
    """Jobs, newest first."""
    page = gateway.stores.jobs.page(
        state=state or "", kind=kind or "", cursor=cursor or "", limit=limit
    )
    return JobPage(items=page.items, next_cursor=page.next_cursor, total=page.total)


@router.get(
    "/jobs/{job_id}",
    responses={
        **problem_responses("not_found"),
        200: example_response(JOB),
    },
)
def read_job(job_id: JobId, gateway: GatewayDep, _: JobReader) -> JobRecord:
    """State, progress and outcome of a job."""
    return gateway.stores.jobs.read(job_id)


@router.delete(
    "/jobs/{job_id}",
    status_code=202,
    responses={
        **problem_responses("not_found", "move_refused"),
        202: example_response(JOB | {"state": "cancelling"}),
    },
)
def cancel_job(job_id: JobId, gateway: GatewayDep, _: JobWriter) -> JobRecord:
    """Asks for the end of a job: `cancelled` if it waited, else `cancelling` until it stopped."""
    gateway.stores.jobs.cancel(job_id)
    return gateway.stores.jobs.read(job_id)


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        **problem_responses("not_found", "too_many_listeners"),
        200: {
            "description": "Server-sent events. "
            + " ".join(f"`{name}`: {text}." for name, text in JobEvents.items()),
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "The job has ended and `Last-Event-ID` was its last event."},
    },
)
async def job_events(
    job_id: JobId,
    gateway: GatewayDep,
    _: JobReader,
    last_event_id: Annotated[
        str | None, Header(description="Last event seen; later ones are sent.", max_length=60)
    ] = None,
) -> Response:
    """Follows a job to its end."""
    return await follow_job(gateway, job_id, last_event_id)
