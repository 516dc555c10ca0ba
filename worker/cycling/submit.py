"""Submit due cycles as jobs and follow them to their end: published, retried, failed, cancelled.

The job is created first, under an idempotency key that is the same for all schedulers, then the record
is updated: if a scheduler dies in between, the next one finds the same job. At hours named in the
policy, a final analysis also starts a forecast, and a cold window to compare it with.
"""

from datetime import UTC, datetime
from typing import Any

import structlog

from model.domain.windows import HOUR
from worker.contract import clock, traces
from worker.contract.cycles import CycleRecord, CycleState, Flavour
from worker.contract.events import EventType
from worker.contract.jobs import COMPARED_WITH, TERMINAL, JobRecord, JobState
from worker.contract.kinds import (
    FilteringSpec,
    ForecastSpec,
    JobSpec,
    ObservationSelection,
)
from worker.contract.measures import Measures
from worker.contract.queues import RUN_ASSIMILATION, TaskSender, submit
from worker.contract.records import new_id
from worker.contract.store import Stores
from worker.cycling.policy import CyclePolicy

__all__ = [
    "count_ended",
    "cycle_facts",
    "cycle_seed",
    "filtering_spec",
    "forecast_spec",
    "queue_as",
    "queue_job",
    "settle",
    "start_comparison",
    "start_forecast",
    "submit_cycle",
    "suite_facts",
    "wants_comparison",
    "wants_forecast",
    "why_failed",
]

log = structlog.get_logger()
_OVER = frozenset(state.value for state in TERMINAL)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cycle_seed(policy: CyclePolicy, valid_time: datetime) -> int:
    """Return the seed of an hour; hours have different seeds, so that the noise does not repeat.

    All revisions of an hour have the same seed: they differ only by their observations.
    """
    hours = (valid_time - _EPOCH) // HOUR
    return (policy.seed + hours) % 2**31


def filtering_spec(policy: CyclePolicy, record: CycleRecord) -> FilteringSpec:
    """Return the filtering job of a cycle.

    The background is the newest analysis before `valid_time`, its newest revision: also for a
    final analysis or a rerun, although the early analysis of the same hour is closer. That one has
    assimilated these observations already: O-B would not be an innovation, and neither checks
    against the background nor statistics of O-B would be independent.
    """
    return FilteringSpec(
        valid_time=record.valid_time,
        window_hours=policy.window_hours,
        members=policy.members,
        model=policy.model,
        steps=policy.steps,
        sampler=policy.sampler,
        guidance=policy.guidance,
        precision=policy.precision,
        seed=cycle_seed(policy, record.valid_time),
        outputs=policy.outputs,
        warm_start=policy.warm_start,
        # a spec counts from the hour before the analysis
        background_max_age_hours=policy.background_max_age_hours - 1,
        observations=ObservationSelection(cut_off=record.cut_off, withhold=policy.withhold),
    )


def cycle_facts(policy: CyclePolicy, record: CycleRecord) -> dict[str, Any]:
    """Return the facts about a cycle that the manifest and the files of its result hold."""
    return {
        "key": record.key,
        "decided": record.decided.isoformat() if record.decided else None,
        "caught_up": record.caught_up,
        "behind_seconds": record.behind_seconds,
        "rerun": record.rerun,
        "attempt": record.attempts + 1,
        "policy": policy.digest,
        **({"remark": record.message} if record.message else {}),
        **suite_facts(policy),
    }


def suite_facts(policy: CyclePolicy) -> dict[str, Any]:
    """Return the suite set in the policy as an entry for jobs; empty without one."""
    return {"suite": policy.suite.facts} if policy.suite else {}


def queue_job(
    stores: Stores,
    sender: TaskSender,
    spec: JobSpec,
    unique_key: str,
    record: CycleRecord,
    facts: dict[str, Any],
) -> JobRecord:
    """Create and enqueue a job under `unique_key`; idempotent. Return the job."""
    return queue_as(
        stores,
        sender,
        spec,
        unique_key,
        flavour=record.flavour.value,
        revision=record.revision,
        cycle=facts,
    )


def queue_as(
    stores: Stores, sender: TaskSender, spec: JobSpec, unique_key: str, **values: Any
) -> JobRecord:
    """Create and enqueue a job under `unique_key`, which also serves as request id in log lines.

    Arguments:
        stores: All records.
        sender: Sends the message.
        spec: Specification of the job.
        unique_key: Idempotency key, the same for all schedulers.
        values: Further fields of the record.
    """
    with traces.start_trace("submit job", **{"appa.request_id": unique_key}):
        job, created = stores.jobs.create(
            JobRecord(
                id=new_id("job"),
                analysis_id=new_id("an"),
                spec=spec,
                request_id=unique_key,
                trace=traces.traceparent(),
                **values,
            ),
            unique_key=unique_key,
        )
        if created or job.state is JobState.QUEUED:  # its first message may have been lost
            submit(sender, RUN_ASSIMILATION, job.id, job.priority)
    return job


def submit_cycle(
    stores: Stores, sender: TaskSender, policy: CyclePolicy, record: CycleRecord
) -> bool:
    """Enqueue the job of a due cycle; return whether this scheduler made the transition."""
    spec, facts = filtering_spec(policy, record), cycle_facts(policy, record)
    job = queue_job(stores, sender, spec, record.unique_key, record, facts)
    moved = stores.cycles.change(
        record, CycleState.SUBMITTED, job_id=job.id, attempts=record.attempts + 1
    )
    if moved:
        with traces.log_ids(job):
            log.info("cycle submitted", cycle=record.key, job=job.id, revision=record.revision)
    return moved


def wants_forecast(policy: CyclePolicy, record: CycleRecord) -> bool:
    """Return whether the analysis of this cycle starts a forecast; reruns do as well."""
    forecast = policy.forecast
    final = record.flavour is Flavour.FINAL
    return forecast is not None and final and record.valid_time.hour in forecast.hours


def forecast_spec(policy: CyclePolicy, record: CycleRecord, analysis_id: str) -> ForecastSpec:
    """Return the forecast job that starts from this analysis."""
    forecast = policy.forecast
    assert forecast is not None  # noqa: S101  # see wants_forecast
    return ForecastSpec(
        valid_time=record.valid_time,
        lead_hours=forecast.lead_hours,
        analysis_id=analysis_id,
        members=forecast.members or policy.members,
        model=policy.model,
        steps=policy.steps,
        sampler=policy.sampler,
        precision=policy.precision,
        seed=cycle_seed(policy, record.valid_time),
        outputs=[name for name in policy.outputs if name != "feedback"] or policy.outputs,
    )


def start_forecast(
    stores: Stores, sender: TaskSender, policy: CyclePolicy, record: CycleRecord, analysis_id: str
) -> JobRecord:
    """Queue the forecast of a cycle; idempotent."""
    spec = forecast_spec(policy, record, analysis_id)
    key = f"cycle:{record.key}:{record.rerun}:forecast"
    facts = cycle_facts(policy, record) | {"attempt": record.attempts}
    return queue_job(stores, sender, spec, key, record, facts)


def wants_comparison(policy: CyclePolicy, record: CycleRecord) -> bool:
    """Return whether a cold window is analysed to compare this cycle with."""
    final = record.flavour is Flavour.FINAL and not record.rerun
    hours = policy.compare.hours if policy.compare is not None and policy.warm_start else []
    return final and record.valid_time.hour in hours


def start_comparison(
    stores: Stores, sender: TaskSender, policy: CyclePolicy, record: CycleRecord, analysis_id: str
) -> JobRecord:
    """Queue the cold window that a published cycle is compared with; idempotent.

    It uses the same observations as the cycle, but no earlier analysis. It has no flavour, so no cycle
    continues it while there are others, and it is not listed as the analysis of the hour.
    """
    spec = filtering_spec(policy, record).model_copy(
        update={"background": "climatology", "warm_start": False, "outputs": ["feedback"]}
    )
    key = f"cycle:{record.key}:{record.rerun}:cold"
    facts = {COMPARED_WITH: analysis_id, **suite_facts(policy)}
    return queue_as(stores, sender, spec, key, cycle=facts)


def settle(
    stores: Stores,
    sender: TaskSender,
    policy: CyclePolicy | None,
    measures: Measures | None = None,
) -> int:
    """Check every submitted cycle once; return how many have ended or are retried.

    A failed cycle does not block others: the next one uses an older background, or none.
    """
    moved = 0
    for record in stores.cycles.in_state(CycleState.SUBMITTED):
        state, _ = stores.jobs.state_and_token(record.job_id)
        changed = False
        if state in _OVER:
            job = stores.jobs.get(record.job_id)
            with traces.log_ids(job):
                changed = _follow(stores, sender, policy, record, job)
        elif not state:
            changed = _failed(stores, policy, record, f"job '{record.job_id}' is gone")
        if changed and measures is not None:
            count_ended(measures, stores.cycles.get(record.id))
        moved += changed
    return moved


def _follow(
    stores: Stores,
    sender: TaskSender,
    policy: CyclePolicy | None,
    record: CycleRecord,
    job: JobRecord,
) -> bool:
    """Update a cycle from its ended job; return whether its state changed."""
    if job.state is JobState.SUCCEEDED:
        return _published(stores, sender, policy, record, job)
    if job.state is JobState.CANCELLED:
        return _end(stores, record, CycleState.CANCELLED, message="its job was cancelled")
    return _failed(stores, policy, record, why_failed(job))


def count_ended(measures: Measures, record: CycleRecord) -> None:
    """Count a cycle that has ended, and how long after its cut-off its analysis was published.

    Reruns have no delay, because they may be requested at any time after the cut-off.
    """
    if not record.done:
        return
    about = (record.flavour.value, str(record.caught_up).lower())
    measures.cycles.labels(*about, record.state.value).inc()
    delay = record.freshness_seconds
    if record.state is CycleState.PUBLISHED and delay is not None and not record.rerun:
        measures.cycle_delay.labels(*about).observe(max(0.0, delay))


def _published(
    stores: Stores,
    sender: TaskSender,
    policy: CyclePolicy | None,
    record: CycleRecord,
    job: JobRecord,
) -> bool:
    values: dict[str, Any] = {"analysis_id": job.analysis_id}
    values["published"] = clock.operational(job.finished) if job.finished else clock.now()
    if policy is not None and wants_forecast(policy, record):
        # before the transition: if this scheduler dies here, the next one finds the same forecast
        forecast = start_forecast(stores, sender, policy, record, job.analysis_id)
        values |= {"forecast_job_id": forecast.id, "forecast_id": forecast.analysis_id}
    if policy is not None and wants_comparison(policy, record):
        cold = start_comparison(stores, sender, policy, record, job.analysis_id)
        values |= {"cold_job_id": cold.id, "cold_id": cold.analysis_id}
    return _end(stores, record, CycleState.PUBLISHED, **values)


def _failed(stores: Stores, policy: CyclePolicy | None, record: CycleRecord, why: str) -> bool:
    retries = policy.retries if policy is not None else 0
    if record.attempts <= retries:
        log.warning("cycle retried", cycle=record.key, job=record.job_id, reason=why)
        message = f"tried again: {why}"
        return stores.cycles.change(record, CycleState.DUE, message=message)
    return _end(stores, record, CycleState.FAILED, message=why)


def why_failed(job: JobRecord) -> str:
    """Return why a job failed, in a line."""
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
