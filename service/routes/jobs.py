"""Submit, list, follow and cancel jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse

from service.auth import GatewayDep, JobReader, JobWriter
from service.events import follow_job
from service.jobs import submit_job
from service.openapi import JOB, example_page, example_response, problem_responses
from service.schemas import MAX_ITEMS, JobEvents, JobPage, JobView
from worker.contract.jobs import JobState
from worker.contract.kinds import KINDS, JobSpec, KindName

router = APIRouter(prefix="/v1", tags=["jobs"])

EXAMPLES: dict[str, Any] = {
    name: {"summary": kind.summary, "value": kind.example} for name, kind in KINDS.items()
}
_LOCATION = {"Location": {"description": "Path of the job.", "schema": {"type": "string"}}}
_JOB = {"application/json": {"schema": {"$ref": "#/components/schemas/JobView"}, "example": JOB}}
JobId = Annotated[str, Path(description="Id of the job.", max_length=100)]


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobView,
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
            "description": "The Idempotency-Key was used before: that job.",
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
        str, Header(description="The same key gives the same job.", max_length=255)
    ] = "",
) -> JobView:
    """Queue a job, if running workers can run it."""
    request_id = request.scope.get("appa.request_id", "")
    job, created = submit_job(gateway, key, spec, idempotency_key, request_id)
    response.status_code = 202 if created else 200
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"
    return JobView.of(job, key)


@router.get("/jobs", responses={**problem_responses(), 200: example_response(example_page(JOB))})
def list_jobs(
    gateway: GatewayDep,
    key: JobReader,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[KindName | None, Query(description="Only jobs of this kind.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description=MAX_ITEMS)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", max_length=100)
    ] = None,
) -> JobPage:
    """Return jobs in any state, newest first."""
    page = gateway.stores.jobs.page(
        state=state or "", kind=kind or "", cursor=cursor or "", limit=limit
    )
    items = [JobView.of(job, key) for job in page.items]
    return JobPage(items=items, next_cursor=page.next_cursor, total=page.total)


@router.get(
    "/jobs/{job_id}",
    responses={
        **problem_responses("not_found"),
        200: example_response(JOB),
    },
)
def read_job(job_id: JobId, gateway: GatewayDep, key: JobReader) -> JobView:
    """Return state, progress and outcome of a job."""
    return JobView.of(gateway.stores.jobs.read(job_id), key)


@router.delete(
    "/jobs/{job_id}",
    status_code=202,
    responses={
        **problem_responses("not_found", "move_refused"),
        202: example_response(JOB | {"state": "cancelling"}),
    },
)
def cancel_job(job_id: JobId, gateway: GatewayDep, key: JobWriter) -> JobView:
    """Cancel a job: `cancelled` at once if it was queued, else `cancelling` until it has stopped."""
    gateway.stores.jobs.cancel(job_id)
    return JobView.of(gateway.stores.jobs.read(job_id), key)


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
        204: {"description": "The job is done and `Last-Event-ID` was its last event."},
    },
)
async def job_events(
    job_id: JobId,
    gateway: GatewayDep,
    key: JobReader,
    last_event_id: Annotated[
        str | None, Header(description="Resume after this event.", max_length=60)
    ] = None,
) -> Response:
    """Stream the events of a job until it is done."""
    return await follow_job(gateway, job_id, last_event_id, key)
