"""From a checked specification to a queued job."""

import structlog

from service.dependencies import check_queue_quota
from service.gateway import Gateway
from service.job_checks import AnySpec, check_job
from service.keys import ApiKey
from worker.jobs.batch_store import IdempotencyConflict
from worker.jobs.disk import require_space
from worker.jobs.ids import new_id
from worker.jobs.job import JobRecord, JobState
from worker.jobs.queues import RUN_ASSIMILATION, submit

log = structlog.get_logger()


def submit_job(
    gateway: Gateway, key: ApiKey, spec: AnySpec, idempotency_key: str, request_id: str
) -> tuple[JobRecord, bool]:
    """Stores a job and sends its message; the same key of a caller gives the same job.

    Returns:
        The job, and whether it is new.

    Raises:
        QueueQuota: The caller has too many unfinished jobs.
        DiskLow: The disk is below its watermark.
        IdempotencyConflict: The key came before with another specification.
        AppaError: What `check_job` raises.
    """
    check_queue_quota(gateway, key)
    require_space(gateway.layout, gateway.settings)
    check_job(gateway, spec)
    record = JobRecord(
        id=new_id("job"),
        analysis_id=new_id("an"),
        spec=spec,
        api_key=key.id,
        request_id=request_id,
    )
    unique = f"{key.id}:{idempotency_key}" if idempotency_key else ""
    job, created = gateway.stores.jobs.create(record, unique_key=unique)
    if job.spec != spec:
        raise IdempotencyConflict(
            f"Expected the same job under Idempotency-Key '{idempotency_key}' as before "
            f"('{job.id}'); got another specification.",
            field="Idempotency-Key",
        )
    if job.state is JobState.QUEUED:  # again for a repeated key: its message may be lost
        submit(gateway.sender, RUN_ASSIMILATION, job.id, job.spec.priority)
    if created:
        gateway.metrics.jobs.labels(spec.kind).inc()
        log.info("job_queued", job_id=job.id, kind=spec.kind)
    return gateway.stores.jobs.read(job.id), created
