"""Draw members of a job that another model worker holds, and have others draw those of our own."""

from functools import partial
from pathlib import Path
from typing import Any

import structlog
from celery import Task, shared_task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from model.domain.errors import JobCancelled
from worker.contract import traces
from worker.contract.jobs import JobRecord, JobState
from worker.contract.parts import PartBoard
from worker.contract.queues import DRAW_MEMBERS, MESSAGE_VERSION, submit
from worker.contract.record_store import LeaseLost
from worker.lease import Lease, ProgressReporter
from worker.loaded_models import LoadedModel
from worker.pipeline.parts import PartInputs, SharedMembers, cut_members, free_workers, take_parts
from worker.runtime import Runtime
from worker.solver import Solver, Split

__all__ = ["draw_members_task", "share_members"]

log = structlog.get_logger()

_FOLDER = "parts"


def share_members(
    runtime: Runtime,
    job: JobRecord,
    folder: Path,
    progress: ProgressReporter,
    loaded: LoadedModel,
    inputs: PartInputs,
    *,
    minimal_batches: bool,
) -> Split | None:
    """Split the members of a job over the workers that are free; None if it is not worth while.

    Arguments:
        runtime: Of the worker that holds the job.
        job: As it was claimed.
        folder: Its staging folder.
        progress: Of the job.
        loaded: The model.
        inputs: What members are drawn from.
        minimal_batches: Whether an attempt before ran out of memory.
    """
    settings, report = runtime.settings, runtime.report
    if runtime.ranks is not None:
        report.ranks = runtime.ranks.count if runtime.ranks.whole else 1
        together: Split | None = runtime.ranks.split(
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
    except (OperationalError, RedisError, OSError) as error:  # then we draw all of them
        log.warning("no help", id=job.id, reason=str(error))


class _PartProgress(ProgressReporter):
    """Tells the worker that holds the job how far a part is."""

    def _publish(self) -> None:
        if self.shared is not None:
            self.shared(self.progress.step, self.progress.steps)


@shared_task(name=DRAW_MEMBERS, bind=True)
def draw_members_task(self: "Task[Any, Any]", job_id: str, version: int) -> None:
    """Draw parts of the members of a running job until none is left.

    An error ends the help and not the job: the worker that holds it takes the part again, and meets
    the error itself if it is one of the job.
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
            traces.work(DRAW_MEMBERS, job, **about),
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
    lease = Lease(runtime.stores.jobs, job.id, board.token, times.lease)  # not entered: only asked
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
