"""What the tests of faults do again and again: submit, wait, look at what was published."""

from datetime import UTC, datetime

from tests.worker.processes import wait_for
from worker.contract.jobs import JobRecord, JobState, Phase
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.queues import RUN_ASSIMILATION, submit
from worker.contract.records import new_id
from worker.process import message_sender
from worker.results.manifest import read_manifest
from worker.settings import WorkerSettings

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def sender(processes):
    return message_sender(
        WorkerSettings(redis_url=processes.redis_url, redis_prefix=processes.prefix)
    )


def submit_job(
    stores, processes, *, copies: int = 1, spec=None, asked: dict[str, str] | None = None, **values
) -> JobRecord:
    """A new job, with as many messages as asked for; filtering unless `spec` says otherwise.

    `asked`: `request_id` and `trace` of who asked for it.
    """
    job_id = new_id("job")
    values.setdefault("valid_time", NOON)
    job, _ = stores.jobs.create(
        JobRecord(
            id=job_id,
            analysis_id=job_id.replace("job", "an", 1),
            spec=spec or FilteringSpec(**values),
            **(asked or {}),
        )
    )
    with sender(processes) as app:
        for _ in range(copies):
            submit(app, RUN_ASSIMILATION, job.id)
    return job


def wait_state(stores, job_id: str, *states: JobState, seconds: float = 30.0) -> JobRecord:
    wait_for(lambda: stores.jobs.get(job_id).state in states, seconds)
    return stores.jobs.get(job_id)


def wait_phase(stores, job_id: str, phase: Phase) -> None:
    wait_for(lambda: stores.jobs.get(job_id).progress.phase is phase)


def wait_worker(stores, count: int = 1) -> None:
    wait_for(lambda: len(stores.workers.ready("gpu")) >= count)


def published(processes) -> list[str]:
    """Ids of complete results."""
    return sorted(p.parent.name for p in Layout(processes.data).analyses.glob("*/manifest.json"))


def finishes(stores, job_id: str) -> int:
    """How often the job was said to have succeeded."""
    return sum(d.get("state") == "succeeded" for _, _, d in stores.jobs.events(job_id))


def manifest(processes, job: JobRecord):
    return read_manifest(Layout(processes.data), job.analysis_id)
