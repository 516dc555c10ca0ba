"""Run the tasks of the queue `gpu`, and report what such a worker can do. Imports torch."""

from datetime import datetime
from functools import partial
from typing import Any

import structlog
import torch
from celery import Task, shared_task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from worker.contract import traces
from worker.contract.jobs import JobRecord
from worker.contract.measures import JobMeter
from worker.contract.queues import ANNOUNCE_RESULT, RUN_ASSIMILATION, WorkerReport, submit
from worker.contract.records import utc_now
from worker.lease import Lease, ProgressReporter
from worker.loaded_models import LoadedModels
from worker.pipeline.assimilation import assimilate_window
from worker.results.outputs.formats import OUTPUTS
from worker.results.publication import publish, staging_folder
from worker.runtime import Runtime
from worker.tasks.attempt import attempt, known_version
from worker.tasks.members import share_members

__all__ = ["describe_models", "run_assimilation_task"]


def describe_models(models: LoadedModels, report: WorkerReport) -> None:
    """Add the models, the device and the output formats of a model worker to its report."""
    name = str(models.device)
    if models.device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(models.device)})"
    report.device = name
    report.capabilities.models = [model.info for model in models.models]
    for entry in OUTPUTS.values():
        entry.load()  # imported now, not while the first result waits
    report.capabilities.formats = {key: entry.description for key, entry in OUTPUTS.items()}


log = structlog.get_logger()


@shared_task(name=RUN_ASSIMILATION, bind=True)
def run_assimilation_task(self: "Task[Any, Any]", job_id: str, version: int) -> None:
    """Run one job on the device of this process."""
    runtime: Runtime = self.app.runtime
    store = runtime.stores.jobs
    if not known_version(store, job_id, version):
        return

    def body(job: JobRecord, lease: Lease) -> None:
        times, meter = runtime.settings, JobMeter(runtime.measures, job.kind)
        progress = ProgressReporter(
            store,
            lease,
            runtime.check_stopping,
            times.progress_seconds,
            times.job_limit_seconds,
            meter,
        )
        with staging_folder(job, runtime.layout) as folder:
            split = partial(share_members, runtime, job, folder, progress)
            assimilate_window(
                job,
                runtime.layout,
                runtime.models,
                progress,
                folder,
                meter=meter,
                splitter=split,
            )
            publish(job, store, runtime.layout, folder, progress)
        store.succeed(job.id, job.token, progress.done())
        runtime.measures.turnaround.labels(job.kind).observe(_seconds_since(job.created))
        announce(runtime, job.analysis_id)

    attempt(self, runtime, store, job_id, body)


def _seconds_since(time: datetime) -> float:
    return max(0.0, (utc_now() - time).total_seconds())


def announce(runtime: Runtime, analysis_id: str) -> None:
    """Send the message that announces a result; the scheduler announces what was missed."""
    try:
        with traces.step("send message"):
            submit(runtime.sender, ANNOUNCE_RESULT, analysis_id)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("not announced", id=analysis_id, reason=str(error))
