"""Submit, list, follow and cancel jobs.

A submission is checked against what the running workers can do before it is queued.
"""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse

from model.domain.errors import InvalidInput, UnknownName
from service.auth import (
    GatewayDep,
    JobReader,
    JobWriter,
    charge_of,
    check_queue_quota,
    find_batch,
    find_job,
)
from service.errors import Unavailable
from service.gateway import Gateway
from service.keys import ApiKey, Scope
from service.openapi import JOB, example_page, example_response, problem_responses
from service.query_parameters import check_known
from service.routes.events import follow_job
from service.schemas import MAX_ITEMS, JobEvents, JobPage, JobView
from worker.contract import traces
from worker.contract.batches import BatchRecord, IdempotencyConflict
from worker.contract.disk import require_space
from worker.contract.jobs import JobRecord, JobState
from worker.contract.kinds import KINDS, JobSpec, KindName, SpecBase
from worker.contract.queues import (
    GPU_QUEUE,
    RUN_ASSIMILATION,
    Capabilities,
    ModelInfo,
    WorkerReport,
    merge,
    submit,
)
from worker.contract.record_store import NoSuchRecord
from worker.contract.records import new_id

MAX_BATCHES = 1000
RUNNING = "those that running workers report: "


def ready_capabilities(gateway: Gateway) -> Capabilities:
    """Return what ready workers support.

    Raises:
        Unavailable: If no model worker is ready; says why as far as that is known.
    """
    reports = gateway.stores.workers.alive()
    ready = [r for r in reports if r.ready]
    if not any(can_run_models(r) for r in ready):
        here = [r.name for r in reports if GPU_QUEUE in r.queues]
        why = (
            f"{', '.join(here)} still loads its model, or has none (see its log)"
            if here
            else "no model worker has reported yet: one may still be starting; otherwise start it "
            "with `appa up` or `appa worker gpu`"
        )
        raise Unavailable(
            f"Expected a ready model worker; {why}. Nothing was queued.",
            code="no_worker",
            retry_after=15 if here else 60,
        )
    return merge(ready)


def can_run_models(report: WorkerReport) -> bool:
    """Return whether this worker has loaded a model and accepts jobs."""
    return report.ready and GPU_QUEUE in report.queues and bool(report.capabilities.models)


def check_job(gateway: Gateway, key: ApiKey, spec: SpecBase) -> None:
    """Check names and bounds in `spec` against what running workers report.

    Raises:
        UnknownName: If a model, format, upload or analysis is unknown, or an upload is not seen by
            the caller; lists the known names.
        InvalidInput: If there are more members than the model supports, or the first guess is
            no upload of GRIB fields.
        Unavailable: If no worker could run it.
    """
    can = ready_capabilities(gateway)
    models = {m.name: m for m in can.models}
    if spec.model is not None:
        check_known("model", spec.model, models, RUNNING)
    for output in spec.outputs:
        check_known("outputs", output, can.formats, RUNNING)
    chosen = models.get(spec.model) if spec.model else next(iter(models.values()), None)
    if chosen and chosen.max_members and spec.members > chosen.max_members:
        raise InvalidInput(
            f"Expected at most {chosen.max_members} members with model '{chosen.name}'; got "
            f"{spec.members}.",
            field="members",
        )
    if chosen is not None:
        _check_choices(spec, chosen)
    _check_references(gateway, key, spec)


def _check_choices(spec: SpecBase, model: ModelInfo) -> None:
    """Check how the job wants to be computed against what the workers with this model can do."""
    choices = {
        "sampler": model.samplers,
        "guidance": model.guidance,
        "precision": model.precisions,
    }
    for field, known in choices.items():
        wanted = getattr(spec, field)
        if wanted is not None:
            check_known(field, wanted, known, RUNNING)


def _check_references(gateway: Gateway, key: ApiKey, spec: SpecBase) -> None:
    batches = spec.observations.batches or []
    if len(batches) > MAX_BATCHES:
        raise InvalidInput(
            f"Expected at most {MAX_BATCHES} uploads; got {len(batches)}.",
            field="observations.batches",
        )
    for batch_id in batches:
        _find_upload(gateway, key, batch_id, "observations.batches")
    if spec.background_batch is not None:
        _check_first_guess(gateway, key, spec.background_batch)
    if spec.continues is not None and gateway.analyses.find(spec.continues) is None:
        raise UnknownName(
            f"Expected the id of a published analysis; got '{spec.continues}'.", field="analysis_id"
        )


def _find_upload(gateway: Gateway, key: ApiKey, batch_id: str, field: str) -> BatchRecord:
    """Return an upload that the caller may have its job read.

    The stored observations of all uploads are read by whoever may query them.
    """
    try:
        if field == "observations.batches" and key.allows(Scope.ANALYSES_READ):
            return gateway.stores.batches.get(batch_id)
        return find_batch(gateway, key, batch_id)
    except NoSuchRecord:
        raise UnknownName(f"Expected the id of an upload; got '{batch_id}'.", field=field) from None


def _check_first_guess(gateway: Gateway, key: ApiKey, batch_id: str) -> None:
    """Check the format of an upload; its channels and hours are checked when the job runs."""
    batch = _find_upload(gateway, key, batch_id, "background_batch")
    if batch.container != "grib":
        raise InvalidInput(
            f"Expected an upload of GRIB fields as first guess; '{batch_id}' is "
            f"'{batch.container}'.",
            field="background_batch",
        )


log = structlog.get_logger()


def submit_job(
    gateway: Gateway, key: ApiKey, spec: SpecBase, idempotency_key: str, request_id: str
) -> tuple[JobRecord, bool]:
    """Store a job and enqueue it; the same key of a caller gives the same job.

    Returns:
        The job, and whether it is new.

    Raises:
        QueueQuota: If the caller has too many unfinished jobs.
        QuotaExceeded: If the job is new and the caller has used up the day.
        DiskLow: If free space on the disk is below the watermark.
        IdempotencyConflict: If the key was used before with another specification.
        AppaError: As `check_job`.
    """
    check_queue_quota(gateway, key)
    charge = charge_of(gateway, key, "jobs", 1)
    require_space(gateway.layout, gateway.settings)
    check_job(gateway, key, spec)
    record = JobRecord(
        id=new_id("job"),
        analysis_id=new_id("an"),
        spec=spec,
        api_key=key.id,
        request_id=request_id,
        trace=traces.traceparent(),
    )
    unique = f"{key.id}:{idempotency_key}" if idempotency_key else ""
    with traces.step("store job"):
        job, created = gateway.stores.jobs.create(record, unique_key=unique, charge=charge)
    if job.spec != spec:
        raise IdempotencyConflict(
            f"Expected the same job under Idempotency-Key '{idempotency_key}' as before "
            f"('{job.id}'); got another specification.",
            field="Idempotency-Key",
        )
    if job.state is JobState.QUEUED:  # also for a repeated key: its message may be lost
        with traces.step("send message"):
            submit(gateway.sender, RUN_ASSIMILATION, job.id, job.spec.priority)
    if created:
        gateway.metrics.jobs.labels(spec.kind).inc()
        log.info("job_queued", job_id=job.id, kind=spec.kind)
    return gateway.stores.jobs.read(job.id), created


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
            "quota_exceeded",
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
    """Return the jobs that the caller sees, in any state, newest first."""
    page = gateway.stores.jobs.page(
        state=state or "", kind=kind or "", owners=key.owners, cursor=cursor or "", limit=limit
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
    return JobView.of(find_job(gateway, key, job_id), key)


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
    find_job(gateway, key, job_id, change=True)
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
