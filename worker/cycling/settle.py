"""Following submitted cycles to their end: published, tried again, failed, cancelled."""

from typing import Any

import structlog

from worker.cycling.forecasts import start_forecast, wants_forecast
from worker.jobs import clock
from worker.jobs.cycle import CycleRecord, CycleState
from worker.jobs.cycle_policy import CyclePolicy
from worker.jobs.event_log import EventType
from worker.jobs.job import JobRecord, JobState
from worker.jobs.queues import TaskSender
from worker.jobs.store import Stores

__all__ = ["settle"]

log = structlog.get_logger()


def settle(stores: Stores, sender: TaskSender, policy: CyclePolicy | None) -> int:
    """Looks at every submitted cycle once; returns how many have ended or are tried again.

    A failed cycle holds up nothing: the next one takes an older background, or none.
    """
    moved = 0
    for record in stores.cycles.in_state(CycleState.SUBMITTED):
        state, _ = stores.jobs.state_and_token(record.job_id)
        if state == JobState.SUCCEEDED:
            moved += _published(stores, sender, policy, record)
        elif state == JobState.CANCELLED:
            moved += _end(stores, record, CycleState.CANCELLED, message="its job was cancelled")
        elif state == JobState.FAILED:
            moved += _failed(stores, policy, record, _why(stores.jobs.get(record.job_id)))
        elif not state:
            moved += _failed(stores, policy, record, f"job '{record.job_id}' is gone")
    return moved


def _published(
    stores: Stores, sender: TaskSender, policy: CyclePolicy | None, record: CycleRecord
) -> bool:
    job = stores.jobs.get(record.job_id)
    values: dict[str, Any] = {"analysis_id": job.analysis_id}
    values["published"] = clock.operational(job.finished) if job.finished else clock.now()
    if policy is not None and wants_forecast(policy, record):
        # before the move: should this scheduler die here, the next one finds the same forecast
        forecast = start_forecast(stores, sender, policy, record, job.analysis_id)
        values |= {"forecast_job_id": forecast.id, "forecast_id": forecast.analysis_id}
    return _end(stores, record, CycleState.PUBLISHED, **values)


def _failed(stores: Stores, policy: CyclePolicy | None, record: CycleRecord, why: str) -> bool:
    retries = policy.retries if policy is not None else 0
    if record.attempts <= retries:
        log.warning("cycle tried again", cycle=record.key, job=record.job_id, reason=why)
        message = f"tried again: {why}"
        return stores.cycles.change(record, CycleState.DUE, message=message)
    return _end(stores, record, CycleState.FAILED, message=why)


def _why(job: JobRecord) -> str:
    return f"{job.error.code}: {job.error.message}" if job.error else "its job failed"


def _end(stores: Stores, record: CycleRecord, state: CycleState, **values: Any) -> bool:
    moved = stores.cycles.change(record, state, **values)
    if moved:
        log.info("cycle ended", cycle=record.key, state=state.value, **values)
    if moved and state is CycleState.FAILED:
        about = {"key": record.key, "revision": record.revision, "job_id": record.job_id}
        subject = f"{record.key}:{record.revision}"
        stores.events.emit(EventType.CYCLE_FAILED, subject, {**about, **values})
    return moved
