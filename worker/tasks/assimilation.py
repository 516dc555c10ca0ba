"""Run the tasks of the queue `gpu`, and report what such a worker can do. Imports torch.

A job runs on the worker that claims it. Other model workers may draw some of its members, in parts
(`worker.pipeline.parts`), which the former combines and publishes.
"""

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch
from celery import Task, shared_task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from model.domain.errors import JobCancelled
from worker.contract import traces
from worker.contract.jobs import JobRecord, JobState
from worker.contract.measures import JobMeter
from worker.contract.parts import PartBoard
from worker.contract.queues import (
    ANNOUNCE_RESULT,
    DRAW_MEMBERS,
    MESSAGE_VERSION,
    RUN_ASSIMILATION,
    WorkerReport,
    submit,
)
from worker.contract.record_store import LeaseLost
from worker.contract.records import utc_now
from worker.lease import Lease, ProgressReporter
from worker.loaded_models import LoadedModel, LoadedModels
from worker.pipeline.assimilation import assimilate_window
from worker.pipeline.parts import PartInputs, SharedMembers, cut_members, free_workers, take_parts
from worker.results.outputs.formats import OUTPUTS
from worker.results.publication import publish, staging_folder
from worker.runtime import Runtime
from worker.solver import MemberSplit, Solver
from worker.tasks.attempt import attempt, known_version

__all__ = ["describe_models", "draw_members_task", "run_assimilation_task", "share_members"]

log = structlog.get_logger()

_FOLDER = "parts"


def describe_models(models: LoadedModels, report: WorkerReport) -> None:
    """Add the models, the device and the output formats of a model worker to its report."""
    name = str(models.device)
    if models.device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(models.device)})"
    report.device = name
    report.capabilities.models = [model.info for model in models.models]
    for entry in OUTPUTS.values():
        entry.load()  # import now, not when the first result is written
    report.capabilities.formats = {key: entry.description for key, entry in OUTPUTS.items()}


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
    """Enqueue the announcement of a result; the scheduler announces missed ones."""
    try:
        with traces.step("send message"):
            submit(runtime.sender, ANNOUNCE_RESULT, analysis_id)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("not announced", id=analysis_id, reason=str(error))


# -- members drawn by several workers


def share_members(
    runtime: Runtime,
    job: JobRecord,
    folder: Path,
    progress: ProgressReporter,
    loaded: LoadedModel,
    inputs: PartInputs,
    *,
    minimal_batches: bool,
) -> MemberSplit | None:
    """Distribute the members of a job over idle workers; None if it does not pay off.

    Arguments:
        runtime: Runtime of the worker that holds the job.
        job: The claimed job.
        folder: Its staging folder.
        progress: Progress of the job.
        loaded: The model.
        inputs: Inputs from which members are drawn.
        minimal_batches: Whether an earlier attempt ran out of memory.
    """
    settings, report = runtime.settings, runtime.report
    if runtime.ranks is not None:
        report.ranks = runtime.ranks.count if runtime.ranks.whole else 1
        together: MemberSplit | None = runtime.ranks.split(
            job.spec, folder, progress, loaded, inputs, minimal_batches=minimal_batches
        )
        if together is not None:
            return together
    if not settings.part_members or not inputs.divisible:
        return None
    free = free_workers(runtime.stores.workers.alive(), report, loaded)
    parts = cut_members(job.spec.members, 1 + len(free), settings.part_members)
    if len(parts) == 1:
        return None
    inputs.write(folder / _FOLDER, loaded, minimal_batches=minimal_batches)
    board = runtime.stores.parts.announce(job.id, job.token, parts, report.name, settings.lease)
    log.info("members split", id=job.id, parts=[len(part) for part in parts])
    call = partial(_call, runtime, job, len(parts) - 1)
    return SharedMembers(board, folder / _FOLDER, progress, call)


def _call(runtime: Runtime, job: JobRecord, times: int) -> None:
    try:
        for _ in range(times):
            submit(runtime.sender, DRAW_MEMBERS, job.id, job.priority)
    except (OperationalError, RedisError, OSError) as error:  # this worker then draws all
        log.warning("no help", id=job.id, reason=str(error))


class _PartProgress(ProgressReporter):
    """Report the progress of a part to the worker that holds the job."""

    def _publish(self) -> None:
        if self.shared is not None:
            self.shared(self.progress.step, self.progress.steps)


@shared_task(name=DRAW_MEMBERS, bind=True)
def draw_members_task(self: "Task[Any, Any]", job_id: str, version: int) -> None:
    """Draw parts of the members of a running job until none is left.

    An error ends this task and not the job: the worker that holds the job takes the part again, and
    meets the error itself if the job causes it.
    """
    runtime: Runtime = self.app.runtime
    worker, lifetime = runtime.report.name, runtime.settings.lease
    board = runtime.stores.parts.find(job_id, worker, lifetime)
    job = runtime.stores.jobs.find(job_id)
    if version != MESSAGE_VERSION or board is None or job is None or not _goes_on(job, board):
        log.info("nothing to draw", id=job_id)
        return
    about: dict[str, str | int] = {"appa.kind": job.kind, "appa.attempt": job.attempts}
    try:
        with (
            traces.task_spans(DRAW_MEMBERS, job, **about),
            runtime.busy_with(job_id),
        ):
            _draw(runtime, job, board)
    except (JobCancelled, LeaseLost) as error:
        log.info("help no longer wanted", id=job_id, reason=error.message)
    except Exception as error:
        log.warning("help ended", id=job_id, reason=f"{type(error).__name__}: {error}")


def _goes_on(job: JobRecord, board: PartBoard) -> bool:
    return job.state is JobState.RUNNING and job.token == board.token


def _draw(runtime: Runtime, job: JobRecord, board: PartBoard) -> None:
    times = runtime.settings
    lease = Lease(runtime.stores.jobs, job.id, board.token, times.lease)  # only checked
    progress = _PartProgress(
        runtime.stores.jobs,
        lease,
        runtime.check_stopping,
        times.progress_seconds,
        times.job_limit_seconds,
    )
    loaded = runtime.models.get(job.spec.model).at(job.spec.precision)
    folder = runtime.layout.staging(job.analysis_id, board.token) / _FOLDER
    inputs, about = PartInputs.read(folder, job.spec, loaded)
    solver = Solver(
        loaded.model, job.spec, progress, minimal_batches=bool(about["minimal_batches"])
    )
    draw = solver.draw(inputs.plan, inputs.observations, inputs.background)
    take_parts(board, draw, folder, progress)
    log.info("members drawn", id=job.id)
