"""Report capabilities, health, readiness and metrics, and describe the problem codes."""

import tempfile
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from model.domain.files import code_version
from model.domain.observations import QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.auth import AnyCaller, GatewayDep, MetricsReader, limits_of
from service.errors import PROBLEMS, NotFound, Unavailable
from service.gateway import Gateway
from service.keys import Scope
from service.metrics import CONTENT_TYPE
from service.openapi import problem_responses
from service.routes.jobs import can_run_models
from service.schemas import CapabilitiesView, Live, Readiness, ReadinessCheck, UploadFormat
from worker.contract.batches import BatchState
from worker.contract.buckets import open_bucket
from worker.contract.disk import disk_state, free_bytes
from worker.contract.jobs import JobState
from worker.contract.kinds import KINDS
from worker.contract.queues import GPU_QUEUE, INGEST_QUEUE, QUEUES, WorkerReport, merge
from worker.contract.redis_server import RedisHealth, redis_health
from worker.contract.store import RetentionFigures
from worker.contract.suites import SuiteStore
from worker.contract.usage import Use
from worker.observations.formats import FORMATS

router = APIRouter(tags=["system"])


@router.get("/v1/capabilities", responses=problem_responses())
def read_capabilities(gateway: GatewayDep, _: AnyCaller) -> CapabilitiesView:
    """Return models, formats and networks of the running workers, and the vocabulary."""
    reports = gateway.stores.workers.alive()
    can = merge([r for r in reports if r.ready])
    settings = gateway.settings
    return CapabilitiesView(
        version=code_version(),
        models=can.models,
        formats=can.formats,
        decoders=can.decoders,
        networks=can.networks or sorted(REPORT_TYPES),
        variables={v.id: v.units for v in VARIABLES.values()},
        qc_outcomes={f.name: f.meaning for f in QC_FLAGS.values()},
        uploads=[
            UploadFormat(name=f.name, meaning=f.description, media_type=f.media_type)
            for f in FORMATS.values()
        ],
        job_kinds=list(KINDS),
        limits={
            "max_upload_bytes": settings.max_upload_bytes,
            "query_max_rows": settings.query_max_rows,
            "edr_max_values": settings.edr_max_values,
            "requests_per_minute": settings.requests_per_minute,
            "queued_jobs_per_key": settings.queued_jobs_per_key,
        },
        workers=reports,
    )


class QuotaView(BaseModel):
    """What a key may use of one thing in a day (UTC), and what it has used."""

    limit: int = Field(description="Most of a day; 0: no limit.")
    used: int = Field(description="Used today.")
    reset: datetime = Field(description="When counting begins anew (UTC).")


class KeyView(BaseModel):
    """The key of the caller: what it may do and what it has used."""

    id: str = Field(description="Public part of the key; empty where none is needed.")
    name: str = Field(description="Whose it is or what for.")
    scopes: list[Scope] = Field(description="What it may do.")
    expires: datetime | None = Field(description="When it ends (UTC); null for never.")
    requests_per_minute: int = Field(description="Requests a minute; 0: no limit.")
    queued_jobs: int = Field(description="Unfinished jobs at once; 0: no limit.")
    unfinished_jobs: int = Field(description="Unfinished jobs now.")
    quotas: dict[Use, QuotaView] = Field(
        description="`bytes` of uploads, `rows` decoded from them, `jobs`."
    )


@router.get("/v1/keys/me", responses=problem_responses())
def read_own_key(gateway: GatewayDep, key: AnyCaller) -> KeyView:
    """Return what the caller's key may do, its limits, and what it has used today."""
    limits, today = limits_of(gateway, key), gateway.stores.usage.read(key.id)
    return KeyView(
        id=key.id,
        name=key.name,
        scopes=sorted(key.scopes),
        expires=key.expires,
        requests_per_minute=limits["requests_per_minute"],
        queued_jobs=limits["queued_jobs"],
        unfinished_jobs=gateway.stores.jobs.active(key.id) if key.id else 0,
        quotas={
            what: QuotaView(limit=limits[f"{what}_per_day"], used=used, reset=today.reset)
            for what, used in today.used.items()
        },
    )


@router.get("/health/live", responses=problem_responses())
async def live() -> Live:
    """Respond without checking Redis, storage or workers."""
    return Live(version=code_version())


@router.get("/health/ready", responses=problem_responses("not_ready"))
def ready(
    gateway: GatewayDep,
    part: Annotated[
        Literal["all", "gateway"],
        Query(description="`gateway`: uploads can be received; `all`: jobs can be run too."),
    ] = "all",
) -> Readiness:
    """Check Redis, storage, the workers of each queue and the model; 503 names what is missing."""
    health = redis_health(gateway.stores.redis)
    reports = gateway.stores.workers.alive() if health.reachable else []
    checks = {
        "redis": _redis(gateway, health),
        "storage": _storage(gateway),
    }
    needed = list(checks)
    if gateway.layout.results_url:
        checks["results"] = _bucket(gateway.layout.results_url)
    if gateway.layout.uploads_url:
        checks["uploads"] = _bucket(gateway.layout.uploads_url)
    if gateway.layout.observations_url:
        checks["observations"] = _bucket(gateway.layout.observations_url)
    buckets = [name for name in ("results", "uploads", "observations") if name in checks]
    for queue in QUEUES:
        checks[queue] = _workers(queue, reports)
    if part == "all":
        needed += [INGEST_QUEUE, GPU_QUEUE, *buckets]
    models = [m.name for m in merge([r for r in reports if r.ready]).models]
    checks["disk"] = _disk(gateway)
    is_ready = all(checks[name].ok for name in needed)
    warnings = list(health.warnings) if health.reachable else []
    # Results can still be read, so a load balancer must not take this gateway out.
    beside = [checks[name] for name in ("disk", *buckets)]
    warnings += [check.detail for check in beside if not check.ok]
    answer = Readiness(ready=is_ready, checks=checks, models=models, warnings=warnings)
    if not is_ready:
        missing = "; ".join(f"{n}: {checks[n].detail}" for n in needed if not checks[n].ok)
        error = Unavailable(f"Not ready. {missing}.")
        error.context = answer.model_dump(mode="json")
        raise error
    return answer


def _redis(gateway: Gateway, health: RedisHealth) -> ReadinessCheck:
    """Check that Redis answers and takes writes: it refuses them when its memory or disk is full."""
    if not health.reachable:
        return ReadinessCheck(ok=False, detail=health.warnings[0])
    try:
        gateway.stores.redis.set(gateway.stores.keys.once("write-check"), "1", ex=60)
    except RedisError as error:
        return ReadinessCheck(ok=False, detail=f"Redis refuses writes: {error}")
    return ReadinessCheck(ok=True)


def _storage(gateway: Gateway) -> ReadinessCheck:
    try:
        with tempfile.TemporaryFile(dir=gateway.layout.tmp) as file:
            file.write(b"\0" * 4096)
        free = free_bytes(gateway.layout.tmp)
    except OSError as error:
        return ReadinessCheck(ok=False, detail=f"the data folder cannot be written: {error}")
    if free < gateway.settings.min_free_bytes:
        return ReadinessCheck(ok=False, detail=f"only {free} bytes are free")
    return ReadinessCheck(ok=True, detail=f"{free} bytes free")


def _bucket(url: str) -> ReadinessCheck:
    problem = open_bucket(url).problem()
    return ReadinessCheck(ok=not problem, detail=problem or url)


def _disk(gateway: Gateway) -> ReadinessCheck:
    try:
        state = disk_state(gateway.layout, gateway.settings)
    except OSError as error:
        return ReadinessCheck(ok=False, detail=f"the data folder cannot be read: {error}")
    return ReadinessCheck(ok=not state.low, detail=state.message)


def _workers(queue: str, reports: list[WorkerReport]) -> ReadinessCheck:
    here = [r for r in reports if queue in r.queues]
    able = [r for r in here if (can_run_models(r) if queue == GPU_QUEUE else r.ready)]
    detail = f"{len(able)} ready, {len(here) - len(able)} starting"
    if not here:  # a process reports only when it has loaded its modules
        detail = "no worker has reported yet; one may still be starting"
    return ReadinessCheck(ok=bool(able), detail=detail)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **problem_responses(),
        200: {"description": "Prometheus text.", "content": {"text/plain": {}}},
    },
)
def metrics(gateway: GatewayDep, _: MetricsReader) -> Response:
    """Return the metrics of this gateway and of the system, for Prometheus."""
    counters, stores = gateway.metrics, gateway.stores
    try:
        counters.work.read()
        for state in JobState:
            counters.records.labels("job", state.value).set(stores.jobs.count(state))
        for batch_state in BatchState:
            count = stores.batches.count(batch_state)
            counters.records.labels("batch", batch_state.value).set(count)
        counters.cycles.set(stores.cycles)
        counters.webhook_messages.set(stores.webhooks.waiting())
        counters.sources.set(stores.sources.read())
        counters.senders.set(stores.batches, gateway.keys.all().values())
    except RedisError:
        counters.sources.set([])
        counters.senders.clear()
        counters.records.clear()
        counters.cycles.count.clear()
    counters.verification.set(gateway.analyses)
    counters.challenger.set(SuiteStore(gateway.layout.suites_file))
    figures = RetentionFigures(stores.redis, stores.keys)
    counters.disk.set(gateway.layout, gateway.settings, figures)
    return Response(counters.render(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
def openapi_document(request: Request, _: AnyCaller) -> JSONResponse:
    """Return the description of this API; of use to anybody who may call any of it."""
    document = request.app.openapi()
    if root := request.scope.get("root_path", ""):
        document = {**document, "servers": [{"url": root}]}
    return JSONResponse(document)


class ProblemDescription(BaseModel):
    """A kind of problem that the gateway reports."""

    code: str = Field(description="Stable identifier.")
    status: int = Field(description="HTTP status.")
    title: str = Field(description="A short summary, always the same.")


@router.get("/problems", responses=problem_responses())
async def list_problems() -> list[ProblemDescription]:
    """Return every kind of problem with its status and title."""
    return [
        ProblemDescription(code=code, status=kind.status, title=kind.title)
        for code, kind in PROBLEMS.items()
    ]


@router.get("/problems/{code}", responses=problem_responses("not_found"))
async def read_problem(
    code: Annotated[str, Path(description="`code` of a problem document.")],
) -> ProblemDescription:
    """Return the status and title of one kind of problem."""
    if code not in PROBLEMS:
        raise NotFound(f"Expected one of {', '.join(PROBLEMS)}; got '{code}'.")
    return ProblemDescription(code=code, status=PROBLEMS[code].status, title=PROBLEMS[code].title)
