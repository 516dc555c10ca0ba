"""From a due cycle to a job in the queue.

First the job, under a key that all schedulers make alike, then the record: whoever dies in
between, the next one finds the same job.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from worker.jobs.cycle import CycleRecord, CycleState
from worker.jobs.cycle_policy import CyclePolicy
from worker.jobs.ids import new_id
from worker.jobs.job import JobRecord, JobState
from worker.jobs.kinds import FilteringSpec, JobSpec, ObservationSelection
from worker.jobs.queues import RUN_ASSIMILATION, TaskSender, submit
from worker.jobs.store import Stores

__all__ = ["cycle_facts", "cycle_seed", "filtering_spec", "queue_job", "submit_cycle"]

log = structlog.get_logger()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cycle_seed(policy: CyclePolicy, valid_time: datetime) -> int:
    """Another seed each hour, so that members do not repeat their noise; the same for all
    revisions of an hour, so that these differ by their observations alone."""
    hours = (valid_time - _EPOCH) // timedelta(hours=1)
    return (policy.seed + hours) % 2**31


def filtering_spec(policy: CyclePolicy, record: CycleRecord) -> FilteringSpec:
    """What a cycle asks of the workers.

    The background is the newest analysis before `valid_time`, its newest revision: also for a
    final analysis or a rerun, whose early analysis of the same hour has seen these observations
    already. From that one, O-B would be no innovation, and the checks against the background and
    the statistics made of O-B would confirm themselves.
    """
    return FilteringSpec(
        valid_time=record.valid_time,
        window_hours=policy.window_hours,
        members=policy.members,
        model=policy.model,
        steps=policy.steps,
        seed=cycle_seed(policy, record.valid_time),
        outputs=policy.outputs,
        warm_start=policy.warm_start,
        # a spec counts from the hour before the analysis
        background_max_age_hours=policy.background_max_age_hours - 1,
        observations=ObservationSelection(cut_off=record.cut_off, withhold=policy.withhold),
    )


def cycle_facts(policy: CyclePolicy, record: CycleRecord) -> dict[str, Any]:
    """What the manifest and the files say about the cycle."""
    return {
        "key": record.key,
        "decided": record.decided.isoformat() if record.decided else None,
        "caught_up": record.caught_up,
        "behind_seconds": record.behind_seconds,
        "rerun": record.rerun,
        "attempt": record.attempts + 1,
        "policy": policy.digest,
        **({"remark": record.message} if record.message else {}),
    }


def queue_job(
    stores: Stores,
    sender: TaskSender,
    spec: JobSpec,
    unique_key: str,
    record: CycleRecord,
    facts: dict[str, Any],
) -> JobRecord:
    """The job under `unique_key`: created now, or before by this or another scheduler."""
    job, created = stores.jobs.create(
        JobRecord(
            id=new_id("job"),
            analysis_id=new_id("an"),
            spec=spec,
            flavour=record.flavour.value,
            revision=record.revision,
            cycle=facts,
        ),
        unique_key=unique_key,
    )
    if created or job.state is JobState.QUEUED:  # its first message may have been lost
        submit(sender, RUN_ASSIMILATION, job.id, job.spec.priority)
    return job


def submit_cycle(
    stores: Stores, sender: TaskSender, policy: CyclePolicy, record: CycleRecord
) -> bool:
    """Queues the job of a due cycle; returns whether this scheduler made the move."""
    spec, facts = filtering_spec(policy, record), cycle_facts(policy, record)
    job = queue_job(stores, sender, spec, record.unique_key, record, facts)
    moved = stores.cycles.change(
        record, CycleState.SUBMITTED, job_id=job.id, attempts=record.attempts + 1
    )
    if moved:
        log.info("cycle submitted", cycle=record.key, job=job.id, revision=record.revision)
    return moved
