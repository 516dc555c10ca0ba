"""Health for supervisors and load balancers, and metrics."""

import tempfile
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from redis.exceptions import RedisError

from service.cycle_metrics import set_cycle_metrics
from service.dependencies import GatewayDep
from service.errors import Unavailable
from service.gateway import Gateway
from service.job_checks import can_run_models
from service.metrics import CONTENT_TYPE
from service.openapi import problems
from service.partfile import free_bytes
from service.schemas import Check, Live, Readiness
from service.version import VERSION
from worker.jobs.batch import BatchState
from worker.jobs.connection import redis_health
from worker.jobs.disk import disk_state
from worker.jobs.job import JobState
from worker.jobs.queues import GPU_QUEUE, INGEST_QUEUE, QUEUES
from worker.jobs.retention_figures import RetentionFigures
from worker.jobs.workers import WorkerReport, merge

router = APIRouter(tags=["system"])


@router.get("/health/live", responses=problems())
async def live() -> Live:
    """The process answers; it asks nothing else of the world."""
    return Live(version=VERSION)


@router.get("/health/ready", responses=problems("not_ready"))
def ready(
    gateway: GatewayDep,
    part: Annotated[
        Literal["all", "gateway"],
        Query(description="`gateway`: uploads can be taken; `all`: jobs can be done too."),
    ] = "all",
) -> Readiness:
    """Redis, storage, workers by queue and the loaded model; 503 names what is missing."""
    health = redis_health(gateway.stores.redis)
    reports = gateway.stores.workers.alive() if health.reachable else []
    checks = {
        "redis": Check(ok=health.reachable, detail="" if health.reachable else health.warnings[0]),
        "storage": _storage(gateway),
    }
    needed = list(checks)
    for queue in QUEUES:
        checks[queue] = _workers(queue, reports)
    needed += [INGEST_QUEUE, GPU_QUEUE] if part == "all" else []
    models = [m.name for m in merge([r for r in reports if r.ready]).models]
    checks["disk"] = _disk(gateway)
    is_ready = all(checks[name].ok for name in needed)
    warnings = list(health.warnings) if health.reachable else []
    # What is published can still be read, so a balancer must not turn this gateway off.
    warnings += [] if checks["disk"].ok else [checks["disk"].detail]
    answer = Readiness(ready=is_ready, checks=checks, models=models, warnings=warnings)
    if not is_ready:
        missing = "; ".join(f"{n}: {checks[n].detail}" for n in needed if not checks[n].ok)
        error = Unavailable(f"Not ready. {missing}.")
        error.context = answer.model_dump(mode="json")
        raise error
    return answer


def _storage(gateway: Gateway) -> Check:
    try:
        with tempfile.TemporaryFile(dir=gateway.layout.tmp) as file:
            file.write(b"\0" * 4096)
        free = free_bytes(gateway.layout.tmp)
    except OSError as error:
        return Check(ok=False, detail=f"the data folder cannot be written: {error}")
    if free < gateway.settings.min_free_bytes:
        return Check(ok=False, detail=f"only {free} bytes are free")
    return Check(ok=True, detail=f"{free} bytes free")


def _disk(gateway: Gateway) -> Check:
    try:
        state = disk_state(gateway.layout, gateway.settings)
    except OSError as error:
        return Check(ok=False, detail=f"the data folder cannot be read: {error}")
    return Check(ok=not state.low, detail=state.message)


def _workers(queue: str, reports: list[WorkerReport]) -> Check:
    here = [r for r in reports if queue in r.queues]
    able = [r for r in here if (can_run_models(r) if queue == GPU_QUEUE else r.ready)]
    detail = f"{len(able)} ready, {len(here) - len(able)} starting"
    return Check(ok=bool(able), detail=detail if here else "no worker reports")


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **problems(),
        200: {"description": "Prometheus text.", "content": {"text/plain": {}}},
    },
)
def metrics(gateway: GatewayDep) -> Response:
    """Counters of this gateway and states of the system, for Prometheus."""
    counters, stores = gateway.metrics, gateway.stores
    try:
        reports = stores.workers.alive()
        for queue in QUEUES:
            count = sum(queue in r.queues and r.ready for r in reports)
            counters.workers.labels(queue).set(count)
        for state in JobState:
            counters.records.labels("job", state.value).set(stores.jobs.count(state))
        for batch_state in BatchState:
            count = stores.batches.count(batch_state)
            counters.records.labels("batch", batch_state.value).set(count)
        set_cycle_metrics(counters, stores.cycles)
        counters.webhook_messages.set(stores.webhooks.waiting())
    except RedisError:
        counters.workers.clear()
        counters.records.clear()
        counters.cycles.clear()
    counters.verification.set(gateway.analyses)
    figures = RetentionFigures(stores.redis, stores.keys)
    counters.disk.set(gateway.layout, gateway.settings, figures)
    return Response(counters.render(), media_type=CONTENT_TYPE)
