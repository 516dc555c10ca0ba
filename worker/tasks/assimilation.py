"""Tasks of the queue `gpu`."""

from typing import Any

import structlog
from celery import Task, shared_task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from worker.attempt import attempt, known_version
from worker.backgrounds.restarts import mark_restart
from worker.jobs.job import JobRecord
from worker.jobs.lease import Lease
from worker.jobs.queues import ANNOUNCE_RESULT, RUN_ASSIMILATION, submit
from worker.pipeline.assimilation import assimilate_window
from worker.pipeline.publication import publish, staging_folder
from worker.progress import ProgressReporter
from worker.runtime import Runtime

__all__ = ["run_assimilation_task"]

log = structlog.get_logger()


@shared_task(name=RUN_ASSIMILATION, bind=True)
def run_assimilation_task(self: "Task[Any, Any]", job_id: str, version: int) -> None:
    """Runs one job on this process's device."""
    runtime: Runtime = self.app.runtime
    store = runtime.stores.jobs
    if not known_version(store, job_id, version):
        return

    def body(job: JobRecord, lease: Lease) -> None:
        times = runtime.settings
        progress = ProgressReporter(
            store, lease, runtime.check_stopping, times.progress_seconds, times.job_limit_seconds
        )
        with staging_folder(job, runtime.layout) as folder:
            manifest = assimilate_window(job, runtime.layout, runtime.models, progress, folder)
            publish(job, store, runtime.layout, folder, progress)
        mark_restart(runtime.layout, manifest)
        store.succeed(job.id, job.token, progress.done())
        announce(runtime, job.analysis_id)

    attempt(runtime, store, job_id, body)


def announce(runtime: Runtime, analysis_id: str) -> None:
    """Sends word of a result; a result that nobody was told of is a result all the same."""
    try:
        submit(runtime.sender, ANNOUNCE_RESULT, analysis_id)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("not announced", id=analysis_id, reason=str(error))
